"""One worker for many checkpoints: each has the answers that a fresh process gives it, to the last digit."""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoeval.checkpoints import fingerprint
from autoeval.runners.worker_process import LocalWorker
from autoeval.tasks.plan import (
    ConversionOptions,
    EvaluationPlan,
    IclPlan,
    ModelOptions,
    TaskPlan,
    TokenizerFiles,
    save_plan,
)
from recorder.results import CheckpointRef, TaskResult, read_result
from tests.end_to_end.daemon_world import forking

pytestmark = pytest.mark.slow


class Worker:
    """A worker process that is asked as the daemon asks it."""

    def __init__(self, log: Path, fresh: bool) -> None:
        self.log = log
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        with nullcontext() if fresh else forking():
            self.process = LocalWorker(lambda _, event: self._events.put(event), log)

    def next_event(self) -> dict[str, Any]:
        while (event := self._events.get(timeout=240))["event"] == "alive":
            pass
        return event

    def evaluate(self, plan: EvaluationPlan) -> list[str]:
        """Kinds of events, from the order to the last one."""
        path = Path(plan.directory, "plan.json")
        save_plan(path, plan)
        self.process.submit(path)
        kinds: list[str] = []
        while not kinds or not kinds[-1].startswith("checkpoint_"):
            kinds.append(self.next_event()["event"])
        return kinds


@contextmanager
def worker(log: Path, fresh: bool = False) -> Iterator[Worker]:
    """With ``fresh`` its libraries are imported by itself; otherwise it is forked, with nothing but them."""
    one = Worker(log, fresh)
    try:
        yield one
    finally:
        one.process.close()


def plan_of(project: Path, source: Path, name: str, form: str) -> EvaluationPlan:
    iteration = int(source.name.rpartition("_" if form != "huggingface" else "-")[2])
    return EvaluationPlan(
        checkpoint=CheckpointRef(name, iteration, fingerprint(source), str(source)),
        format=form,
        source=str(source),
        directory=str(project / "out" / name / f"iter_{iteration:07d}"),
        logs=str(project / "out" / "logs"),
        tasks=TaskPlan(icl=IclPlan((str(project / "two.py"),), str(project))),
        tokenizer=TokenizerFiles("huggingface", path=str(project / "tokenizer")),
        model=ModelOptions(device="cpu"),
        conversion=ConversionOptions(verify="never"),
    )


def outcome(plan: EvaluationPlan) -> list[Any]:
    """Predictions, scores and items of both tasks."""
    found: list[Any] = []
    for task in ("first", "second"):
        result = read_result(plan.result_path(task))
        found += [json.loads(plan.predictions_path(task).read_text()), result.scores, result.items]
    return found


def costs(plan: EvaluationPlan) -> list[TaskResult]:
    return [read_result(plan.result_path(task)) for task in ("first", "second")]


def together_and_alone(project: Path, sources: Sequence[tuple[Path, str]], fresh: bool = False) -> list[str]:
    """Compare; the lines that the long-lived worker has logged. ``fresh`` of those that evaluate one alone."""
    plans = [plan_of(project, source, f"model{number}", form) for number, (source, form) in enumerate(sources)]
    with worker(project / "long.log") as long_lived:
        for plan in plans:
            assert long_lived.evaluate(plan)[-1] == "checkpoint_done", long_lived.log.read_text()
    for plan in plans[1:]:  # the first one had a fresh process
        alone = replace(plan, directory=plan.directory.replace("/out/", "/alone/"))
        with worker(project / "alone.log", fresh) as one:
            one.evaluate(alone)
        assert outcome(plan) == outcome(alone)
    distinct = {json.dumps(outcome(plan)[0], sort_keys=True) for plan in plans}
    assert len(distinct) == len({plan.checkpoint.fingerprint for plan in plans}), (
        "the models answer alike: nothing shown"
    )
    return [line for line in (project / "long.log").read_text().splitlines() if "autoeval" in line]


