"""Log files stay within their size, and nothing that was written is lost when they are rotated."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoeval.config import load_config
from autoeval.log_files import LogLimits, RotatingLog, own_log, rotate, rotate_if_large
from autoeval.yaml_file import ConfigError

HOME = Path(__file__).resolve().parents[2]

# A process like the worker: its own lines through logging, raw writes, and a child that inherits the file.
NOISY = """
import logging, os, subprocess, sys
from autoeval import log_files
log_files.LOOK_SECONDS = 0.01
log = log_files.keep_own_log()
assert log is not None and log_files.OWN_LOG not in os.environ
logging.basicConfig(stream=sys.stderr, format="%(message)s")
child = subprocess.Popen([sys.executable, "-c", '''
import os
for number in range(2000):
    os.write(2, f"child {number}\\\\n".encode())
'''])
for number in range(4000):
    logging.warning("own %d", number)
    os.write(1, f"raw {number}\\n".encode())
    if number % 100 == 0:
        log.look()
child.wait()
"""


@contextmanager
def logging_to(path: Path, limits: LogLimits) -> Iterator[logging.Logger]:
    handler = RotatingLog(path, limits)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        handler.close()


def everything(path: Path) -> list[str]:
    """The lines of all generations, the oldest first."""
    former = sorted(path.parent.glob(f"{path.name}.*"), key=lambda one: -int(one.name.rpartition(".")[2]))
    return [line for one in [*former, path] if one.exists() for line in one.read_text().splitlines()]


def test_every_record_is_in_one_of_the_files_and_each_is_of_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "daemon.log"
    with logging_to(path, LogLimits(max_bytes=1000, keep=500)) as log:
        for number in range(2000):
            log.warning("record %d", number)
    assert everything(path) == [f"record {number}" for number in range(2000)]
    assert len(list(path.parent.iterdir())) > 20
    assert max(one.stat().st_size for one in path.parent.iterdir()) < 1000 + len("record 2000\n")


def test_only_as_many_former_files_stay_as_asked_for_also_after_the_number_was_lowered(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    for keep in (7, 3):
        with logging_to(path, LogLimits(max_bytes=100, keep=keep)) as log:
            for number in range(200):
                log.warning("record %d", number)
        names = sorted(one.name for one in tmp_path.iterdir())
        assert names == ["daemon.log", *(f"daemon.log.{number}" for number in range(1, keep + 1))]
    assert everything(path)[-1] == "record 199"


def test_a_file_renamed_or_cut_by_others_is_followed_without_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    with logging_to(path, LogLimits()) as log:
        log.warning("first")
        path.rename(tmp_path / "moved")  # logrotate's ``create``
        log.warning("second")
        assert (tmp_path / "moved").read_text() == "first\n" and path.read_text() == "second\n"
        os.truncate(path, 0)  # ``copytruncate``
        log.warning("third")
        assert path.read_text() == "third\n"  # appended: no hole where the old content was


def test_where_no_new_file_can_be_made_the_old_one_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    with logging_to(path, LogLimits(max_bytes=50, keep=2)) as log:
        log.warning("first %s", "x" * 50)
        (tmp_path / "daemon.log.1").mkdir()  # in the way
        (tmp_path / "daemon.log.1" / "full").touch()
        (tmp_path / "daemon.log.2").mkdir()
        log.warning("second")
        assert path.read_text().splitlines()[-1] == "second"
    (tmp_path / "short.log").write_text("x")
    rotate_if_large(tmp_path / "short.log", LogLimits(max_bytes=2))
    rotate_if_large(tmp_path / "nowhere.log", LogLimits())
    rotate(tmp_path / "nowhere.log", 3)
    assert [one.name for one in tmp_path.glob("[sn]*")] == ["short.log"]


def test_a_process_rotates_its_own_standard_error_with_its_children_s_and_c_libraries_lines(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    environment = {**os.environ, **own_log(path, LogLimits(max_bytes=4000, keep=1000)), "PYTHONPATH": str(HOME)}
    with path.open("ab") as stream:
        subprocess.run([sys.executable, "-c", NOISY], env=environment, stdout=stream, stderr=stream, check=True)
    lines = everything(path)
    for kind, count in (("own", 4000), ("raw", 4000), ("child", 2000)):
        assert sorted(line for line in lines if line.startswith(kind)) == sorted(f"{kind} {n}" for n in range(count))
    assert len(lines) == 10_000
    assert len(list(tmp_path.iterdir())) > 3


def test_a_shell_names_its_redirection_in_the_variable_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    code = (
        "import sys; from autoeval.log_files import *; log = keep_own_log(LogLimits(100, 5))\n"
        "for n in range(20): print(f'line {n:02}', 'x' * 20, file=sys.stderr, flush=True); log.look()"
    )
    environment = {**os.environ, "AUTOEVAL_OWN_LOG": "run.log", "PYTHONPATH": str(HOME)}
    script = f"'{sys.executable}' -c \"$CODE\" 2>>run.log"
    subprocess.run(["sh", "-c", script], env={**environment, "CODE": code}, cwd=tmp_path, check=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run.log", *(f"run.log.{n}" for n in range(1, 6))]
    assert [line[:7] for line in everything(path)] == [f"line {n:02}" for n in range(20)][-len(everything(path)) :]


def test_a_file_that_is_not_this_process_s_standard_error_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    path.write_text("x" * 100)
    environment = {**os.environ, **own_log(path, LogLimits(max_bytes=10)), "PYTHONPATH": str(HOME)}
    code = "from autoeval.log_files import keep_own_log; assert keep_own_log() is None"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert [one.name for one in tmp_path.iterdir()] == ["worker.log"]


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="there is no logrotate here")
@pytest.mark.parametrize("how", ["create", "copytruncate"])
def test_logrotate_itself(tmp_path: Path, how: str) -> None:
    path = tmp_path / "daemon.log"
    rules = tmp_path / "rules"
    rules.write_text(f"{path} {{\n {how}\n rotate 3\n size 1\n}}\n")
    rules.chmod(0o644)
    with logging_to(path, LogLimits()) as log:
        for number in range(3):
            log.warning("record %d", number)
            subprocess.run(["logrotate", "--force", "--state", tmp_path / "state", rules], check=True)
        log.warning("record 3")
    assert everything(path) == [f"record {number}" for number in range(4)]


def test_the_limits_come_from_the_configuration(tmp_path: Path) -> None:
    text = (
        "auto_eval:\n  project_name: demo\n  model_name: m\n  work_dir: out\n  huggingface: {checkpoint_path: c}\n"
        "  icl: {datasets: [hellaswag_ppl]}\n  logs: {max_mb: 1.5, keep: 2}\n"
    )
    path = tmp_path / "evaluator.yaml"
    path.write_text(text)
    assert load_config(path)[0].logs.limits == LogLimits(1_500_000, 2)
    path.write_text(text.replace("  logs: {max_mb: 1.5, keep: 2}\n", ""))
    assert load_config(path)[0].logs.limits == LogLimits(20_000_000, 5)
    path.write_text(text.replace("keep: 2", "keep: 0"))
    with pytest.raises(ConfigError, match=r"auto_eval\.logs\.keep: .*greater than or equal to 1, found 0"):
        load_config(path)


def test_limits_that_the_configuration_changes_hold_at_once_for_a_log_that_is_open(tmp_path: Path) -> None:
    from autoeval.work_directories import WorkDirectories

    log = logging.getLogger("autoeval.of-this-test")
    with WorkDirectories() as directories:
        directories.hold({tmp_path: LogLimits()})
        log.error("before %s", "x" * 500)
        directories.hold({tmp_path: LogLimits(max_bytes=100, keep=1)})
        log.error("after")
        names = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert names == ["daemon.log", "daemon.log.1"]
