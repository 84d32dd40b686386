"""How long a training log of a gigabyte takes, and how much memory: python benchmarks/diagnosis_log.py [--gigabytes 1]

Writes dense logs (every line an iteration) of several kinds to a temporary directory, reads each with the diagnosis in a
process of its own, and prints CPU seconds, wall seconds, megabytes a CPU second and the process's peak memory.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]


def megatron(i: int) -> str:
    loss = 2 + 9 / (1 + i / 500) ** 0.4 + (i * 7919 % 101) / 2000
    return (
        f"31:  [2026-08-18 03:{i % 60:02d}:09.974126] iteration {i:8d}/ 9000000 | consumed samples: {i * 288:12d} | "
        "elapsed time per iteration (ms): 1604.8 | throughput per GPU (TFLOP/s/GPU): 363.2 | learning rate: 3.328000E-04 "
        f"| global batch size:   288 | lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: 0.677 | params norm: 679.922 | "
        "number of skipped iterations:   0 | number of nan iterations:   0 |\n"
    )


def llama_factory(i: int) -> str:
    loss = 1 + 2 / (1 + i / 500) ** 0.4 + (i * 7919 % 101) / 2000
    return (
        f'{{"current_steps": {i}, "total_steps": 9000000, "loss": {loss:.4f}, "lr": 1.83e-06, "epoch": {i / 1e6:.6f}, '
        f'"percentage": 0.23, "elapsed_time": "{i // 3600}:{i // 60 % 60:02d}:{i % 60:02d}", "remaining_time": "9 days"}}\n'
    )


def trainer(i: int) -> str:
    loss = 1 + 2 / (1 + i / 500) ** 0.4 + (i * 7919 % 101) / 2000
    return f"{{'loss': {loss:.4f}, 'grad_norm': 0.7695, 'learning_rate': 2.262e-05, 'epoch': {i / 1e5:.5f}}}\n"


def nanogpt(i: int) -> str:
    loss = 2 + 9 / (1 + i / 500) ** 0.4 + (i * 7919 % 101) / 2000
    return f"step:{i}/99000000 train_loss:{loss:.4f} train_time:{i * 363}ms step_avg:363.39ms\n"


def talkative(i: int) -> str:
    """One iteration among a hundred lines of other output, as most gigabytes of logs are."""
    chatter = "[2026-08-18 03:00:09,974] [INFO] [logging.py:96:log_dist] [Rank 0] time (ms) | fwd: 1.0 | bwd: 2.0 |\n"
    return megatron(i) + chatter * 100


KINDS: dict[str, Callable[[int], str]] = {
    "megatron, every line": megatron,
    "megatron, 1 line in 100": talkative,
    "llama-factory": llama_factory,
    "hf-trainer": trainer,
    "modded-nanogpt": nanogpt,
}


def write(path: Path, line: Callable[[int], str], size: int) -> None:
    written, i = 0, 1
    with path.open("w", encoding="utf-8") as stream:
        while written < size:
            lines = "".join(line(j) for j in range(i, i + 2000))
            i += 2000
            written += stream.write(lines)


def read(path: Path) -> None:
    """The child: diagnose, and tell what it cost."""
    sys.path[0] = str(HOME)
    from autoeval.diagnosis.report import diagnose
    from autoeval.diagnosis.training_log import TrainingLog

    before, wall = time.process_time(), time.perf_counter()
    log = TrainingLog(path)
    log.read()
    rows = diagnose(log)["log"]["rows"]
    cpu, wall = time.process_time() - before, time.perf_counter() - wall
    print(rows, cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read)
        return
    print(f"{'kind':26} {'MB':>6} {'rows':>9} {'CPU s':>7} {'wall s':>7} {'MB/CPU s':>9} {'peak MB':>8}")
    for name, line in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "train.log"
            write(log, line, int(options.gigabytes * 1e9))
            command = [sys.executable, __file__, "--read", str(log)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            megabytes = log.stat().st_size / 1e6
        rows, cpu, wall, peak = int(answer[0]), *map(float, answer[1:])
        print(f"{name:26} {megabytes:6.0f} {rows:9} {cpu:7.1f} {wall:7.1f} {megabytes / cpu:9.0f} {peak:8.0f}")


if __name__ == "__main__":
    main()
