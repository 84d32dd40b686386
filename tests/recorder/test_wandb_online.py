"""Publishing online: the real client against an imitation of W&B's server (``wandb_server.py``), with its faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_answers import KEY
from wandb_server import Imitation
from wandb_world import World, doubled

from recorder import publishing, wandb_client, wandb_delivery
from recorder.wandb_rows import run_id

HOME = Path(__file__).resolve().parents[2]
GPT = run_id("proj", "gpt")
BASELINES = """
models:
  - {name: strong, tokens: 300, source: "a paper", values: {mmlu.acc: 0.60, arc.acc: 0.80}}
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Imitation]:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the machine's own netrc is not for tests
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-files"))
    monkeypatch.setattr(wandb_client, "INIT_SECONDS", 8.0)
    monkeypatch.setattr(wandb_client, "FINISH_SECONDS", 8.0)
    monkeypatch.setattr(wandb_delivery, "SERVER_SHOWS_AFTER", (0.0, 0.1, 0.3))
    with Imitation() as imitation:
        yield imitation
        assert imitation.backend.unhandled == []


@pytest.fixture
def world(server: Imitation, tmp_path: Path) -> World:
    return World(tmp_path / "work", server.url)


def fault_once(server: Imitation, channel: str, fault: int | str, times: int = 1) -> None:
    left = [times]

    def decide(asked: str, _: int) -> int | str | None:
        if asked.startswith(channel) and left[0] > 0:
            left[0] -= 1
            return fault
        return None

    server.fault = decide


def test_a_run_a_row_a_checkpoint_and_nothing_twice(server: Imitation, world: World):
    for iteration in (1000, 3000):
        world.evaluated("gpt", iteration, {"mmlu": iteration / 1e4, "arc": 0.5})
    assert world.publish().published == 2 + 1  # and the leaderboard
    requests = server.requests
    assert world.publish().published == 0 and server.requests == requests  # nothing to do: nobody is asked
    world.evaluated("gpt", 2000, {"mmlu": 0.15, "arc": 0.25})  # late
    assert world.publish().error is None
    run = server.backend.run(GPT)
    assert (run.display_name, run.group, run.job_type, run.state) == ("gpt", "gpt", "checkpoint-eval", "finished")
    assert set(run.tags) == {"evaluate", "summary"}
    assert [row["iteration"] for row in run.history] == [1000, 3000, 2000]
    assert [row["_step"] for row in run.history] == [0, 1, 2]
    assert run.summary["iteration"] == 3000
    assert [row["cost/wall_seconds"] for row in run.history] == [4.0, 4.0, 4.0]  # of two tasks
    assert world.shown_wrongly(server.backend.runs.values()) == [] and doubled(run) == []


def test_baselines_leaderboard_and_report(server: Imitation, tmp_path: Path):
    world = World(tmp_path / "work", server.url, baselines=BASELINES)
    world.evaluated("gpt", 1000, {"mmlu": 0.4, "arc": 0.5})
    assert world.publish().error is None
    baseline = server.backend.run(run_id("proj", "strong", "baseline"))
    assert "baseline" in baseline.tags and baseline.history[0]["mmlu.acc"] == 0.6
    board = server.backend.run("proj-leaderboard")
    assert board.state == "finished" and board.summary["models"] == 2
    assert {"leaderboard", "curves", "scores_table", "curves/mmlu.acc"} <= board.history[0].keys()
    table = json.loads(board.files[board.history[0]["leaderboard"]["path"]])
    assert [line[0] for line in table["data"]] == ["strong", "gpt"]
    figure = json.loads(board.files[board.history[0]["curves"]["path"]])
    assert {trace.get("fill") for trace in figure["data"]} == {"toself", None}  # a band, and a line
    assert [one.name for one in server.backend.logged("leaderboard")] == ["leaderboard"]
    (report,) = server.backend.views.values()
    assert report["displayName"] == "proj: evaluation of every checkpoint"
    spec = report["spec"]
    assert all(word in spec for word in ("mmlu.acc", "average", "checkpoint-eval", "leaderboard"))
    world.evaluated("gpt", 2000, {"mmlu": 0.5, "arc": 0.6, "new": 0.3})
    assert world.publish().error is None
    (again,) = server.backend.views.values()
    assert again["id"] == report["id"] and "new.acc" in again["spec"]


