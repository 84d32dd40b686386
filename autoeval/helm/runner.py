"""HELM's ``Runner`` with our engine behind it, and a ``Client`` for those who keep HELM's own.

HELM sends one request at a time. ``BulkRunner`` gives all requests of a run to a ``LanguageModel`` together, and builds
a run's prompts once: they are the same for every checkpoint with the same tokenizer. Scenarios, adapters, window
service and metrics are HELM's own, unpatched. From HELM's command line::

    helm-run --runner-class-name autoeval.helm.runner.BulkRunner --enable-local-huggingface-models DIR …

This module imports HELM: ``run.py`` and ``registration.py`` import it inside functions; ``helm-run`` by name.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from helm.benchmark.adaptation.adapters.adapter_factory import ADAPT_RANKING_BINARY
from helm.benchmark.adaptation.request_state import RequestState
from helm.benchmark.adaptation.scenario_state import ScenarioState
from helm.benchmark.executor import ExecutionSpec, Executor
from helm.benchmark.metrics.metric import create_metric
from helm.benchmark.model_deployment_registry import get_model_deployment
from helm.benchmark.run_spec import RunSpec
from helm.benchmark.runner import Runner, remove_per_instance_stats_nans, remove_stats_nans
from helm.benchmark.scenarios.scenario import Scenario, create_scenario
from helm.clients.client import Client
from helm.common.request import Request, RequestResult

from autoeval.helm.engine import answer
from autoeval.helm.pickles import refuse_unsafe_pickles
from autoeval.helm.plain import Plain
from autoeval.helm.prompts import PromptStore, build_request_states
from autoeval.helm.tokens import prompt_ids
from autoeval.models.requests import LanguageModel
from autoeval.models.trie import Walk, key_of
from recorder.files import write_together

_LOGGER = logging.getLogger("autoeval.helm")

# HELM builds its objects from class names and plain arguments, so a loaded model is looked up here by deployment name.
ENGINES: dict[str, LanguageModel] = {}
_LOADED: dict[str, LanguageModel] = {}  # the one that was loaded here, from a deployment's own arguments
_LOCK = threading.RLock()  # helm-run asks from several threads; a model answers one at a time


def engine_of(deployment: str) -> LanguageModel:
    """The model behind a deployment: one we registered, else loaded from the deployment's client arguments.

    Both ``EngineClient`` and HELM's own ``HuggingFaceClient`` (``--enable-local-huggingface-models``) name a model
    directory. Only the last loaded model is kept. Raises ``ValueError`` for any other client.
    """
    with _LOCK:
        if deployment in ENGINES:
            return ENGINES[deployment]
        if deployment not in _LOADED:
            loaded = _load(deployment)
            _LOADED.clear()
            _LOADED[deployment] = loaded
        return _LOADED[deployment]


def _load(deployment: str) -> LanguageModel:
    from autoeval.models.hf import HuggingFaceModel

    spec = get_model_deployment(deployment).client_spec
    known = (f"{EngineClient.__module__}.{EngineClient.__name__}", "helm.clients.huggingface_client.HuggingFaceClient")
    arguments = dict(spec.args or {})
    path = arguments.get("pretrained_model_name_or_path")
    if spec.class_name not in known or not path:
        raise ValueError(
            f"model deployment {deployment!r}: expected one of the clients {', '.join(known)} with the argument "
            f"pretrained_model_name_or_path (a directory), got {spec.class_name} with {sorted(arguments)}"
        )
    dtype = arguments.get("dtype", str(arguments.get("torch_dtype", "auto")).removeprefix("torch."))
    return HuggingFaceModel(path, dtype=dtype, device=arguments.get("device", "auto"))


class EngineClient(Client):
    """Answers single requests: of a metric that asks the model again, or all of them under HELM's own ``Runner``.

    In model_deployments.yaml: ``client_spec: {class_name: autoeval.helm.runner.EngineClient, args:
    {pretrained_model_name_or_path: DIR, dtype: float32, device: cpu}}``; the last two may be left out.
    """

    def __init__(
        self, model_name: str, pretrained_model_name_or_path: str = "", dtype: str = "auto", device: str = "auto"
    ) -> None:
        self.model_name = model_name  # the rest is read from the deployment, when it is first asked

    def make_request(self, request: Request) -> RequestResult:
        with _LOCK:
            return answer(engine_of(request.model_deployment), [request])[0]


class BulkExecutor(Executor):
    """Executes a ``ScenarioState`` by answering all its requests together."""

    def __init__(self, like: Executor) -> None:
        # As ``like`` was made. HELM's own constructor would read the credentials and make the clients a second time.
        self.execution_spec, self.context = like.execution_spec, like.context

    def execute(self, scenario_state: ScenarioState) -> ScenarioState:
        return self.execute_together([scenario_state])[0]

    def execute_together(self, scenario_states: Sequence[ScenarioState]) -> list[ScenarioState]:
        """Several runs of one model in one call, which computes once what their prompts share."""
        states = [state for one in scenario_states for state in one.request_states]
        if not states or self.execution_spec.dry_run:
            return list(scenario_states)
        with _LOCK:
            model = engine_of(scenario_states[0].adapter_spec.model_deployment)
            ranks = any(one.adapter_spec.method == ADAPT_RANKING_BINARY for one in scenario_states)
            results = iter(answer(model, [state.request for state in states], needs_logprobs=ranks))
        return [
            replace(one, request_states=[replace(state, result=next(results)) for state in one.request_states])
            for one in scenario_states
        ]


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to be asked: ``state`` has its requests."""

    spec: RunSpec
    scenario: Scenario
    state: ScenarioState

    @property
    def computed_tokens(self) -> int:
        """Tokens that the model computes for it, at most: those of its prompts' trie, and of the completions."""
        requests = [state.request for state in self.state.request_states]
        tokenizer = engine_of(self.state.adapter_spec.model_deployment).tokenizer
        keys = {key_of(ids) for ids in prompt_ids(tokenizer, [request.prompt for request in requests])}
        grown = sum(request.max_tokens * request.num_completions for request in requests)
        return grown + (Walk(list(keys)).size if keys else 0)


