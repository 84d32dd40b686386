"""Looking again and again: a daemon compares at every checkpoint, and each look is another chance to be wrong."""

from __future__ import annotations

import math


def share_of_look(look: int) -> float:
    """The part of the error rate that the ``look``-th comparison (1, 2, …) may use: 6 / (pi^2 look^2).

    The shares of all looks add up to 1, so that by Bonferroni's inequality a run calls a difference that is not there
    with 5 % at most whenever one stops looking, after any number of looks and however these depend on each other: p
    divided by the share may be read at any time. Source: alpha spending, Lan & DeMets 1983 (Biometrika 70:659); these
    weights as in Jamieson & Jain 2018 (arXiv 1809.02235).
    """
    if look < 1:
        raise ValueError(f"expected a look of 1 or more, got {look}")
    return 6.0 / (math.pi * look) ** 2
