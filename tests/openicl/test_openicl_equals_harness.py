"""Log-likelihoods and decisions equal lm-evaluation-harness's, on real data.

The harness's numbers were recorded by ``record_harness_numbers.py``: its own prompts, its own model class, fp32.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from autoeval.models.hf import HuggingFaceModel
from autoeval.openicl.postprocessors import build_postprocessor
from autoeval.tasks.icl import load_icl_tasks, run_icl_task
from tests.openicl.harness_models import KINDS, TASKS, limit_of, read_recorded, save_model

DATA = Path(os.environ.get("AUTOEVAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "opencompass").is_dir(), reason=f"no real data at {DATA}"),
]
RECORDED = read_recorded()


@pytest.fixture(scope="module", params=KINDS)
def kind_and_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, HuggingFaceModel]:
    directory = save_model(request.param, tmp_path_factory.mktemp(request.param), DATA / "tokenizers" / "gpt2")
    return request.param, HuggingFaceModel(directory, device="cpu")


@pytest.mark.parametrize("name", TASKS)
def test_every_item_is_that_of_the_harness(name: str, kind_and_model: tuple[str, HuggingFaceModel]) -> None:
    kind, model = kind_and_model
    (task,) = load_icl_tasks([TASKS[name]], data_dir=DATA / "opencompass", limit=limit_of(name))
    expected: dict[str, Any] = RECORDED[kind][name]
    assert [sample.key for sample in task.samples] == list(expected), "the items are those that were recorded"
    outcome = run_icl_task(task, model)
    decided: dict[tuple[str, str], float] = {(item.metric, item.key): item.value for item in outcome.items}
    for record, sample in zip(outcome.predictions.values(), task.samples, strict=True):
        recorded = expected[sample.key]
        if name == "gsm8k":
            assert record["prediction"] == recorded["text"]
            assert decided["acc", sample.key] == recorded["right"]
            continue
        lls = [value["loglikelihood"] for key, value in record.items() if key.startswith("label: ")]
        # The harness adds up in fp32: near 1000 nats two neighbouring numbers are 6e-5 apart.
        assert lls == pytest.approx(recorded["lls"], abs=1e-4, rel=3e-7)
        assert decided["acc", sample.key] == recorded["acc"]
        if "acc_bytes" in recorded:
            assert decided["acc_norm", sample.key] == recorded["acc_bytes"]
            texts = [value["continuation"] for key, value in record.items() if key.startswith("label: ")]
            if all(text.isascii() for text in texts):  # the harness's own acc_norm counts characters
                assert decided["acc_norm", sample.key] == recorded["acc_norm"]


def test_the_recording_is_worth_comparing_with() -> None:
    assert RECORDED["lm_eval"] == "0.4.13"
    for kind in KINDS:
        assert set(RECORDED[kind]) == set(TASKS)
        for name in TASKS:
            assert len(RECORDED[kind][name]) == limit_of(name)
        accuracies = {item["acc"] for item in RECORDED[kind]["hellaswag"].values()}
        assert accuracies == {0.0, 1.0}, "some right and some wrong, so that a wrong decision shows"


def test_answers_of_gsm8k_are_read_as_the_harness_reads_them() -> None:
    clean = build_postprocessor({"type": "gsm8k"})
    answers = {"so 4 + 5 = 9.": "9", "it costs $1,234 now": "1234", "#### 12": "12", "we get -3.50": "-3.5", "none": ""}
    for text, expected in answers.items():
        assert clean(text) == expected