class BulkRunner(Runner):
    """HELM's ``Runner`` with ``BulkExecutor`` and kept prompts; a class name for ``helm-run --runner-class-name``.

    ``prompts_reused`` counts the runs whose prompts were not built anew.
    """

    def __init__(self, execution_spec: ExecutionSpec, *arguments: Any, **keywords: Any) -> None:
        super().__init__(execution_spec, *arguments, **keywords)
        self.executor = BulkExecutor(self.executor)
        _use_nltk_data(Path(self.output_path))
        self.prompts = PromptStore(Path(self.output_path))
        self.prompts_reused = 0

    def run_one(self, run_spec: RunSpec) -> None:
        if self.dry_run or self.skip_instances or self.cache_instances_only:
            super().run_one(_usable(run_spec))  # no model is asked
            return
        if self.skip_completed_runs and self._is_run_completed(self._get_run_path(run_spec)):
            return
        prepared = self.prepare(run_spec)
        self.finish(prepared, self.executor.execute(prepared.state))

    def prepare(self, run_spec: RunSpec) -> Prepared:
        """The run with its prompts. Raises what HELM raises when its data are missing."""
        run_spec = _usable(run_spec)
        scenario = create_scenario(run_spec.scenario_spec)
        states = self._request_states(run_spec, scenario)
        state = ScenarioState(
            adapter_spec=run_spec.adapter_spec, request_states=states, annotator_specs=run_spec.annotators
        )
        return Prepared(run_spec, scenario, state)

    def finish(self, prepared: Prepared, answered: ScenarioState) -> None:
        """Measure and write the run directory."""
        state = self.annotator_executor.execute(answered)
        stats, per_instance = self._measure(prepared.spec, state)
        contents: dict[str, Any] = {
            "run_spec": prepared.spec,
            "scenario": prepared.scenario,
            "scenario_state": state,
            "stats": remove_stats_nans(stats),
            "per_instance_stats": remove_per_instance_stats_nans(per_instance),
        }
        plain = Plain()
        # Without indentation: with it, json falls back to Python code that takes longer than the metrics.
        files = {f"{name}.json": json.dumps(plain(content)) for name, content in contents.items()}
        write_together(Path(self._get_run_path(prepared.spec)), files)

    def _request_states(self, run_spec: RunSpec, scenario: Scenario) -> list[RequestState]:
        deployment = run_spec.adapter_spec.model_deployment
        window = _window(run_spec)
        tokenizer = engine_of(deployment).tokenizer
        kept = self.prompts.load(run_spec, scenario, window, tokenizer)
        if kept is not None:
            self.prompts_reused += 1
            return kept
        built = build_request_states(self, run_spec, scenario)
        self.prompts.store(run_spec, scenario, window, tokenizer, built)
        return built

    def _measure(self, run_spec: RunSpec, state: ScenarioState) -> tuple[list[Any], list[Any]]:
        stats: list[Any] = []
        per_instance: list[Any] = []
        parallelism = self.executor.execution_spec.parallelism
        refuse_unsafe_pickles(Path(self.eval_cache_path))
        for metric_spec in run_spec.metric_specs:
            metric = create_metric(metric_spec)
            result = metric.evaluate(state, self.metric_service, self.eval_cache_path, parallelism)
            stats += result.aggregated_stats
            per_instance += result.per_instance_stats
        for name, count in Counter(stat.name for stat in stats).items():
            if count > 1:
                _LOGGER.warning("%s: %d statistics are called %s", run_spec.name, count, name)
        return stats, per_instance


def _use_nltk_data(output_path: Path) -> None:
    """Let nltk find its data in ``<output_path>/nltk_data`` too, so that all that HELM needs can lie in one place."""
    directory = str(output_path.resolve() / "nltk_data")
    if Path(directory).is_dir():
        import nltk

        if directory not in nltk.data.path:
            nltk.data.path.append(directory)


def _usable(spec: RunSpec) -> RunSpec:
    """``spec`` with a length and metrics that can be had."""
    # Not above: HELM imports ``EngineClient`` in a thread, and this brings a module that sets a signal's handler.
    from autoeval.helm.rouge import with_computable_metrics

    return with_computable_metrics(fit(spec, _window(spec)))


def _window(spec: RunSpec) -> int:
    window = get_model_deployment(spec.adapter_spec.model_deployment).max_sequence_length
    if window is None:
        raise ValueError(f"model deployment {spec.adapter_spec.model_deployment!r} has no max_sequence_length")
    return window


def fit(spec: RunSpec, window: int) -> RunSpec:
    """``spec`` with ``max_tokens`` below the window: HELM never ends when the completion alone fills it."""
    if spec.adapter_spec.max_tokens < window:
        return spec
    capped = max(1, window // 2)
    _LOGGER.warning("%s: max_tokens %d does not fit into %d tokens; using %d",
                    spec.name, spec.adapter_spec.max_tokens, window, capped)  # fmt: skip
    return replace(spec, adapter_spec=replace(spec.adapter_spec, max_tokens=capped))
