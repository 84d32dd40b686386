"""Looking again and again: a daemon compares at every checkpoint, and each look is another chance to be wrong.

Two ways to keep the error rate over all looks together: each look gets a share of the 5 % (``share_of_look``), or the
evidence is a martingale that may be looked at whenever one likes (``e_value``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

LEVEL = 0.05


def share_of_look(look: int) -> float:
    """The part of the error rate that the ``look``-th comparison (1, 2, …) may use: 6 / (pi^2 look^2).

    The shares of all looks add up to 1, so that by Bonferroni's inequality a run with any number of looks calls a
    difference that is not there with 5 % at most, however the looks depend on each other. Source: alpha spending, Lan
    & DeMets 1983 (Biometrika 70:659); these weights as in Jamieson & Jain 2018 (arXiv 1809.02235).
    """
    if look < 1:
        raise ValueError(f"expected a look of 1 or more, got {look}")
    return 6.0 / (math.pi * look) ** 2


def e_value(differences: Sequence[float], scale: float) -> float:
    """Evidence against "each difference is as likely up as down", which may be read after every difference.

    Under that hypothesis exp(lS - l^2 V/2), S = sum d and V = sum d^2, is a supermartingale (de la Peña 1999, Annals
    of Probability 27:537, lemma 6.1), and so is its mean over l ~ N(0, 1/r) with r = ``scale``, which is
    sqrt(r / (V + r)) exp(S^2 / (2 (V + r))) (Robbins 1970, Annals of Math. Stat. 41:1397). By Ville's inequality it
    ever exceeds 20 with probability 5 % at most. ``scale`` is chosen before looking; the test is most sensitive when V
    is some times larger. Differences of items in clusters are to be summed by cluster first.
    """
    if scale <= 0:
        raise ValueError(f"expected a scale above 0, got {scale}")
    total, squares = math.fsum(differences), math.fsum(value * value for value in differences)
    exponent = total * total / (2 * (squares + scale)) + 0.5 * math.log(scale / (squares + scale))
    return math.exp(min(700.0, exponent))


def paired_evidence(
    new: Mapping[str, float], old: Mapping[str, float], clusters: Mapping[str, str] | None = None
) -> float:
    """``e_value`` of the items (or clusters) that both have; its scale comes from their number, not their outcomes."""
    sums: dict[str, float] = {}
    for key in new.keys() & old.keys():
        cluster = key if clusters is None else clusters.get(key, key)
        sums[cluster] = sums.get(cluster, 0.0) + new[key] - old[key]
    return e_value(list(sums.values()), max(1.0, 0.05 * len(sums)))


def evidence_interval(values: Sequence[float], scale: float, level: float = LEVEL) -> tuple[float, float]:
    """Confidence sequence of a mean: at all times together it holds the mean with probability 1 - ``level``.

    Mean ± sqrt((V + r) ln((V + r) / (r level^2))) / n with V = sum (x - mean)^2 and r = ``scale``. Source: Howard et al. 2021
    (Annals of Statistics 49:1055), equation 14, with the estimated variance of Waudby-Smith et al. 2021 (arXiv
    2103.06476): valid in the limit of many values, not for a handful.
    """
    count = len(values)
    if count < 2:
        raise ValueError("expected two values or more")
    centre = math.fsum(values) / count
    spread = math.fsum((value - centre) ** 2 for value in values) + scale
    half = math.sqrt(spread * math.log(spread / (scale * level**2))) / count
    return centre - half, centre + half
