"""--doctor: what is checked is really tried, and what is broken is told whole, with what to do."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import evaluator
from autoeval.checkpoints import Checkpoint
from autoeval.config import load_config
from autoeval.doctor import accounts, configuration, machine, places
from autoeval.doctor.finding import Finding, as_json, as_lines, ok, problem, summary, warning
from autoeval.doctor.packages import examine_packages
from autoeval.doctor.sizes import sizes_of
from autoeval.planning import WatchOptions
from recorder.messages.channel import Channel
from tests.recorder.lark_imitation import TOKEN, Bot, running

HOME = Path(__file__).resolve().parents[2]
GOOD = """
auto_eval:
  project_name: demo
  model_name: tiny
  work_dir: out
  huggingface: {checkpoint_path: checkpoints}
  icl: {datasets: [./two.py], data_dir: .}
  wandb: {mode: disabled}
"""
WATCH = WatchOptions(begin=100, interval=100, model_type="huggingface")


def levels(findings: Iterator[Finding] | list[Finding]) -> dict[str, str]:
    return {one.check: one.level for one in findings}


def only(findings: Iterator[Finding] | list[Finding], check: str) -> Finding:
    (found,) = [one for one in findings if one.check == check]
    return found


# -- what is said ------------------------------------------------------------------------------------------------------


def test_a_finding_says_what_was_expected_and_what_to_do_unless_all_is_well() -> None:
    assert as_lines(ok("disk", "10 GB free")) == "  ok       disk: 10 GB free"
    lines = as_lines(problem("disk", "full\nof logs", "room", "make room")).splitlines()
    assert [line.strip() for line in lines] == ["problem  disk: full", "of logs", "expected: room", "to do: make room"]
    assert summary([ok("a", ""), warning("b", "", "", "")]) == "everything is there, 1 warning"
    assert summary([problem("a", "", "", ""), problem("b", "", "", "")]) == "2 problems"


def test_the_json_has_a_version_and_every_finding_whole() -> None:
    content = json.loads(as_json([("tiny", [ok("a", "x"), warning("b", "y", "z", "w")])]))
    assert (content["schema"], content["ok"], content["problems"], content["warnings"]) == (1, True, 0, 1)
    assert content["findings"][1] == {
        "subject": "tiny", "check": "b", "level": "warning", "found": "y", "expected": "z", "action": "w",
    }  # fmt: skip


# -- the configuration -------------------------------------------------------------------------------------------------


def test_of_a_broken_file_everything_is_told_and_what_can_be_used_is_used(tmp_path: Path) -> None:
    path = tmp_path / "evaluator.yaml"
    text = GOOD.replace("model_name", "modelname").replace("mode: disabled", "mode: sometimes")
    path.write_text(text.replace("checkpoint_path: checkpoints", "checkpoint_path: checkpoints, tokens: 3"))
    runs, findings = configuration.read(path, WATCH)
    told = "\n".join(one.found for one in findings)
    assert all(one.level == "problem" for one in findings)
    for part in ("auto_eval.modelname: unknown key", "auto_eval.model_name: the key is missing", "wandb.mode", "huggingface.tokens"):  # fmt: skip
        assert part in told
    (run,) = runs
    assert run.work_dir == tmp_path / "out" and run.model_name is None
    assert run.huggingface is not None and run.huggingface.checkpoint_path == tmp_path / "checkpoints"
    assert run.icl is not None and run.icl.datasets == [str(tmp_path / "two.py")]


@pytest.mark.parametrize("text", ["auto_eval: [", "- 1\n", "auto_eval: {}\n", "auto_eval: 3\n", "other: 1\n", ""])
def test_a_file_that_is_none_is_a_problem_and_no_crash(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluator.yaml").write_text(text)
    _, findings = configuration.read(tmp_path / "evaluator.yaml", WATCH)
    assert findings and all(one.level == "problem" for one in findings)


def test_a_section_that_the_command_line_asks_for_and_the_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "evaluator.yaml"
    path.write_text(GOOD)
    _, findings = configuration.read(path, WatchOptions(model_type="megatron", eval_type="helm"))
    assert [one.found.split(": ")[1] for one in findings] == ["auto_eval.megatron", "auto_eval.helm"]
    assert "--model-type huggingface" in findings[0].action


# -- the work directory ------------------------------------------------------------------------------------------------


def test_a_good_work_directory_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    found = levels(places.examine_work_dir(tmp_path / "out"))
    assert found == {"work_dir": "ok", "file locks": "ok", "ledger": "ok", "clock": "ok"}
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def seen_by_all() -> Iterator[Path]:
    """A directory that other users reach: pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_a_work_directory_that_may_not_be_written(seen_by_all: Path) -> None:
    """As another user than root, who may write everywhere."""
    code = (
        "import os, sys, getpass, encodings.idna\nfrom pathlib import Path\nfrom autoeval.doctor import places\n"
        "os.setuid(65534) if os.geteuid() == 0 else None\n"
        "for place in sys.argv[1:]:\n"
        "    for one in places.examine_work_dir(Path(place)): print(one.level, one.check, one.found, '|', one.action)"
    )
    place, mine = seen_by_all / "forbidden", seen_by_all / "mine"
    place.mkdir(mode=0o555)
    mine.mkdir()
    mine.chmod(0o777)
    (mine / "ledger.sqlite").touch(mode=0o444)

    command = [sys.executable, "-c", code, str(place / "out"), str(mine)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first.startswith("problem work_dir") and "Permission denied" in first and "chown or chmod" in first
    if os.geteuid() == 0:
        (told,) = [line for line in others if line.startswith("problem")]
        assert "files of a former run 1 in" in told and "ledger.sqlite (root's)" in told


def test_a_full_disk(tmp_path: Path) -> None:
    script = (
        'mount -t tmpfs -o size=200k none "$1"; "$2" -c "import sys; from pathlib import Path; from autoeval.doctor import places\n'
        "for one in places.examine_work_dir(Path(sys.argv[1])): print(one.level, one.found, one.action)\n"
        'print(places.examine_disk(Path(sys.argv[1]), 0, 0, 3, False))" "$1"'
    )
    flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    command = ["unshare", *flags, "sh", "-ec", script, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0 and ("unshare" in done.stderr or "mount:" in done.stderr):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert "problem" in done.stdout and "No space left on device" in done.stdout, done.stderr
    assert "make room: the disk is full" in done.stdout
    assert "check='disk space', level='problem'" in done.stdout


def test_locks_that_do_not_lock_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "had the lock at once" in only(places.examine_work_dir(tmp_path), "file locks").found

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = only(places.examine_work_dir(tmp_path), "file locks")
    assert found.level == "warning" and "No locks available" in found.found and "NFS" in found.action


@pytest.mark.parametrize(
    ("seconds", "level"), [(0.0, "ok"), (30.0, "warning"), (-30.0, "warning"), (4000.0, "problem")]
)
def test_a_clock_that_is_not_the_file_system_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, level: str
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    found = only(places.examine_work_dir(tmp_path), "clock")
    assert found.level == level
    if seconds:
        told = float(found.found.partition(" s ")[0].rpartition(" ")[2])
        assert told == pytest.approx(abs(seconds), abs=2.0) and ("behind" if seconds > 0 else "ahead of") in found.found


@pytest.mark.parametrize(
    ("checkpoint", "converted", "share", "level"),
    [(0, 0, 0, "ok"), (10**9, 10**9, 0, "ok"), (0, 1, 2, "problem"), (1, 1, 0.4, "warning")],
)
def test_room_is_measured_by_the_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: int, converted: int, share: float, level: str
) -> None:
    """``share`` of the free disk, where it is given."""
    free = 50 * 10**9
    usage = type("Usage", (), {"free": free, "total": 2 * free})
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: usage)
    checkpoint, converted = (int(one * free * share) if share else one for one in (checkpoint, converted))
    found = places.examine_disk(tmp_path, checkpoint, converted, 3, True)
    assert found.level == level
    assert "50 GB of 100 GB free" in found.found


