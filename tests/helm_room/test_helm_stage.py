"""Downloaded data gets to where HELM looks for it, and what is missing is named with its source."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from autoeval.helm.data_files import describe, examine_data, files_of
from autoeval.helm.spec import load_helm_tasks
from autoeval.helm.stage import StageError, main, stage

TEMPLATE = Path(__file__).resolve().parents[2] / "config" / "helm_spec_template.conf"


def put(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_published_files_and_archives_get_to_where_helm_looks(tmp_path: Path) -> None:
    source, output = tmp_path / "downloads", tmp_path / "helm"
    put(source / "hellaswag_train.jsonl")
    put(source / "hellaswag_val.jsonl")
    put(source / "TruthfulQA.csv")
    put(source / "boolq" / "train.jsonl", "boolq train")
    put(source / "quac" / "val_v0.2.json")
    put(source / "nltk_data" / "tokenizers" / "punkt_tab" / "english" / "a.tab")
    put(source / "raft" / "prompt_construction_settings.json")
    put(source / "scenario_instances" / "raft:subset=overruling" / "input_instances.json", "[]")
    with zipfile.ZipFile(source / "narrativeqa.zip", "w") as archive:
        archive.writestr("narrativeqa-master/qaps.csv", "q")
        archive.writestr("narrativeqa-master/third_party/wikipedia/summaries.csv", "s")
    with tarfile.open(source / "data.tar", "w") as tar:
        for name in ("dev", "val", "test"):
            content = f"{name}".encode()
            member = tarfile.TarInfo(f"data/{name}/anatomy_{name}.csv")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    new = stage(source, output)
    assert len(new) == 14 and not list(output.rglob(".stage-*"))
    assert (output / "scenarios" / "boolq" / "data" / "train").read_text() == "boolq train"
    for entry in (
        "mmlu:subject=anatomy",
        "commonsense:dataset=hellaswag",
        "truthful_qa:task=mc_single",
        "narrative_qa",
    ):
        assert describe(entry, output)[1] == [], entry
    assert describe("raft:subset=overruling", output)[1] == []
    assert describe("raft:subset=banking_77", output)[1] != []
    assert stage(source, output) == []  # all there


def test_what_is_already_in_helms_layout_is_copied_as_it_is(tmp_path: Path, data_dir: Path) -> None:
    stage(data_dir / "helm_scenarios", tmp_path)
    for name in (
        "boolq",
        "gsm",
        "narrative_qa",
        "truthful_qa",
        "mmlu:subject=anatomy",
        "commonsense:dataset=hellaswag",
    ):
        there, missing = describe(name, tmp_path)
        assert there and not missing, name


def test_a_packed_file_is_unpacked_where_helm_would(tmp_path: Path) -> None:
    source = tmp_path / "downloads"
    source.mkdir()
    (source / "msmarco-test2019-queries.tsv.gz").write_bytes(gzip.compress(b"1\twhat is a fox\n"))
    (source / "nq-dev-00.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    stage(source, tmp_path / "out")
    scenarios = tmp_path / "out" / "scenarios"
    assert (scenarios / "msmarco/data/trec_queries.tsv").read_text() == "1\twhat is a fox\n"
    assert gzip.decompress((scenarios / "natural_qa/data/nq-dev-00.jsonl.gz").read_bytes()) == b"{}"


@pytest.mark.parametrize("name", ["nothing.txt", "broken.tar"])
def test_a_source_that_holds_nothing_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "source" / name)
    with pytest.raises(StageError, match="source"):
        stage(tmp_path / "source", tmp_path / "out")
    assert main([str(tmp_path / "nowhere"), "--output-path", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../../escaped.csv")
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(StageError, match=r"evil\.tar"):
        stage(tmp_path / "evil.tar", tmp_path / "out" / "deep")
    assert not list(tmp_path.rglob("escaped.csv"))


def test_every_scenario_of_the_template_says_which_files_it_needs_and_where_to_get_them(tmp_path: Path) -> None:
    tasks = load_helm_tasks(TEMPLATE, eval_instances=5)
    for task in tasks:
        for entry in task.entries:
            assert files_of(entry), entry
    with pytest.raises(ValueError, match=r"boolq 0, narrative_qa 0") as caught:
        examine_data(tasks, tmp_path)
    said = str(caught.value)
    for task in tasks:
        assert f"\n    {task.name}: {tmp_path / 'scenarios'}" in said
    assert "https://" in said and "punkt_tab" in said


def test_data_that_is_complete_is_counted(tmp_path: Path, data_dir: Path) -> None:
    stage(data_dir / "helm_scenarios", tmp_path)
    stage(data_dir, tmp_path)
    tasks = [task for task in load_helm_tasks(TEMPLATE, eval_instances=5) if task.name in ("boolq", "hellaswag")]
    assert examine_data(tasks, tmp_path).startswith("files of boolq 3, hellaswag 2; ")