@pytest.mark.parametrize("status", [400, 404])
def test_a_file_stream_that_is_refused_once_is_found_out_and_repeated(server: Imitation, world: World, status: int):
    world.evaluated("gpt", 1000, {"mmlu": 0.4})
    fault_once(server, "stream", status)
    outcome = world.publish()
    assert outcome.pending == 1 and "cannot be read back" in (outcome.error or "")
    assert world.pending() == 1
    assert world.publish().error is None and world.pending() == 0
    assert world.shown_wrongly(server.backend.runs.values()) == [] and doubled(server.backend.run(GPT)) == []


@pytest.mark.parametrize("fault", [429, 500, "lost", "twice", "drop"])
@pytest.mark.parametrize("channel", ["stream", "graphql:UpsertBucket"])
def test_what_the_client_itself_repeats_is_not_seen(server: Imitation, world: World, channel: str, fault: int | str):
    world.evaluated("gpt", 1000, {"mmlu": 0.4})
    fault_once(server, channel, fault)
    assert world.publish().error is None
    assert server.faults[0] == (channel, fault)
    assert world.shown_wrongly(server.backend.runs.values()) == [] and doubled(server.backend.run(GPT)) == []


def test_a_server_that_is_away_is_asked_less_and_less_and_then_gets_all(server: Imitation, world: World, monkeypatch):
    monkeypatch.setattr(wandb_client, "INIT_SECONDS", 1.0)
    world.evaluated("gpt", 1000, {"mmlu": 0.4})
    server.stop()
    first = world.publish(at_once=False)
    assert first.pending == 1 and "does not answer" in (first.error or "") and 5 < (first.retry_in or 0) <= 10
    monkeypatch.setattr(publishing.time, "time", lambda now=publishing.time.time: now() + 11)
    second = world.publish(at_once=False)
    assert 30 < (second.retry_in or 0) <= 40  # remembered in the ledger, not in a process
    server.start()
    assert world.publish(at_once=False).retry_in is not None  # not due yet: nobody is asked
    assert server.requests == 0
    assert world.publish().error is None
    assert world.shown_wrongly(server.backend.runs.values()) == []


def test_a_revoked_key_is_told_once_and_not_hammered(server: Imitation, world: World, monkeypatch, caplog):
    world.evaluated("gpt", 1000, {"mmlu": 0.4})
    server.backend.key = "another" * 6
    assert "refuses the key" in (world.publish(at_once=False).error or "")
    requests = server.requests
    world.evaluated("gpt", 2000, {"mmlu": 0.5})
    again = world.publish(at_once=False)
    assert again.pending == 2 and (again.retry_in or 0) > 3000 and server.requests == requests
    told = [r for r in caplog.records if "refuses the key" in r.getMessage() and r.name == "recorder.publishing"]
    assert len(told) == 1 and KEY not in caplog.text
    monkeypatch.setenv("WANDB_API_KEY", server.backend.key)  # mended: no need to wait for the hour to end
    assert world.publish(at_once=False).error is None
    assert world.shown_wrongly(server.backend.runs.values()) == []
    assert KEY.encode() not in world.ledger_path.read_bytes()


def test_no_key_at_all_is_explained(server: Imitation, world: World, monkeypatch):
    world.evaluated("gpt", 1000, {"mmlu": 0.4})
    monkeypatch.delenv("WANDB_API_KEY")
    assert "wandb login" in (world.publish().error or "")