def test_a_pin_is_really_made_and_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = tmp_path / "checkpoint-100"
    newest.mkdir()
    (newest / "model.safetensors").write_bytes(b"weights")
    (newest / "config.json").write_text("{}")
    found, linked = places.examine_pins(newest, tmp_path)
    assert (found.level, linked) == ("ok", True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["checkpoint-100"]

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(places.os, "link", refuse)
    found, linked = places.examine_pins(newest, tmp_path)
    assert (found.level, linked) == ("warning", False) and "another file system" in found.found
    assert places.examine_readable(newest).level == "ok"
    real = Path.open

    def stale(path: Path, *words: Any, **options: Any) -> Any:
        if path.name == "model.safetensors":
            raise OSError(errno.EACCES, "Permission denied")
        return real(path, *words, **options)

    monkeypatch.setattr(Path, "open", stale)
    broken = places.examine_readable(newest)
    assert broken.level == "problem" and "1 of 2 files cannot be read: model.safetensors" in broken.found


@pytest.mark.slow
def test_what_a_conversion_will_take_is_read_from_the_list_of_tensors(tmp_path: Path) -> None:
    """Against a conversion that was really made."""
    source = HOME / "tests" / "convert" / "megatron_core_0_19_2" / "llama" / "singleton" / "iter_0000010"
    newest = Checkpoint("llama", 10, source, "torch_dist", "f", None)
    sizes = sizes_of(newest, tmp_path)
    assert sizes.how == "by its list of tensors" and sizes.rows is not None
    command = [sys.executable, "-m", "autoeval.convert", str(source.parent), str(tmp_path / "hf"), "--iteration", "10"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    weights = sum(path.stat().st_size for path in (tmp_path / "hf").glob("*.safetensors"))
    assert weights <= sizes.converted <= 1.5 * weights + 8_000_000
    former = tmp_path / "run" / "iter_0000010"
    former.mkdir(parents=True)
    (tmp_path / "hf").rename(former / "hf")
    assert sizes_of(newest, tmp_path / "run").how == "as models converted before"


# -- packages, machine -------------------------------------------------------------------------------------------------


def test_packages_are_compared_with_what_is_required_and_what_was_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluator.yaml").write_text(GOOD)
    configs = load_config(tmp_path / "evaluator.yaml")
    assert set(levels(examine_packages(configs)).values()) == {"ok"}
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("safetensors", "crfm-helm"):
            raise importlib.metadata.PackageNotFoundError(name)
        return {"transformers": "4.40.0", "PyYAML": "6.0.9"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = list(examine_packages(configs))
    assert only(found, "package safetensors").level == "problem"
    assert only(found, "package crfm-helm").level == "warning"  # no section helm
    assert "transformers<6,>=5" in only(found, "package transformers").expected
    assert "pyyaml 6.0.9 (tested: " in next(one for one in found if one.check == "packages").found


def test_a_watch_that_the_system_refuses_and_a_network_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert levels(machine.examine_events(tmp_path, 30)) == {"inotify": "ok"}
    assert machine.file_system_of(Path("/proc/self")) == "proc"
    assert machine.file_system_of(tmp_path / "not" / "there") == machine.file_system_of(tmp_path)
    monkeypatch.setattr(machine, "_watch_refused", lambda _: "inotify instance limit reached")
    monkeypatch.setattr(machine, "file_system_of", lambda _: "nfs4")
    found = list(machine.examine_events(tmp_path, 30))
    assert [one.level for one in found] == ["warning", "warning"]
    assert "max_user_watches" in found[0].action and "within 30 min" in found[1].found


# -- accounts ----------------------------------------------------------------------------------------------------------


def test_a_webhook_gets_a_message_only_when_that_is_asked_for_and_its_address_is_not_shown() -> None:
    with running(Bot()) as bot:
        channel = Channel("lark", bot.url)
        (quiet,) = accounts.examine_messages([channel], "demo", send=False)
        assert quiet.level == "ok" and bot.asked == 0
        (sent,) = accounts.examine_messages([channel], "demo", send=True)
        assert sent.level == "ok" and len(bot.taken) == 1
        assert "autoeval: test message" in bot.texts[0]
        wrong = Channel("lark", bot.url.replace(TOKEN, "other"))
        (refused,) = accounts.examine_messages([wrong], "demo", send=True)
        assert refused.level == "problem" and "token is not valid" in refused.found
    unknown = Channel("slack", "https://hooks.nowhere.invalid/services/not-to-be-seen")
    (lost,) = accounts.examine_messages([unknown], "demo", send=False)
    assert lost.level == "problem" and "not-to-be-seen" not in as_lines(lost) and TOKEN not in as_lines(refused)


def test_without_a_key_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "evaluator.yaml"
    for mode, level in (("disabled", "ok"), ("offline", "ok"), ("online", "problem")):
        path.write_text(GOOD.replace("mode: disabled", f"mode: {mode}"))
        (found,) = accounts.examine_wandb(load_config(path)[0])
        assert found.level == level, found
    assert "there is no key for api.wandb.ai" in found.found and "wandb login" in found.action


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [["--offline", "--status"], ["--json"], ["--send-test-message"], ["--offline", "--doctor", "--send-test-message"]],
)
def test_flags_that_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    (tmp_path / "evaluator.yaml").write_text(GOOD)
    assert evaluator.main(["--config", str(tmp_path / "evaluator.yaml"), *flags]) == 2
    assert "--" in capsys.readouterr().err


# -- devices, as a process with torch answers (no GPU here: what is asked for against how many there are) --------------


@pytest.mark.parametrize(
    ("device", "devices", "num_gpus", "count", "checks"),
    [
        ("auto", "auto", None, 0, []),
        ("cpu", 1, 1, 0, []),  # one worker without a GPU runs on the CPU
        ("cuda", "auto", None, 0, ["model.device"]),
        ("cuda:3", "auto", None, 2, ["model.device"]),
        ("cuda:1", 2, 2, 2, []),
        ("auto", 4, 8, 2, ["model.devices", "runner.num_gpus"]),
    ],
)
def test_what_is_asked_of_gpus_against_what_is_there(
    device: str, devices: int | str, num_gpus: int | None, count: int, checks: list[str]
) -> None:
    from autoeval.doctor.in_worker import _requested

    found = list(_requested({"device": device, "devices": devices, "num_gpus": num_gpus}, count))
    assert [one.check for one in found] == checks
    assert all(one.level == "problem" and str(count) in one.found for one in found)
