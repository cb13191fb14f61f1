"""The demo at a size that takes seconds and says nothing: what runs are tested on."""

SMALL_DEMO = [
    "data.synthetic.solutions=24",
    "data.synthetic.meta=40",
    "data.synthetic.questions=6",
    "model.tiny.width=32",
    "model.tiny.heads=2",
    "lower.batch_size=16",
    "upper.batch_size=16",
]
