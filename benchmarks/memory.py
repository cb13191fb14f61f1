"""How much more memory bi-level training takes than plain fine-tuning.

    python benchmarks/memory.py

Peak bytes of the tensors that come to be in one cycle (on CUDA also of the allocator), over those
of plain fine-tuning on the same batches, in copies of the trainable parameters. Prints JSON lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from measuring import Setting, Shape, forget, parser, setting, show

from dreamprm.hypergradients.cost import peak_bytes

METHODS = {
    "forward": "t1t2",
    "finite_difference": "identity+finite_difference",
    "neumann, double backward": "neumann",
}


def memory(where: Setting, shape: Shape, checkpointing: bool) -> Iterator[dict[str, Any]]:
    """Each method over plain fine-tuning."""
    copy = sum(p.numel() * p.element_size() for p in where.model().parameters())
    base = _peak(where, where.run(shape, None, checkpointing=checkpointing))
    for name, method in METHODS.items():
        found = _peak(where, where.run(shape, method, checkpointing=checkpointing))
        yield {
            "benchmark": "memory",
            "of": name,
            "copies of the parameters beyond plain": round((found - base) / copy, 3),
            "plain MB": round(base / 1e6, 1),
            "bi-level MB": round(found / 1e6, 1),
            "one copy MB": round(copy / 1e6, 1),
            "gradient checkpointing": checkpointing,
            **asdict(shape),
        }


def _peak(where: Setting, cycle: Callable[[], None]) -> int:
    cycle()  # the optimizers' states are there afterwards
    if where.device == "cpu":
        return peak_bytes(cycle)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cycle()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    """Prints the table."""
    options = parser(__doc__.splitlines()[0], repeats=1)
    options.add_argument("--batch", type=int, default=4, help="solutions")
    found = options.parse_args()
    for checkpointing in (False, True):
        show(memory(setting(found), Shape(batch=found.batch), checkpointing))
        forget()


if __name__ == "__main__":
    main()
