"""HELM is imported while the worker waits for a save, or converts it, not when its first task's turn has come."""

from __future__ import annotations

import gc
import queue
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoeval.daemon import Daemon
from autoeval.importing import without_collection
from autoeval.runners.worker_process import HOME, LocalWorker
from tests.waiting import wait_for


def test_no_garbage_is_searched_for_while_modules_are_imported() -> None:
    with without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.parametrize(("tasks", "asked"), [("helm", 1), (None, 0)])
def test_the_daemon_asks_for_it_when_a_run_has_helm_tasks(
    tasks: str | None, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks: list[str] = []
    worker = SimpleNamespace(import_helm=lambda: asks.append("helm"))
    monkeypatch.setattr("autoeval.daemon.LocalWorker", lambda *_: worker)
    config = SimpleNamespace(logs=SimpleNamespace(limits=None))
    runs = [SimpleNamespace(config=config, task_plan=SimpleNamespace(helm=one)) for one in (None, tasks)]
    clusters = SimpleNamespace(serves=lambda _: False)
    daemon: Any = SimpleNamespace(
        _worker=None, runs=runs, _clusters=clusters, _on_event_thread=None, _worker_log=Path("worker.log")
    )
    for _ in range(2):
        assert Daemon._worker_at_hand(daemon) is worker
    assert len(asks) == asked


@pytest.mark.slow
def test_a_worker_that_waits_has_imported_helm_before_it_is_given_a_checkpoint(tmp_path: Path) -> None:
    events: queue.Queue[dict[str, Any]] = queue.Queue()
    worker = LocalWorker(lambda _, event: events.put(event), tmp_path / "worker.log")
    try:
        worker.import_helm()
        assert events.get(timeout=240)["event"] == "ready"
        wait_for(lambda: "HELM is imported (" in worker.log.read_text())
    finally:
        worker.close()


@pytest.mark.slow
def test_what_is_imported_ahead_is_all_but_the_metrics_and_nothing_waits_for_it_twice() -> None:
    program = """
import sys, threading
from autoeval.helm import imports
from autoeval.importing import without_collection
gate = threading.Event()
imports.begin(after=gate)
imports.begin()  # once a process
assert "nltk" not in sys.modules
gate.set()
imports.finish()
before = set(sys.modules)
assert "helm.benchmark.run" in before and "helm.benchmark.metrics.evaluate_reference_metrics" not in before
imports.finish()
import helm.benchmark.metrics.basic_metrics
late = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not late & {"sklearn", "pandas", "pyarrow", "datasets"}, late
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
