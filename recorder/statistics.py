"""Uncertainty of a score and of a difference. Each function names its formula's source.

Standard library only: the daemon's light doors may import this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054  # standard normal quantile at 0.975
Z80 = 0.8416212335729143  # and at 0.80, for a power of 80 %


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


@dataclass(frozen=True)
class Difference:
    """``new - old`` with its 95 % interval; ``gained`` and ``lost`` count the items that went up and down."""

    value: float
    stderr: float
    n: int
    gained: int = 0
    lost: int = 0
    p_value: float | None = None  # exact McNemar, when every outcome is 0 or 1

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
        """``better``, ``worse`` or ``cannot tell``; with 0/1 outcomes the exact test must agree with the interval."""
        beyond = self.low > 0 or self.high < 0
        if not beyond or (self.p_value is not None and self.p_value >= 0.05):
            return "cannot tell"
        return "better" if self.value > 0 else "worse"


def paired_difference(new: Mapping[str, float], old: Mapping[str, float]) -> Difference | None:
    """Mean of new - old over the items that both have, SE = sd(d)/sqrt(n); ``None`` below two common items.

    Source: Miller 2024 (arXiv 2411.00640), section 4.2. Two checkpoints are compared on the same items, never by
    their two intervals. When no item differs the standard error is that of one flip in n, not 0: seeing no change in
    n items does not prove that there is none.
    """
    common = sorted(new.keys() & old.keys())
    if len(common) < 2:
        return None
    differences = [new[key] - old[key] for key in common]
    stderr = standard_error(differences)
    assert stderr is not None
    gained = sum(difference > 0 for difference in differences)
    lost = sum(difference < 0 for difference in differences)
    binary = all(new[key] in (0.0, 1.0) and old[key] in (0.0, 1.0) for key in common)
    return Difference(
        value=mean(differences),
        stderr=stderr if stderr > 0 else 1.0 / len(common),
        n=len(common),
        gained=gained,
        lost=lost,
        p_value=exact_mcnemar(gained, lost) if binary else None,
    )


def mean_difference(differences: Sequence[Difference]) -> Difference | None:
    """Mean over tasks, each weighing the same: SE = sqrt(sum SE_t^2) / T, tasks taken as independent."""
    if not differences:
        return None
    count = len(differences)
    return Difference(
        value=mean([one.value for one in differences]),
        stderr=math.sqrt(math.fsum(one.stderr**2 for one in differences)) / count,
        n=sum(one.n for one in differences),
        gained=sum(one.gained for one in differences),
        lost=sum(one.lost for one in differences),
        p_value=differences[0].p_value if count == 1 else None,
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
