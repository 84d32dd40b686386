"""RayRunner on a real Ray cluster of two nodes on this machine, with pretended GPUs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoeval.runners import build_runner
from autoeval.runners.cluster import ClusterRunner
from tests.run.programs import Program, alive, in_background, launch
from tests.runners.apart import Apart, after_a_kill_the_next_waits, ctrl_c_cancels
from tests.waiting import wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # The niceness is 15 by default: beside other tests they would hardly run at all.
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"})
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=4, num_gpus=2)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def build(cluster: Any, **options: object) -> ClusterRunner:
    runner = build_runner({"type": "RayRunner", "address": cluster.address, **options}, environment={"MODEL_KEY": "k"})
    assert isinstance(runner, ClusterRunner)
    return runner


def test_outcomes_tries_and_gpus(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "not-for-tasks")
    show = "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['MODEL_KEY'], os.environ.get('WANDB_API_KEY')); out.touch()"
    again = "n=out.with_suffix('.n'); n.exists() and out.touch(); n.touch(); sys.exit(not out.exists())"
    tasks = [
        *(Program(tmp_path, f"g{number}", show, gpus=2) for number in range(3)),
        Program(tmp_path, "second", again),
        Program(tmp_path, "input", "sys.exit(2)"),
        Program(tmp_path, "killed", "os.kill(os.getpid(), 9)"),
    ]
    outcomes = launch(build(cluster, max_num_workers=6, retry=1), tasks, tmp_path)
    assert [(one.ok, one.code, one.tries) for one in outcomes] == [
        *[(True, 0, 1)] * 3,
        (True, 0, 2),
        (False, 2, 1),
        (False, -9, 2),
    ]
    assert all(one.lines() == ["0,1 k None"] for one in outcomes[:3])


def test_a_lost_node_costs_a_try(cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = cluster.add_node(num_cpus=2, num_gpus=4)
    cluster.wait_for_nodes()
    ends = "import threading; threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start(); "
    code = (
        ends
        + "n=out.with_suffix('.n'); n.exists() and (out.touch() or sys.exit()); n.write_text(str(os.getpid())); time.sleep(600)"
    )
    runner = build(cluster, retry=1)
    task = Program(tmp_path, "t", code, gpus=4)  # only there
    thread, outcomes = in_background(lambda: launch(runner, [task], tmp_path))
    started = tmp_path / "out" / "t" / "d.n"
    wait_for(lambda: started.exists() and started.read_text() != "", 180)
    cluster.remove_node(node, allow_graceful=False)
    wait_for(lambda: not alive(int(started.read_text())), 180)  # nothing outlives its actor
    wait_for(lambda: "waits: no node has 4 GPUs" in caplog.text, 180)
    cluster.add_node(num_cpus=2, num_gpus=4)
    thread.join(180)
    assert [(one.ok, one.tries) for one in outcomes] == [(True, 2)]


def test_after_a_kill_the_next_process_waits_and_ctrl_c_cancels(cluster: Any, tmp_path: Path) -> None:
    options = {"type": "RayRunner", "address": cluster.address}
    first = Apart(options, tmp_path / "a")
    first.pid_of_task()
    first.kill()
    after_a_kill_the_next_waits(options, tmp_path / "a")
    ctrl_c_cancels(Apart(options, tmp_path / "b"), signal.SIGINT)
