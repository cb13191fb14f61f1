"""From runs to one HTML file: the template, in which everything is escaped, and writing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dreamprm.errors import UserError
from dreamprm.evaluation.reading import read_evaluation
from dreamprm.reporting.comparison import compare, labels_of
from dreamprm.reporting.content import Number
from dreamprm.reporting.judgement import evaluation_section
from dreamprm.reporting.outcome import outcome_section
from dreamprm.reporting.repeat import repeat_section
from dreamprm.reporting.run import Run, read_run
from dreamprm.reporting.text import printable, shortened
from dreamprm.reporting.training import training_section, weights_section
from dreamprm.run_directory.names import REPORT_FILE
from dreamprm.words import capital, plural
from dreamprm.writing import write_whole, writing

COMPARISON_FILE = "comparison.html"
CELL_LENGTH = 120  # of a text in a table
_MARK = '<meta name="generator" content="dreamprm report">'


def write_report(
    run: str | Path, out: str | Path | None = None, evaluation: str | Path | None = None
) -> Path:
    """Writes the report of one run, whole or not at all.

    Args:
        run: its directory.
        out: the file; None for ``report.html`` in the run directory.
        evaluation: a file of ``dreamprm evaluate``; None for the run's own ``evaluation.json``, if
            there is one.

    Returns:
        the file.

    Raises:
        UserError: there is no run, a file of it is wrong, or ``out`` is some other file.
    """
    found = read_run(run, evaluation)
    path = Path(out) if out is not None else found.folder / REPORT_FILE
    _write(path, render_report(found))
    return path


def write_comparison(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    evaluation: str | Path | None = None,
) -> Path:
    """Writes a page that has runs beside each other, whole or not at all; see ``write_report``.

    Where ``out`` is None, that is ``comparison.html`` beside the first run's folder.
    """
    found = [read_run(run) for run in runs]
    file = read_evaluation(Path(evaluation)) if evaluation is not None else None
    comparison = compare(found, file)
    page = _environment().get_template("comparison.html")
    path = Path(out) if out is not None else _beside(found[0].folder) / COMPARISON_FILE
    _write(path, page.render(labels=labels_of(found), runs=found, comparison=comparison))
    return path


def _beside(folder: Path) -> Path:
    """The folder that a folder is in; ``.`` and ``..`` do not say which."""
    return folder.parent if folder.name not in ("", "..") else folder.resolve().parent


def render_report(run: Run) -> str:
    """The page of one run; the same bytes for the same run."""
    page = _environment().get_template("report.html")
    examples = run.examples or []
    return page.render(
        run=run,
        outcome=outcome_section(run),
        weights=weights_section(run),
        training=training_section(run),
        evaluation=evaluation_section(run.evaluation) if run.evaluation else None,
        right=[example for example in examples if example.best.correct],
        wrong=[example for example in examples if not example.best.correct],
        repeat=repeat_section(run),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dreamprm.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["a_number"] = lambda value: isinstance(value, Number)
    environment.globals["mark"] = Markup(_MARK)
    environment.filters["short"] = lambda text: shortened(text, CELL_LENGTH)
    environment.filters["capital"], environment.filters["plural"] = capital, plural
    environment.filters["thousands"] = lambda n: f"{n:,}" if isinstance(n, int) else n
    # Ten bins, so that a score's colour needs no computation in the page.
    environment.filters["bin"] = lambda score: min(9, max(0, int(score * 10)))
    return environment


def _clean(value: Any) -> Any:
    if isinstance(value, Markup):
        return Markup(printable(value))
    return printable(value) if isinstance(value, str) else value


def _write(path: Path, page: str) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file for the report")
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise UserError(f"{path} is there and is no report: choose another file by --out")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [page])
