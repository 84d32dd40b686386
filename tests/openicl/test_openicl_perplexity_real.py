"""Perplexity ranking on real data equals OpenCompass's formula computed again, one prompt at a time.

``AUTOEVAL_EVERY_ITEM=1`` compares every item (half an hour); else some of each data set.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from autoeval.models.hf import HuggingFaceModel
from autoeval.tasks.icl import load_icl_tasks, run_icl_task
from tests.tiny_models import save_tiny_model

DATA = Path(os.environ.get("AUTOEVAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "opencompass"
LIMITS = {
    "hellaswag_ppl": 60,
    "piqa_ppl": 150,
    "winogrande_ppl": 200,
    "ARC_c_ppl": 120,
    "ARC_e_ppl": 60,
    "boolq_ppl": 100,
    "mmlu_available_ppl": 30,
    "siqa_ppl": 80,
    "FewCLUE_tnews_ppl": 20,
}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceModel:
    return HuggingFaceModel(
        save_tiny_model(tmp_path_factory.mktemp(request.param), request.param, window=1024), device="cpu"
    )


def perplexity(model: HuggingFaceModel, prompt: str) -> float:
    """Cross entropy of all tokens but the first, over the number of all tokens; the window's last tokens."""
    ids = torch.tensor(model.tokenizer(prompt)["input_ids"][-model.max_seq_len :])
    with torch.inference_mode():
        logits = model.model(ids[None]).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")) / len(ids)


@pytest.mark.parametrize("name", LIMITS)
def test_every_decision_is_the_formulas(name: str, model: HuggingFaceModel) -> None:
    limit = None if os.environ.get("AUTOEVAL_EVERY_ITEM") else LIMITS[name]
    (task,) = load_icl_tasks([name], data_dir=DATA, limit=limit)
    outcome = run_icl_task(task, model)
    values = {item.key: item.value for item in outcome.items if item.metric == "acc"}
    decided = set()
    for sample, record in zip(task.samples, outcome.predictions.values(), strict=True):
        labels = task.prompting.labels(sample.row)
        prompts = [record[f"label: {label}"]["prompt"] for label in labels]
        whole = [task.prompting.prompt(sample.row, task.prompting.ice(sample.examples), label=one) for one in labels]
        assert prompts == whole or record["dropped in-context examples"] > 0
        expected = [perplexity(model, prompt) for prompt in prompts]
        measured = [record[f"label: {label}"]["PPL"] for label in labels]
        assert measured == pytest.approx(expected, abs=1e-5)
        best = labels[expected.index(min(expected))]
        if sorted(expected)[1] - min(expected) > 1e-6:  # nearer than rounding: a tie
            assert record["prediction"] == str(best)
        assert values[sample.key] == float(record["prediction"] == task.prompting.gold(sample.row))
        decided.add(record["prediction"])
    assert len(decided) > 1
