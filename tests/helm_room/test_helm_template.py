"""The spec template with HELM itself: every entry makes a run, and those whose data can be had are evaluated."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autoeval.helm.registration import registered
from autoeval.helm.run import HelmRunError, run_helm_task
from autoeval.helm.spec import HelmTask, load_helm_tasks, with_model
from autoeval.models.requests import LanguageModel

pytestmark = pytest.mark.slow

TEMPLATE = Path(__file__).resolve().parents[2] / "config" / "helm_spec_template.conf"
# Of HELM's tables: what the leaderboard shows of each core scenario.
MAIN = {
    "mmlu": "EM", "boolq": "EM", "narrative_qa": "F1", "natural_qa_closedbook": "F1", "natural_qa_openbook_longans": "F1",
    "quac": "F1", "hellaswag": "EM", "openbookqa": "EM", "truthful_qa": "EM", "imdb": "EM", "raft": "EM",
    "civil_comments": "EM", "msmarco_regular": "RR@10", "msmarco_trec": "NDCG@10", "summarization_cnndm": "ROUGE-2",
    "summarization_xsum": "ROUGE-2",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_models: tuple[Path, Path]) -> LanguageModel:
    from autoeval.models.hf import HuggingFaceModel

    return HuggingFaceModel(tiny_models[0], dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tasks() -> dict[str, HelmTask]:
    return {task.name: task for task in load_helm_tasks(TEMPLATE, eval_instances=4)}


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def put_lines(path: Path, rows: list[dict]) -> None:
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def make_openbookqa(scenarios: Path) -> None:
    rows = [
        {
            "question": {"stem": f"Question {i}?", "choices": [{"text": f"{c} {i}", "label": c} for c in "ABCD"]},
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(12)
    ]
    for split in ("train", "test"):
        put_lines(scenarios / f"openbookqa/data/OpenBookQA-V1-Sep2018/Data/Main/{split}.jsonl", rows)


def make_imdb(scenarios: Path) -> None:
    order: dict[str, dict[str, list[str]]] = {}
    for split, told in (("train", "train"), ("test", "valid")):
        for kind in ("pos", "neg"):
            names = [f"{i}_7.txt" for i in range(8)]
            order.setdefault(told, {})[kind] = names
            for name in names:
                put(scenarios / f"imdb/data/{split}/{kind}/{name}", f"A {kind} film, number {name}.")
    put(scenarios / "imdb/data/imdb_scenario_pinned_file_order.json", json.dumps(order))
    for split in ("test", "dev"):
        for kind in ("original", "contrast"):
            put(scenarios / f"imdb/data/{split}_{kind}.tsv", "Sentiment\tText\n")


def make_quac(scenarios: Path) -> None:
    paragraph = {
        "context": "The fox lived in the wood. It was brown. CANNOTANSWER",
        "qas": [
            {"question": f"Where did it live {i}?", "answers": [{"text": "in the wood"}],
             "orig_answer": {"text": "in the wood"}, "yesno": "x", "followup": "y"} for i in range(4)
        ],
    }  # fmt: skip
    article = {"title": "Fox", "background": "A fox.", "section_title": "Life", "paragraphs": [paragraph]}
    for split in ("train", "val"):
        put(scenarios / f"quac/data/{split}.json", json.dumps({"data": [article] * 8}))


def make_natural_qa(scenarios: Path) -> None:
    rows = [
        {"title": "Fox", "document": "", "question": f"what is brown {i}", "long_answers": ["The fox is brown."],
         "short_answers": ["the fox"]} for i in range(12)
    ]  # fmt: skip
    for number in range(5):
        path = scenarios / f"natural_qa/data/nq-dev-{number:02}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b""))
        put_lines(Path(f"{path}-instances.jsonl"), rows)


def make_civil_comments(scenarios: Path) -> None:
    path = scenarios / "civil_comments/wilds_civil_comments.csv"
    path.parent.mkdir(parents=True)
    groups = ["male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white"]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", "id", "split", "comment_text", "toxicity", *groups])
        for i in range(48):
            split = ("train", "val", "test")[i % 3]
            writer.writerow([i, i, split, f"A comment of somebody, {i}.", float(i % 2), *([1.0] * len(groups))])


def put_raft_settings(scenarios: Path, subsets: list[str]) -> None:
    lines = [{name: ["Sentence"] for name in subsets}, dict.fromkeys(subsets, "Decide.")]
    put(scenarios / "raft" / "prompt_construction_settings.json", "\n".join(map(json.dumps, lines)))


def make_msmarco(scenarios: Path) -> None:
    """Ten queries a file, 40 passages; the passage that answers query q is number q."""
    folder = scenarios / "msmarco" / "data"

    def put_table(name: str, rows: list[tuple[object, ...]], separator: str = "\t") -> None:
        put(folder / f"{name}.tsv", "".join(separator.join(map(str, row)) + "\n" for row in rows))

    put_table("documents", [(number, f"Passage {number} is about the fox.") for number in range(40)])
    for track, first, best in (("train", 0, 1), ("regular", 10, 1), ("trec", 20, 3)):
        queries = range(first, first + 10)
        put_table(f"{track}_queries", [(query, f"what is fox {query}") for query in queries])
        relevant = [(query, 0, query, best) for query in queries]
        put_table(f"{track}_qrels", relevant, " " if track == "trec" else "\t")  # as each is published
        put_table(f"{track}_topk", [(query, (query + rank) % 40, rank) for query in queries for rank in range(1, 36)])


def make_summarization(scenarios: Path) -> None:
    """As HELM publishes it: a pickle of splits, lists of mappings of strings."""
    for name, article, summary in (("xsum", "document", "summary"), ("cnndm", "article", "highlights")):
        splits = {
            split: [
                {
                    article: f"The fox number {i} lived in the wood. " * 12,
                    summary: f"A fox, by name {i}, " + "lived " * 12,
                }
                for i in range(8)
            ]
            for split in ("train", "validation", "test")
        }
        path = scenarios / "summarization" / "data" / f"{name}.pk"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(splits))


MAKERS: dict[str, Callable[[Path], None]] = {
    "openbookqa": make_openbookqa, "imdb": make_imdb, "quac": make_quac, "natural_qa_closedbook": make_natural_qa,
    "natural_qa_openbook_longans": make_natural_qa, "civil_comments": make_civil_comments,
    "msmarco_regular": make_msmarco, "msmarco_trec": make_msmarco, "summarization_cnndm": make_summarization,
    "summarization_xsum": make_summarization,
}  # fmt: skip
SHARED = {"mmlu": "mmlu", "boolq": "boolq", "narrative_qa": "narrativeqa", "hellaswag": "hellaswag",
          "truthful_qa": "truthful_qa"}  # fmt: skip


def test_every_entry_of_the_template_is_a_run_that_helm_knows(
    tasks: dict[str, HelmTask], model: LanguageModel, tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    from helm.benchmark.presentation.run_entry import RunEntry
    from helm.benchmark.run import run_entries_to_run_specs
    from helm.benchmark.runner import get_benchmark_output_path, set_benchmark_output_path

    put_raft_settings(tmp_path / "scenarios", [entry.partition("=")[2] for entry in tasks["raft"].entries])
    before = get_benchmark_output_path()
    set_benchmark_output_path(str(tmp_path))
    try:
        with registered(model, name="autoeval/template"):
            for task in tasks.values():
                entries = [RunEntry(with_model(entry, "autoeval/template"), 1, None) for entry in task.entries]
                specs = run_entries_to_run_specs(entries, max_eval_instances=4)
                assert len(specs) == len(entries), task.name
                assert {spec.adapter_spec.model for spec in specs} == {"autoeval/template"}
    finally:
        set_benchmark_output_path(before)


@pytest.mark.parametrize("name", [*SHARED, *MAKERS, "raft"])
def test_a_scenario_of_the_template_is_evaluated(
    name: str,
    tasks: dict[str, HelmTask],
    model: LanguageModel,
    tiny_models: tuple[Path, Path],
    data_dir: Path,  # nltk's data is there
    tmp_path: Path,
) -> None:
    scenarios = tmp_path / "scenarios"
    entries = tasks[name].entries[:2]
    if name in SHARED:
        scenarios.mkdir()
        shutil.copytree(data_dir / "helm_scenarios" / SHARED[name], scenarios / SHARED[name])
        entries = ("mmlu:subject=anatomy,method=multiple_choice_joint",) if name == "mmlu" else entries
    elif name == "raft":  # as helm-run --cache-instances leaves it
        entries = ("raft:subset=overruling",)
        put_raft_settings(scenarios, ["overruling"])
        instances = [
            {
                "input": {"text": f"Sentence: the court said {i}"},
                "references": [{"output": {"text": "yes" if i % 2 else "no"}, "tags": ["correct"]}],
                "split": "train" if i < 8 else "test",
            }
            for i in range(16)
        ]
        put(tmp_path / "scenario_instances" / "raft:subset=overruling" / "input_instances.json", json.dumps(instances))
    else:
        MAKERS[name](scenarios)
    shutil.copytree(data_dir / "nltk_data", tmp_path / "nltk_data")
    task = HelmTask(name, "v", entries, (MAIN[name],), 4)
    outcome = run_helm_task(task, model, model_name=f"template-{name}", output_path=tmp_path, suite="suite")
    (score,) = outcome.scores
    assert score.metric == MAIN[name] and 0 <= score.value <= 1 and score.n > 0
    assert len(outcome.items) == score.n and outcome.cost["runs"] == len(entries)


@pytest.mark.parametrize("name", ["msmarco_regular", "summarization_xsum"])
def test_a_scenario_without_its_data_names_it(
    name: str, tasks: dict[str, HelmTask], model: LanguageModel, tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        HelmRunError, match=rf"{name.partition('_')[0]}.*{tmp_path}/scenarios/.*is missing; put it there"
    ):
        run_helm_task(tasks[name], model, model_name="x", output_path=tmp_path, suite="suite")
