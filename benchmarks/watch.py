"""How soon the watch room knows of a checkpoint, and what a look at many of them costs.

``python benchmarks/watch.py [--saves 20] [--files 10000] [--idle 10]`` prints

* the seconds from the write that ends a save (the tracker; a Hugging Face directory's last file) to the moment when
  ``Watcher.scan`` has given the checkpoint, with file-system events and without any;
* the seconds of a look at a directory that holds many complete checkpoints: the first, which reads their marks, and
  later ones; with the number of files opened and of bytes read;
* the processor time of a watcher that has nothing to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from autoeval.checkpoints import Watcher
from autoeval.checkpoints.events import Events
from autoeval.checkpoints.layout import TRACKER

Writer = Callable[[Path, int], None]
INTERVAL_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=20, help="checkpoints of each latency measurement")
    parser.add_argument("--files", type=int, default=10_000, help="checkpoint files in the directory that is polled")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds to watch an idle watcher")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="watch-") as place:
        root = Path(place)
        source = real_checkpoint(root / "source")
        megatron = megatron_writer(source)
        print_latency("torch_dist, events", measure(root / "a", megatron, options.saves))
        print_latency("Hugging Face, events", measure(root / "b", huggingface, options.saves, model_type="huggingface"))
        without = measure(root / "c", megatron, max(3, options.saves // 4), interval=INTERVAL_SECONDS, events=False)
        print_latency(f"torch_dist, no events, check interval {INTERVAL_SECONDS:.0f} s", without)
        print_polling(root / "d", source, options.files)
        print_idle(root / "d", options.idle)


def real_checkpoint(directory: Path) -> Path:
    """A distributed checkpoint of 24 tensors in 6 files, written by PyTorch, with Megatron's mark beside it."""
    import warnings

    import torch
    import torch.distributed.checkpoint as dcp

    state = {f"decoder.layers.{n}.weight": torch.zeros(64, 64) for n in range(24)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no process group: one process
        dcp.save(state, storage_writer=dcp.FileSystemWriter(directory, thread_count=6), no_dist=True)
    (directory / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    torch.save({"iteration": 2}, directory / "common.pt")
    for name in (".metadata", "metadata.json"):  # written last, as Megatron does
        os.utime(directory / name)
    return directory


def megatron_writer(source: Path) -> Writer:
    shards = sorted(path.name for path in source.glob("*.distcp"))

    def write(root: Path, iteration: int) -> None:
        directory = root / f"iter_{iteration:07d}"
        directory.mkdir(parents=True)
        for name in ("common.pt", *shards, ".metadata", "metadata.json"):
            shutil.copyfile(source / name, directory / name)
        (root / TRACKER).write_text(str(iteration))

    return write


def huggingface(root: Path, iteration: int) -> None:
    """Files in the order of ``save_pretrained``: configuration, weights, tokenizer."""
    directory = root / f"checkpoint-{iteration}"
    directory.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "U8", "shape": [4096], "data_offsets": [0, 4096]}}).encode()
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4096))
    (directory / "tokenizer.json").write_text("{}")


def measure(
    root: Path,
    write: Writer,
    saves: int,
    *,
    model_type: str = "megatron",
    interval: float = 1800.0,
    events: bool = True,
) -> list[float]:
    """Seconds from the end of each save to the scan that gives it."""
    root.mkdir()
    watcher = make_watcher(root, model_type, interval)
    watcher.start()
    if not events:
        assert watcher._events is not None
        watcher._events.stop()  # as where none arrive
    found: dict[int, float] = {}
    changed = threading.Event()

    def watch() -> None:
        while watcher.wait():
            for checkpoint in watcher.scan().complete:
                found.setdefault(checkpoint.iteration, time.monotonic())
            changed.set()

    thread = threading.Thread(target=watch)
    thread.start()
    seconds = []
    for iteration in range(1, saves + 1):
        write(root, iteration)
        ended = time.monotonic()
        while iteration not in found:
            changed.wait(60.0)
            changed.clear()
        seconds.append(found[iteration] - ended)
        time.sleep(0.37 * (iteration % 5))  # not in step with any period of the watcher
    watcher.stop()
    thread.join()
    return seconds


def make_watcher(root: Path, model_type: str = "megatron", interval: float = 1800.0) -> Watcher:
    return Watcher(
        root,
        "benchmark",
        token_per_iteration=None,
        begin=1,
        end=None,
        interval=1,
        check_interval_seconds=interval,
        model_type=model_type,
    )


def print_latency(what: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    print(
        f"{what}: {len(ordered)} saves, seconds to notice: least {ordered[0]:.2f}, median "
        f"{statistics.median(ordered):.2f}, 95 % {late:.2f}, most {ordered[-1]:.2f}"
    )


def print_polling(root: Path, source: Path, files: int) -> None:
    per_checkpoint = len(list(source.iterdir()))
    count = -(-files // per_checkpoint)
    for iteration in range(1, count + 1):
        directory = root / f"iter_{iteration:07d}"
        directory.mkdir(parents=True)
        for path in source.iterdir():
            os.link(path, directory / path.name)
    (root / TRACKER).write_text(str(count))
    opened: list[str] = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    watcher = make_watcher(root)
    for look in ("first look", "second look", "third look"):
        opened.clear()
        before, started, used = bytes_read(), time.perf_counter(), time.process_time()
        complete = watcher.scan().complete
        seconds, used = time.perf_counter() - started, time.process_time() - used
        read = bytes_read() - before
        assert len(complete) == count
        print(
            f"{count * per_checkpoint} files in {count} checkpoints, {look}: {seconds:.3f} s "
            f"(processor {used:.3f} s), {sum(str(root) in name for name in opened)} files opened, {read / 1e6:.2f} MB read"
        )


def bytes_read() -> int:
    """By this process so far, from anywhere (Linux)."""
    return int(Path("/proc/self/io").read_text().split()[1])


def print_idle(root: Path, seconds: float) -> None:
    watcher = make_watcher(root)
    watcher.start()
    while watcher.wait(2.0):
        watcher.scan()
    used, wakes = time.process_time(), 0
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        wakes += watcher.wait(left)
    spent = time.process_time() - used
    print(f"idle for {seconds:.0f} s: {wakes} wakes, {1000 * spent:.1f} ms of processor time ({spent / seconds:.3%})")
    assert isinstance(watcher._events, Events)
    watcher.stop()


if __name__ == "__main__":
    main()
