"""Runs the commands of docs/results.md, and keeps what each printed.

    python benchmarks/evidence.py --root ../shared/data --backbone DIR --out runs/evidence

The page is the list: a block of commands is run from the repository's root with the variables ROOT,
BACKBONE and OUT, its standard output goes to OUT/<section>-<number>.md under the commands
themselves. A block that has been run is not run again unless its text has changed or --again says
so; then the states of a frozen backbone are still on disk. Blocks of what is not here are left out,
and said so.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
NEEDS = ("ROOT", "BACKBONE")


@dataclass(frozen=True)
class Block:
    """Commands of the page.

    Attributes:
        name: the section's, in lower case with hyphens, and the number of the block in it.
        text: the commands.
    """

    name: str
    text: str

    @property
    def needs(self) -> list[str]:
        """The variables, beside OUT, that it reads."""
        return [name for name in NEEDS if f"${name}" in self.text]


def blocks(page: str) -> Iterator[Block]:
    """All blocks of shell commands, in the order of the page."""
    for section in re.split(r"^## ", page, flags=re.M)[1:]:
        title, _, text = section.partition("\n")
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower().replace("'", "")).strip("-")
        for number, found in enumerate(re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S), 1):
            yield Block(f"{slug}-{number}", found)


def run(block: Block, out: Path, variables: dict[str, str]) -> bool:
    """Runs a block and keeps what it prints; False where a command of it failed."""
    environment = {**os.environ, **variables, "OUT": str(out.resolve())}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    start = time.perf_counter()
    found = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        stdout=subprocess.PIPE, text=True, env=environment, cwd=PAGE.parent.parent,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if found.returncode:
        print(f"{block.name}: status {found.returncode}\n{found.stdout}", file=sys.stderr)
        return False
    file = out / f"{block.name}.md"
    partial = file.with_suffix(".partial")
    partial.write_text(f"{heading(block)}\n{found.stdout}\n{seconds:.0f} s\n")
    partial.replace(file)
    print(f"{block.name}: {seconds:.0f} s, {file}")
    return True


def heading(block: Block) -> str:
    """What the file of a block begins with."""
    return f"```sh\n{block.text}```\n"


def main() -> None:
    """Runs what has not been run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="the folder of the data that docs/data.md names")
    parser.add_argument("--backbone", help="a folder with pretrained weights")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument(
        "--only", nargs="*", default=[], help="blocks whose name holds one of these"
    )
    parser.add_argument("--again", action="store_true", help="also what has been run")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    options = parser.parse_args()
    given = {"ROOT": options.root, "BACKBONE": options.backbone}
    variables = {name: str(Path(value).resolve()) for name, value in given.items() if value}
    for value in variables.values():
        if not Path(value).is_dir():
            parser.error(f"{value} is no folder")
    found = list(blocks(PAGE.read_text()))
    if options.only:
        found = [block for block in found if any(word in block.name for word in options.only)]
        if not found:
            parser.error(f"no block's name holds any of {', '.join(options.only)}: see --list")
    if options.list:
        print("\n".join(f"# {block.name}\n{block.text}" for block in found))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for block in found:
        file = options.out / f"{block.name}.md"
        missing = [name for name in block.needs if name not in variables]
        if missing:
            wanted = " and ".join(f"--{name.lower()}" for name in missing)
            print(f"{block.name}: left out, it needs {wanted}")
        elif not options.again and file.is_file() and file.read_text().startswith(heading(block)):
            print(f"{block.name}: there already, {file}")
        elif not run(block, options.out, variables):
            failed.append(block.name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
