"""What SIGHUP finds changed in evaluator.yaml, and when each change can take effect."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from autoeval.config import load_config
from autoeval.reload import Changes, Reader, Reload, Wanted, compare, tell
from autoeval.work_directories import WorkDirectories
from autoeval.yaml_file import ConfigError

BASE: dict[str, Any] = {
    "project_name": "tiny",
    "model_name": "gpt",
    "work_dir": "out",
    "huggingface": {"checkpoint_path": "checkpoints"},
    "icl": {"datasets": ["a"], "data_dir": "."},
}
TASKS = (("a", "1"),)


def wanted(directory: Path, *runs: dict[str, Any], tasks: tuple[tuple[str, str], ...] = TASKS) -> list[Wanted]:
    import yaml

    path = directory / "evaluator.yaml"
    path.write_text(yaml.safe_dump({"auto_eval": [{**BASE, **run} for run in runs]}))
    return [Wanted(config, tasks) for config in load_config(path)]


def names(found: tuple[Wanted, ...]) -> list[str]:
    return [one.config.model_name for one in found]


def test_nothing_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    changes = compare(wanted(tmp_path, {}), wanted(tmp_path, {}))
    assert not changes and changes == Changes()
    tell(changes)
    assert "nothing changed" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"wandb": {"mode": "disabled"}},
        {"baselines": "baselines.yaml"},
        {"slack": {"webhook": "https://hooks.slack.com/services/x"}},
        {"order": "oldest-first"},
        {"max_backlog": 2},
        {"runner": {"task_time_limit": 60, "heartbeat_timeout": 30, "max_attempts": 5}},
    ],
)
def test_what_is_only_looked_up_changes_at_once(tmp_path: Path, change: dict[str, Any]) -> None:
    changes = compare(wanted(tmp_path, {}), wanted(tmp_path, change))
    assert names(changes.at_once) == ["gpt"] and not changes.need_quiet
    assert {key.split(": ")[1].split(".")[0] for key in changes.changed_keys} == set(change)


@pytest.mark.parametrize(
    "change",
    [
        {"icl": {"datasets": ["a", "b"], "data_dir": "."}},
        {"icl": {"datasets": ["a"], "data_dir": ".", "limit": 5}},
        {"huggingface": {"checkpoint_path": "elsewhere"}},
        {"model": {"dtype": "float32"}},
        {"runner": {"max_num_workers": 2}},
    ],
)
def test_what_a_run_is_made_of_waits_for_a_quiet_moment(tmp_path: Path, change: dict[str, Any]) -> None:
    changes = compare(wanted(tmp_path, {}), wanted(tmp_path, change))
    assert names(changes.anew) == ["gpt"] and changes.need_quiet


def test_a_task_with_another_version_is_news_although_no_key_changed(tmp_path: Path) -> None:
    changes = compare(wanted(tmp_path, {}), wanted(tmp_path, {}, tasks=(("a", "2"),)))
    assert names(changes.anew) == ["gpt"] and changes.changed_keys == ("gpt: tasks",)


def test_runs_come_and_go(tmp_path: Path) -> None:
    old = wanted(tmp_path, {}, {"model_name": "going", "work_dir": "other"})
    changes = compare(old, wanted(tmp_path, {}, {"model_name": "coming", "work_dir": "third"}))
    assert names(changes.added) == ["coming"] and [model for _, model in changes.removed] == ["going"]
    assert not changes.at_once and not changes.anew and changes.need_quiet


def test_what_only_a_restart_can_change_is_named_and_the_rest_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = wanted(tmp_path, {})
    new = wanted(tmp_path, {"work_dir": "new", "runner": {"type": "slurm"}, "order": "oldest-first"})
    changes = compare(old, new)
    assert changes.fixed == (("gpt", "work_dir"), ("gpt", "runner.type"))
    (one,) = changes.at_once
    assert one.key == old[0].key and one.config.runner == old[0].config.runner and one.config.order == "oldest-first"
    assert not changes.added and not changes.removed
    tell(changes)
    assert "auto_eval.work_dir cannot change without a restart" in caplog.text


class Run:
    """As much of a watched run, and of its views, as is asked for here."""

    def __init__(self, wanted: Wanted) -> None:
        self.config, self.tasks, self.closed, self.run = wanted.config, wanted.tasks, False, self

    def close(self, *, keep_pins: bool = False) -> None:
        self.closed = True


def test_a_run_that_cannot_be_opened_again_is_not_forgotten(tmp_path: Path) -> None:
    old = wanted(tmp_path, {}, {"model_name": "other", "work_dir": "other"})
    new = wanted(tmp_path, {"model": {"dtype": "float32"}}, {"model_name": "other", "work_dir": "other"})

    def no_room(_: Wanted) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with WorkDirectories() as directories:
        reload = Reload(lambda: new, directories, lambda _: None)
        runs: list[Any] = [Run(one) for one in old]
        changed, views = runs[0], {run: Run(one) for run, one in zip(runs, old, strict=True)}
        assert not reload.pending
        reload.take(new, runs, "gpt iteration 1000")
        assert reload.pending and not reload.is_due(at_work=True)
        with pytest.raises(OSError, match="No space left"):
            reload.make(runs, views, no_room)  # type: ignore[arg-type]
        assert changed.closed and changed in views and [run.config.model_name for run in runs] == ["other"]
        assert reload.unmade == [new[0]]


def test_a_work_directory_that_cannot_be_had_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = wanted(tmp_path, {})
    new = wanted(tmp_path, {}, {"model_name": "coming", "work_dir": "third"})
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "logs").write_text("in the way")
    with WorkDirectories() as directories:
        reload = Reload(lambda: new, directories, lambda _: None)
        runs: list[Any] = [Run(one) for one in old]
        reload.take(new, runs, None)
        assert reload.make(runs, {}, Run) == []  # type: ignore[arg-type]
    assert "cannot take effect, the old one stays" in caplog.text
    assert len(runs) == 1 and not runs[0].closed and not reload.pending


def test_a_wish_while_it_is_being_read_is_not_lost() -> None:
    reads, may_end, ended = [], threading.Semaphore(0), threading.Semaphore(0)
    found: list[Any] = []

    def read() -> list[Wanted]:
        reads.append(1)
        may_end.acquire()
        raise ConfigError(f"wrong {len(reads)}")

    def on_end(what: Any) -> None:
        found.append(what)
        ended.release()

    reader = Reader(read, on_end)
    for _ in range(3):
        reader.begin()
    may_end.release()
    assert ended.acquire(timeout=90)
    reader.ended()
    may_end.release()
    assert ended.acquire(timeout=90)
    reader.ended()
    assert [str(one) for one in found] == ["wrong 1", "wrong 2"]
    assert all(isinstance(one, ConfigError) for one in found)
