"""The daemon with W&B online, against the imitation of its server: the evaluation neither waits for it nor fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recorder.wandb_rows import run_id
from tests.end_to_end.daemon_world import CONFIG, HOME, deliver, log_lines, run, scores, states

sys.path.append(str(HOME / "tests" / "recorder"))
from wandb_answers import KEY
from wandb_server import Imitation
from wandb_world import doubled, history

pytestmark = pytest.mark.slow


def test_a_refused_key_costs_the_evaluation_nothing_and_all_is_published_when_it_is_mended(
    models: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "wrong" * 8)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with Imitation() as server:
        online = f"wandb: {{mode: online, entity: team, base_url: '{server.url}'}}"
        (project / "evaluator.yaml").write_text(CONFIG.replace("wandb: {mode: offline}", online))
        deliver(models, project, 100, 200)
        ended = run(project, "--once")
        assert ended.returncode == 0, ended.stderr
        assert states(project) == {100: "recorded", 200: "recorded"} and (project / "out" / "report.html").exists()
        told = [line for line in log_lines(project) if "refuses the key" in line]
        assert len(told) == 1 and "wandb login" in told[0]
        assert any("--sync-wandb" in line for line in log_lines(project))
        assert server.backend.runs == {}

        monkeypatch.setenv("WANDB_API_KEY", KEY)
        deliver(models, project, 300)
        ended = run(project, "--once", fresh=True)
        assert ended.returncode == 0, ended.stderr
        shown = server.backend.run(run_id("tiny", "tiny-gpt2"), "tiny")
        expected = {(row[0], f"{row[1]}.{row[3]}"): row[4] for row in scores(project)}
        assert expected.keys() <= history(shown).keys() and len(shown.history) == 3 and doubled(shown) == []
        assert {key: history(shown)[key] for key in expected} == expected
        assert server.backend.run("tiny-leaderboard", "tiny").state == "finished"
        assert server.backend.unhandled == []
    for file in (project / "out").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
