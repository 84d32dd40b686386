"""Writes a legacy checkpoint of one rank as other parallelisms and older Megatrons would have written it.

An implementation of its own of how Megatron splits tensors; that the reader understands real ranks is for
test_convert_equals_megatron.py, where Megatron itself writes them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Model = dict[str, Tensor]
FILE = "model_optim_rng.pt"


def load(case: Path) -> dict[str, Any]:
    return torch.load(case / f"legacy/iter_0000010/mp_rank_00/{FILE}", weights_only=False)


def write(
    path: Path,
    saved: dict[str, Any],
    *,
    tensor: int = 1,
    stages: tuple[tuple[int, ...], ...] = ((4,),),
    expert: int = 1,
    expert_tensor: int | None = None,
    change: Callable[[Model], Any] = lambda model: model,
    **arguments: Any,
) -> Path:
    """``stages[v][p]`` is how many layers virtual chunk ``v`` of pipeline stage ``p`` has. ``change`` is applied to each
    rank's chunk. Experts that tensor parallelism does not split go round the ranks, as Megatron places them."""
    pipeline = len(stages[0])
    args = copy.copy(saved["args"])
    args.tensor_model_parallel_size, args.pipeline_model_parallel_size = tensor, pipeline
    args.expert_model_parallel_size, args.expert_tensor_parallel_size = expert, expert_tensor
    vars(args).update(arguments)
    whole = expert_tensor is not None and expert_tensor != tensor
    for t in range(tensor):
        for p in range(pipeline):
            for e in range(expert):
                if whole and e % tensor != t:
                    continue
                name = f"mp_rank_{t:02d}" + f"_{p:03d}" * (pipeline > 1) + f"_{e:03d}" * (expert > 1)
                chunks = _chunks(saved["model"], args, t, p, e, stages, whole)
                keys = ["model"] if len(stages) == 1 else [f"model{v}" for v in range(len(stages))]
                models = {key: change(chunk) for key, chunk in zip(keys, chunks, strict=True)}
                (path / name).mkdir(parents=True)
                torch.save({"args": args, "checkpoint_version": 3.0, "iteration": 10, **models}, path / name / FILE)
    return path


def _chunks(model: Model, args: Any, t: int, p: int, e: int, stages: Any, whole: bool) -> list[Model]:
    order = [(v, q) for v in range(len(stages)) for q in range(len(stages[0]))]
    first, found = 0, []
    for v, q in order:
        count = stages[v][q]
        if q == p:
            chunk: Model = {}
            for name, value in model.items():
                placed = _place(name, args, e, range(first, first + count), (v, q) == order[0], (v, q) == order[-1])
                if placed and value is not None:
                    mine = (0, 1) if whole and ".experts." in name else (t, args.tensor_model_parallel_size)
                    chunk[placed] = cut(name, value, *mine, args.swiglu).clone()
            if len(order) > 1 and (v, q) == order[-1] and not args.untie_embeddings_and_output_weights:
                chunk["output_layer.weight"] = model["embedding.word_embeddings.weight"]
            found.append(chunk)
        first += count
    return found


def _place(name: str, args: Any, e: int, layers: range, first: bool, last: bool) -> str | None:
    """The name on this rank, or None when it is another's."""
    if name.startswith("embedding."):
        return name if first else None
    if match := re.match(r"decoder\.layers\.(\d+)\.(.*)", name):
        layer, rest = int(match[1]), match[2]
        if layer not in layers:
            return None
        if expert := re.match(r"mlp\.experts\.local_experts\.(\d+)\.(.*)", rest):
            local = args.num_experts // args.expert_model_parallel_size
            if int(expert[1]) // local != e:
                return None
            rest = f"mlp.experts.local_experts.{int(expert[1]) % local}.{expert[2]}"
        return f"decoder.layers.{layer - layers.start}.{rest}"
    return name if last else None


def cut(name: str, value: Tensor, t: int, tensor: int, gated: bool) -> Tensor:
    if ".linear_fc1." in name and gated:
        return torch.cat([half.chunk(tensor)[t] for half in value.chunk(2)])
    if re.search(r"(word_embeddings|output_layer|linear_qkv|linear_fc1)\.(weight|bias)$", name):
        return value.chunk(tensor)[t]
    if re.search(r"linear_(proj|fc2)\.weight$", name):
        return value.chunk(tensor, 1)[t]
    return value


def numbered_experts(model: Model) -> Model:
    """As TEGroupedMLP names them, with the extra states of Transformer Engine."""
    named = {re.sub(r"local_experts\.(\d+)\.(linear_fc\d)\.weight", r"\2.weight\1", k): v for k, v in model.items()}
    return {**named, "decoder.layers.0.mlp.experts.linear_fc1._extra_state": torch.zeros(3, dtype=torch.uint8)}


def grouped_experts(model: Model) -> Model:
    """As GroupedMLP keeps them: weight1 is the memory of [experts, hidden, 2 ffn], seen as [hidden, experts * 2 ffn]."""
    kept = {name: value for name, value in model.items() if ".local_experts." not in name}
    for prefix in sorted({name.partition("local_experts.")[0] for name in model if ".local_experts." in name}):
        for number in (1, 2):
            pattern = re.compile(re.escape(prefix) + rf"local_experts\.\d+\.linear_fc{number}\.weight")
            experts = torch.stack([model[n].t() for n in sorted(model) if pattern.fullmatch(n)]).contiguous()
            hidden = experts.shape[1 if number == 1 else 2]
            kept[f"{prefix}weight{number}"] = experts.view((hidden, -1) if number == 1 else (-1, hidden))
    return kept


_OLD_NAMES = (
    ("linear_qkv", "query_key_value"),
    ("linear_proj", "dense"),
    ("linear_fc1", "dense_h_to_4h"),
    ("linear_fc2", "dense_4h_to_h"),
    ("pre_mlp_layernorm", "post_attention_layernorm"),
)


def before_core(model: Model) -> dict[str, Any]:
    """The nested dict of models from before megatron-core (``--use-legacy-models``)."""
    language: dict[str, Any] = {"encoder": {}}
    for name, value in model.items():
        for new, old in _OLD_NAMES:
            name = name.replace(new, old)
        parts = name.split(".")
        if parts[0] == "decoder":
            language["encoder"][".".join(parts[1:])] = value
        elif parts[0] == "embedding":
            language.setdefault("embedding", {}).setdefault(parts[1], {})[parts[2]] = value
        else:
            language.setdefault(parts[0], {})[parts[1]] = value
    return {"language_model": language}
