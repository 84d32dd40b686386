"""Statistics that one outlier does not move. Each function names its source."""

from __future__ import annotations

import numpy

DRAWS = 400  # of a bootstrap


def noise(values: numpy.ndarray) -> float:
    """Standard deviation of the noise on a smooth curve of at least 6 points, from second differences.

    1.4826 median|v[i-1] - 2 v[i] + v[i+1]| / sqrt(6): the curve's own slope drops out. Source: the difference-based
    estimator of Gasser, Sroka and Jennen-Steinmetz 1986 (Biometrika 73:625), with the MAD for the mean square. Below 6
    points 0.15 % of the median value stands for it.
    """
    if len(values) < 6:
        return 0.0015 * float(numpy.median(numpy.abs(values))) if len(values) else 0.0
    second = values[:-2] - 2.0 * values[1:-1] + values[2:]
    return float(1.4826 * numpy.median(numpy.abs(second)) / numpy.sqrt(6.0))


def theil_sen(x: numpy.ndarray, y: numpy.ndarray) -> float:
    """The median slope between all pairs of points (of at most 300, evenly chosen). Source: Sen 1968, JASA 63:1379."""
    if len(x) > 300:
        chosen = numpy.linspace(0, len(x) - 1, 300).astype(int)
        x, y = x[chosen], y[chosen]
    first, second = numpy.triu_indices(len(x), k=1)
    run = x[second] - x[first]
    apart = run != 0
    return float(numpy.median((y[second] - y[first])[apart] / run[apart])) if apart.any() else 0.0


def slope_interval(x: numpy.ndarray, y: numpy.ndarray) -> tuple[float, float]:
    """90 % interval of the Theil-Sen slope: bootstrap over the points (Efron 1979), always the same draws."""
    if len(x) > 100:
        chosen = numpy.linspace(0, len(x) - 1, 100).astype(int)
        x, y = x[chosen], y[chosen]
    generator = numpy.random.default_rng(0)
    slopes = []
    for _ in range(DRAWS):
        drawn = numpy.sort(generator.integers(0, len(x), len(x)))
        if drawn[0] != drawn[-1]:
            slopes.append(theil_sen(x[drawn], y[drawn]))
    low, high = numpy.quantile(slopes, [0.05, 0.95])
    return float(low), float(high)


def running_median(values: numpy.ndarray, window: int) -> numpy.ndarray:
    """Median of the ``window`` values up to each one (fewer at the start)."""
    if window <= 1 or not len(values):
        return values.copy()
    padded = numpy.concatenate([numpy.full(window - 1, numpy.nan), values])
    views = numpy.lib.stride_tricks.sliding_window_view(padded, window)
    return numpy.nanmedian(views, axis=1)


def log_bins(x: numpy.ndarray, y: numpy.ndarray, count: int = 40) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Medians of ``y`` in at most ``count`` bins that are equally wide in log ``x`` (> 0)."""
    edges = numpy.geomspace(x[0], x[-1] * (1 + 1e-9), count + 1)
    places = numpy.digitize(x, edges)
    kept = numpy.unique(places)
    middle = numpy.array([numpy.median(x[places == place]) for place in kept])
    return middle, numpy.array([numpy.median(y[places == place]) for place in kept])


def power_law(x: numpy.ndarray, y: numpy.ndarray) -> tuple[float, float, float]:
    """(E, A, b) of y = E + A x^-b with E, A >= 0, least squares over log-spaced medians.

    For each b of a grid the other two follow linearly. Source of the form: Hoffmann et al. 2022 (arXiv 2203.15556),
    equation 2, for one model: loss over tokens.
    """
    x, y = log_bins(x, y)
    best = (float(numpy.median(y)), 0.0, 0.5, numpy.inf)
    for exponent in numpy.linspace(0.02, 3.0, 150):
        base = x**-exponent
        spread = base - base.mean()
        slope = float((spread * (y - y.mean())).sum() / max(float((spread**2).sum()), 1e-300))
        floor = float(y.mean() - slope * base.mean())
        if floor < 0:
            floor, slope = 0.0, float((base * y).sum() / (base**2).sum())
        error = float(((floor + slope * base - y) ** 2).sum())
        if slope >= 0 and error < best[3]:
            best = (floor, slope, float(exponent), error)
    return best[0], best[1], best[2]
