"""What an evaluation will take: two published empirical formulas, and estimates from first principles beside them.

The published formulas are kept exactly as their users know them. The estimates count what this project's scorer holds
and multiplies (weights, key-value cache, activations; floating-point operations of prefill and decoding, bytes that
decoding has to read), and divide by what this machine was just measured to do. Only three numbers in them are not
counted: how much of the machine's matrix rate prefill and decoding reach, and what a decoding step costs beside its
arithmetic. They are fitted to measured runs (``eval/measured_runs.json``, made by ``benchmarks/estimates.py``);
``eval/two_empirical_formulas.ipynb`` shows both kinds and the fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SECONDS_PER_DAY = 86_400


def memory_usage(
    model_parameters: float,
    batch_size: float,
    data_type_size: float = 1,
    overhead_factor: float = 1.5,
    num_gpus: float = 1,
) -> float:
    """The published formula of GPU memory: parameters · bytes / 5e10 · (1 + overhead) · batch / GPUs.

    It is said to give GB. Its divisor is 5e10 where bytes to GB is 1e9, so for one sequence it gives a twentieth of the
    weights alone, and then grows with the batch as if every sequence had a copy of them: see the notebook.
    """
    return model_parameters * data_type_size / 5e10 * (1 + overhead_factor) * batch_size / num_gpus


def evaluation_duration(
    num_tokens: float, model_parameters: float, gpu_flops: float, gpu_utilization: float = 0.3, num_gpus: float = 1
) -> float:
    """The published formula of days: tokens · parameters · 8 / (FLOP/s · utilisation · 86400 · GPUs).

    Eight operations a parameter and token are those of training with recomputed activations (2 forward, 4 backward, 2
    forward again; Korthikanti et al. 2022, arXiv 2205.05198); an evaluation does the first two.
    """
    return num_tokens * model_parameters * 8 / (gpu_flops * gpu_utilization * SECONDS_PER_DAY * num_gpus)


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides its cost. Widths in elements; ``item`` is bytes of one element.

    ``parameters`` counts tied ones once, ``multiplied`` those that a token's forward pass multiplies with, the output
    projection apart (``projection``). ``attended``: width of all query heads together. ``groups`` and ``capped`` are
    those of ``autoeval.models.network.Shape``: queries of a key, heads under a soft cap.
    """

    parameters: int
    multiplied: int
    projection: int
    layers: int
    hidden: int
    attention: int
    attended: int
    widest: int
    vocabulary: int
    item: int
    cache_bytes: int
    groups: int = 1
    capped: int = 0

    @property
    def weight_bytes(self) -> int:
        return self.parameters * self.item


@dataclass(frozen=True)
class Workload:
    """``items`` prompts of ``prompt_tokens`` (each, on average), ``generated_tokens`` after each; ``rows`` at once;
    ``batch_tokens`` in one prefill pass."""

    items: int
    prompt_tokens: float
    generated_tokens: float
    rows: int = 8
    batch_tokens: int = 1024

    @property
    def steps(self) -> float:
        """Decoding steps: each gives every row that is under way one token."""
        return self.generated_tokens * math.ceil(self.items / max(1, self.rows))


@dataclass(frozen=True)
class Machine:
    """``flops``: multiplications and additions a second in a large matrix product; ``bandwidth``: bytes read a second."""

    flops: float
    bandwidth: float
    device: str = "cpu"


@dataclass(frozen=True)
class Calibration:
    """``prefill`` and ``decode``: shares of the machine's matrix rate that are reached; ``layer_seconds``: what one layer
    costs in one decoding step beside its arithmetic (calls, caches)."""

    prefill: float
    decode: float
    layer_seconds: float


# Fitted to eval/measured_runs.json by ``calibrate``; a test fits it again.
MEASURED = Calibration(prefill=0.496, decode=0.314, layer_seconds=0.00409)


