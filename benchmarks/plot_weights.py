"""The learned weights of a run over its training, as the picture of the README.

python benchmarks/plot_weights.py runs/demo docs/weights.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from dreamprm.run_directory.metrics import read_metrics

COLOURS = {
    "clean": "tab:blue",
    "easy": "tab:cyan",
    "noisy": "tab:olive",
    "random": "tab:orange",
    "wrong_images": "tab:pink",
    "inverted": "tab:red",
}


def main(run: Path, out: Path) -> None:
    """Reads the run's numbers and writes the picture."""
    qualities = json.loads((run / "summary.json").read_text())["qualities"]
    rows = [row for row in read_metrics(run) if any(key.startswith("weights/") for key in row)]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [0, *(row["step"] for row in rows)]
    for name, quality in qualities.items():
        values = [1.0, *(row[f"weights/{name}"] for row in rows)]
        twin = list(qualities.values())[: list(qualities).index(name)].count(quality)
        axes.plot(steps, values, "--" if twin else "-", color=COLOURS[quality], label=name)
    axes.axhline(1.0, color="grey", linewidth=0.6)
    axes.set_xlabel("lower-level step")
    axes.set_ylabel("domain weight (mean 1)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
