"""What the command lines of the model-evaluation scripts say, read and checked before anything heavy is loaded."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoeval.model_eval.given_model import ModelWishes
from autoeval.offline.environment import keep_off_the_hub

logger = logging.getLogger(__name__)

DIMENSIONS = (
    "inference_ability",
    "reading_comprehension",
    "chinese_language_skill",
    "command_compliance",
    "innovation_capacity",
)
KINDS = ("auto", "base", "chat")
DTYPES = ("auto", "float32", "bfloat16", "float16")
SHOTS = (0, 5)  # zero-shot, or the five examples of M3KE


@dataclass(frozen=True)
class Settings:
    """``additional_parameters``, checked. ``data_dir``: a folder laid out as OpenCompass's ``./data``, or the path of a
    dimension's own data by its name (others then in ``./data``)."""

    data_dir: Path = Path("data")
    data_paths: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    shots: int = 0
    reference: str | None = None
    output_path: Path | None = None
    lang: str = "zh"
    wishes: ModelWishes = field(default_factory=ModelWishes)


def read_dimensions(text: str) -> list[str]:
    """A JSON list of names. Raises ``ValueError`` naming one that is unknown."""
    names = read_json(text, "evaluation_dimensions", 'a JSON list like ["inference_ability"]')
    if not isinstance(names, list) or not names:
        raise ValueError(f"evaluation_dimensions: expected a JSON list of names, found {text}")
    for name in names:
        if name not in DIMENSIONS:
            near = difflib.get_close_matches(str(name), DIMENSIONS, n=1, cutoff=0.4)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(
                f"evaluation_dimensions: unknown dimension '{name}'{hint} (known: {', '.join(DIMENSIONS)})"
            )
    return list(dict.fromkeys(names))


def read_settings(text: str) -> Settings:
    """``{"additional_parameters": {...}}``. Raises ``ValueError`` naming the key that is unknown or of a wrong kind."""
    content = read_json(text, "options", '{"additional_parameters": {...}}')
    if not isinstance(content, dict) or set(content) - {"additional_parameters"}:
        unknown = min(set(content) - {"additional_parameters"}) if isinstance(content, dict) else text
        raise ValueError(f"options: {unknown!r}: expected one key, additional_parameters")
    given = content.get("additional_parameters", {})
    if not isinstance(given, dict):
        raise ValueError(f"options: additional_parameters is {given!r}, expected an object")
    for key, value in given.items():
        _check(key, value)
    data_dir: Any = given.get("data_dir", "data")
    own: dict[str, str] = dict(data_dir) if isinstance(data_dir, dict) else {}
    for name in own:
        if name not in DIMENSIONS:
            raise ValueError(f"additional_parameters: data_dir: unknown dimension '{name}'")
    device = checked_device(given["device"]) if "device" in given else _device_of(given.get("gpu_id"))
    wishes = ModelWishes(
        kind=given.get("model_type", "auto"),
        max_seq_len=given.get("max_seq_len"),
        batch_size=given.get("per_device_batch_size"),
        device=device or "auto",
        dtype=given.get("dtype", "auto"),
        tokenizer=given.get("tokenizer"),
        peft_path=given.get("peft_path"),
        served_name=given.get("served_name"),
        iteration=given.get("iteration"),
    )
    output = given.get("output_path")
    return Settings(
        data_dir=Path("data" if own else data_dir),
        data_paths=own,
        limit=given.get("limit"),
        shots=given.get("shots", 0),
        reference=given.get("reference"),
        output_path=None if output is None else Path(output),
        lang=given.get("lang", "zh"),
        wishes=wishes,
    )


_POSITIVE = {"max_seq_len": 2, "per_device_batch_size": 1, "limit": 1, "iteration": 0, "gpu_id": 0}
_CHOSEN = {"model_type": KINDS, "dtype": DTYPES, "lang": ("zh", "en"), "shots": SHOTS}
_TEXTS = ("device", "tokenizer", "peft_path", "served_name", "reference", "output_path")


def _check(key: str, value: Any) -> None:
    where = f"additional_parameters: {key} is {value!r}"
    if key in _POSITIVE:
        if type(value) is not int or value < _POSITIVE[key]:
            raise ValueError(f"{where}, expected a whole number of at least {_POSITIVE[key]}")
    elif key in _CHOSEN:
        if isinstance(value, bool) or value not in _CHOSEN[key]:
            raise ValueError(f"{where}, expected one of {', '.join(map(str, _CHOSEN[key]))}")
    elif key in _TEXTS:
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}, expected a text")
    elif key == "data_dir":
        texts = value.values() if isinstance(value, dict) else [value]
        if not all(isinstance(one, str) and one for one in texts):
            raise ValueError(f"{where}, expected a folder, or an object with a path for each dimension")
    else:
        known = [*_POSITIVE, *_CHOSEN, *_TEXTS, "data_dir"]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f" (known: {', '.join(sorted(known))})"
        raise ValueError(f"additional_parameters: unknown key '{key}'{hint}")


