"""Is a difference more than chance? Tests of one look, and corrections for asking several questions at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

LEVEL = 0.05  # of every test here, two-sided
DRAWS = 9999
ENOUGH_FOR_NORMAL = 2000  # differences from which on the normal distribution stands for all flips of signs
FAR = 3.5  # standard errors from which on random draws say too little
GAUSSIAN_BOUND = 3.178  # Bentkus & Dzindzalieta 2015: 1 / (4 P(Z >= sqrt 2))
ALL_SIGNS = 4_000_000  # cells of the exact distribution that are still computed


def normal_test(value: float, stderr: float) -> float:
    """Two-sided p-value of ``value / stderr`` as a standard normal variable."""
    return math.erfc(abs(value) / stderr / math.sqrt(2.0)) if stderr > 0 else float(value == 0.0)


def exact_mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value that gains and losses are equally likely: 2 P(Bin(gained + lost, 1/2) >= max), at most 1.

    Source: McNemar 1947 (Psychometrika 12:153) in its exact binomial form.
    """
    n, most = gained + lost, max(gained, lost)
    if n == 0:
        return 1.0
    tail = math.fsum(
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2.0))
        for k in range(most, n + 1)
    )
    return min(1.0, 2.0 * tail)


def sign_flip_test(differences: Sequence[float], draws: int = DRAWS) -> float:
    """Two-sided p-value that each difference has either sign as likely: how often flipped signs give a sum as large.

    The permutation test of paired outcomes: to flip a sign is to swap old and new. Differences of items in clusters
    are to be summed by cluster first. Exact for whole multiples of one number (the distribution of the sum is built one
    difference after the other) and for up to 12 differences; else ``draws`` random flips, always the same (the normal
    distribution above 2,000 differences), and from 3.5 standard errors on the bound 3.178 P(|Z| >= z), which no choice
    of differences exceeds. Sources: Fisher 1935, The Design of Experiments, section 21; for model evaluations Kübler
    et al. 2026 (arXiv 2602.10144); the bound is Bentkus & Dzindzalieta 2015 (Bernoulli 21:1213).
    """
    import numpy

    values = numpy.array([value for value in differences if value != 0.0])
    if not values.size:
        return 1.0
    steps = _whole(numpy, values)
    if steps is not None and (2 * abs(steps).sum() + 1) * steps.size <= ALL_SIGNS:
        return _exact_flips(numpy, steps)
    observed, spread = abs(values.sum()), math.sqrt(float((values**2).sum()))
    as_large = observed * (1 - 1e-9)  # sums in another order differ in their last bits
    if values.size <= 12:
        sums = numpy.zeros(1)
        for value in values:
            sums = numpy.concatenate([sums + value, sums - value])
        return float((abs(sums) >= as_large).mean())
    if values.size > ENOUGH_FOR_NORMAL and observed < FAR * spread:
        return normal_test(observed, spread)
    if observed >= FAR * spread:
        return min(1.0, GAUSSIAN_BOUND * normal_test(observed, spread))
    generator = numpy.random.default_rng(0)
    larger, at_once = 0, max(1, 2_000_000 // values.size)
    for begin in range(0, draws, at_once):
        signs = generator.integers(0, 2, size=(min(at_once, draws - begin), values.size), dtype=numpy.int8)
        larger += int((abs((2.0 * signs - 1.0) @ values) >= as_large).sum())
    return (1 + larger) / (1 + draws)


def _whole(numpy: Any, values: Any) -> Any:
    """The values as multiples of the smallest one, or ``None`` when they are none."""
    steps = values / abs(values).min()
    whole = numpy.rint(steps)
    return whole.astype(int) if abs(steps - whole).max() < 1e-9 and abs(whole).max() < 1e6 else None


def _exact_flips(numpy: Any, steps: Any) -> float:
    """P(|sum ± step| >= |sum step|): the distribution of the sum, cell by cell."""
    sizes = abs(steps)
    total = int(sizes.sum())
    if (sizes == 1).all():
        gained = int((steps > 0).sum())
        return exact_mcnemar(gained, steps.size - gained)
    chances = numpy.zeros(2 * total + 1)
    chances[total] = 1.0
    for size in sizes:
        moved = numpy.zeros_like(chances)
        moved[size:] += 0.5 * chances[:-size]
        moved[:-size] += 0.5 * chances[size:]
        chances = moved
    observed = abs(int(steps.sum()))
    cells = abs(numpy.arange(-total, total + 1)) >= observed
    return min(1.0, float(chances[cells].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order: below 5 % all claims together err in 5 % at most.

    Of the k-th smallest the largest (m - j + 1) p_j with j <= k, at most 1. Source: Holm 1979, Scand. J. Stat. 6:65.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
