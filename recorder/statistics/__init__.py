"""Uncertainty of a score and of a difference. Each function names its formula's source.

Heavy libraries are imported where they are used: the daemon's light doors may import this.
"""

from recorder.statistics.differences import (
    Difference,
    mean_difference,
    minimal_detectable_effect,
    paired_difference,
    unpaired_difference,
)
from recorder.statistics.intervals import (
    Z80,
    Z95,
    clopper_pearson_interval,
    clustered_standard_error,
    mean,
    score_interval,
    standard_error,
    student_quantile,
    wilson_interval,
    with_spread,
)
from recorder.statistics.noise import LevelTrend, checkpoint_noise, level_trend
from recorder.statistics.repeated import share_of_look
from recorder.statistics.significance import (
    LEVEL,
    exact_mcnemar,
    holm,
    normal_test,
    sign_flip_test,
)

__all__ = [
    "LEVEL",
    "Z80",
    "Z95",
    "Difference",
    "LevelTrend",
    "checkpoint_noise",
    "clopper_pearson_interval",
    "clustered_standard_error",
    "exact_mcnemar",
    "holm",
    "level_trend",
    "mean",
    "mean_difference",
    "minimal_detectable_effect",
    "normal_test",
    "paired_difference",
    "score_interval",
    "share_of_look",
    "sign_flip_test",
    "standard_error",
    "student_quantile",
    "unpaired_difference",
    "wilson_interval",
    "with_spread",
]