def _device_of(gpu: int | None) -> str | None:
    return None if gpu is None else device_of_gpu(str(gpu))


def device_of_gpu(gpu: str) -> str:
    """``cuda:N`` for ``--gpu_id N``; where there is no such GPU the CPU, with a warning: the numbers are the same.

    Raises ``ValueError`` for what is no number (nor ``cpu``).
    """
    import torch

    if not gpu.isdecimal():
        if gpu in ("cpu", "-1"):
            return "cpu"
        raise ValueError(f"gpu_id {gpu!r}: expected the number of a GPU, or cpu")
    if int(gpu) < torch.cuda.device_count():
        return f"cuda:{gpu}"
    logger.warning("gpu_id %s: there are %d GPUs here; computed on the CPU", gpu, torch.cuda.device_count())
    return "cpu"


def checked_device(name: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N`` of a GPU that is here. Raises ``ValueError``: who names a device means it."""
    import torch

    count = torch.cuda.device_count()
    if name in ("auto", "cpu"):
        return name
    found = re.fullmatch(r"cuda(?::(\d+))?", name)
    if found is None:
        raise ValueError(f"additional_parameters: device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if int(found[1] or 0) >= count:
        raise ValueError(f"additional_parameters: device is {name!r}, but there are {count} GPUs here")
    return name


def read_json(text: str, what: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what}: not JSON ({error}); expected {expected}") from error


def add_five_dimensions(parser: argparse.ArgumentParser) -> None:
    """The three positional arguments, the last two with defaults: all dimensions, no additional parameter."""
    parser.add_argument(
        "model_name_or_path", metavar="MODEL", help="Hugging Face directory, adapter, Megatron checkpoint, server URL"
    )
    parser.add_argument(
        "evaluation_dimensions", nargs="?", default=json.dumps(DIMENSIONS), metavar="DIMENSIONS", help="JSON list"
    )
    parser.add_argument("options", nargs="?", default="{}", metavar="OPTIONS", help='{"additional_parameters": {...}}')


METRICS = ("Acc", "F1", "BLEU", "Rouge")


def add_performance(parser: argparse.ArgumentParser) -> None:
    """The published flags, and a few of our own with defaults."""
    add = parser.add_argument
    add("--model_name_or_path", required=True, metavar="MODEL", help="directory, adapter, Megatron checkpoint, URL")
    add("--dataset_path", required=True, metavar="FILE.jsonl", help="messages, or instruction, input and output")
    add("--evaluation_metrics", required=True, nargs="+", metavar="METRIC", help="Acc, F1, BLEU, Rouge: one or several")
    add("--max_seq_len", type=_at_least(2), metavar="N", help="prompt and answer; default: the model's window")
    add("--per_device_batch_size", type=_at_least(1), metavar="N", help="default: what memory and device allow")
    add("--gpu_id", metavar="N", help="a GPU, or cpu; default: the first GPU if there is one")
    add("--output_path", metavar="DIR", help="predictions.jsonl and results.json; or a name ending in .json(l)")
    add("--max_new_tokens", type=_at_least(1), default=128, metavar="N", help="of an answer (default: %(default)s)")
    add("--limit", type=_at_least(1), metavar="N", help="so many conversations, always the same")
    add("--model_type", choices=KINDS, default="auto", help="auto: chat if there is a chat template")
    add("--dtype", choices=DTYPES, default="auto")
    add("--tokenizer", metavar="PATH", help="of a Megatron checkpoint, as autoeval.convert takes it")
    add("--peft_path", metavar="DIR", help="an adapter, merged into the model")
    add("--served_name", metavar="NAME", help="what a server calls its model (default: it is asked)")


def read_metrics(given: Sequence[str]) -> list[str]:
    """``Acc F1``, ``Acc,F1`` or ``'["Acc", "F1"]'``, in any case. Raises ``ValueError`` naming one that is unknown."""
    text = " ".join(given)
    listed = (
        read_json(text, "--evaluation_metrics", "names") if text.startswith("[") else text.replace(",", " ").split()
    )
    known = {name.casefold(): name for name in METRICS}
    names = []
    for name in listed if isinstance(listed, list) else [listed]:
        if str(name).casefold() not in known:
            raise ValueError(f"--evaluation_metrics: unknown metric '{name}' (known: {', '.join(METRICS)})")
        names.append(known[str(name).casefold()])
    if not names:
        raise ValueError(f"--evaluation_metrics: expected at least one of {', '.join(METRICS)}")
    return list(dict.fromkeys(names))


def _at_least(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")
        return int(text)

    return read


def stay_offline() -> None:
    """Models and data are here or they are an error: libraries would ask the hub first, and wait."""
    keep_off_the_hub()
    for noisy in ("urllib3", "httpx", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
