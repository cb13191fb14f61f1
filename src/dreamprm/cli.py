"""The ``dreamprm`` command. Exit status: 0 done, 1 failed, 2 the user's input is wrong."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from dreamprm.errors import UserError

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
        options.run(options)
    except UserError as error:
        print(f"dreamprm: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"dreamprm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        lost = options.run is _score and options.out is None
        hint = "; --resume continues" if hasattr(options, "resume") and not lost else ""
        print(f"dreamprm: interrupted{hint}", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    """This project's warnings are for the user and need no file and line; others keep theirs."""
    if category.__module__.startswith("dreamprm"):
        logging.getLogger("dreamprm").warning("%s", message)
    else:
        _python_showwarning(message, category, *where)  # type: ignore[arg-type]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamprm", description="Domain-reweighted process reward models, and kin."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="train on built-in domains of known quality and print what was learned"
    )
    demo.set_defaults(run=_train, config="demo")
    train = commands.add_parser("train", help="train a reward model and its domain weights")
    train.add_argument("config", metavar="CONFIG", help="a path, or the name of a shipped config")
    train.set_defaults(run=_train)
    for command in (demo, train):
        command.add_argument("overrides", nargs="*", metavar="key=value", help="config values")
        command.add_argument("--out", metavar="DIR", help="the run directory; the same as out=DIR")
        existing = command.add_mutually_exclusive_group()
        existing.add_argument(
            "--resume", action="store_true", help="continue the run that is there, if any"
        )
        existing.add_argument(
            "--overwrite", action="store_true", help="replace the run that is there"
        )

    score = commands.add_parser("score", help="score every step of solutions in a file")
    score.add_argument("model", metavar="MODEL", help="a folder written by train, or its model/")
    score.add_argument("data", metavar="DATA", help="trajectories")
    score.add_argument("--format", default="canonical", help="of DATA (default: canonical)")
    score.add_argument("--images", default="require", help="require, skip_missing or ignore")
    score.add_argument(
        "--max-tokens", type=int, default=8192, help="per batch, with padding (default: 8192)"
    )
    score.add_argument("--out", metavar="FILE", help="JSON Lines (default: standard output)")
    existing = score.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="continue a scoring that was interrupted, if any"
    )
    existing.add_argument("--overwrite", action="store_true", help="replace what is in FILE")
    score.set_defaults(run=_score)

    methods = commands.add_parser(
        "hypergradients",
        help="list the hypergradient methods and measure how faithful and costly each one is",
    )
    methods.add_argument(
        "overrides",
        nargs="*",
        metavar="METHOD|key=value",
        help="names or solver+product (default: all names), and options for those that have them",
    )
    methods.add_argument("--list", action="store_true", help="list them only, do not measure")
    methods.add_argument("--json", action="store_true", help="print JSON instead of tables")
    methods.set_defaults(run=_hypergradients)
    return parser


# torch and transformers take seconds to import: only when a command runs.


def _train(options: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from dreamprm.config import load_config
    from dreamprm.engines.prm import train
    from dreamprm.inference.tables import summary_table

    overrides = list(options.overrides)
    if options.out is not None:
        overrides.append(f"out={options.out}")
    config = load_config(options.config, overrides)
    disable_progress_bar()  # of every save; the run has its own
    summary = train(config, resume=options.resume, overwrite=options.overwrite)
    print(summary_table(summary))
    print(f"\nThe run is in {config.out}; look at it with: tensorboard --logdir {config.out}")


def _score(options: argparse.Namespace) -> None:
    from dreamprm.inference.scoring import score_file

    score_file(
        options.model,
        options.data,
        options.out,
        format=options.format,
        images=options.images,
        max_tokens=options.max_tokens,
        resume=options.resume,
        overwrite=options.overwrite,
    )


def _hypergradients(options: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from dreamprm.config import read_options
    from dreamprm.hypergradients import METHODS
    from dreamprm.hypergradients.catalogue import describe
    from dreamprm.inference.tables import method_tables

    logging.getLogger("dreamprm").setLevel(logging.WARNING)  # the tables say what was chosen
    names = [word for word in options.overrides if "=" not in word] or list(METHODS)
    values = read_options([word for word in options.overrides if "=" in word])
    rows = describe(names, values)
    if not options.list:
        from dreamprm.engines.comparison import measure

        measure(rows, progress="hypergradients")
    dicts = [asdict(row) for row in rows]
    print(json.dumps(dicts, indent=2) if options.json else method_tables(dicts))


if __name__ == "__main__":
    sys.exit(main())
