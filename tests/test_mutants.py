"""The tool that asks what the tests are worth, on a package of one function."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import Fault, TableError, read_faults

TABLE = """\
# Of one function.
@ src/dreamprm/__init__.py: test_half

-    return x / 2
+    return x // 2

-    return x / 2
+    return -x / 2
? test_half

-    x = float(x)

 def half(x):
-    x = float(x)
+    x = float(x) + 0
= nothing is added
"""


def repository(folder: Path) -> Path:
    files = {
        "setup.cfg": "[options]\npackage_dir =\n    dreamprm = src/dreamprm\n",
        "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n',
        "src/dreamprm/__init__.py": "def half(x):\n    x = float(x)\n    return x / 2\n",
        "tests/__init__.py": "",
        "tests/test_half.py": "from dreamprm import half\n\n\n"
        "def test_half():\n    assert half(4) == 2\n",
        "tests/faults/half.diff": TABLE,
        "benchmarks/none.py": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(Path(__file__).with_name("mutants.py"), folder / "tests")
    return folder


def test_what_is_noticed_and_what_is_not(tmp_path: Path) -> None:
    root = repository(tmp_path)
    program = "import sys, mutants; mutants.PRELOAD = (); sys.exit(mutants.main())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root / "tests", capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    *_, last = done.stdout.splitlines()
    assert last == "1 killed, 2 survived, 1 equivalent: 33.3 % killed"
    assert (
        "survived: src/dreamprm/__init__.py\n    - return x / 2\n    + return x // 2" in done.stdout
    )
    assert "    = nothing is added" in done.stdout
    rows = [json.loads(line) for line in (root / "build" / "mutants.jsonl").open()]
    assert [row["result"] for row in rows] == ["survived", "killed", "survived"]
    assert rows[1]["by"] == "tests/test_half.py::test_half"
    assert (root / "src/dreamprm/__init__.py").read_text().count("x / 2") == 1


def test_a_table_that_does_not_go_with_the_sources_is_refused(tmp_path: Path) -> None:
    path = repository(tmp_path) / "tests/faults/half.diff"
    first, second, third, equivalent = read_faults(path)
    assert first == Fault(
        "src/dreamprm/__init__.py",
        "    return x / 2\n",
        "    return x // 2\n",
        ("tests/test_half.py",),
    )
    assert (third.new, equivalent.equivalent) == ("", "nothing is added")
    assert second.applied("a\n    return x / 2\nb\n") == "a\n    return -x / 2\nb\n"
    for source in ("", "    return x / 2\n" * 2, "a    return x / 2\n"):
        with pytest.raises(TableError, match=r"out of date, found \d times, expected once: src/"):
            first.applied(source)
    for wrong in ("-a\n+a\n", "-a\n+b\n\n@ x.py:", "@ x.py: t\n\n*a\n"):
        path.write_text(wrong)
        with pytest.raises(TableError, match=r"half\.diff: "):
            list(read_faults(path))
