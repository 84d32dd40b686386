"""Prompts of the next chunk are made while the model answers; the records are those of one call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autoeval.models.hf import HuggingFaceModel
from autoeval.openicl.ranking import PPLInferencer
from autoeval.tasks.icl import infer_in_chunks, infer_samples
from tests.tasks.test_tasks_icl import infer, load, write_task
from tests.tiny_models import save_tiny_model

CHOICES = ["A", "B"]
ROWS = [{"q": f"question {number}", "gold": 0, "choices": CHOICES} for number in range(7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceModel:
    return HuggingFaceModel(save_tiny_model(tmp_path_factory.mktemp("model"), "gpt2"), device="cpu")


@pytest.mark.parametrize("kind", ["ranked", "generated", "dialogue"])
def test_chunks_give_the_records_of_one_call(kind: str, model: HuggingFaceModel, tmp_path: Path) -> None:
    changes: dict[str, Any] = {}
    rows: list[dict[str, Any]] = ROWS
    if kind == "generated":
        changes["infer_cfg"] = infer("Q: {q} A:", {"type": "GenInferencer", "max_out_len": 4})
    if kind == "dialogue":  # several rounds: what follows is asked by the main thread
        turns = [{"role": role, "content": f"turn {place}"} for place, role in enumerate(("user", "assistant") * 2)]
        rows = [{"dialogue": [{"role": "user", "content": f"{number}"}, *turns[1:]]} for number in range(5)]
        inferencer = {"type": "ChatInferencer", "max_out_len": 3, "infer_mode": "every"}
        changes = {"infer_cfg": infer("{dialogue}", inferencer), "reader_cfg": {"input_columns": ["dialogue"]}}
    task = load(write_task(tmp_path, rows, **changes))
    whole = infer_samples(task, model, task.samples)
    assert len(whole) == len(rows)
    for size in (2, 3, 100):
        chunks = list(infer_in_chunks(task, model, task.samples, size))
        assert [len(chunk) for chunk in chunks][:-1] == [size] * (len(chunks) - 1)
        for one, other in zip(whole, [record for chunk in chunks for record in chunk], strict=True):
            assert other["prediction"] == one["prediction"] and other.keys() == one.keys()
    assert list(infer_in_chunks(task, model, [], 2)) == [] and infer_samples(task, model, []) == []


def test_the_next_chunk_is_made_while_the_model_computes(
    model: HuggingFaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model answers a chunk only when the next one has been made: asked one after the other it would wait for ever."""
    task = load(write_task(tmp_path, ROWS))
    made = [threading.Event() for _ in range(3)]
    ask, scored = PPLInferencer.ask, HuggingFaceModel.loglikelihoods
    threads: list[str] = []

    def asking(self: Any, model: Any, samples: Sequence[Any], prompting: Any) -> Any:
        asked = ask(self, model, samples, prompting)
        made[len(threads)].set()
        threads.append(threading.current_thread().name)
        return asked

    answered: list[int] = []

    def scoring(self: Any, requests: Sequence[Any]) -> Any:
        answered.append(len(answered))
        assert made[min(2, len(answered))].wait(90)
        return scored(self, requests)

    monkeypatch.setattr(PPLInferencer, "ask", asking)
    monkeypatch.setattr(HuggingFaceModel, "loglikelihoods", scoring)
    assert sum(map(len, infer_in_chunks(task, model, task.samples, 3))) == 7
    assert answered == [0, 1, 2] and all(name.startswith("tokenize") for name in threads)


def test_what_cannot_be_asked_is_told_when_its_turn_has_come(
    model: HuggingFaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load(write_task(tmp_path, ROWS))
    ask, calls = PPLInferencer.ask, []

    def failing(self: Any, model: Any, samples: Sequence[Any], prompting: Any) -> Any:
        calls.append(len(samples))
        if len(calls) == 2:
            raise ValueError("row 3 cannot be asked")
        return ask(self, model, samples, prompting)

    monkeypatch.setattr(PPLInferencer, "ask", failing)
    chunks = infer_in_chunks(task, model, task.samples, 3)
    assert len(next(chunks)) == 3
    with pytest.raises(ValueError, match="row 3"):
        next(chunks)
