"""The names in a run directory."""

CONFIG_FILE, METRICS_FILE, SUMMARY_FILE = "config.yaml", "metrics.jsonl", "summary.json"
WEIGHTS_FILE, EXAMPLES_FILE, REPORT_FILE = "weights.json", "examples.jsonl", "report.html"
RUN_FILE, ROWS_FILE = "run.json", "rows.jsonl"  # how far it is; rows with their weights
LABELS_FILE = "labels.jsonl"  # of every row, as they were given and as they are
MODULE_FILE = "model.safetensors"  # in MODEL, of a task's lower module
CHECKPOINTS, MODEL, TENSORBOARD = "checkpoints", "model", "tensorboard"
BUILT_IN, BASELINE = "synthetic", "uniform"  # data that were made for the run; a run within

# Where a report looks for what ``evaluate`` wrote; no file of the run itself.
EVALUATION_FILE = "evaluation.json"

FILES = (
    CONFIG_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    EXAMPLES_FILE,
    REPORT_FILE,
    RUN_FILE,
    ROWS_FILE,
    LABELS_FILE,
)
FOLDERS = (CHECKPOINTS, MODEL, TENSORBOARD, BUILT_IN, BASELINE)
