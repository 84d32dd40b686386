"""``new - old``: of two checkpoints on the same items, of two published scores, of several tasks together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from recorder.statistics.intervals import Z80, Z95, mean, standard_error, student_quantile
from recorder.statistics.significance import LEVEL, exact_mcnemar, normal_test, sign_flip_test


@dataclass(frozen=True)
class Difference:
    """``new - old`` with its 95 % interval ``low`` to ``high``.

    ``gained`` and ``lost`` count the items that went up and down, ``discordant`` is their sum; ``n`` counts items,
    ``clusters`` what is independent among them (as many as items when there are no clusters). ``units`` are the
    clusters' shares of ``value`` (they add up to it), none when the items could not be paired.
    """

    value: float
    stderr: float
    n: int
    p_value: float
    low: float
    high: float
    gained: int = 0
    lost: int = 0
    clusters: int = 0
    units: tuple[float, ...] = field(default=(), repr=False)

    @property
    def discordant(self) -> int:
        return self.gained + self.lost

    @property
    def detectable(self) -> float:
        """Smallest true difference found with a power of 80 % at the two-sided 5 % level."""
        return minimal_detectable_effect(self.stderr)

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``cannot tell``; the test must agree with the interval."""
        if self.low <= 0 <= self.high or self.p_value >= LEVEL:
            return "cannot tell"
        return "better" if self.value > 0 else "worse"

    def scaled(self, factor: float) -> Difference:
        """In another unit, ``factor`` > 0 times as large: 1 / (1 - chance) makes it one of chance-corrected scores."""
        return replace(
            self,
            value=self.value * factor,
            stderr=self.stderr * factor,
            low=self.low * factor,
            high=self.high * factor,
            units=tuple(unit * factor for unit in self.units),
        )

    def turned(self) -> Difference:
        """Of a metric that is better when lower: up is good again."""
        return replace(
            self,
            value=-self.value,
            low=-self.high,
            high=-self.low,
            gained=self.lost,
            lost=self.gained,
            units=tuple(-unit for unit in self.units),
        )


def minimal_detectable_effect(stderr: float) -> float:
    """(z_{0.975} + z_{0.80}) SE: the smallest true difference found with a power of 80 % at the two-sided 5 % level.

    Source: Miller 2024 (arXiv 2411.00640), section 5.
    """
    return (Z95 + Z80) * stderr


def paired_difference(
    new: Mapping[str, float], old: Mapping[str, float], clusters: Mapping[str, str] | None = None
) -> Difference | None:
    """Mean of new - old over the items that both have; ``None`` below two common items (or clusters).

    ``clusters`` gives the cluster of an item (its passage, its subject); an item it does not name is its own. Standard
    error: sd(d)/sqrt(n), or with clusters sqrt(C/(C-1) sum_c (sum_{i in c} (d_i - m))^2)/n (Miller 2024, arXiv
    2411.00640, sections 3.2 and 4.2). Interval: that of Bonett & Price 2012 (J. Educ. Behav. Stat. 37:479) for
    outcomes 0 and 1, which has a width also when no item differs; else m ± t_{C-1} SE. Test: exact McNemar for
    outcomes 0 and 1, otherwise flipped signs of the clusters' sums (for single zeros and ones they are the same).
    """
    common = sorted(new.keys() & old.keys())
    groups: dict[str, float] = defaultdict(float)
    sizes: dict[str, int] = defaultdict(int)
    differences = [new[key] - old[key] for key in common]
    for key, difference in zip(common, differences, strict=True):
        cluster = key if clusters is None else clusters.get(key, key)
        groups[cluster] += difference
        sizes[cluster] += 1
    n, count = len(common), len(groups)
    if count < 2:
        return None
    value = mean(differences)
    gained, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    binary = all(new[key] in (0.0, 1.0) and old[key] in (0.0, 1.0) for key in common)
    if count == n:
        stderr = standard_error(differences)
        assert stderr is not None
    else:
        left = math.fsum((total - sizes[cluster] * value) ** 2 for cluster, total in groups.items())
        stderr = math.sqrt(count / (count - 1) * left) / n
    alike = stderr == 0.0
    stderr = stderr or 1.0 / n  # no change in n items does not prove that there is none: as if one had flipped
    if binary and (count == n or alike):
        low, high = _bonett_price(gained, lost, n)
    else:
        half = student_quantile(count - 1) * stderr
        low, high = value - half, value + half
    units = tuple(total / n for total in groups.values())
    p_value = exact_mcnemar(gained, lost) if binary and count == n else sign_flip_test([n * unit for unit in units])
    return Difference(value, stderr, n, p_value, low, high, gained, lost, count, units)


def _bonett_price(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Adjusted Wald interval: half an item more in either way, p ± z sqrt((a + b - (a - b)^2) / (n + 2))."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z95 * math.sqrt(max(0.0, up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def unpaired_difference(new: float, new_stderr: float, old: float, old_stderr: float, n: int) -> Difference:
    """Source: Miller 2024 (arXiv 2411.00640), equation 5: SE = sqrt(SE_new^2 + SE_old^2)."""
    stderr = math.hypot(new_stderr, old_stderr) or 1.0 / max(1, n)
    value = new - old
    return Difference(
        value, stderr, n, normal_test(value, stderr), value - Z95 * stderr, value + Z95 * stderr, clusters=n
    )


def mean_difference(differences: Sequence[Difference]) -> Difference | None:
    """Mean over tasks, each weighing the same: SE = sqrt(sum SE_t^2) / T, tasks taken as independent.

    Tested by flipping the signs of all tasks' clusters together, or as a normal variable where a task has no items.
    """
    if not differences:
        return None
    if len(differences) == 1:
        return differences[0]
    count = len(differences)
    value = mean([one.value for one in differences])
    stderr = math.sqrt(math.fsum(one.stderr**2 for one in differences)) / count
    units = tuple(unit / count for one in differences for unit in one.units)
    paired = all(one.units for one in differences)
    half = Z95 * stderr
    if paired:  # as many degrees of freedom as the errors' sum has (Satterthwaite 1946, Biometrics 2:110)
        weights = math.fsum(one.stderr**4 / max(1, one.clusters - 1) for one in differences)
        half = stderr * student_quantile((math.fsum(one.stderr**2 for one in differences)) ** 2 / weights)
    return Difference(
        value=value,
        stderr=stderr,
        n=sum(one.n for one in differences),
        p_value=sign_flip_test(units) if paired else normal_test(value, stderr),
        low=value - half,
        high=value + half,
        gained=sum(one.gained for one in differences),
        lost=sum(one.lost for one in differences),
        clusters=sum(one.clusters for one in differences),
        units=units if paired else (),
    )
