"""A HELM configuration file becomes tasks, and a wrong one says what is wrong and where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autoeval.helm.spec import (
    Benchmark,
    HelmConfigError,
    load_helm_tasks,
    task_version,
    with_model,
)
from recorder.helm_names import display_metric, helm_metric, split_description

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "config" / "helm_spec_template.conf"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "entries.conf"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_template_holds_the_sixteen_core_scenarios_and_all_subjects_of_mmlu() -> None:
    tasks = {task.name: task for task in load_helm_tasks(TEMPLATE, eval_instances=100)}
    assert sorted(tasks) == [
        "boolq", "civil_comments", "hellaswag", "imdb", "mmlu", "msmarco_regular", "msmarco_trec", "narrative_qa",
        "natural_qa_closedbook", "natural_qa_openbook_longans", "openbookqa", "quac", "raft", "summarization_cnndm",
        "summarization_xsum", "truthful_qa",
    ]  # fmt: skip
    assert len(tasks["mmlu"].entries) == 57
    assert not any("model" in split_description(entry)[1] for task in tasks.values() for entry in task.entries)


def test_entries_of_one_scenario_become_one_task_and_the_model_is_ours_to_fill_in(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """entries: [
          {description: "mmlu:subject=anatomy,model=text", priority: 1}
          {description: "boolq:model=openai/davinci,only_contrast=True", priority: 1, groups: ["x"]}
          {description: "mmlu:model=text,subject=virology"}
        ]""",
    )
    mmlu, boolq = load_helm_tasks(path, eval_instances=7)
    assert (mmlu.name, mmlu.entries, mmlu.eval_instances) == (
        "mmlu", ("mmlu:subject=anatomy", "mmlu:subject=virology"), 7,
    )  # fmt: skip
    assert boolq.entries == ("boolq:only_contrast=True",)
    assert with_model(boolq.entries[0], "autoeval/x") == "boolq:only_contrast=True,model=autoeval/x"
    assert with_model("quac", "autoeval/x") == "quac:model=autoeval/x"


def test_benchmarks_select_scenarios_and_name_their_metrics(tmp_path: Path) -> None:
    path = write(tmp_path, 'entries: [{description: "boolq"}, {description: "natural_qa:mode=closedbook"}]')
    tasks = load_helm_tasks(path, eval_instances=5, benchmarks=[Benchmark("natural_qa", ("F1", "quasi-EM"))])
    assert [(task.name, task.metrics) for task in tasks] == [("natural_qa_closedbook", ("F1", "quasi-EM"))]
    with pytest.raises(HelmConfigError, match=r"entries\.conf.*'mmlu'.*boolq"):
        load_helm_tasks(path, eval_instances=5, benchmarks=[Benchmark("mmlu")])


def test_display_names_and_statistic_names_are_the_same_metrics() -> None:
    assert helm_metric("EM") == "exact_match"
    assert helm_metric("quasi-em") == "quasi_exact_match"
    assert helm_metric("ROUGE-2") == "rouge_2"
    assert helm_metric("math_equiv") == "math_equiv"
    assert display_metric("f1_score") == "F1"


def test_the_version_changes_with_everything_that_changes_the_score() -> None:
    version = task_version(["boolq"], 100)
    assert version == task_version(["boolq"], 100)
    assert version != task_version(["boolq"], 101)
    assert version != task_version(["boolq:max_train_instances=0"], 100)
    assert version != task_version(["boolq"], 100, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("entries: [{description: 5}]", r"entries\[0\].*description.*string"),
        ('entries: [{description: "boolq"}, {description: "mmlu:anatomy"}]', r"entries\[1\].*<key>=<value>"),
        ('entries: [{description: "boolq", prioritty: 1}]', r"entries\[0\].*'prioritty'"),
        ('entries: [{description: "boolq"}, {description: "boolq:model=text"}]', r"entries\[1\].*repeats"),
        ('entries: ["boolq"]', r"entries\[0\].*mapping"),
        ("entries: []", "non-empty list"),
        ('runs: [{description: "boolq"}]', "non-empty list"),
        ('entries: [{description: "boolq"', "HOCON"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_entry(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(HelmConfigError, match=expected) as caught:
        load_helm_tasks(path, eval_instances=5)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(HelmConfigError, match=r"nowhere\.conf"):
        load_helm_tasks(tmp_path / "nowhere.conf", eval_instances=5)


def test_reading_the_configuration_imports_nothing_heavy() -> None:
    program = (
        "import sys; from autoeval.helm.spec import load_helm_tasks; "
        f"load_helm_tasks({str(TEMPLATE)!r}, eval_instances=5); "
        "print([name for name in ('helm', 'torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
