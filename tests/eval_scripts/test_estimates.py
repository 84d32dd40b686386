"""The published formulas exactly, the estimates against measured runs, and the notebook against the module."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from autoeval import estimates
from autoeval.estimates import Machine, ModelSize, Workload, evaluation_duration, memory_usage
from tests.tiny_models import save_tiny_model

HOME = Path(__file__).resolve().parents[2]
RUNS = json.loads((HOME / "eval" / "measured_runs.json").read_text(encoding="utf-8"))["runs"]
SIZE = ModelSize(1000, 900, 100, 2, 8, 24, 8, 16, 50, 4, 128)


def test_the_published_formulas_exactly() -> None:
    assert memory_usage(13e9, 10) == pytest.approx(13e9 * 1 / 5e10 * 2.5 * 10)
    assert memory_usage(7e9, 4, data_type_size=2, overhead_factor=0.5, num_gpus=2) == pytest.approx(0.84)
    assert evaluation_duration(1e9, 13e9, 312e12) == pytest.approx(1e9 * 13e9 * 8 / (312e12 * 0.3 * 86400))
    assert evaluation_duration(1e9, 13e9, 312e12, gpu_utilization=0.6, num_gpus=2) == pytest.approx(
        evaluation_duration(1e9, 13e9, 312e12) / 4
    )


def test_operations_and_bytes_by_hand() -> None:
    work = Workload(items=3, prompt_tokens=10, generated_tokens=4, rows=2)
    assert estimates.prefill_flops(SIZE, work) == 3 * (2 * 900 * 10 + 2 * 2 * 8 * 10**2 + 2 * 100)
    assert estimates.decode_flops(SIZE, work) == 3 * 4 * (2 * 1000 + 4 * 2 * 8 * 12)
    assert work.steps == 4 * 2  # two batches of two rows
    assert estimates.decode_bytes(SIZE, work) == 8 * 1000 * 4 + 3 * 4 * 12 * 128


def test_memory_grows_with_the_batch_by_its_cache_alone() -> None:
    one, four = (estimates.memory_bytes(SIZE, Workload(100, 50, 50, rows=rows, batch_tokens=64)) for rows in (1, 4))
    assert one["weights"] == four["weights"] == 4000
    assert four["total"] - one["total"] == 3 * 100 * 128


def test_decoding_takes_the_longer_of_arithmetic_and_reading() -> None:
    work = Workload(8, 10, 10, rows=8)
    calibration = estimates.Calibration(1.0, 1.0, 0.0)

    def decoding(flops: float, bandwidth: float) -> float:
        return estimates.duration_seconds(SIZE, work, Machine(flops, bandwidth), calibration)["decode"]

    assert decoding(1e6, 1e30) == pytest.approx(estimates.decode_flops(SIZE, work) / 1e6)
    assert decoding(1e30, 1e6) == pytest.approx(estimates.decode_bytes(SIZE, work) / 1e6)


def test_a_size_is_the_models_own(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for kind in ("gpt2", "llama"):
        directory = save_tiny_model(tmp_path / kind, kind)
        size = estimates.size_of(directory)
        model: Any = AutoModelForCausalLM.from_pretrained(directory)
        assert size.parameters == sum(one.numel() for one in model.parameters())
        assert (size.item, size.layers, size.hidden) == (4, 2, 32)
        linear = sum(
            one.weight.numel() + (0 if getattr(one, "bias", None) is None else one.bias.numel())
            for name, one in model.named_modules()
            if name != "lm_head"
            and getattr(one, "weight", None) is not None
            and not isinstance(one, torch.nn.Embedding)
        )
        assert size.multiplied == linear
        assert size.projection == model.lm_head.weight.numel()
        assert estimates.size_of(directory, "bfloat16").weight_bytes == 2 * size.parameters


def test_masks_of_grouped_queries_and_scores_under_a_soft_cap_are_counted(tmp_path: Path) -> None:
    from autoeval.models.memory import shaped_pass_bytes
    from autoeval.models.network import Shape

    size = estimates.size_of(save_tiny_model(tmp_path / "llama", "llama"))
    assert (size.groups, size.capped) == (2, 0)
    work = Workload(4, 400, 100, rows=4, batch_tokens=1024)
    shape = Shape(size.hidden, size.attention, size.widest, size.item, size.cache_bytes, groups=2)
    counted = estimates.memory_bytes(size, work)["activations"]
    assert counted == shaped_pass_bytes(shape, size.vocabulary, "cpu", 1024, 500)
    plain = estimates.memory_bytes(dataclasses.replace(size, groups=1), work)["activations"]
    capped = estimates.memory_bytes(dataclasses.replace(size, capped=4), work)["activations"]
    assert counted - plain == (1024 * 500 + 500 * 500) * size.item  # masks as numbers, a segment's once more
    assert capped - counted == 500 * 500 * 4 * 4 * 4


def test_the_workload_is_what_the_scorer_will_have_under_way() -> None:
    from autoeval.model_eval.dataset_metrics import workload

    assert workload([10, 20], 5, "cpu", None, 512) == Workload(2, 15, 5, rows=128, batch_tokens=1024)
    assert workload([10, 20], 5, "cpu", 10, 512) == Workload(2, 15, 5, rows=128, batch_tokens=5120)
    assert workload([10, 20], 5, "cpu", 1, 64).rows == 64


def test_the_constants_are_those_that_fit_the_measured_runs() -> None:
    fitted = estimates.calibrate(RUNS)
    for name in ("prefill", "decode", "layer_seconds"):
        assert getattr(fitted, name) == pytest.approx(getattr(estimates.MEASURED, name), rel=0.02), name


def test_estimates_are_near_what_was_measured() -> None:
    assert len(RUNS) >= 12
    logs = []
    for run in RUNS:
        size, work, machine = estimates.measured_run(run)
        ratio = estimates.duration_seconds(size, work, machine)["total"] / run["seconds"]
        logs.append(math.log(ratio))
        assert 1 / 2 < ratio < 2, (run["name"], run["work"], ratio)
        assert 1 / 2 < estimates.memory_bytes(size, work)["total"] / run["bytes"] < 2, (run["name"], run["work"])
    assert math.exp(math.sqrt(sum(one**2 for one in logs) / len(logs))) < 1.4  # typical factor


def test_a_machine_is_measured() -> None:
    machine = estimates.measure_machine()
    assert 1e8 < machine.flops < 1e15 and 1e8 < machine.bandwidth < 1e13
    said = estimates.in_words(SIZE, Workload(3, 10, 4), machine, batch=3)
    assert "memory:" in said and "duration:" in said and "published formula" in said


def test_the_notebook_was_executed_with_what_the_module_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib draws the notebook's figures")
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(HOME)
    notebook = json.loads((HOME / "eval" / "two_empirical_formulas.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    space: dict[str, Any] = {"__name__": "__main__"}
    figures = 0
    for cell in cells:
        assert cell["execution_count"] is not None
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile("".join(cell["source"]), "notebook", "exec"), space)
        printed = "".join("".join(one["text"]) for one in cell["outputs"] if one["output_type"] == "stream")
        assert said.getvalue() == printed
        figures += sum("image/png" in one.get("data", {}) for one in cell["outputs"])
    pyplot.close("all")
    assert figures == 2
