"""A run's prompts, built once: they are the same for every checkpoint with the same tokenizer and window.

Building means reading the scenario's data, drawing instances and few-shot examples, and cutting prompts to the window:
seconds for the larger scenarios. ``<output_path>/prompts/<key>.json`` keeps the result with a stamp of the data files
it came from; other data, another tokenizer, run specification or release of HELM is another key or stamp; what is used no
more goes (``kept_prompts.py``). This module imports HELM: only ``runner.py`` imports it.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helm.benchmark.adaptation.adapters.adapter_factory import AdapterFactory
from helm.benchmark.adaptation.request_state import RequestState
from helm.benchmark.data_preprocessor import DataPreprocessor
from helm.benchmark.run_spec import RunSpec
from helm.benchmark.runner import downsample_eval_instances
from helm.benchmark.scenarios.scenario import (
    EVAL_SPLITS,
    Scenario,
    get_scenario_cache_path,
    with_instance_ids,
)
from helm.common.general import asdict_without_nones

from autoeval.helm.kept_prompts import mark_used, prune
from autoeval.helm.pickles import refuse_unsafe_pickles
from autoeval.helm.plain import Plain, instances_from, pack_states, unpack_states
from autoeval.helm.spec import helm_version
from autoeval.helm.tokens import fingerprint, prompt_ids, prompt_kind, table_of
from recorder.files import write_atomic

if TYPE_CHECKING:
    from helm.benchmark.runner import Runner

FORMAT = 3


def instances_file(output_path: Path, scenario: str, arguments: dict[str, Any]) -> Path:
    """Where ``helm-run --cache-instances`` keeps a scenario's instances, and where the user stages them."""
    joined = ",".join(f"{key}={value}" for key, value in sorted(arguments.items()))
    folder = f"{scenario}:{joined}" if joined else scenario
    return output_path / "scenario_instances" / folder / "input_instances.json"


def build_request_states(runner: Runner, spec: RunSpec, scenario: Scenario) -> list[RequestState]:
    """The requests of a run, as ``Runner.run_one`` makes them; staged instances are used where there are any."""
    output_path = Path(runner.output_path)
    staged = instances_file(output_path, scenario.name, spec.scenario_spec.args)
    if staged.is_file():
        instances = instances_from(json.loads(staged.read_bytes()))
    else:
        place = get_scenario_cache_path(str(output_path), scenario.name)
        refuse_unsafe_pickles(Path(place))
        instances = scenario.get_instances(place)
        if runner.cache_instances:
            write_atomic(staged, json.dumps(Plain()(instances), indent=2))
    if any(instance.id is None for instance in instances):
        instances = with_instance_ids(instances)
    limit = spec.adapter_spec.max_eval_instances
    if limit is not None:
        instances = downsample_eval_instances(instances, limit, spec.adapter_spec.eval_splits or EVAL_SPLITS)
    parallelism = runner.executor.execution_spec.parallelism
    instances = DataPreprocessor(spec.data_augmenter_spec).preprocess(instances, parallelism)
    return AdapterFactory.get_adapter(spec.adapter_spec, runner.tokenizer_service).adapt(instances, parallelism)


class PromptStore:
    """Request states and their prompts' token ids, on disk under ``<output_path>/prompts``.

    A file that cannot be used is as good as none.
    """

    def __init__(self, output_path: Path) -> None:
        self.output_path = output_path

    def load(self, spec: RunSpec, scenario: Scenario, window: int, tokenizer: Any) -> list[RequestState] | None:
        """The kept states with the model of ``spec`` filled in; ``None`` when there are none for just this run."""
        path = self._path(spec, scenario, window, tokenizer)
        if path is None or not path.is_file():
            return None
        try:
            stamp, _, packed = path.read_text(encoding="utf-8").partition("\n")
            if stamp != self._stamp(spec, scenario):
                return None
            content = json.loads(packed)
            states = unpack_states(content, spec.adapter_spec.model, spec.adapter_spec.model_deployment)
            table, kind = table_of(tokenizer), prompt_kind(tokenizer)
            for state, ids in zip(states, content["prompt_ids"], strict=True):
                table.keep(kind, state.request.prompt, array("i", ids))
            mark_used(path)
            return states
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            return None

    def store(self, spec: RunSpec, scenario: Scenario, window: int, tokenizer: Any, states: list[RequestState]) -> None:
        path = self._path(spec, scenario, window, tokenizer)
        if path is not None and all(map(_is_text, states)):
            content = pack_states(states)
            content["prompt_ids"] = prompt_ids(tokenizer, [state.request.prompt for state in states])
            write_atomic(path, f"{self._stamp(spec, scenario)}\n{json.dumps(content)}")
            prune(self.output_path)  # so the directory never grows without being looked at

    def _path(self, spec: RunSpec, scenario: Scenario, window: int, tokenizer: Any) -> Path | None:
        its = fingerprint(tokenizer)
        if its is None:  # whether the next checkpoint has the same cannot be told
            return None
        adapter = replace(spec.adapter_spec, model="", model_deployment="")
        content = {
            "format": FORMAT,
            "scenario": asdict_without_nones(spec.scenario_spec),
            "adapter": asdict_without_nones(adapter),
            "augmenter": asdict_without_nones(spec.data_augmenter_spec),
            "window": window,
            "tokenizer": its,
            "helm": helm_version(),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]
        return self.output_path / "prompts" / f"{scenario.name}-{digest}.json"

    def _stamp(self, spec: RunSpec, scenario: Scenario) -> str:
        """A hash of the names, sizes and times of the files the instances come from."""
        places = [
            self.output_path / "scenarios" / scenario.name,
            instances_file(self.output_path, scenario.name, spec.scenario_spec.args).parent,
        ]
        digest = hashlib.sha256()
        for place in places:
            for line in sorted(_files(str(place))):
                digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _is_text(state: RequestState) -> bool:
    request = state.request
    return not (request.multimodal_prompt or request.image_generation_parameters or request.response_format)


def _files(directory: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _files(entry.path)
        elif not entry.name.endswith(".lock"):
            status = entry.stat()
            yield f"{entry.path}\0{status.st_size}\0{status.st_mtime_ns}\n"
