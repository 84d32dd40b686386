"""A task in shares gives the very result that it gives as a whole: items, metrics of all, errors, version and cost."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from autoeval.checkpoints import fingerprint
from autoeval.models.hf import HuggingFaceModel
from autoeval.tasks.claims import Claims
from autoeval.tasks.cutting import cut_samples, most_shares
from autoeval.tasks.evaluation import Evaluator
from autoeval.tasks.icl import infer_samples, load_icl_tasks
from autoeval.tasks.order import Order, load_order, save_order
from autoeval.tasks.plan import EvaluationPlan, HelmPlan, IclPlan, ModelOptions, TaskPlan
from autoeval.tasks.shares import Cut, ShareFiles
from autoeval.tasks.work import load_tasks
from recorder.results import CheckpointRef, TaskResult, read_result
from tests.tiny_models import save_tiny_model

WORDS = [
    "sky",
    "fox",
    "dog",
    "mat",
    "cat",
    "quick",
    "brown",
    "lazy",
    "yes",
    "no",
    "A",
    "B",
    "C",
    "D",
    "12",
    "30",
    "42",
    "and",
    "so",
    "on",
]
WEIGHTS = (4.0, 2.0, 1.0, 1.0)


def rows(count: int) -> list[dict[str, Any]]:
    chance = random.Random(7)
    subjects = ["The quick brown fox. " * 3, "Question: what colour? ", ""]
    made = []
    for number in range(count):
        words = chance.choices(WORDS, k=6)
        choices = [" ".join(chance.choices(WORDS, k=2)) for _ in range(3)]
        made.append({"q": subjects[number % 3] + " ".join(words), "choices": choices, "gold": number % 3})
    for row in made:
        row["answer"] = row["choices"][row["gold"]]
    return made


def dataset(
    abbr: str, template: str, inferencer: dict[str, Any], evaluator: str, column: str = "gold", **more: Any
) -> dict[str, Any]:
    choices = {"choices_column": "choices"} if column == "gold" else {}
    ice = {"ice_token": "</E>"} if "</E>" in template else {}
    reader = {"input_columns": ["q"], "output_column": column, "train_split": "test", "test_split": "test", **choices}
    return {
        "abbr": abbr,
        "type": "JsonlDataset",
        "path": "rows.jsonl",
        "reader_cfg": reader,
        "infer_cfg": {
            "prompt_template": {"type": "PromptTemplate", "template": template, **ice},
            "retriever": {"type": "ZeroRetriever"},
            "inferencer": inferencer,
            **more,
        },
        "eval_cfg": {"evaluator": {"type": evaluator}},
    }


GENERATES = {"type": "GenInferencer", "max_out_len": 4}
SHOTS = {
    "ice_template": {"type": "PromptTemplate", "template": "Q: {q} A: {answer}"},
    "retriever": {"type": "FixKRetriever", "fix_id_list": [0, 5]},
}
DATASETS = [
    dataset("ranked", "Q: {q} A: {choice}", {"type": "PPLInferencer"}, "MccEvaluator"),
    dataset("likely", "Q: {q} A:", {"type": "LLInferencer"}, "AccEvaluator"),
    dataset("bleu", "</E>Q: {q} A:", GENERATES, "BleuEvaluator", "answer", **SHOTS),
    dataset("sampled", "Q: {q} A:", {**GENERATES, "temperature": 1.0}, "F1Evaluator", "answer"),
    dataset(
        "vote", "{q}", {**GENERATES, "type": "SCInferencer", "sc_size": 2, "temperature": 1.0}, "EMEvaluator", "answer"
    ),
    dataset("corpus", "{q}", {"type": "PPLOnlyInferencer"}, "BPBEvaluator", "answer"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), window=256)


def plan_in(directory: Path, model: Path, tasks: TaskPlan) -> EvaluationPlan:
    versions = tuple((task.name, task.version) for task in load_tasks(tasks))
    ref = CheckpointRef("m", 100, fingerprint(model), str(model))
    where, options = str(directory / "m" / "iter_0000100"), ModelOptions("float32", "cpu")
    return EvaluationPlan(
        ref, "huggingface", str(model), where, str(directory / "logs"), tasks, versions, model=options
    )


@pytest.fixture
def tasks(tmp_path: Path) -> TaskPlan:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(50)))
    (tmp_path / "all.py").write_text(f"all_datasets = {DATASETS!r}\n")
    return TaskPlan(IclPlan((str(tmp_path / "all.py"),), str(tmp_path)))


class Part:
    """One job's work, in this process."""

    def __init__(self, plan: EvaluationPlan, owner: str = "part0", cuts: Sequence[Cut] = ()) -> None:
        self.told: list[dict[str, Any]] = []
        self.claims = Claims(Path(plan.directory, "claims"), owner)
        self.order = Order("evaluate", plan, owner, "", "", (), None, tuple(cuts))

    def run(self, *mine: str) -> list[dict[str, Any]]:
        path = Path(self.order.plan.directory, "order.json")
        save_order(path, replace(self.order, mine=mine))

        def emit(event: str, **details: Any) -> None:
            self.told.append({"event": event, **details})

        Evaluator(emit).evaluate_part(load_order(path), self.claims)
        return self.told

    def done(self, kind: str = "share_done") -> list[str]:
        return [one.get("share", one["task"]) for one in self.told if one["event"] == kind]


