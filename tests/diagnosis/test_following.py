"""Logs as they are: growing, resumed, rotated, rewritten, of many ranks, coloured, with progress bars."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from autoeval.diagnosis.follow import CURVE_FILE, follow, main
from autoeval.diagnosis.training_log import TrainingLog, UnknownLogError
from recorder.ledger import Ledger
from recorder.results import CheckpointRef, Item, Score, TaskResult
from tests.diagnosis.log_world import diagnosis, falling, levels, megatron, megatron_line, read, validation, write

HOME = Path(__file__).resolve().parents[2]


def losses_of(log: TrainingLog) -> dict[float, float]:
    return dict(zip(log.curve.bins["last"].tolist(), log.curve.loss.round(6).tolist(), strict=True))


def test_a_growing_log_gives_what_the_whole_log_gives(tmp_path: Path) -> None:
    """Cut anywhere, also within a line and within a number."""
    losses = falling(300)
    losses[200] *= 2
    lines = [*megatron(losses), validation(300, 3.5)]
    whole = read(write(tmp_path / "whole.log", lines))
    text = (tmp_path / "whole.log").read_bytes()
    growing, state = tmp_path / "growing.log", tmp_path / "state.json"
    cuts = sorted(numpy.random.default_rng(0).integers(1, len(text), 12).tolist())
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        with growing.open("ab") as stream:
            stream.write(text[start:end])
        log = follow(growing, state)
    assert losses_of(log) == losses_of(whole)
    assert log.validations == whole.validations == {"": {300.0: 3.5}}
    assert [one.first for one in log.loss_spikes.episodes] == [one.first for one in whole.loss_spikes.episodes] == [201]
    before = state.read_bytes()
    assert losses_of(follow(growing, state)) == losses_of(whole) and state.read_bytes() == before


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, state = write(tmp_path / "t.log", megatron(falling(500)[:400])), tmp_path / "state.json"
    follow(log, state)
    with log.open("a") as stream:
        stream.write(megatron_line(401, 3.0) + "\n")
    seen: list[int] = []
    monkeypatch.setattr(TrainingLog, "_take", lambda self, text: seen.append(len(text)))
    follow(log, state)
    assert seen == [len(megatron_line(401, 3.0)) + 1]


def test_a_run_that_was_resumed_further_back(tmp_path: Path) -> None:
    first, second = falling(1000)[:600], falling(1000, seed=1)[400:]
    lines = [*megatron(first), validation(600, 9.0), *megatron(second, 401), validation(1000, 3.1)]
    log = read(write(tmp_path / "t.log", lines))
    assert log.rewinds == [(600.0, 401.0)]
    told = losses_of(log)
    assert len(told) == 1000 and told[500.0] == pytest.approx(second[99], abs=1e-5)
    found = diagnosis(tmp_path / "t.log", lines)
    assert levels(found) == ("Low", "Low", "Low")
    assert found["other_risks"]["resumed_from_earlier"]["level"] == "Medium"


def test_ranks_that_print_the_same_and_late(tmp_path: Path) -> None:
    losses = falling(200)
    lines = []
    for i in range(1, 201):
        for rank in range(4):
            behind = i - rank
            if behind >= 1:
                lines.append(megatron_line(behind, float(losses[behind - 1]), prefix=f"[default{rank}]:"))
    log = read(write(tmp_path / "t.log", lines))
    assert log.rewinds == []
    assert losses_of(log) == losses_of(read(write(tmp_path / "one.log", megatron(losses))))


def test_colours_and_progress_bars(tmp_path: Path) -> None:
    log = tmp_path / "t.log"
    with log.open("wb") as stream:
        for i, loss in enumerate(falling(100, start=3, end=1), 1):
            stream.write(f"\r{i:3}%|███▎  | {i}/100 [00:00<00:10]\x1b[A\r".encode())
            stream.write(
                f"\x1b[32m{{'loss': {loss:.4f}, 'learning_rate': 1e-05, 'epoch': {i / 100}}}\x1b[0m\r\n".encode()
            )
        stream.write(b"\r100%|####|{'eval_loss': 1.25, 'eval_runtime': 1.0, 'epoch': 1.0}\n")
    found = read(log)
    assert len(losses_of(found)) == 100 and found.validations == {"": {1.0: 1.25}}
    coloured = [f"\x1b[1;32m[rank7]\x1b[0m{line}" for line in megatron(falling(100))]
    assert losses_of(read(write(log, coloured))) == losses_of(read(write(tmp_path / "o", megatron(falling(100)))))


@pytest.mark.parametrize("how", ["renamed", "truncated"])
def test_a_log_that_was_rotated(tmp_path: Path, how: str) -> None:
    losses = falling(400)
    log, state = write(tmp_path / "t.log", megatron(losses[:100])), tmp_path / "state.json"
    follow(log, state)
    if how == "renamed":
        with log.open("a") as stream:
            stream.write("".join(line + "\n" for line in megatron(losses[100:150], 101)))
        log.rename(tmp_path / "t.log.1")
        write(log, megatron(losses[150:200], 151))
    else:
        write(log, megatron(losses[100:140], 101))
    told = follow(log, state)
    assert told.rewinds == [] and told.last == len(losses_of(told)) == (200 if how == "renamed" else 140)


def test_seconds_and_milliseconds_an_iteration_are_the_same_log(tmp_path: Path) -> None:
    """BigScience's fork of Megatron-DeepSpeed prints ``elapsed time per iteration (s)``."""
    lines = megatron(falling(200))
    other = [line.replace("iteration (ms): 1500.0", "iteration (s): 1.50") for line in lines]
    assert other != lines
    one, two = read(write(tmp_path / "ms.log", lines)), read(write(tmp_path / "s.log", other))
    assert len(losses_of(two)) == 200 and losses_of(two) == losses_of(one)
    assert two.curve.rate == pytest.approx(one.curve.rate) and one.curve.rate[0] == pytest.approx(288 / 1.5)


