# make demo   trains on the built-in domains and prints what was learned
# make test   runs the tests
# make mutants [MUTANTS="--only solvers.py --jobs 4"]   says which faults the tests do not notice
# make evidence EVIDENCE="--root ../shared/data --backbone DIR"   runs the commands of docs/results.md
# All set up their own virtual environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
BETTY := $(shell sed -n 's/^betty-ml==//p' constraints.txt)

.PHONY: setup demo test mutants evidence lint wheel clean

setup: $(VENV)/.ready

# Without a GPU, torch's CPU build: the default one on Linux brings gigabytes of CUDA. pip takes it
# where it is told of an index that has it; uv knows where torch keeps it.
# betty-ml 0.2.1 says that it needs Python < 3.11 and pip would fall back to an older one.
$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null 2>&1; then \
		$(PIP) install --quiet torch==$(TORCH); \
	else \
		$(PIP) install --quiet torch==$(TORCH)+cpu 2>/dev/null \
		|| { $(PIP) install --quiet uv \
			&& $(BIN)/uv pip install --python $(BIN)/python --torch-backend=cpu torch==$(TORCH); }; \
	fi
	$(PIP) install --quiet --no-deps --ignore-requires-python betty-ml==$(BETTY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/dreamprm demo --overwrite

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

mutants: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(MUTANTS)

evidence: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/evidence.py $(EVIDENCE)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: setup
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