def outcome(plan: EvaluationPlan, task: str) -> tuple[TaskResult, Any]:
    predictions = plan.predictions_path(task)
    found = json.loads(predictions.read_text()) if predictions.exists() else None
    return read_result(plan.result_path(task)), found


def assert_same(one: Any, other: Any) -> None:
    """Numbers within rounding: passes of another shape add in another order."""
    if isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def test_shares_give_the_result_of_the_whole(model: Path, tasks: TaskPlan, tmp_path: Path) -> None:
    whole = plan_in(tmp_path / "whole", model, tasks)
    plan = plan_in(tmp_path / "shares", model, tasks)
    assert {event["event"] for event in Part(whole).run()} <= {"tasks", "loaded", "task_started", "task_done"}
    cuts = [Cut(name, WEIGHTS) for name, _ in plan.expected]
    first, second = Part(plan, "part0", cuts), Part(plan, "part1", cuts)
    for cut in cuts:  # what the other one has begun already
        assert all(second.claims.take(name) for name in cut.names[1:3])
    first.run(cuts[0].names[3])
    assert first.done("task_done") == [] and not any(plan.result_path(cut.task).exists() for cut in cuts)
    assert first.done()[0] == cuts[0].names[3]
    second.run()
    done = Counter(first.done() + second.done())
    assert done == Counter(name for cut in cuts for name in cut.names)  # each once
    assert sorted(second.done("task_done")) == sorted(name for name, _ in plan.expected)
    for name, version in plan.expected:
        (ours, predictions), (theirs, expected) = outcome(plan, name), outcome(whole, name)
        assert ours.task_version == version and ours.checkpoint == whole.checkpoint
        assert [asdict(item)["key"] for item in ours.items] == [item.key for item in theirs.items]
        assert_same([asdict(one) for one in ours.items], [asdict(one) for one in theirs.items])
        assert_same([asdict(one) for one in ours.scores], [asdict(one) for one in theirs.scores])
        assert_same(predictions, expected)
        assert ours.cost["shares"] == 4 and "shares" not in theirs.cost
        assert set(ours.cost) - {"shares"} == set(theirs.cost)
        assert ours.cost["prompt_tokens"] == theirs.cost["prompt_tokens"]
        assert theirs.cost["unique_tokens"] <= ours.cost["unique_tokens"] <= ours.cost["prompt_tokens"]
    assert not list(Path(plan.directory, "shares").rglob("*.json"))


def test_a_share_that_fails_fails_the_task_with_its_reason_and_the_next_start_keeps_the_others(
    model: Path, tasks: TaskPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path / "m", model, tasks)
    cut = Cut("ranked", WEIGHTS)
    part = Part(replace(plan, skip=tuple(name for name, _ in plan.expected if name != "ranked")), "part0", [cut])
    asked: list[int] = []

    def second_fails(task: Any, model: Any, samples: Any) -> Any:
        asked.append(len(samples))
        if len(asked) == 2:
            raise ValueError("the log-probability is nan")
        return infer_samples(task, model, samples)

    monkeypatch.setattr("autoeval.tasks.icl.infer_samples", second_fails)
    part.run(*cut.names)
    assert part.done() == [cut.names[0]] and len(asked) == 2
    (failed,) = [event for event in part.told if event["event"] == "task_failed"]
    assert failed["task"] == "ranked" and failed["error"] == "ValueError: the log-probability is nan"
    files = ShareFiles(plan, "ranked", dict(plan.expected)["ranked"])
    assert files.left(cut) == list(cut.names[1:])
    again = Part(part.order.plan, "part0", [cut])
    again.claims = Claims(tmp_path / "new claims", "part0")
    again.run(*cut.names)
    assert again.done() == list(cut.names[1:]) and again.done("task_done") == ["ranked"] and len(asked) == 5
    assert sum(asked) - asked[1] == 50