def size_of(directory: Path, dtype: str = "auto") -> ModelSize:
    """The model in ``directory`` from its configuration alone: it is built without weights (PyTorch's meta device).

    ``dtype`` as ``HuggingFaceModel`` takes it; ``auto`` counts the stored type. Raises ``ValueError`` or ``OSError`` for
    a directory that is no model's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from autoeval.models.network import shape_of

    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    chosen = getattr(config, "dtype", None) or torch.float32 if dtype == "auto" else getattr(torch, dtype)
    item = (getattr(torch, chosen) if isinstance(chosen, str) else chosen).itemsize
    text = config.get_text_config()
    shape = shape_of(text, item)
    parameters = sum(one.numel() for one in model.parameters())
    tables = {id(one.weight): one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Embedding)}
    head = model.get_output_embeddings().weight
    looked_up = sum(tables.values()) + (0 if id(head) in tables else head.numel())
    heads = int(getattr(text, "num_attention_heads", 1))
    return ModelSize(
        parameters=parameters,
        multiplied=parameters - looked_up,
        projection=head.numel(),
        layers=int(text.num_hidden_layers),
        hidden=shape.hidden,
        attention=shape.attention,
        attended=heads * int(getattr(text, "head_dim", None) or shape.hidden // heads),
        widest=shape.widest,
        vocabulary=int(head.shape[0]),
        item=item,
        cache_bytes=shape.cache_bytes,
        groups=shape.groups,
        capped=shape.capped,
    )


def memory_bytes(size: ModelSize, work: Workload, device: str = "cpu") -> dict[str, int]:
    """``weights``, ``cache`` (keys and values of all rows, until their last token), ``activations`` (of one pass of the
    prefill, as the scorer itself predicts it) and their ``total``, in bytes."""
    from autoeval.models.memory import shaped_pass_bytes
    from autoeval.models.network import Shape

    longest = math.ceil(work.prompt_tokens + work.generated_tokens)
    rows = min(work.items, work.rows)
    shape = Shape(size.hidden, size.attention, size.widest, size.item, size.cache_bytes, size.groups, size.capped)
    tokens = min(work.batch_tokens, math.ceil(work.items * work.prompt_tokens))
    parts = {
        "weights": size.weight_bytes,
        "cache": rows * longest * size.cache_bytes,
        "activations": shaped_pass_bytes(shape, size.vocabulary, device, tokens, longest),
    }
    return {**parts, "total": sum(parts.values())}


def prefill_flops(size: ModelSize, work: Workload) -> float:
    """2 a parameter and token, 2 · width · tokens² a layer for causal attention (half of 4 · width · tokens²), and one
    row of logits an item. Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with the causal half."""
    one = 2.0 * size.multiplied * work.prompt_tokens + 2.0 * size.layers * size.attended * work.prompt_tokens**2
    return work.items * (one + 2.0 * size.projection)


def decode_flops(size: ModelSize, work: Workload) -> float:
    """2 a parameter (projection included) and token, 4 · width · context a layer for attention."""
    context = work.prompt_tokens + work.generated_tokens / 2
    one = 2.0 * (size.multiplied + size.projection) + 4.0 * size.layers * size.attended * context
    return work.items * work.generated_tokens * one


def decode_bytes(size: ModelSize, work: Workload) -> float:
    """What has to be read: all weights a step, and every row's keys and values."""
    context = work.prompt_tokens + work.generated_tokens / 2
    cache = work.items * work.generated_tokens * context * size.cache_bytes
    return work.steps * (size.multiplied + size.projection) * size.item + cache


def duration_seconds(
    size: ModelSize, work: Workload, machine: Machine, calibration: Calibration = MEASURED
) -> dict[str, float]:
    """``prefill``, ``decode`` (the longer of its arithmetic and its reading, and the steps' own cost) and ``total``."""
    prefill = prefill_flops(size, work) / (machine.flops * calibration.prefill)
    arithmetic = decode_flops(size, work) / (machine.flops * calibration.decode)
    decode = max(arithmetic, decode_bytes(size, work) / machine.bandwidth)
    decode += work.steps * size.layers * calibration.layer_seconds
    return {"prefill": prefill, "decode": decode, "total": prefill + decode}