def test_a_deleted_run_comes_back_whole_under_another_id(server: Imitation, world: World):
    for iteration in (1000, 2000):
        world.evaluated("gpt", iteration, {"mmlu": iteration / 1e4})
    assert world.publish().error is None
    server.backend.delete(GPT)
    world.evaluated("gpt", 3000, {"mmlu": 0.3})
    assert world.publish().error is None
    assert [row["iteration"] for row in server.backend.run(f"{GPT}-2").history] == [1000, 2000, 3000]
    world.evaluated("gpt", 4000, {"mmlu": 0.4})
    assert world.publish().error is None
    assert len(server.backend.run(f"{GPT}-2").history) == 4
    assert world.shown_wrongly(server.backend.runs.values()) == []


def test_a_deleted_run_that_a_new_ledger_does_not_know_of(server: Imitation, world: World, monkeypatch):
    monkeypatch.setattr(wandb_client, "INIT_SECONDS", 3.0)
    world.evaluated("gpt", 1000, {"mmlu": 0.1}, write_files=True)
    assert world.publish().error is None
    server.backend.delete(GPT)
    for file in world.path.glob("ledger.sqlite*"):
        file.unlink()
    with world.ledger() as ledger:
        assert ledger.rebuild(world.path) == 1
    assert world.publish().error is None
    assert world.shown_wrongly(server.backend.runs.values()) == []


def test_a_lost_ledger_sends_nothing_twice(server: Imitation, world: World):
    world.evaluated("gpt", 1000, {"mmlu": 0.1}, write_files=True)
    assert world.publish().error is None
    for file in world.path.glob("ledger.sqlite*"):
        file.unlink()
    with world.ledger() as ledger:
        ledger.rebuild(world.path)
    assert world.publish().error is None and world.pending() == 0
    assert len(server.backend.run(GPT).history) == 1


def test_rows_that_were_lost_on_the_server_are_sent_again(server: Imitation, world: World):
    for iteration in (1000, 2000):
        world.evaluated("gpt", iteration, {"mmlu": iteration / 1e4})
    assert world.publish().error is None
    server.backend.run(GPT).streams["wandb-history.jsonl"].pop()
    assert world.publish().published == 0 and world.shown_wrongly(server.backend.runs.values()) != []
    assert world.publish(verify=True).error is None
    assert world.shown_wrongly(server.backend.runs.values()) == []


def test_results_are_artifacts_made_from_megatrons_own(server: Imitation, world: World, tmp_path: Path):
    checkpoints = tmp_path / "checkpoints" / "GPT2"
    checkpoints.mkdir(parents=True)
    (checkpoints / "latest_wandb_artifact_path.txt").write_text("team/training")
    trained = server.backend.add_artifact("model", "GPT2", ["iter_0001000"], project="training")
    for iteration in (1000, 2000):  # Megatron logged the first only
        path = str(checkpoints / f"iter_{iteration:07d}")
        world.evaluated("gpt", iteration, {"mmlu": 0.4}, path=path, write_files=True)
    assert world.publish().error is None
    logged = server.backend.logged("checkpoint-evaluation")
    assert [(one.name, sorted(one.files)) for one in logged] == [("gpt-evaluation", ["mmlu.json"])] * 2
    assert [set(one.aliases) for one in logged] == [{"iter_0001000"}, {"iter_0002000", "latest"}]
    assert json.loads(server.backend.uploads[logged[0].files["mmlu.json"]])["task"] == "mmlu"
    assert server.backend.run(GPT).used == [trained.id]
    assert world.publish(verify=True).error is None
    assert len(server.backend.logged("checkpoint-evaluation")) == 2


def test_an_artifact_that_fails_is_tried_again_and_the_rows_are_there(server: Imitation, world: World):
    world.evaluated("gpt", 1000, {"mmlu": 0.4}, write_files=True)
    fault_once(server, "graphql:CreateArtifact", 400)
    outcome = world.publish()
    assert outcome.pending == 1 and "iter_0001000" in (outcome.error or "")
    assert world.pending() == 0 and world.shown_wrongly(server.backend.runs.values()) == []
    assert world.publish().error is None
    assert len(server.backend.logged("checkpoint-evaluation")) == 1


