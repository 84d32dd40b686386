"""A training log belongs to whoever trains: no line of it takes more than its length."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from autoeval.diagnosis.formats import FORMATS, recognise
from autoeval.diagnosis.readings import Readings
from autoeval.diagnosis.stream import Position, clean, read_new

LENGTH = 400_000  # what takes the square of it takes minutes
HOSTILE = {
    "Megatron": [
        (b"", b"validation-"),
        (b"", b"validation loss at iteration 1 | "),
        (b"", b"iteration 1/ 2 | "),
        (b"", b"iteration 1/ 2 | elapsed time per iteration (ms): 1 | "),
        (b"iteration 1/ 2 | elapsed time per iteration (ms): 1 | ", b" | "),
    ],
    "TrainerState": [(b"{", b'"step":'), (b'{"log_history": [{"step": 1, "loss": ', b"["), (b"", b'{"step":1,')],
    "LlamaFactory": [(b'{"current_steps"', b'"eval_'), (b'{"current_steps": 1, "loss": 1', b'"eval_')],
    "PrintedDicts": [(b"{'", b"'eval_"), (b"{'loss': 1, 'epoch': ", b"'epoch': "), (b"{'eval_loss': 1", b"'eval_")],
    "Olmo": [(b"", b"[step=1,epoch=1"), (b"", b" train/a="), (b"  train/a=", b"1")],
    "NanoGPT": [(b"", b"step:1/2 train_loss:1 "), (b"step:", b"1"), (b"", b"s:1 trl:1 ")],
    "MLPerf": [(b":::MLLOG ", b"["), (b":::MLLOG ", b'{"a":'), (b"", b":::MLLOG {")],
    "DeepSpeedChat": [(b"", b"ppl: 1, "), (b"step=", b"1"), (b"", b"Epoch: 1, Step: ")],
}


def test_every_kind_of_log_is_here() -> None:
    assert HOSTILE.keys() == {kind.__name__ for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_no_line_takes_the_square_of_its_length(kind: type) -> None:
    for beginning, part in HOSTILE[kind.__name__]:
        text = beginning + part * (LENGTH // len(part)) + b"\n"
        started = time.thread_time()
        recognise(text)
        kind().read(text, Readings())
        assert time.thread_time() - started < 10, part


@pytest.mark.parametrize("part", [b"\x1b]", b"\x1b[0", b"\x1b[", b"\x1b]0;", b"\r"])
def test_nor_do_colours(part: bytes) -> None:
    started = time.thread_time()
    clean(part * (LENGTH // len(part)))
    assert time.thread_time() - started < 10


def test_a_pipe_in_the_logs_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="not a regular file"):
        list(read_new(tmp_path / "log", Position(), to_the_end=True))