def test_megatron_checkpoints_one_after_the_other_in_one_module(megatron_saves: Path, megatron_project: Path) -> None:
    saves = megatron_saves / "torch_dist"
    again = megatron_project / "again" / "iter_0000100"  # the first iteration, saved again with other weights
    shutil.copytree(saves / "iter_0000300", again)
    order = [saves / "iter_0000100", saves / "iter_0000200", megatron_saves / "wide" / "iter_0000100", again]
    lines = together_and_alone(megatron_project, [(path, "torch_dist") for path in order])
    loaded = [line for line in lines if "model loaded in" in line]
    assert len(loaded) == 3, lines  # the first, the wide one, and the one after it: the second is put in its place


def test_huggingface_checkpoints_too(models: Path, project: Path) -> None:
    lines = together_and_alone(project, [(models / f"checkpoint-{n}", "huggingface") for n in (100, 200)], fresh=True)
    assert sum("weights put into the loaded model" in line for line in lines) == 1, lines


def test_converted_ahead_it_is_the_same_checkpoint(megatron_saves: Path, megatron_project: Path) -> None:
    sources = [megatron_saves / "torch" / f"iter_0000{number}" for number in (100, 200)]
    first, second = (plan_of(megatron_project, source, "model", "torch") for source in sources)
    alone = replace(second, directory=second.directory.replace("/out/", "/fresh/"))
    with worker(megatron_project / "long.log") as long_lived:
        save_plan(megatron_project / "plan.json", first)
        long_lived.process.submit(megatron_project / "plan.json")
        while long_lived.next_event()["event"] != "loaded":
            pass
        long_lived.process.convert_ahead(second)
        while not long_lived.next_event()["event"].startswith("checkpoint_"):
            pass
        assert long_lived.evaluate(second)[-1] == "checkpoint_done"
        assert long_lived.evaluate(alone)[-1] == "checkpoint_done"
    assert outcome(second) == outcome(alone)
    log = (megatron_project / "long.log").read_text()
    assert log.count("was converted ahead of its turn") == 1


def test_nothing_is_recorded_of_a_conversion_that_fails_at_its_end(
    megatron_saves: Path, megatron_project: Path
) -> None:
    """The weights are in the module, and scores found, before the files of the conversion are whole."""
    sources = [megatron_saves / "torch_dist" / f"iter_0000{number}" for number in (100, 200)]
    first, second = (plan_of(megatron_project, source, "model", "torch_dist") for source in sources)
    second.converted.parent.mkdir(parents=True)
    with worker(megatron_project / "long.log") as long_lived:
        assert long_lived.evaluate(first)[-1] == "checkpoint_done"
        # The converted model takes its name last of all; a file that stands there cannot be replaced by a directory.
        second.converted.with_name("hf.lock").touch()
        second.converted.mkdir()
        (second.converted / "somebody's.txt").touch()
        assert long_lived.evaluate(second)[-1] == "checkpoint_failed"
        assert not second.result_path("first").exists()
        shutil.rmtree(second.converted)
        assert long_lived.evaluate(second)[-1] == "checkpoint_done"
    fresh = replace(second, directory=second.directory.replace("/out/", "/fresh/"))
    with worker(megatron_project / "fresh.log") as one:
        one.evaluate(fresh)
    assert outcome(second) == outcome(fresh)


def test_tasks_that_share_their_prompts_share_the_cost(models: Path, project: Path) -> None:
    plan = plan_of(project, models / "checkpoint-100", "model", "huggingface")
    apart = replace(plan, directory=plan.directory.replace("/out/", "/apart/"), together=False)
    with worker(project / "worker.log") as one:
        one.evaluate(plan)
        one.evaluate(apart)
    assert outcome(plan) == outcome(apart)
    shared, single = (sum(result.cost["computed_tokens"] for result in costs(one)) for one in (plan, apart))
    assert shared == pytest.approx(single / 2, rel=0.05)  # both tasks ask the same
    for result in costs(plan):
        wanted = {"prompt_tokens", "unique_tokens", "computed_tokens", "generated_tokens", "seconds", "wall_seconds"}
        assert wanted | {"device_seconds", "tokens_per_second", "peak_memory_bytes"} <= set(result.cost)
        assert 0 < result.cost["unique_tokens"] <= result.cost["computed_tokens"] < result.cost["prompt_tokens"]
        assert result.cost["peak_memory_bytes"] > 10e6 and result.cost["device_seconds"] > 0
