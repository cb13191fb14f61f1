"""What a validation of the demo looks at beside the meta set, in processor seconds.

python benchmarks/observing.py [key=value …]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dreamprm.data.sources import load_data
from dreamprm.data.trajectory import Trajectory
from dreamprm.run_directory.metrics import MetricsLog
from dreamprm.tasks.modules import load_config
from dreamprm.tasks.prm.observing import build_observer
from dreamprm.tasks.prm.task import build_engine

REPEATS = 3
OFF = {"questions": 0, "solutions": 0, "samples": 0}


def _any(row: Trajectory) -> bool:
    return True


def main(overrides: list[str], folder: Path) -> None:
    """Prints a line for nothing beside the meta set, for each part, for all, and for training."""
    config = load_config("demo", [*overrides, f"out={folder}"])
    data = load_data(config.data, folder, config.seed)
    engine = build_engine(config, data, folder)
    model, log = engine.lower.module, MetricsLog(folder / "looked")
    parts = {"nothing": OFF, "all": {}} | {
        name: {n: 0 for n in OFF if n != name} for name in OFF
    }  # fmt: skip
    for name, changes in parts.items():
        observed = replace(config.observe, **changes)
        observer = build_observer(observed, data.train, engine.observer.meta, data.test, _any)
        observer.look(model)
        start = time.process_time()
        for step in range(REPEATS):
            observer.look(model)
            for title, figure in observer.figures().items():
                log.figure(step, title, figure)
            for title, values in observer.histograms.items():
                log.histogram(step, title, values)
        seconds = (time.process_time() - start) / REPEATS
        print(json.dumps({"observed": name, "seconds": round(seconds, 3)}), flush=True)
    engine.train_iters, engine.config.run_directory, engine.valid_step = 20, None, 10**9
    engine.observer = build_observer(replace(config.observe, **OFF), data.train, [], [], _any)
    start = time.process_time()
    engine.run()
    seconds = (time.process_time() - start) / engine.train_iters
    print(json.dumps({"one step of training": round(seconds, 3)}))
    log.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(sys.argv[1:], Path(directory) / "run")
