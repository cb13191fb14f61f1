"""The ``dreamprm`` command. Exit status: 0 done, 1 failed, 2 the user's input is wrong.

128 + n where signal n ended it: 130 Ctrl-C, 143 SIGTERM, 129 a terminal that was closed; 141 where
whoever reads its output has ended, as ``head`` does.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from select import POLLERR, poll
from typing import Any

from dreamprm.commands import (
    annotate,
    convert,
    doctor,
    evaluate,
    hypergradients,
    report,
    score,
    select,
    train,
    validate,
)
from dreamprm.config.plugins import load_plugins
from dreamprm.errors import UserError

PIPE_CLOSED = 128 + 13  # what a shell says of a command that SIGPIPE ended
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_python_showwarning = warnings.showwarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes key=value only in one piece; after an option, they are left over.
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("dreamprm").setLevel(logging.INFO)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        load_plugins(options.plugin)
        options.run(options)
        sys.stdout.flush()  # what cannot be written is found here, and not when Python ends
    except UserError as error:
        print(f"dreamprm: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"dreamprm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        lost = options.run is score.run and options.out is None
        hint = "; --resume continues" if hasattr(options, "resume") and not lost else ""
        with suppress(OSError):  # the terminal may be gone
            print(f"dreamprm: interrupted{hint}", file=sys.stderr)
        number = next(iter(error.args), None)
        return 128 + (number if isinstance(number, int) else signal.SIGINT)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _unread():
            return PIPE_CLOSED
        if error.errno not in FULL:
            raise
        at = f"cannot write {error.filename or 'to standard output'}"
        _drop_output()
        print(f"dreamprm: {at}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _unread() -> bool:
    """Whether nobody reads standard output or standard error any longer, as after ``| head``."""
    pipes = poll()
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "fileno")]
    for stream in streams:
        pipes.register(stream.fileno(), 0)
    closed = any(event & POLLERR for _, event in pipes.poll(0))
    if closed:
        _drop_output()
    return closed


def _drop_output() -> None:
    """Sends what is left in the buffer of standard output nowhere: Python would complain of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    """This project's warnings are for the user and need no file and line; others keep theirs."""
    if category.__module__.startswith("dreamprm"):
        logging.getLogger("dreamprm").warning("%s", message)
    else:
        _python_showwarning(message, category, *where)  # type: ignore[arg-type]


class _ExactParser(argparse.ArgumentParser):
    """Takes no abbreviated options: --overwrit would overwrite."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords, allow_abbrev=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamprm", description="Domain-reweighted process reward models, and kin."
    )
    parser.add_argument("--version", action="version", version=f"dreamprm {version('dreamprm')}")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE|MODULE",
        help="import it first, for the formats, readouts, … that it adds; configs have plugins=",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_ExactParser)
    for module in (
        train,
        convert,
        validate,
        annotate,
        score,
        select,
        evaluate,
        report,
        hypergradients,
        doctor,
    ):
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
