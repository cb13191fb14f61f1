"""What a report and a table call the things of a process reward model."""

from dreamprm.tasks.corrections import CORRECTIONS
from dreamprm.words import Metric, Words

WORDS = Words(
    group="domain",
    sample="solution",
    test="test set",
    metrics={
        "step_auc": Metric("step AUC", "chance that a right step scores above a wrong one"),
        "best_of_n": Metric(
            "best of N", "share of test questions whose best-scored solution is right"
        ),
        "random_pick": Metric("random pick", "the same for a solution drawn at random"),
        "best_source": Metric(
            "best source",
            "always the source that is right most often, known in hindsight only",
        ),
        "majority_vote": Metric("majority vote", "the same for the most frequent answer"),
        "pass_at_n": Metric("pass@N", "share of questions with a right solution: the ceiling"),
        "outcome_auc": Metric(
            "outcome AUC",
            "chance that a right solution of the meta set scores above a wrong one",
        ),
        **CORRECTIONS,
    },
    tiles=("best_of_n", "step_auc"),
    against={"best_of_n": ("random_pick", "majority_vote", "pass_at_n")},
)
