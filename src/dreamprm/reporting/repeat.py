"""The section on how to make the run again: commands, versions, the whole config."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from dreamprm.reporting.run import Run


@dataclass(frozen=True)
class RepeatSection:
    """What it takes to repeat a run."""

    commands: list[str]
    versions: list[tuple[str, str]]
    config: str
    notes: list[str]


def repeat_section(run: Run) -> RepeatSection:
    """Commands where the run has a config; else what the user's own code has to know."""
    if not run.config:
        note = "This run was made by its own code, without a config file."
        return RepeatSection([], [], "", [note])
    versions = [(k, str(v)) for k, v in (run.summary.get("versions") or {}).items()]
    again = f"{str(run.folder).rstrip('/')}-again"
    config = shlex.quote(str(run.folder / "config.yaml"))
    commands = [
        *_installs(versions),
        f"dreamprm train {config} --out {shlex.quote(again)}",
        f"dreamprm report {shlex.quote(str(run.folder))} {shlex.quote(again)}",
    ]
    notes = [f"Every random draw follows from the seed, {run.config.get('seed')}."]
    data = run.config.get("data")
    if isinstance(data, dict) and data.get("train"):
        notes.append("Paths of data in the config are relative to the directory of the command.")
    if not versions:
        notes.append("This run did not record its versions; constraints.txt has the tested ones.")
    return RepeatSection(commands, versions, run.config_text, notes)


def _installs(versions: list[tuple[str, str]]) -> list[str]:
    """betty first and on its own, as README.md says; a local part such as +cpu is not on PyPI."""
    pins = {name: f"{name}=={version.split('+')[0]}" for name, version in versions}
    betty = pins.pop("betty-ml", None)
    first = (
        ["pip install --no-deps --ignore-requires-python " + shlex.quote(betty)] if betty else []
    )
    rest = [shlex.quote(pin) for name, pin in pins.items() if name not in ("python", "dreamprm")]
    return first + ([f"pip install {' '.join(rest)}"] if rest else [])
