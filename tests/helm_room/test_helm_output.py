"""A HELM output directory becomes numbers: ours with several checkpoints in it, and what helm-summarize leaves."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

import pytest

from recorder.helm_names import _MAIN_SPLIT
from recorder.helm_output import HelmOutputError, read_suite

MMLU = [("mmlu", ["EM"])]


def put_run(output: Path, name: str, value: float, written: int = 1) -> None:
    directory = output / "runs" / "suite" / name
    directory.mkdir(parents=True)
    path = directory / "stats.json"
    path.write_text(json.dumps([{"name": {"name": "exact_match", "split": "test"}, "count": 1, "mean": value}]))
    os.utime(path, (written, written))


def put_table(
    output: Path, rows: list[list[object]], header: tuple[str, ...] = ("Model", "EM", "ECE (10-bin)")
) -> None:
    directory = output / "runs" / "suite" / "groups"
    directory.mkdir(parents=True)
    cells = [[{"value": value, "markdown": False} for value in row] for row in rows]
    subject = {"title": "subject: anatomy", "header": [{"value": name} for name in header], "rows": [cells[0]]}
    whole = {"title": "MMLU", "header": [{"value": name} for name in header], "rows": cells}
    (directory / "mmlu.json").write_text(json.dumps([whole, subject]))


def test_our_checkpoints_in_one_suite_keep_their_iterations_and_the_later_save_counts(tmp_path: Path) -> None:
    for iteration, fingerprint, value, written in ((1000, "00aa11bb", 0.2, 1), (2000, "00aa11bb", 0.4, 1),
                                                   (2000, "ffee0011", 0.6, 2)):  # fmt: skip
        model = f"model=autoeval_autoeval_gpt2-1.3b-{iteration}-{fingerprint}"
        put_run(tmp_path, f"mmlu:subject=anatomy,{model}", value, written)
        put_run(tmp_path, f"mmlu:subject=virology,{model}", value + 0.1, written)
    assert read_suite(tmp_path, "suite", MMLU, 7) == {
        1000: {"mmlu.EM": pytest.approx(0.25)},
        2000: {"mmlu.EM": pytest.approx(0.65)},
    }


def test_the_standard_error_is_that_of_the_macro_average(tmp_path: Path) -> None:
    """Two subjects of four items: value (1/4 + 3/4) / 2; each variance of the mean is 0.25 / 4."""
    for subject, right in (("anatomy", 1), ("virology", 3)):
        put_run(tmp_path, f"mmlu:subject={subject},model=x", right / 4)
        entries = [
            {"instance_id": f"id{i}", "train_trial_index": trial, "stats": [
                {"name": {"name": "exact_match", "split": "test"}, "count": 1, "mean": float(i < right)}
            ]} for i in range(4) for trial in range(2)
        ]  # fmt: skip
        worst = {**entries[0], "perturbation": {"name": "robustness"}}
        path = tmp_path / "runs" / "suite" / f"mmlu:subject={subject},model=x" / "per_instance_stats.json"
        path.write_text(json.dumps([*entries, worst]))
    assert read_suite(tmp_path, "suite", MMLU, 7) == {
        7: {"mmlu.EM": pytest.approx(0.5), "mmlu.EM_stderr": pytest.approx((2 * (0.25 / 4) / 4) ** 0.5)}
    }


def test_a_run_is_found_by_the_groups_that_helm_counts_it_to(tmp_path: Path) -> None:
    put_run(tmp_path, "dyck_language_np=3:model=x", 0.5)
    (tmp_path / "runs/suite/dyck_language_np=3:model=x/run_spec.json").write_text('{"groups": ["dyck_language"]}')
    assert read_suite(tmp_path, "suite", [("dyck_language", ["EM"])], 7) == {7: {"dyck_language.EM": 0.5}}


def test_two_models_are_not_averaged_into_one(tmp_path: Path) -> None:
    put_run(tmp_path, "mmlu:subject=anatomy,model=a", 0.2)
    put_run(tmp_path, "mmlu:subject=anatomy,model=b", 0.4)
    with pytest.raises(HelmOutputError, match=r"several models.*model=a.*model=b"):
        read_suite(tmp_path, "suite", MMLU, 7)


def test_the_tables_of_helm_summarize_do_where_the_runs_are_not_there(tmp_path: Path) -> None:
    put_table(tmp_path, [["first", 0.3, 0.1]])
    assert read_suite(tmp_path, "suite", [("mmlu", ["EM", "ECE (10-bin)"])], 7) == {
        7: {"mmlu.EM": 0.3, "mmlu.ECE (10-bin)": 0.1}
    }
    put_run(tmp_path, "mmlu:subject=anatomy,model=first", 0.5)  # the runs themselves come first
    assert read_suite(tmp_path, "suite", MMLU, 7) == {7: {"mmlu.EM": 0.5}}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["a", 0.3, 0.1], ["b", 0.4, 0.1]], "one model, it has a, b"),
        ([["a", None, 0.1]], "no value of 'EM'; its columns are em, ece"),
    ],
)
def test_a_table_that_gives_no_number_is_refused(tmp_path: Path, rows: list[list[object]], expected: str) -> None:
    put_table(tmp_path, rows)
    with pytest.raises(HelmOutputError, match=expected):
        read_suite(tmp_path, "suite", MMLU, 7)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    put_table(tmp_path, [["a", 0.3, 0.1]])
    (tmp_path / "runs" / "suite" / "groups" / "mmlu.json").write_text('{"no": "table"}')
    with pytest.raises(HelmOutputError, match=r"mmlu\.json: cannot be read as a table of helm-summarize"):
        read_suite(tmp_path, "suite", MMLU, 7)


def test_core_scenarios_are_read_on_the_split_that_helm_reports(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    schema = files("helm.benchmark").joinpath("static/schema_classic.yaml").read_text(encoding="utf-8")
    groups = {group["name"]: group.get("environment") or {} for group in yaml.safe_load(schema)["run_groups"]}
    assert len(_MAIN_SPLIT) == 16
    assert {name: groups[name]["main_split"] for name in _MAIN_SPLIT} == _MAIN_SPLIT
    put_run(tmp_path, "boolq:model=x", 0.5)  # on the split test, which is not boolq's
    with pytest.raises(HelmOutputError, match=r"no value of 'EM' \(exact_match\) on the split valid"):
        read_suite(tmp_path, "suite", [("boolq", ["EM"])], 7)
