"""What the files of other programs leave unsaid: the level of guessing, what belongs together, which way is good.

Names are those of lm-evaluation-harness (old and new) and OpenCompass; a configuration's ``chance`` and ``groups`` add to
them. Chance is one over the number of options, as the data sets' own papers describe them.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

CHANCE: dict[str, float] = {
    "hendrycksTest-*": 0.25,
    "mmlu*": 0.25,
    "cmmlu*": 0.25,
    "ceval*": 0.25,
    "arc_easy*": 0.25,
    "arc_challenge*": 0.25,
    "ARC-[ce]*": 0.25,
    "hellaswag*": 0.25,
    "openbookqa*": 0.25,
    "sciq*": 0.25,
    "logiqa*": 0.25,
    "race*": 0.25,
    "xstory_cloze*": 0.5,
    "commonsense_qa*": 0.2,
    "social_iqa*": 1 / 3,
    "siqa*": 1 / 3,
    "mathqa*": 0.2,
    "piqa*": 0.5,
    "winogrande*": 0.5,
    "wsc*": 0.5,
    "boolq*": 0.5,
    "copa*": 0.5,
    "wic*": 0.5,
    "rte*": 0.5,
    "qnli*": 0.5,
    "qqp*": 0.5,
    "mrpc*": 0.5,
    "sst*": 0.5,
    "blimp*": 0.5,
    "mc_taco*": 0.5,
    "pubmedqa*": 1 / 3,
    "anli*": 1 / 3,
    "cb": 1 / 3,
    "mnli*": 1 / 3,
    "headqa*": 0.25,
    "prost*": 0.25,
    "lambada*": 0.0,
    "triviaqa*": 0.0,
    "webqs*": 0.0,
    "nq_open*": 0.0,
    "gsm8k*": 0.0,
}

# Only values of these metrics are corrected by it: an F1 or a perplexity has another level of guessing.
ACCURACIES = ("acc", "acc_norm", "accuracy", "acc,*", "acc_norm,*", "score")

# Subjects and phenomena that are one benchmark; what a file groups itself comes first.
GROUPS: dict[str, str] = {
    "mmlu": "hendrycksTest-*",
    "blimp": "blimp_*",
    "crows_pairs": "crows_pairs_*",
}

LOWER_IS_BETTER = (
    "ppl",
    "*perplexity*",
    "bits_per_byte",
    "bpb",
    "loss",
    "ter",
    "brier_score",
    "likelihood_difference",
    "likelihood_diff",
    "pct_stereotype",
)


def chance_of(task: str, metric: str, added: Mapping[str, float]) -> float | None:
    """What guessing gives, when it is known; ``added`` patterns count before those here."""
    if not any(fnmatchcase(metric, pattern) for pattern in ACCURACIES):
        return None
    for patterns in (added, CHANCE):
        for pattern, value in patterns.items():
            if fnmatchcase(task, pattern):
                return value
    return None


def higher_is_better(metric: str) -> bool:
    return not any(fnmatchcase(metric.split(",")[0], pattern) for pattern in LOWER_IS_BETTER)