def test_alerts_of_failures_and_regressions_come_once(server: Imitation, world: World):
    world.evaluated("gpt", 1000, {"mmlu": 0.9})
    world.evaluated("gpt", 2000, {"mmlu": 0.3})
    with world.ledger() as ledger:
        save = ledger.checkpoints()[-1]
        from recorder.results import CheckpointRef

        ref = CheckpointRef(save.model, save.iteration, save.fingerprint, save.path, save.tokens)
        ledger.note_task(ref, "arc", "failed", version="v1", error="CUDA out of memory\nTraceback …")
    world.expected["gpt"].pop((2000, "average"))
    assert world.publish().error is None
    titles = [alert["title"] for alert in server.backend.alerts]
    assert titles == ["gpt iteration 2000: 1 tasks failed", "gpt iteration 2000 is worse than iteration 1000"]
    assert server.backend.alerts[0]["severity"] == "ERROR" and "CUDA out of memory" in server.backend.alerts[0]["text"]
    assert "0.9000 → 0.3000" in server.backend.alerts[1]["text"]
    assert world.publish(verify=True).error is None
    assert len(server.backend.alerts) == 2
    assert world.shown_wrongly(server.backend.runs.values()) == []


def test_the_key_is_in_no_body_file_or_log(server: Imitation, world: World):
    world.evaluated("gpt", 1000, {"mmlu": 0.4}, write_files=True)
    assert world.publish().error is None
    assert not any(KEY.encode() in body for body in server.bodies)
    files = [path for path in world.path.parent.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)


HANGS = """
import sys, time
from recorder import refresh, watchdog
import wandb
watchdog.STEP_SECONDS = 1.0
wandb.Run.finish = lambda *_, **__: time.sleep(600)
sys.exit(refresh.main(sys.argv[1:]))
"""


def test_a_publisher_that_hangs_is_ended_and_the_next_one_publishes(server: Imitation, world: World):
    world.evaluated("gpt", 1000, {"mmlu": 0.4})
    arguments = ["--publish", "--work-dir", str(world.path), "--settings", str(world.path / "settings.json")]
    hung = subprocess.run(
        [sys.executable, "-c", HANGS, *arguments], cwd=HOME, capture_output=True, text=True, timeout=60
    )
    assert hung.returncode == 1 and "Timeout" in hung.stderr
    waits = world.publish(at_once=False)
    assert waits.pending == 1 and (waits.retry_in or 0) > 0  # it counts as a failure
    assert world.publish().error is None
    assert world.shown_wrongly(server.backend.runs.values()) == []


KILLED_AT = """
import os, signal, sys
from recorder import refresh, wandb_delivery
import wandb
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
patched, name = {"log": (wandb.Run, "log"), "finish": (wandb.Run, "finish"),
                 "confirm": (wandb_delivery.Delivery, "_confirm"), "mark": (refresh.Ledger, "outbox_done")}[sys.argv[1]]
setattr(patched, name, die)
refresh.main(sys.argv[2:])
"""


@pytest.mark.parametrize("where", ["log", "finish", "confirm", "mark"])
def test_sigkill_loses_nothing_and_repeats_nothing(server: Imitation, world: World, where: str):
    world.evaluated("gpt", 1000, {"mmlu": 0.4})
    arguments = ["--publish", "--work-dir", str(world.path), "--settings", str(world.path / "settings.json")]
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, where, *arguments], cwd=HOME, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert world.publish().error is None
    assert world.shown_wrongly(server.backend.runs.values()) == [] and doubled(server.backend.run(GPT)) == []
    assert server.backend.run(GPT).state == "finished"
    assert os.environ["WANDB_API_KEY"] == KEY
