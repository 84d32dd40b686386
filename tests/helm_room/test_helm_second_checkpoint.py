"""What a further checkpoint costs besides the model, counted: nothing is built, tokenized or imported again."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helm_tiny_models import DirectModel

from autoeval.helm.run import HelmOutcome, run_helm_task
from autoeval.helm.spec import HelmTask
from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import GenerationRequest, GenerationResult, LanguageModel

pytestmark = pytest.mark.slow

ENTRIES = tuple(f"dyck_language:num_parenthesis_pairs={pairs}" for pairs in (2, 3, 4))
MOST_SYNCS = 8  # five files, their directory, the receipt, its directory


def evaluate(model: LanguageModel, name: str, output: Path, entries: tuple[str, ...] = ENTRIES) -> HelmOutcome:
    task = HelmTask("dyck_language", "v", entries, ("EM-indicator", "BPB"), 4)
    return run_helm_task(task, model, model_name=name, output_path=output, suite="suite")


def counting(monkeypatch: pytest.MonkeyPatch, counts: Counter[str], owner: Any, name: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        counts[name] += 1
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("name", ["second", "gpt"])  # HELM treats names with "gpt" in them differently
def test_the_second_checkpoint_builds_tokenizes_and_imports_nothing(
    name: str, tiny_models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helm.benchmark.adaptation.adapters.adapter_factory import AdapterFactory
    from helm.benchmark.scenarios.dyck_language_scenario import DyckLanguageScenario

    evaluate(DirectModel(tiny_models[0]), f"{name}-first", tmp_path)
    model = DirectModel(tiny_models[1])  # with a tokenizer object of its own
    counts: Counter[str] = Counter()
    counting(monkeypatch, counts, DyckLanguageScenario, "get_instances")
    counting(monkeypatch, counts, AdapterFactory, "get_adapter")
    for method in ("_encode_plus", "tokenize", "encode"):
        counting(monkeypatch, counts, type(model.tokenizer), method)
    counting(monkeypatch, counts, os, "fsync")
    before = set(sys.modules)
    outcome = evaluate(model, f"{name}-second", tmp_path)
    assert outcome.cost["prompts_reused"] == outcome.cost["runs"] == len(ENTRIES)
    assert not {added for added in set(sys.modules) - before if added.partition(".")[0] in ("helm", "nltk", "torch")}
    assert 0 < counts.pop("fsync") <= MOST_SYNCS * len(ENTRIES)
    assert counts == {}


class CountedModel(HuggingFaceModel):
    """Counts its calls; one that gets more than ``most`` requests at once fails."""

    calls = 0
    most = 1000

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        self.calls += 1
        if len(requests) > self.most:
            raise RuntimeError("too many")
        return super().generate(requests)


def test_small_runs_of_a_task_are_one_call_and_get_what_each_gets_alone(
    tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tiny_models[0]
    together, apart = (CountedModel(path, dtype="float32", device="cpu") for _ in range(2))
    apart.most = 4  # then each is tried by itself
    found = [evaluate(model, name, tmp_path) for name, model in (("together", together), ("apart", apart))]
    direct = evaluate(DirectModel(path), "direct", tmp_path)
    assert (together.calls, apart.calls) == (1, 1 + len(ENTRIES))
    assert [one.cost["runs_asked_together"] for one in (*found, direct)] == [3, 0, 0]
    for outcome in found:
        assert [score.value for score in outcome.scores] == pytest.approx([score.value for score in direct.scores])
        assert [item.key for item in outcome.items] == [item.key for item in direct.items]
    assert together.cost.computed_tokens < apart.cost.computed_tokens  # the three prompts begin alike


def test_a_run_that_fills_the_passes_is_asked_alone_and_its_result_is_there_before_the_next_is_asked(
    tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    complete: list[int] = []

    class Watched(CountedModel):
        def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
            complete.append(len(list(tmp_path.glob("runs/suite/*/autoeval.json"))))
            return super().generate(requests)

    evaluate(Watched(tiny_models[0], dtype="float32", device="cpu", batch_tokens=16), "small", tmp_path)
    assert complete == [0, 1, 2]
