"""The shipped configs of published methods: their names, and that they do what they say."""

from __future__ import annotations

import subprocess
import sys

from dreamprm.config.reading import shipped_configs, shipped_runs


def test_the_shipped_configs_are_listed_without_torch() -> None:
    program = (
        "import sys; from dreamprm.cli import main\n"
        "try: main(['train', '--list'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "False\n")
    lines = dict(line.split(maxsplit=1) for line in found.stdout.splitlines())
    assert lines == shipped_runs()
    assert set(shipped_configs()) - set(lines) == {"annotate"}  # of another command
    for line in lines.values():
        assert line[0].isupper()
        assert line.endswith(".")