def test_a_trainer_state_is_written_anew_each_time(tmp_path: Path) -> None:
    path, state = tmp_path / "trainer_state.json", tmp_path / "s.json"
    for steps in (10, 20):
        history = [{"epoch": i / 20, "loss": 3.0 - i / 10, "step": i} for i in range(1, steps + 1)]
        path.write_text(json.dumps({"global_step": steps, "log_history": history, "max_steps": 20}, indent=2))
        log = follow(path, state)
        assert len(losses_of(log)) == steps and log.rewinds == [] and log.facts.total == 20


def test_a_state_that_is_broken_or_of_another_log_is_begun_anew(tmp_path: Path) -> None:
    log, state = write(tmp_path / "t.log", megatron(falling(50))), tmp_path / "state.json"
    for content in ('{"version": 1, "pos', '{"version": 1}', json.dumps({"version": 1, "path": "elsewhere"})):
        state.write_text(content)
        assert len(losses_of(follow(log, state))) == 50


def test_a_file_that_is_no_state_is_not_overwritten(tmp_path: Path) -> None:
    log = write(tmp_path / "t.log", megatron(falling(50)))
    other = write(tmp_path / "train.jsonl", ['{"messages": []}'])
    for file in (log, other):
        before = file.read_bytes()
        with pytest.raises(ValueError, match="is not a state"):
            follow(log, file)
        assert file.read_bytes() == before


def test_what_is_no_training_log(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.log", [])
    with pytest.raises(UnknownLogError, match=r"empty\.log: it is empty"):
        read(empty)
    with pytest.raises(UnknownLogError, match="no line of a training log"):
        read(write(tmp_path / "other.log", ["hello", "{}", "\x00\xff" * 50]))
    begun = write(tmp_path / "begun.log", [':::MLLOG {"key": "submission_benchmark", "value": "gpt3"}'])
    with pytest.raises(UnknownLogError, match=r"begun\.log: a log of the kind mlperf, but without"):
        read(begun)


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    log = read(write(tmp_path / "t.log", (megatron_line(i, 3.0) for i in range(1, 30_001))))
    assert log.curve.bins["rows"].sum() == 30_000 and len(log.curve) <= 4096
    assert len(json.dumps(log.state())) < 3_000_000


def ledger(path: Path, right: dict[int, list[int]]) -> None:
    """A ledger with a task ``quiz`` that answered right what ``right`` says, by iteration and item."""
    written = Ledger(path)
    for iteration, outcomes in right.items():
        ref = CheckpointRef("m", iteration, f"f{iteration}", f"/c/{iteration}", None)
        items = tuple(Item(str(key), "acc", float(value)) for key, value in enumerate(outcomes))
        score = Score("acc", sum(outcomes) / len(outcomes), 0.02, len(outcomes), True)
        written.ingest(TaskResult(ref, "quiz", "v1", "icl", (score,), items))
    written.close()


@pytest.mark.parametrize(("lost", "level"), [(60, "High"), (12, "Medium"), (2, "Low")])
def test_items_that_were_forgotten(tmp_path: Path, lost: int, level: str) -> None:
    best = [1] * 300 + [0] * 100
    ledger(tmp_path / "ledger.sqlite", {1000: [0] * 400, 2000: best, 3000: [0] * lost + best[lost:]})
    lines = [f"{{'loss': {loss:.4f}, 'epoch': {i / 50}}}" for i, loss in enumerate(falling(100), 1)]  # counts epochs
    write(tmp_path / "t.log", lines)
    command = [
        sys.executable,
        HOME / "eval/diagnosis_monitoring.py",
        "t.log",
        "--ledger",
        "ledger.sqlite",
        "--lang",
        "en",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    data = json.loads(done.stdout)["data"]
    assert data["current_risks"]["catastrophic_forgetting"] == level
    if level == "High":
        (evidence,) = data["evidence"]["catastrophic_forgetting"]
        assert "the checkpoint of iteration 3000 lost 60 that the one of iteration 2000 had" in evidence["text"]
        assert evidence["rule"] == "item_flips" and evidence["range"] == [2000.0, 3000.0]
        assert (evidence["values"]["lost"], evidence["values"]["gained"]) == (60, 0)


def test_what_the_report_draws(tmp_path: Path) -> None:
    log = write(tmp_path / "t.log", [*megatron(falling(3000)), validation(3000, 3.3)])
    assert main(["--log", str(log), "--work-dir", str(tmp_path), "--model", "m"]) == 0
    drawn = json.loads((tmp_path / "m" / CURVE_FILE).read_text())
    assert drawn["axis"] == "iteration" and drawn["validation"] == {"validation": [[3000.0, 3.3]]}
    assert 300 <= len(drawn["train"]) <= 1000 and drawn["train"][-1][0] == 3000
    assert all(low <= mean <= high for _, mean, low, high in drawn["train"])
    assert drawn["diagnosis"]["current_risks"]["overfitting"] == "Low"
    assert main(["--log", str(tmp_path / "nowhere"), "--work-dir", str(tmp_path), "--model", "m"]) == 1
