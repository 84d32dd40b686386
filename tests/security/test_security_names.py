"""Names that somebody else chose: of models, tasks, items, jobs, archive members. None leaves its place."""

from __future__ import annotations

import gzip
import io
import json
import os
import shlex
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from autoeval.config import Name
from autoeval.helm.hocon import ReachesOut, parse_hocon
from autoeval.helm.spec import HelmConfigError, load_helm_tasks
from autoeval.helm.stage import StageError, stage
from autoeval.runners.jobs import JobArray, Resources
from autoeval.runners.slurm import Slurm, SlurmOptions
from autoeval.tasks.names import dataset_abbr, model_abbr, output_path
from autoeval.tasks.plan import file_name
from recorder.ledger import Ledger
from recorder.results import CheckpointRef, Item, Score, TaskResult
from recorder.wandb_lineage import megatron_artifact

NAMES = [
    "../../x", "/etc/passwd", "..", ".", "", "a/../../b", "..\\..\\x", "a\0b", "a\nb", "\x1b[2J", "-rf", "--help", "~/x",
    "$(touch x)", "`touch x`", "; touch x", "a" * 40, "C:\\x", "con.txt", "%2e%2e%2fx", "名/字", "<b>", "'; DROP TABLE x; --",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_as_a_file_name_stays_in_its_directory(name: str, tmp_path: Path) -> None:
    made = file_name(name)
    assert not set(made) & set("/\\\0\n\r\x1b") and not made.startswith(".") and made
    model, dataset = {"abbr": name, "path": name, "type": "HuggingFace"}, {"abbr": name, "path": name}
    for path in (
        output_path(tmp_path, model, dataset),
        tmp_path / model_abbr({**model, "abbr": ""}) / f"{dataset_abbr({**dataset, 'abbr': ''})}.json",
    ):
        assert path.resolve().is_relative_to(tmp_path.resolve()) and len(path.relative_to(tmp_path).parts) == 2
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("a" * 40, "con.txt")])
def test_names_in_evaluator_yaml_are_plain(name: str) -> None:
    """``model_name`` and ``project_name``, which name directories."""
    with pytest.raises(ValidationError, match="expected letters"):
        TypeAdapter(Name).validate_python(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_job_of_any_name_is_asked_for_what_it_wants(name: str, tmp_path: Path) -> None:
    """Each argument begins with its own option, whatever follows; the script is one command and its number."""
    if "\0" in name:
        pytest.skip("no argument of a process can have it")
    array = JobArray("key", name, ["python", "-m", "x", name], 2, Resources(num_gpus=1), tmp_path / "job.log")
    options = SlurmOptions(partition=name, account=name, qos=name, quotatype=name)
    for flag in Slurm(options).flags(array):
        assert flag.startswith("--") and flag.partition("=")[0] in KNOWN, flag
    script = f'#!/bin/sh\nset -- {shlex.join(["printf", "%s|", *array.command])} "$SLURM_ARRAY_TASK_ID"\n"$@"\n'
    ran = subprocess.run(["sh"], input=script, text=True, capture_output=True, cwd=tmp_path, check=True)
    assert ran.stdout == f"python|-m|x|{name}||" and not (tmp_path / "x").exists()


KNOWN = {
    "--parsable", "--array", "--job-name", "--comment", "--nodes", "--ntasks", "--output", "--open-mode", "--export",
    "--partition", "--quotatype", "--qos", "--account", "--gres", "--no-requeue", "--requeue",
}  # fmt: skip


def test_a_job_is_found_again_among_ones_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments can be read by all: anybody could give their job ours, and be waited for."""
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\ncase "$*" in *--user={os.geteuid()}*) echo "1|other";; *) echo "666|key";; esac\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert Slurm(SlurmOptions()).find("key") is None and Slurm(SlurmOptions()).find("other") == "1"


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_sqlite_takes_names_as_values(name: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for other in ("plain", name):
        ref = CheckpointRef(other, 1, "f", "/c", None)
        ledger.note_checkpoint(ref)
        ledger.note_task(ref, other, "running", version="v")
        ledger.ingest(TaskResult(ref, other, "v", "icl", (Score("EM", 0.5, None, 2),), (Item(other, "EM", 1.0),)))
        ledger.remember(other, other)
    assert {row.model for row in ledger.scores()} == {"plain", name} and ledger.jobs(name) == []
    assert [item.key for item in ledger.items(name, 1)] == [name] and ledger.recall(name) == name
    assert {row.model for row in ledger.checkpoints()} == {"plain", name}
    ledger.standing([name])
    ledger.close()


MEMBERS = ["../outside.jsonl", "/tmp/outside-of-autoeval.jsonl", "a/../../../outside.jsonl"]


def packed(path: Path, name: str) -> None:
    content = b'{"x": 1}\n'
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
        return
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", MEMBERS)
def test_an_archives_members_stay_in_their_place(kind: str, name: str, tmp_path: Path) -> None:
    packed(tmp_path / f"data.{kind}", name)
    with pytest.raises(StageError):
        stage(tmp_path / f"data.{kind}", tmp_path / "deep" / "er" / "helm")
    assert not [path for path in (tmp_path, Path("/tmp")) if list(path.glob("outside*"))]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_an_archive_brings_no_links_and_no_devices(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        member = tarfile.TarInfo("hellaswag_val.jsonl")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(StageError):
        stage(tmp_path / "data.tar", tmp_path / "helm")
    assert not list((tmp_path / "helm").rglob("*.jsonl"))


def test_a_packed_file_without_end_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros pack a thousand to one. What would be unpacked is limited to what the disk has room for."""
    monkeypatch.setattr("autoeval.helm.stage.room", lambda _: 1_000_000)
    bomb = b"0" * 5_000_000
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("hellaswag_val.jsonl", bomb)
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("hellaswag_val.jsonl")
        member.size = len(bomb)
        tar.addfile(member, io.BytesIO(bomb))
    (tmp_path / "plain").mkdir()
    with gzip.open(tmp_path / "plain" / "hellaswag_val.jsonl.gz", "wb") as packed_file:
        packed_file.write(bomb)
    for source in (tmp_path / "data.zip", tmp_path / "data.tar.gz"):
        with pytest.raises(StageError, match="would take 5000000 bytes"):
            stage(source, tmp_path / "helm")
    assert sum(path.stat().st_size for path in (tmp_path / "helm").rglob("*") if path.is_file()) < 1_000_000


OUTWARD = [
    'include "/etc/passwd"',
    'include url("http://127.0.0.1:9/x")',
    'include required(file("x"))',
    "INCLUDE file(x)",
]
# Neither a comment nor a string to pyhocon.
OUTWARD += ["a: http://x ${WANDB_API_KEY}", 'a: x // include "/etc/passwd"', 'a: x\\" ${WANDB_API_KEY} "y"']
OUTWARD += ['a: 1 // """\nb: ${WANDB_API_KEY}\n# """', 'a: x// """\n""" ${WANDB_API_KEY}\n# """']
OUTWARD += ["a: x\\# ${WANDB_API_KEY}", 'a: """x""""${WANDB_API_KEY}""']
OUTWARD += ["a: ${WANDB_API_KEY}", "a: ${?HOME}", 'entries: [{description: ${HOME}"x"}]', 'a: { include "b.conf" }']


@pytest.mark.parametrize("text", OUTWARD)
def test_helms_configuration_reads_no_other_file_no_address_and_no_environment(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    with pytest.raises(ReachesOut, match="line 2"):
        parse_hocon(f"# a comment\n{text}\n")
    path = tmp_path / "x.conf"
    path.write_text(f'entries: [{{description: "mmlu:subject=x"}}]\n{text}\n')
    with pytest.raises(HelmConfigError, match="expected everything in this one file") as caught:
        load_helm_tasks(path, eval_instances=1)
    assert "hunter2" not in str(caught.value)


def test_words_in_strings_and_comments_are_no_includes() -> None:
    content = parse_hocon(
        '# include "x" ${A}\n// include "x"\na: "include \\"x\\" ${B}", include_all: 1, b: """${C} include "x" """'
    )
    assert dict(content) == {"a": 'include "x" ${B}', "include_all": 1, "b": '${C} include "x" '}


def test_hocon_of_endless_nesting_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.conf").write_text("a: " + "[" * 5000)
    with pytest.raises(HelmConfigError):
        load_helm_tasks(tmp_path / "x.conf", eval_instances=1)


@pytest.mark.parametrize("text", ["a/b/c:d\n\x1b[2J", "x" * 10_000, "", "../../x"])
def test_the_trainings_wandb_artifact_is_a_name_or_nothing(text: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "iter_0000001"
    checkpoint.mkdir()
    (tmp_path / "latest_wandb_artifact_path.txt").write_text(text)
    assert megatron_artifact(checkpoint) is None
    (tmp_path / "latest_wandb_artifact_path.txt").unlink()
    os.mkfifo(tmp_path / "latest_wandb_artifact_path.txt")
    assert megatron_artifact(checkpoint) is None


def test_items_of_a_checkpoint_are_named_in_json(tmp_path: Path) -> None:
    """Predictions hold what a model wrote: as JSON it ends no string and no line."""
    from recorder.files import write_json

    write_json(tmp_path / "x.json", {"text": '\n"}\x00\u2028</script>'})
    assert json.loads((tmp_path / "x.json").read_text()) == {"text": '\n"}\x00\u2028</script>'}
