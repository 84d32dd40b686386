"""Time and memory of comparing N questions: python benchmarks/similar_questions.py [--count 100000] [--dimensions 384]

Random unit vectors with planted near pairs: the comparison only; embedding is the model's own speed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])


def main() -> None:
    import numpy

    from autoeval.intents.pairs import similar_pairs

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=384)
    options = parser.parse_args()
    generator = numpy.random.default_rng(0)
    vectors = generator.standard_normal((options.count, options.dimensions), dtype=numpy.float32)
    planted = options.count // 100
    vectors[-planted:] = vectors[:planted] + 0.1 * vectors[-planted:]
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    before, wall = time.process_time(), time.perf_counter()
    found = similar_pairs(vectors, numpy.arange(options.count), 0.91, most=100_000)
    cpu, wall = time.process_time() - before, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.count} questions: {found.total} pairs of {planted} planted, {cpu:.1f} CPU s, {wall:.1f} s, {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
