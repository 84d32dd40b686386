"""HELM's objects as plain JSON values and back, for what HELM itself does slowly.

HELM writes with ``dataclasses.asdict``, which copies an instance for every request about it, and reads through a module
that imports spaCy. The values here are the same. This module imports HELM: only ``runner.py`` and ``prompts.py`` import
it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from helm.benchmark.adaptation.request_state import RequestState
from helm.benchmark.scenarios.scenario import Input, Instance, Output, Reference
from helm.common.request import Request, Token

_ATOMS = frozenset((str, int, float, bool, type(None)))
# What an instance seldom has and only HELM's own reader knows.
_RARE = {"perturbation", "contrast_inputs", "contrast_references"}


class Plain:
    """``plain(value)``: dataclasses become mappings without their ``None``s, as HELM's ``asdict_without_nones`` gives.

    An ``Instance`` is converted once however many requests are about it, so what comes back may share parts.
    """

    def __init__(self) -> None:
        self._fields: dict[type, tuple[str, ...] | None] = {}
        self._instances: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if kind in _ATOMS:
            return value
        if kind is list or kind is tuple:
            if value and type(value[0]) is Token:  # by far the most there is of anything, and never without a field
                return [one.__dict__ for one in value]
            return [one if type(one) in _ATOMS else self(one) for one in value]
        if kind is dict:
            return {key: self(one) for key, one in value.items()}
        if kind is Instance:
            known = self._instances.get(id(value))
            if known is None:
                known = self._instances[id(value)] = self._mapping(value, kind)
            return known
        return self._mapping(value, kind)

    def _mapping(self, value: Any, kind: type) -> Any:
        names = self._fields.get(kind)
        if names is None:
            if not dataclasses.is_dataclass(kind):
                return value  # json says what it thinks of it
            names = self._fields[kind] = tuple(field.name for field in dataclasses.fields(kind))
        own = getattr(value, "__dict__", {})
        # The usual case, an object that has its fields and nothing else, is worth a loop of its own.
        pairs = own.items() if len(own) == len(names) else [(name, getattr(value, name)) for name in names]
        return {name: one if type(one) in _ATOMS else self(one) for name, one in pairs if one is not None}


def instances_from(raw: Sequence[dict[str, Any]]) -> list[Instance]:
    """Instances from JSON values. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what are none."""
    return [_instance(one) for one in raw]


def _instance(raw: dict[str, Any]) -> Instance:
    if not _RARE.isdisjoint(raw) or "multimedia_content" in raw["input"]:
        from helm.common.codec import from_json

        return from_json(json.dumps(raw), Instance)
    references = [Reference(Output(**one["output"]), list(one["tags"])) for one in raw["references"]]
    return Instance(**{**raw, "input": Input(**raw["input"]), "references": references})


def pack_states(states: Sequence[RequestState]) -> dict[str, Any]:
    """Unanswered request states as a JSON value: every instance once, the states with its number."""
    plain = Plain()
    numbers: dict[int, int] = {}
    packed = []
    for state in states:
        number = numbers.setdefault(id(state.instance), len(numbers))
        packed.append({**plain(state), "instance": number})
    instances = {id(state.instance): state.instance for state in states}
    return {"instances": [plain(one) for one in instances.values()], "states": packed}


def unpack_states(packed: Mapping[str, Any], model: str, deployment: str) -> list[RequestState]:
    """The states, asked of ``model``. HELM knows an instance by identity: all requests about one hold the same object."""
    instances = instances_from(packed["instances"])
    nothing = dict.fromkeys(("reference_index", "request_mode", "output_mapping", "result"))
    states = []
    for raw in packed["states"]:
        request = Request(**{**raw["request"], "model": model, "model_deployment": deployment})
        states.append(RequestState(**{**nothing, **raw, "instance": instances[raw["instance"]], "request": request}))
    return states
