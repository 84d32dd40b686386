"""Uncertainty of a score and of a difference. Each function names its formula's source.

Heavy libraries are imported where they are used: the daemon's light doors may import this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Z95 = 1.959963984540054  # standard normal quantile at 0.975
Z80 = 0.8416212335729143  # and at 0.80, for a power of 80 %
LEVEL = 0.05  # of every test here, two-sided
ENOUGH_FOR_NORMAL = 2000  # items that differ, from which on the normal distribution stands for all flips of signs


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; ``ValueError`` on an empty sequence."""
    if not values:
        raise ValueError("the mean of no values")
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """sqrt(s^2 / n) with s^2 = sum (x - m)^2 / (n - 1); ``None`` below two values.

    Source: Miller 2024 (arXiv 2411.00640), equation 1: the central-limit standard error of a mean.
    """
    if len(values) < 2:
        return None
    centre = mean(values)
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def wilson_interval(proportion: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a binomial proportion; right also for small n and near 0 and 1.

    (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Source: Wilson 1927, JASA 22:209; recommended for few
    items by Bowyer et al. 2025 (arXiv 2503.01747).
    """
    if n < 1 or not 0.0 <= proportion <= 1.0:
        raise ValueError(f"expected n >= 1 and a proportion in [0, 1], got n={n}, {proportion}")
    shrink = 1.0 + z * z / n
    centre = (proportion + z * z / (2 * n)) / shrink
    half = z * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


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


def sign_flip_test(differences: Sequence[float], draws: int = 9999) -> float:
    """Two-sided p-value that each difference has either sign as likely: how often flipped signs give a sum as large.

    All flips of up to 12 differences, ``draws`` random ones (always the same) of more, the normal distribution from
    ``ENOUGH_FOR_NORMAL`` on. Source: Fisher 1935, The Design of Experiments, section 21; for model evaluations Kübler
    et al. 2026 (arXiv 2602.10144), because it holds for few items and for outcomes other than 0 and 1.
    """
    import numpy

    values = numpy.array([value for value in differences if value != 0.0])
    if not values.size:
        return 1.0
    observed = abs(values.sum())
    if values.size > ENOUGH_FOR_NORMAL:
        return normal_test(observed, math.sqrt(float((values**2).sum())))
    as_large = observed * (1 - 1e-9)  # sums in another order differ in their last bits
    if values.size <= 12:
        sums = numpy.zeros(1)
        for value in values:
            sums = numpy.concatenate([sums + value, sums - value])
        return float((abs(sums) >= as_large).mean())
    generator = numpy.random.default_rng(0)
    larger = sum(abs(values @ generator.choice((-1.0, 1.0), size=values.size)) >= as_large for _ in range(draws))
    return (1 + int(larger)) / (1 + draws)


def normal_test(value: float, stderr: float) -> float:
    """Two-sided p-value of ``value / stderr`` as a standard normal variable."""
    return math.erfc(abs(value) / stderr / math.sqrt(2.0)) if stderr > 0 else float(value == 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order: below 5 % all claims together err in 5 % at most.

    Of the k-th smallest the largest (m - j + 1) p_j with j <= k, at most 1. Source: Holm 1979, Scand. J. Stat. 6:65.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Difference:
    """``new - old`` with its 95 % interval; ``gained`` and ``lost`` count the items that went up and down.

    ``items`` are the differences of the items, none when they could not be paired.
    """

    value: float
    stderr: float
    n: int
    p_value: float
    gained: int = 0
    lost: int = 0
    items: tuple[float, ...] = field(default=(), repr=False)

    @property
    def low(self) -> float:
        return self.value - Z95 * self.stderr

    @property
    def high(self) -> float:
        return self.value + Z95 * self.stderr

    @property
    def detectable(self) -> float:
        """Smallest true difference found with a power of 80 % at the two-sided 5 % level: (1.96 + 0.84) SE."""
        return (Z95 + Z80) * self.stderr

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``cannot tell``; the test must agree with the interval."""
        if self.low <= 0 <= self.high or self.p_value >= LEVEL:
            return "cannot tell"
        return "better" if self.value > 0 else "worse"


def paired_difference(new: Mapping[str, float], old: Mapping[str, float]) -> Difference | None:
    """Mean of new - old over the items that both have, SE = sd(d)/sqrt(n); ``None`` below two common items.

    Source: Miller 2024 (arXiv 2411.00640), section 4.2. Two checkpoints are compared on the same items, never by
    their two intervals. When no item differs the standard error is that of one flip in n, not 0: seeing no change in
    n items does not prove that there is none. The test is the exact McNemar's for outcomes 0 and 1, otherwise that of
    flipped signs (for 0 and 1 they are the same).
    """
    common = sorted(new.keys() & old.keys())
    if len(common) < 2:
        return None
    differences = tuple(new[key] - old[key] for key in common)
    stderr = standard_error(differences)
    assert stderr is not None
    gained = sum(difference > 0 for difference in differences)
    lost = sum(difference < 0 for difference in differences)
    binary = all(new[key] in (0.0, 1.0) and old[key] in (0.0, 1.0) for key in common)
    return Difference(
        value=mean(differences),
        stderr=stderr if stderr > 0 else 1.0 / len(common),
        n=len(common),
        p_value=exact_mcnemar(gained, lost) if binary else sign_flip_test(differences),
        gained=gained,
        lost=lost,
        items=differences,
    )


def unpaired_difference(new: float, new_stderr: float, old: float, old_stderr: float, n: int) -> Difference:
    """Source: Miller 2024 (arXiv 2411.00640), equation 5: SE = sqrt(SE_new^2 + SE_old^2)."""
    stderr = math.hypot(new_stderr, old_stderr) or 1.0 / max(1, n)
    return Difference(new - old, stderr, n, normal_test(new - old, stderr))


def mean_difference(differences: Sequence[Difference]) -> Difference | None:
    """Mean over tasks, each weighing the same: SE = sqrt(sum SE_t^2) / T, tasks taken as independent.

    Tested by flipping the signs of all tasks' items together, or as a normal variable where a task has no items.
    """
    if not differences:
        return None
    if len(differences) == 1:
        return differences[0]
    value = mean([one.value for one in differences])
    stderr = math.sqrt(math.fsum(one.stderr**2 for one in differences)) / len(differences)
    items = tuple(item / len(one.items) for one in differences for item in one.items)
    return Difference(
        value=value,
        stderr=stderr,
        n=sum(one.n for one in differences),
        p_value=sign_flip_test(items) if all(one.items for one in differences) else normal_test(value, stderr),
        gained=sum(one.gained for one in differences),
        lost=sum(one.lost for one in differences),
    )


def score_interval(value: float, stderr: float | None, n: int) -> tuple[float, float] | None:
    """95 % interval of a reported score; ``None`` without a standard error.

    Wilson's for a mean of zeros and ones, recognised by its standard error sqrt(p(1-p)/n) or sqrt(p(1-p)/(n-1)):
    value ± 1.96 SE would have no width at 0 and 1 and would leave [0, 1]. Otherwise value ± 1.96 SE.
    """
    if stderr is None:
        return None
    if n > 1 and 0.0 <= value <= 1.0:
        variance = value * (1.0 - value)
        if any(math.isclose(stderr, math.sqrt(variance / m), rel_tol=1e-3, abs_tol=1e-9) for m in (n, n - 1)):
            return wilson_interval(value, n)
    return value - Z95 * stderr, value + Z95 * stderr


def with_spread(value: float, stderr: float | None, n: int) -> float | None:
    """``stderr``, or where it is 0 only because all ``n`` outcomes are 0 (or 1) that of Wilson's interval."""
    if stderr != 0.0 or value not in (0.0, 1.0) or n < 1:
        return stderr
    low, high = wilson_interval(value, n)
    return (high - low) / Z95  # the whole interval is on one side