def test_a_killed_joiner_and_other_saves_leave_nothing(
    model: Path, tasks: TaskPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path / "m", model, tasks)
    plan = replace(plan, skip=tuple(name for name, _ in plan.expected if name != "likely"))
    cut = Cut("likely", WEIGHTS)
    first = Part(plan, "part0", [cut])
    with monkeypatch.context() as patched:
        patched.setattr("autoeval.tasks.sharing.SharedTask.joined", lambda *_: (_ for _ in ()).throw(SystemExit(137)))
        with pytest.raises(SystemExit):
            first.run(*cut.names)
    second = Part(plan, "part1", [cut])
    second.run("likely")
    assert second.told[-1]["event"] == "tasks"  # it is the dead one's, and so loads no model
    first.claims.release(["likely"])
    second.run("likely")
    assert second.done("task_done") == ["likely"] and not second.done()
    assert not list(Path(plan.directory, "shares").rglob("*.json"))
    ShareFiles(plan, "likely", "v").keep(cut)
    other = replace(plan, checkpoint=replace(plan.checkpoint, fingerprint="e" * 32))
    from autoeval.tasks.work import set_aside_other_saves

    set_aside_other_saves(plan)
    assert ShareFiles(plan, "likely", "v").cut() == cut
    set_aside_other_saves(other)
    assert ShareFiles(plan, "likely", "v").cut() is None


def test_a_share_is_of_neighbours_and_of_the_wished_size(model: Path, tasks: TaskPlan, tmp_path: Path) -> None:
    assert tasks.icl is not None
    by_name = {task.name: task for task in load_icl_tasks(tasks.icl.datasets, data_dir=tmp_path)}
    ranked = by_name["ranked"]
    shares = cut_samples(ranked, (2.0, 1.0, 1.0))
    assert sorted(number for share in shares for number in share) == list(range(50))
    opened = HuggingFaceModel(model, dtype="float32", device="cpu")

    def tokens(share: Sequence[int]) -> float:
        before = opened.cost.extra.get("unique_tokens", 0)
        some = replace(ranked, samples=tuple(ranked.samples[number] for number in share))
        infer_samples(some, opened, some.samples)
        return opened.cost.extra["unique_tokens"] - before

    whole = tokens(range(50))
    sizes = [tokens(share) for share in shares]
    by_number = sum(tokens(range(start, min(50, start + 17))) for start in range(0, 50, 17))
    assert whole <= sum(sizes) < by_number  # neighbours share more than rows in their order do
    assert sizes[0] / sum(sizes) == pytest.approx(0.5, abs=0.12)
    assert most_shares(ranked) == 50 // 8
    assert 1 <= most_shares(by_name["bleu"]) <= 3  # its examples would be computed anew in each
    with pytest.raises(ValueError, match="50 items cannot be cut into 51 shares"):
        cut_samples(ranked, [1.0] * 51)


@pytest.mark.slow
def test_a_benchmark_is_cut_by_its_run_entries(model: Path, tmp_path: Path) -> None:
    conf = tmp_path / "helm.conf"
    entries = [f'{{description: "dyck_language:num_parenthesis_pairs={n},model=text", priority: 1}}' for n in (2, 3)]
    conf.write_text(f"entries: [{', '.join(entries)}]")

    def planned(name: str) -> EvaluationPlan:
        helm = HelmPlan(str(conf), str(tmp_path / name / "helm"), "suite", 4, None)
        return plan_in(tmp_path / name, model, TaskPlan(helm=helm))

    whole, plan = planned("whole"), planned("shares")
    Part(whole).run()
    cut = Cut("dyck_language", (2.0, 1.0))
    first, second = Part(plan, "part0", [cut]), Part(plan, "part1", [cut])
    assert second.claims.take(cut.names[1])
    first.run(*cut.names)
    second.run(cut.names[1])
    assert first.done() == [cut.names[0]] and second.done() == [cut.names[1]]
    assert second.done("task_done") == ["dyck_language"]
    (ours, _), (theirs, _) = outcome(plan, "dyck_language"), outcome(whole, "dyck_language")
    assert_same([asdict(one) for one in ours.items], [asdict(one) for one in theirs.items])
    assert_same([asdict(one) for one in ours.scores], [asdict(one) for one in theirs.scores])
    assert ours.task_version == theirs.task_version and set(ours.cost) - {"shares"} == set(theirs.cost)
    for name in ("runs", "runs_reused", "prompt_tokens", "num_train_instances", "prompt_truncated"):
        assert ours.cost[name] == theirs.cost[name], name
