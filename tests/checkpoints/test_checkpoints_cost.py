"""What a look costs, counted and not timed: files opened, bytes read; and nothing heavy is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import LAYOUTS, TRACKER, Save, put, watcher, write

HOME = Path(__file__).resolve().parents[2]
LOOK = """
import json, sys
from pathlib import Path
from autoeval.checkpoints import Watcher

root, model_type, looks = sys.argv[1], sys.argv[2], int(sys.argv[3])
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
watcher = Watcher(
    Path(root), "gpt", token_per_iteration=None, begin=2, end=None, interval=2, check_interval_seconds=60.0,
    model_type=model_type,
)
def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])
told = []
for _ in range(looks):
    before = bytes_read()
    opened.clear()
    complete = len(watcher.scan().complete)
    files = [name for name in opened if name.startswith(root)]
    told.append({"complete": complete, "opened": files, "bytes": bytes_read() - before})
heavy = sorted(set(sys.modules) & {"torch", "numpy", "pydantic", "safetensors", "transformers", "apscheduler", "yaml"})
print(json.dumps({"looks": told, "heavy": heavy}))
"""


def looks_at(root: Path, model_type: str = "megatron", looks: int = 2) -> dict[str, Any]:
    """What a process of its own opens and reads in each of some looks."""
    command = [sys.executable, "-c", LOOK, str(root), model_type, str(looks)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_look_reads_marks_once_and_never_a_big_file(
    layout: str, tmp_path: Path, saves: Callable[[str], tuple[Save, Save]]
) -> None:
    save, _ = saves(layout)
    for iteration in (2, 4, 6):
        directory = put(save, tmp_path, iteration, age=100.0 - iteration)
        for path in directory.glob("*.distcp"):  # a hole of 256 MiB: it would take a while to read
            times = path.stat()
            with path.open("rb+") as stream:
                stream.truncate(2**28)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    told = looks_at(tmp_path, save.model_type)
    first, second = told["looks"]
    assert (first["complete"], second["complete"], told["heavy"]) == (3, 3, [])
    assert not [name for name in first["opened"] if name.endswith((".distcp", "distrib_optim.pt"))]
    assert first["bytes"] < 3 * sum(map(len, save.files.values())) + 200_000
    assert second["opened"] == [str(path) for path in tmp_path.glob(TRACKER)]  # which Hugging Face has not
    assert second["bytes"] < 5_000


def test_of_a_big_legacy_file_only_names_and_arguments_are_read(tmp_path: Path) -> None:
    import argparse

    import torch

    path = tmp_path / "iter_0000002" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    arguments = argparse.Namespace(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    torch.save({"args": arguments, "model": {"weight": torch.zeros(16 * 2**20)}}, path)
    write(tmp_path / TRACKER, b"2", 0.0)
    assert path.stat().st_size > 60e6
    told = looks_at(tmp_path)["looks"]
    assert told[0]["complete"] == 1
    assert told[0]["bytes"] < 500_000
    assert told[1]["opened"] == [str(tmp_path / TRACKER)]


def test_only_what_changed_is_read_again(tmp_path: Path, saves: Callable[[str], tuple[Save, Save]]) -> None:
    save, other = saves("torch_dist")
    for iteration in (2, 4, 6):
        put(save, tmp_path, iteration, age=100.0 - iteration)
    looking = watcher(tmp_path)
    looking.scan()
    put(other, tmp_path, 4, age=1.0)
    read: set[str] = set()
    opened = os.open

    def counted(path: Path, *options: int) -> int:
        read.add(Path(path).parent.name)
        return opened(path, *options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", counted)
        assert len(looking.scan().complete) == 3
    assert read - {tmp_path.name} == {"iter_0000004"}


def test_a_look_at_ten_thousand_files_takes_under_a_second(
    tmp_path: Path, saves: Callable[[str], tuple[Save, Save]]
) -> None:
    save, _ = saves("torch_dist")
    count = 2000
    first = put(save, tmp_path, 2, age=100.0)
    for iteration in range(4, 2 * count + 2, 2):
        directory = tmp_path / f"iter_{iteration:07d}"
        directory.mkdir()
        for name in save.files:
            os.link(first / name, directory / name)
    write(tmp_path / TRACKER, str(2 * count).encode(), 1.0)
    looking = watcher(tmp_path)
    assert len(looking.scan().complete) == count
    taken = []
    for _ in range(3):
        started = time.thread_time()  # not what others take of the machine, nor other threads of this process
        assert len(looking.scan().complete) == count
        taken.append(time.thread_time() - started)
    assert min(taken) < 1.0  # a collection of all that the tests before have left may fall into one
