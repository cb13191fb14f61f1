"""Digits with unreliable annotators: learned weights against none, over seeds.

python benchmarks/noisy_labels.py --seeds 5 hypergradient=cg weighting=instance_table
"""

from __future__ import annotations

import argparse
import tempfile

from dreamprm import load_config, train
from dreamprm.tables import table


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            given = [*options.overrides, f"seed={seed}", f"out={folder}/run"]
            config = load_config("noisy_labels", given)
            summary = train(config)
        numbers = [summary["runs"][name]["accuracy"] for name in ("uniform", config.weighting)]
        values = list(summary["weights"].values())
        split = config.annotators - config.unreliable
        ends = [min(values[:split]), max(values[split:])] if values else []
        rows.append([str(seed), *(f"{n:.3f}" for n in numbers), *(f"{w:.2f}" for w in ends)])
    header = ["seed", "unweighted", "learned", "lowest reliable", "highest unreliable"]
    print(table(header[: len(rows[0])], rows))


if __name__ == "__main__":
    main()