def calibrate(runs: Sequence[Mapping[str, Any]]) -> Calibration:
    """The constants that make ``duration_seconds`` fit measured runs best: the mean squared logarithm of predicted /
    measured is smallest, so that a run of a second counts like one of a minute."""
    from scipy.optimize import least_squares

    known = [measured_run(run) for run in runs]

    def residuals(logs: Sequence[float]) -> list[float]:
        tried = Calibration(*(math.exp(value) for value in logs))
        return [
            math.log(duration_seconds(size, work, machine, tried)["total"] / run["seconds"])
            for (size, work, machine), run in zip(known, runs, strict=True)
        ]

    starts = [(prefill, decode, layer) for prefill in (0.2, 0.8) for decode in (0.1, 0.5) for layer in (1e-4, 1e-3)]
    fits = [least_squares(residuals, [math.log(value) for value in start]) for start in starts]
    best = min(fits, key=lambda fit: float(fit.cost))
    return Calibration(*(float(f"{math.exp(value):.3g}") for value in best.x))


def measured_run(run: Mapping[str, Any]) -> tuple[ModelSize, Workload, Machine]:
    """The three nouns of an entry of ``eval/measured_runs.json``."""
    return ModelSize(**run["size"]), Workload(**run["work"]), Machine(**run["machine"])


def run_entry(size: ModelSize, work: Workload, machine: Machine, **measured: float) -> dict[str, Any]:
    return {"size": asdict(size), "work": asdict(work), "machine": asdict(machine), **measured}


def measure_machine(device: str = "cpu") -> Machine:
    """A matrix product and a sum over memory, the best of a few: a third of a second."""
    import torch

    place = torch.device(device)
    kind = torch.float32 if place.type == "cpu" else torch.bfloat16
    side, elements = (768, 2**24) if place.type == "cpu" else (8192, 2**28)
    left, right = (torch.randn(side, side, dtype=kind, device=place) for _ in range(2))
    out = torch.empty_like(left)
    memory = torch.ones(elements, dtype=torch.float32, device=place)
    product = _fastest(lambda: torch.mm(left, right, out=out), place)
    reading = _fastest(lambda: memory.sum(), place)
    return Machine(2.0 * side**3 / product, 4.0 * elements / reading, place.type)


def _fastest(work: Any, place: Any, times: int = 5) -> float:
    import time

    import torch

    def once() -> float:
        if place.type == "cpu":  # CPU time: other programs take turns with this one
            started = time.process_time()
            work()
            return (time.process_time() - started) / torch.get_num_threads()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize(place)
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(times))


def in_words(size: ModelSize, work: Workload, machine: Machine, batch: int) -> str:
    """Both estimates and both published formulas, that of memory for ``batch``; for standard error before a run."""
    memory, seconds = memory_bytes(size, work, machine.device), duration_seconds(size, work, machine)
    tokens = work.items * (work.prompt_tokens + work.generated_tokens)
    published = memory_usage(size.parameters, batch, data_type_size=size.item)
    days = evaluation_duration(tokens, size.parameters, machine.flops)
    return (
        f"estimate: {size.parameters:,} parameters, {work.items} items of {work.prompt_tokens:.0f} + at most "
        f"{work.generated_tokens:.0f} tokens\n"
        f"  memory: {_gb(memory['total'])} (weights {_gb(memory['weights'])}, cache {_gb(memory['cache'])}, "
        f"activations {_gb(memory['activations'])}); published formula: {published:.3g} GB\n"
        f"  duration: at most {seconds['total']:.3g} s (prefill {seconds['prefill']:.3g} s, decoding "
        f"{seconds['decode']:.3g} s; this machine was measured at {machine.flops / 1e9:.3g} GFLOP/s); "
        f"published formula: {days:.3g} days"
    )


def with_tokens(work: Workload, prompt_tokens: float, generated_tokens: float) -> Workload:
    return replace(work, prompt_tokens=prompt_tokens, generated_tokens=generated_tokens)


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
