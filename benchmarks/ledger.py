"""What a large ledger answers in, and what taking in one more checkpoint costs.

``python benchmarks/ledger.py [--checkpoints 1000] [--tasks 20] [--metrics 10] [--items 1000] [--keep DIRECTORY]`` fills a
ledger with so many checkpoints of tasks x metrics scores each, ``--items`` item outcomes a checkpoint, through the
ledger's own door, and prints a table and one line of JSON: wall and processor seconds, the smallest of ``--repeats``,
beside the limits that the ledger is to keep (status and leaderboard 1 s, a checkpoint 0.2 s).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recorder.board import Choice, board_of, build_board
from recorder.leaderboard import write_leaderboard_csv
from recorder.ledger import Ledger
from recorder.results import CheckpointRef, Item, Score, TaskResult
from recorder.trend import worth
from recorder.verdict import checkpoint_verdict

LIMITS = {"status": 1.0, "leaderboard": 1.0, "one checkpoint": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=20, help="tasks of a checkpoint")
    parser.add_argument("--metrics", type=int, default=10, help="metrics of a task")
    parser.add_argument("--items", type=int, default=1000, help="item outcomes of a checkpoint, over all its tasks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="where the ledger is made and stays; it must not be there yet")
    options = parser.parse_args()
    with _place(options.keep) as directory:
        path = directory / "ledger.sqlite"
        ledger = Ledger(path)
        begin = time.perf_counter()
        fill(ledger, options)
        built = time.perf_counter() - begin
        ledger.close()
        ledger = Ledger(path)
        found = measure(ledger, directory, options)
        ledger.close()
        show(options, path, built, found)


@contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="ledger-") as directory:
        yield Path(directory)


def results_of(number: int, options: argparse.Namespace) -> list[TaskResult]:
    """What one checkpoint brings. Items of a task have the same keys at every checkpoint, as real ones do."""
    rng = random.Random(number)
    ref = CheckpointRef("gpt", 1000 * number, f"{number:08x}", f"/checkpoints/iter_{1000 * number:07d}", 2.1 * number)
    per_task = options.items // options.tasks
    level = 0.3 + 0.4 * number / (number + 300)
    results = []
    for task in range(options.tasks):
        scores = tuple(
            Score(f"metric{k}", level + 0.01 * rng.random(), 0.01, per_task, chance=0.25 if k == 0 else None)
            for k in range(options.metrics)
        )
        items = tuple(Item(f"{place:06d}", "metric0", float(rng.random() < level)) for place in range(per_task))
        cost = {"task_seconds": 12.5, "prompt_tokens": 100_000.0}
        results.append(TaskResult(ref, f"task{task:02d}", "v1", "icl", scores, items, cost, float(number)))
    return results


def fill(ledger: Ledger, options: argparse.Namespace) -> None:
    ledger._connection.execute("PRAGMA synchronous = OFF")  # twenty thousand transactions: only the filling is faster
    for number in range(1, options.checkpoints + 1):
        for result in results_of(number, options):
            ledger.note_task(result.checkpoint, result.task, "running", version=result.task_version, log="/logs/a.log")
            ledger.ingest(result)
        ledger.set_state(result.checkpoint, "recorded")
    ledger._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def measure(ledger: Ledger, directory: Path, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Name -> (wall, processor) seconds."""
    next_number = iter(range(options.checkpoints + 1, 10**9))

    def status() -> None:
        assert len(ledger.checkpoints()) >= options.checkpoints
        assert len(ledger.tasks()) >= options.checkpoints * options.tasks

    def leaderboard() -> None:
        board = board_of(ledger, [], Choice())
        write_leaderboard_csv(directory / "leaderboard.csv", board.rows, board.columns)
        assert board.rows[0].score is not None

    def every_score() -> None:
        assert build_board(ledger.scores(), [], Choice()).rows

    def one_checkpoint(results: list[TaskResult]) -> None:
        for result in results:
            assert ledger.ingest(result)

    def outcomes() -> None:
        assert ledger.outcomes("gpt", 1000)

    scores = ledger.scores()

    def verdict() -> None:
        assert checkpoint_verdict(scores, "gpt", items=ledger.outcomes) is not None

    def outlook() -> None:
        assert worth(scores, "gpt", items=ledger.outcomes) is not None

    found = {
        "status": smallest(options.repeats, status),
        "leaderboard": smallest(options.repeats, leaderboard),
        "every score and its board": smallest(options.repeats, every_score),
        "outcomes of one checkpoint": smallest(options.repeats, outcomes),
        "verdict on the newest": smallest(options.repeats, verdict),
        "is it worth going on": smallest(options.repeats, outlook),
    }
    taken = []
    for _ in range(options.repeats):
        results = results_of(next(next_number), options)  # made outside the time
        taken.append(smallest(1, lambda results=results: one_checkpoint(results)))
    return found | {"one checkpoint": min(taken)}


def smallest(repeats: int, what: Callable[[], None]) -> tuple[float, float]:
    times = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        what()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    return min(times)


def show(options: argparse.Namespace, path: Path, built: float, found: dict[str, tuple[float, float]]) -> None:
    count = options.checkpoints
    print(
        f"{count:,} checkpoints x {options.tasks * options.metrics} metrics, {count * options.items:,} item outcomes: "
        f"{path.stat().st_size / 1e6:.0f} MB, filled in {built:.0f} s"
    )
    print(f"{'':30} {'wall s':>8} {'CPU s':>8} {'limit s':>8}")
    for name, (wall, processor) in found.items():
        limit = f"{LIMITS[name]:8.1f}" if name in LIMITS else ""
        print(f"{name:30} {wall:8.3f} {processor:8.3f} {limit}")
    measured = {name: {"wall_s": round(w, 4), "cpu_s": round(p, 4)} for name, (w, p) in found.items()}
    print(json.dumps({"checkpoints": count, "bytes": path.stat().st_size, "measured": measured}))


if __name__ == "__main__":
    main()
