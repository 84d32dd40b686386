"""Offline first, online later: ``wandb sync`` itself, our own sync, and a configuration that changes its mode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_answers import KEY
from wandb_server import Imitation
from wandb_world import World, doubled, history

from recorder.wandb_file import read_runs
from recorder.wandb_rows import run_id
from recorder.wandb_writer import main as wandb_writer

HOME = Path(__file__).resolve().parents[2]
GPT = run_id("proj", "gpt")
WRITER = "project: proj\nledger: work/ledger.sqlite\nbase_url: {url}\nwandb: {{mode: offline, entity: team}}\n"

pytestmark = pytest.mark.slow


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Imitation]:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.delenv(name, raising=False)
    with Imitation() as imitation:
        yield imitation
        assert imitation.backend.unhandled == []


@pytest.fixture
def offline(server: Imitation, tmp_path: Path) -> World:
    """Three checkpoints, published offline one by one, the second one late."""
    world = World(tmp_path / "work", server.url, mode="offline")
    for iteration in (1000, 3000, 2000):
        world.evaluated("gpt", iteration, {"mmlu": iteration / 1e4, "arc": 0.5}, write_files=True)
        assert world.publish().error is None
    assert server.requests == 0
    return world


def wandb_sync(server: Imitation, world: World) -> str:
    """As docs/wandb.md has it."""
    command = [
        sys.executable,
        "-m",
        "wandb",
        "sync",
        "--yes",
        *map(str, sorted(world.path.glob("wandb/offline-run-*"))),
    ]
    environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_wandb_sync_joins_the_directories_into_one_run(server: Imitation, offline: World):
    runs = read_runs(offline.path / "wandb", GPT)
    assert len(runs) == 3 and all(len(run.history) == 1 and run.finished for run in runs)
    wandb_sync(server, offline)
    run = server.backend.run(GPT)
    assert [row["iteration"] for row in run.history] == [1000, 3000, 2000]
    assert offline.shown_wrongly(server.backend.runs.values()) == [] and doubled(run) == []
    assert (run.display_name, run.group, run.state) == ("gpt", "gpt", "finished")
    assert len(server.backend.logged("checkpoint-evaluation")) == 3
    board = server.backend.run("proj-leaderboard")
    assert board.history[-1]["leaderboard"]["nrows"] == 1
    wandb_sync(server, offline)
    assert len(server.backend.run(GPT).history) == 3  # again: nothing


def test_our_sync_publishes_once_and_wandb_sync_passes_over_it(server: Imitation, offline: World, tmp_path, capsys):
    config = tmp_path / "sync.yaml"
    config.write_text(WRITER.format(url=server.url))
    assert wandb_writer(["--config", str(config), "--sync"]) == 0
    assert f"W&B: {server.url}, project proj: sent 4, pending 0" in capsys.readouterr().out
    assert offline.shown_wrongly(server.backend.runs.values()) == []
    rows = len(server.backend.run(GPT).history)
    assert wandb_writer(["--config", str(config), "--sync"]) == 0
    assert "sent 0, pending 0" in capsys.readouterr().out
    wandb_sync(server, offline)
    assert len(server.backend.run(GPT).history) == rows == 3 and doubled(server.backend.run(GPT)) == []
    assert len(server.backend.run("proj-leaderboard").history) == 1
    assert len(server.backend.logged("checkpoint-evaluation")) == 3


def test_wandb_sync_first_and_ours_afterwards(server: Imitation, offline: World):
    wandb_sync(server, offline)
    offline.set_mode("online")
    assert offline.publish().error is None and offline.pending() == 0
    assert len(server.backend.run(GPT).history) == 3 and doubled(server.backend.run(GPT)) == []


def test_a_configuration_that_goes_online_publishes_the_backlog(server: Imitation, offline: World):
    offline.set_mode("online")
    offline.evaluated("gpt", 4000, {"mmlu": 0.4, "arc": 0.6})
    assert offline.publish().published == 4 + 1
    assert offline.shown_wrongly(server.backend.runs.values()) == [] and doubled(server.backend.run(GPT)) == []
    offline.set_mode("offline")
    offline.evaluated("gpt", 5000, {"mmlu": 0.5, "arc": 0.7})
    assert offline.publish().published == 1 + 1
    begun_with = [run.history[0]["iteration"] for run in read_runs(offline.path / "wandb", GPT)]
    assert begun_with.count(5000) == 1  # a directory of its own


def test_a_work_directory_that_was_carried_to_another_machine(
    server: Imitation, offline: World, tmp_path: Path, capsys
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(offline.ledger_path, elsewhere / "ledger.sqlite")
    (elsewhere / "sync.yaml").write_text(WRITER.format(url=server.url).replace("work/", ""))
    assert wandb_writer(["--config", str(elsewhere / "sync.yaml"), "--sync"]) == 0
    assert offline.shown_wrongly(server.backend.runs.values()) == []


def test_directories_that_were_carried_to_another_machine(server: Imitation, offline: World, tmp_path: Path):
    """The artifacts' files are not in them: those stay behind, the rows arrive."""
    (tmp_path / "carried").mkdir()
    shutil.move(offline.path / "wandb", tmp_path / "carried" / "wandb")
    shutil.rmtree(offline.path)
    offline.path = tmp_path / "carried"
    wandb_sync(server, offline)
    assert offline.shown_wrongly(server.backend.runs.values()) == []
    assert server.backend.run("proj-leaderboard").state == "finished"


def test_sync_says_what_is_missing(server: Imitation, tmp_path: Path, capsys):
    config = tmp_path / "sync.yaml"
    config.write_text(WRITER.format(url=server.url))
    assert wandb_writer(["--config", str(config), "--sync"]) == 1
    assert "there is no ledger" in capsys.readouterr().err


def test_the_daemons_door_syncs(server: Imitation, offline: World, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    config = tmp_path / "evaluator.yaml"
    icl = {"datasets": ["hellaswag_ppl"], "data_dir": str(tmp_path)}
    auto_eval = {"project_name": "proj", "model_name": "gpt", "work_dir": str(offline.path), "icl": icl}
    auto_eval["huggingface"] = {"checkpoint_path": str(tmp_path / "checkpoints")}
    auto_eval["wandb"] = {"mode": "offline", "entity": "team", "base_url": server.url}
    config.write_text(json.dumps({"auto_eval": auto_eval}))
    command = [sys.executable, "evaluator.py", "--config", str(config), "--model-type", "huggingface", "--sync-wandb"]
    for sent in (4, 0):  # checkpoints and the leaderboard
        done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"project proj: sent {sent}, pending 0" in done.stdout
        assert len(server.backend.run(GPT).history) == 3
    assert offline.shown_wrongly(server.backend.runs.values()) == []
    assert history(server.backend.run(GPT))[2000, "arc.acc"] == 0.5
