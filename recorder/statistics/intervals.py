"""How uncertain one score is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import NormalDist

Z95 = 1.959963984540054  # standard normal quantile at 0.975
Z80 = 0.8416212335729143  # and at 0.80, for a power of 80 %
FEW = 30  # items below which a share gets the exact interval


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


def clustered_standard_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """sqrt(C/(C-1) sum_c (sum_{i in c} (x_i - m))^2) / n; ``None`` below two clusters.

    ``clusters`` says of each value what it belongs to: items about one passage are right or wrong together, and n of
    them say less than n independent ones. Source: Miller 2024 (arXiv 2411.00640), section 3.2, with the factor
    C/(C-1) for few clusters (Cameron & Miller 2015, Journal of Human Resources 50:317, section VI.B). With one item a
    cluster this is ``standard_error``.
    """
    if len(values) != len(clusters):
        raise ValueError(f"expected a cluster for each of {len(values)} values, got {len(clusters)}")
    centre = mean(values)
    sums: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - centre
    if len(sums) < 2:
        return None
    total = math.fsum(one * one for one in sums.values())
    return math.sqrt(len(sums) / (len(sums) - 1) * total) / len(values)


def wilson_interval(proportion: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Score interval of a binomial proportion; right also near 0 and 1. ``n`` may be an effective number of items.

    (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Source: Wilson 1927, JASA 22:209; recommended for few
    items by Bowyer et al. 2025 (arXiv 2503.01747).
    """
    if n < 1 or not 0.0 <= proportion <= 1.0:
        raise ValueError(f"expected n >= 1 and a proportion in [0, 1], got n={n}, {proportion}")
    shrink = 1.0 + z * z / n
    centre = (proportion + z * z / (2 * n)) / shrink
    half = z * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n)) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson_interval(successes: int, n: int, level: float = 0.05) -> tuple[float, float]:
    """Exact interval of a binomial proportion: it covers at least ``1 - level`` whatever n and p are.

    Quantiles level/2 of Beta(k, n - k + 1) and 1 - level/2 of Beta(k + 1, n - k). Source: Clopper & Pearson 1934,
    Biometrika 26:404.
    """
    from scipy.special import betaincinv

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, level / 2))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - level / 2))
    return low, high


def student_quantile(degrees: float, level: float = 0.05) -> float:
    """Quantile 1 - level/2 of Student's t; the normal's from 1,000 degrees of freedom on."""
    if degrees >= 1000:
        return NormalDist().inv_cdf(1 - level / 2)
    from scipy.special import stdtrit  # scipy.stats has it too, but takes a second of processor time to import

    return float(stdtrit(max(1.0, degrees), 1 - level / 2))


def score_interval(value: float, stderr: float | None, n: int) -> tuple[float, float] | None:
    """95 % interval of a reported score; ``None`` without a standard error.

    A mean of zeros and ones is recognised by its standard error sqrt(p(1-p)/n) or sqrt(p(1-p)/(n-1)): value ± 1.96 SE
    would have no width at 0 and 1 and would leave [0, 1]. It gets the exact interval below ``FEW`` items, else
    Wilson's. A larger standard error in [0, 1] is that of items in clusters: Wilson's with the number of independent
    items that would have it, p(1-p)/SE^2 (Kish 1965). Anything else is value ± 1.96 SE.
    """
    if stderr is None:
        return None
    if n > 1 and 0.0 <= value <= 1.0:
        variance = value * (1.0 - value)
        if any(math.isclose(stderr, math.sqrt(variance / m), rel_tol=1e-3, abs_tol=1e-9) for m in (n, n - 1)):
            successes = round(value * n)
            exact = n < FEW and math.isclose(successes, value * n, abs_tol=1e-6)
            return clopper_pearson_interval(successes, n) if exact else wilson_interval(value, n)
        if stderr > math.sqrt(variance / (n - 1)) and variance > stderr**2:
            return wilson_interval(value, variance / stderr**2)
    return value - Z95 * stderr, value + Z95 * stderr


def with_spread(value: float, stderr: float | None, n: int) -> float | None:
    """``stderr``, or where it is 0 only because all ``n`` outcomes are 0 (or 1) that of Wilson's interval."""
    if stderr != 0.0 or value not in (0.0, 1.0) or n < 1:
        return stderr
    low, high = wilson_interval(value, n)
    return (high - low) / Z95  # the whole interval is on one side
