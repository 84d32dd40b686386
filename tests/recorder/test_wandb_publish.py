"""What a user finds in the W&B offline directories. The real client writes them, our reader reads them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recorder.ledger import Ledger
from recorder.refresh import main, read_settings, refresh
from recorder.results import CheckpointRef, Score, TaskResult, write_result
from recorder.wandb_file import WandbFileError, read_runs, read_wandb_file
from recorder.wandb_rows import run_id

HOME = Path(__file__).resolve().parents[2]
BASELINES = """
models:
  - {name: weak, tokens: 10, source: "a paper", values: {mmlu.EM: 0.26, hellaswag.acc: 0.30}}
  - {name: strong, tokens: 300, source: "a paper", values: {mmlu.EM: 0.60, hellaswag.acc: 0.80}}
"""


def checkpoint(iteration: int, fingerprint: str = "") -> CheckpointRef:
    return CheckpointRef("gpt", iteration, fingerprint or f"save-{iteration}", f"/ckpt/{iteration}", iteration * 1e-3)


def result(ref: CheckpointRef, task: str, metric: str, value: float) -> TaskResult:
    return TaskResult(ref, task, "v1", "icl", (Score(metric, value, 0.01, 100, True, 0.25),))


class WorkDir:
    """A work directory as the daemon keeps one: result files, the ledger, the settings."""

    def __init__(self, path: Path):
        self.path = path
        (path / "baselines.yaml").write_text(BASELINES)
        self.settings = path / "settings.json"
        content = {"project": "proj", "title": "A run", "baselines": str(path / "baselines.yaml")}
        self.settings.write_text(json.dumps({**content, "wandb": {"mode": "offline", "project": "proj"}}))

    def evaluated(self, ref: CheckpointRef, mmlu: float, hellaswag: float | None = None, state: str = "evaluated"):
        ledger = Ledger(self.path / "ledger.sqlite")
        ledger.note_checkpoint(ref, state)
        results = [result(ref, "mmlu", "EM", mmlu)]
        results += [] if hellaswag is None else [result(ref, "hellaswag", "acc", hellaswag)]
        for one in results:
            write_result(self.path / f"gpt/iter_{ref.iteration:07d}/results/gpt/{one.task}.json", one)
            ledger.ingest(one)
        ledger.close()

    def refresh(self):
        outcome = refresh(self.path, read_settings(self.settings))
        assert outcome.error is None
        return outcome

    def rows(self, identity: str) -> list[dict]:
        return [row for run in read_runs(self.path / "wandb", identity) for row in run.history]


@pytest.fixture
def work_dir(tmp_path: Path) -> WorkDir:
    return WorkDir(tmp_path)


def test_one_run_per_model_with_one_row_per_checkpoint(work_dir: WorkDir):
    for iteration in (1000, 2000, 3000):
        work_dir.evaluated(checkpoint(iteration), iteration / 5000, iteration / 4000)
    assert work_dir.refresh().published == 3 + 2 + 1
    runs = [run for run in read_runs(work_dir.path / "wandb") if run.name == "gpt"]
    assert {run.run_id for run in runs} == {run_id("proj", "gpt")}
    for run in runs:
        assert (run.project, run.group, run.job_type) == ("proj", "gpt", "checkpoint-eval")
        assert set(run.tags) == {"evaluate", "summary"}
        assert run.metrics["*"] == "iteration" and run.hidden == {"iteration", "tokens"}
        assert run.finished
    rows = [row for run in runs for row in run.history]
    assert [row["iteration"] for row in rows] == [1000, 2000, 3000]
    assert [row["tokens"] for row in rows] == [1, 2, 3]
    assert [row["mmlu.EM"] for row in rows] == [0.2, 0.4, 0.6]
    assert all(row["mmlu.EM_stderr"] == 0.01 and row["hellaswag.acc_stderr"] == 0.01 for row in rows)
    assert rows[1]["average"] == pytest.approx(((0.4 + 0.5) / 2 - 0.25) / 0.75)  # guessing is 0
    assert runs[-1].summary["iteration"] == 3000 and runs[-1].summary["mmlu.EM"] == 0.6
    said = "".join(p.read_text(errors="replace") for p in work_dir.path.glob("wandb/**/*.log"))
    assert not re.search(r"less than the current step", said)


def test_baselines_and_leaderboard_are_runs(work_dir: WorkDir):
    work_dir.evaluated(checkpoint(1000), 0.4, 0.5)
    work_dir.refresh()
    by_name = {run.name: run for run in read_runs(work_dir.path / "wandb")}
    assert set(by_name) == {"gpt", "weak", "strong", "leaderboard"}
    assert "baseline" in by_name["weak"].tags and by_name["weak"].job_type == "checkpoint-eval"
    row = by_name["strong"].history[0]
    assert (row["tokens"], row["mmlu.EM"], row["average"]) == (300, 0.6, pytest.approx((0.7 - 0.25) / 0.75))
    board = by_name["leaderboard"]
    assert board.run_id == "proj-leaderboard"
    assert {"leaderboard._type", "curves._type", "scores_table._type"} <= board.history[0].keys()
    assert "leaderboard" in board.artifacts
    table = json.loads((board.path.parent / "files" / board.history[0]["leaderboard.path"]).read_text())
    assert table["columns"] == ["model", "iteration", "tokens", "score", "rank", "hellaswag.acc", "mmlu.EM"]
    assert [line[0] for line in table["data"]] == ["strong", "gpt", "weak"]
    assert (work_dir.path / "leaderboard.csv").read_text().startswith("model,iteration,tokens,score")
    assert "A run" in (work_dir.path / "report.html").read_text()


def test_again_sends_nothing_and_a_late_checkpoint_lands_where_it_belongs(work_dir: WorkDir):
    work_dir.evaluated(checkpoint(3000), 0.6, 0.6)
    work_dir.refresh()
    assert work_dir.refresh().published == 0
    work_dir.evaluated(checkpoint(1000), 0.2, 0.2)
    work_dir.refresh()
    runs = read_runs(work_dir.path / "wandb", run_id("proj", "gpt"))
    assert [row["iteration"] for run in runs for row in run.history] == [3000, 1000]
    assert runs[-1].summary["iteration"] == 3000 and runs[-1].summary["mmlu.EM"] == 0.6
    assert len([run for run in read_runs(work_dir.path / "wandb") if "baseline" in run.tags]) == 2


def test_a_checkpoint_waits_until_its_tasks_are_through(work_dir: WorkDir):
    work_dir.evaluated(checkpoint(1000), 0.4, state="evaluating")
    outcome = work_dir.refresh()
    assert outcome.pending == 0 and work_dir.rows(run_id("proj", "gpt")) == []
    work_dir.evaluated(checkpoint(1000), 0.4, 0.5)
    work_dir.refresh()
    assert len(work_dir.rows(run_id("proj", "gpt"))) == 1


def test_a_kill_before_it_is_marked_sent_gives_no_second_row(work_dir: WorkDir, monkeypatch: pytest.MonkeyPatch):
    work_dir.evaluated(checkpoint(1000), 0.4, 0.5)

    def killed(*_: object) -> None:
        raise SystemExit("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "outbox_done", killed)
        with pytest.raises(SystemExit):
            work_dir.refresh()
    assert len(work_dir.rows(run_id("proj", "gpt"))) == 1
    work_dir.refresh()
    assert len(work_dir.rows(run_id("proj", "gpt"))) == 1
    assert work_dir.refresh().published == 0


def test_a_lost_ledger_sends_nothing_twice(work_dir: WorkDir):
    for iteration in (1000, 2000):
        work_dir.evaluated(checkpoint(iteration), iteration / 5000, 0.5)
    work_dir.refresh()
    for file in work_dir.path.glob("ledger.sqlite*"):
        file.unlink()
    ledger = Ledger(work_dir.path / "ledger.sqlite")
    assert ledger.rebuild(work_dir.path) == 4
    ledger.close()
    work_dir.refresh()
    assert [row["iteration"] for row in work_dir.rows(run_id("proj", "gpt"))] == [1000, 2000]


def test_a_resaved_iteration_shows_its_new_value_last(work_dir: WorkDir):
    work_dir.evaluated(checkpoint(1000), 0.4, 0.5)
    work_dir.refresh()
    work_dir.evaluated(checkpoint(1000, "saved-again"), 0.45, 0.5)
    work_dir.refresh()
    assert [row["mmlu.EM"] for row in work_dir.rows(run_id("proj", "gpt"))] == [0.4, 0.45]


def test_two_versions_of_a_task_are_two_columns(work_dir: WorkDir):
    work_dir.evaluated(checkpoint(1000), 0.4, 0.5)
    work_dir.refresh()
    ledger = Ledger(work_dir.path / "ledger.sqlite")
    for iteration in (1000, 2000):
        ledger.note_checkpoint(checkpoint(iteration), "evaluated")
        score = Score("EM", iteration / 5000, 0.02, 100, True, 0.25)
        ledger.ingest(TaskResult(checkpoint(iteration), "mmlu", "other-prompt", "icl", (score,)))
    ledger.ingest(result(checkpoint(2000), "hellaswag", "acc", 0.6))
    ledger.close()
    work_dir.refresh()
    rows = work_dir.rows(run_id("proj", "gpt"))
    assert [(row["iteration"], row.get("mmlu.EM"), row.get("mmlu@other-pr.EM")) for row in rows] == [
        (1000, 0.4, None),
        (1000, None, 0.2),
        (2000, None, 0.4),
    ]
    assert [row.get("hellaswag.acc") for row in rows] == [0.5, None, 0.6]
    assert all("average" not in row and row["mmlu@other-pr.EM_stderr"] == 0.02 for row in rows[1:])
    assert any(key.startswith("average@") for key in rows[2])
    (summary,) = [run.summary for run in read_runs(work_dir.path / "wandb", run_id("proj", "gpt"))][-1:]
    assert summary["mmlu@other-pr.EM"] == 0.4 and "mmlu.EM" not in summary


def test_an_average_without_the_task_that_failed_is_not_on_the_curve(work_dir: WorkDir):
    work_dir.evaluated(checkpoint(1000), 0.4)
    ledger = Ledger(work_dir.path / "ledger.sqlite")
    ledger.note_task(checkpoint(1000), "hellaswag", "failed", version="v1", error="out of memory")
    ledger.close()
    work_dir.refresh()
    work_dir.evaluated(checkpoint(1000), 0.4, 0.5)
    work_dir.refresh()
    rows = work_dir.rows(run_id("proj", "gpt"))
    assert [(row.get("mmlu.EM"), row.get("hellaswag.acc"), row.get("average")) for row in rows] == [
        (0.4, None, None),
        (None, 0.5, pytest.approx((0.45 - 0.25) / 0.75)),
    ]


def test_a_server_that_is_away_leaves_the_rows_pending(work_dir: WorkDir, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("recorder.wandb_client.INIT_SECONDS", 3.0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    work_dir.evaluated(checkpoint(1000), 0.4, 0.5)
    online = json.loads(work_dir.settings.read_text())
    online["wandb"] |= {"mode": "online", "entity": "team", "base_url": "http://127.0.0.1:9"}
    offline, _ = work_dir.settings.read_text(), work_dir.settings.write_text(json.dumps(online))
    assert main(["--work-dir", str(work_dir.path), "--settings", str(work_dir.settings)]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["published"] == 0 and answer["pending"] >= 1 and "W&B" in answer["error"]
    assert (work_dir.path / "report.html").exists()
    work_dir.settings.write_text(offline)
    work_dir.refresh()
    assert len(work_dir.rows(run_id("proj", "gpt"))) == 1


def test_disabled_writes_the_files_and_no_wandb_directory(work_dir: WorkDir):
    work_dir.evaluated(checkpoint(1000), 0.4, 0.5)
    work_dir.settings.write_text(work_dir.settings.read_text().replace("offline", "disabled"))
    (work_dir.path / ".report.html.killed.tmp").write_text("half a report")
    work_dir.refresh()
    assert not (work_dir.path / ".report.html.killed.tmp").exists()
    assert (work_dir.path / "report.html").exists() and not (work_dir.path / "wandb").exists()


def test_bad_settings_are_named(work_dir: WorkDir, capsys):
    work_dir.settings.write_text('{"project": "p", "wandb": {"mode": "sometimes"}}')
    assert main(["--work-dir", str(work_dir.path), "--settings", str(work_dir.settings)]) == 1
    assert "wandb.mode" in json.loads(capsys.readouterr().out)["error"]


def test_a_torn_or_damaged_file_gives_the_records_before(work_dir: WorkDir, tmp_path: Path):
    work_dir.evaluated(checkpoint(1000), 0.4, 0.5)
    work_dir.refresh()
    (run,) = read_runs(work_dir.path / "wandb", run_id("proj", "gpt"))
    whole = run.path.read_bytes()
    torn = tmp_path / "torn.wandb"
    previous = -1
    for length in range(7, len(whole), 97):
        torn.write_bytes(whole[:length])
        rows = len(read_wandb_file(torn).history)
        assert rows >= previous
        previous = rows
    place = whole.index(b"mmlu.EM")
    torn.write_bytes(whole[:place] + b"X" + whole[place + 1 :])
    assert read_wandb_file(torn).history == []
    torn.write_bytes(b"something else")
    with pytest.raises(WandbFileError, match=r"torn\.wandb"):
        read_wandb_file(torn)


KILL_AT = """
import os, signal, sys
from recorder import refresh, wandb_delivery
import wandb
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
patched, name = {"log": (wandb.Run, "log"), "teardown": (wandb, "teardown"), "finish": (wandb.Run, "finish"),
                 "confirm": (wandb_delivery.Delivery, "_confirm"), "mark": (refresh.Ledger, "outbox_done")}[sys.argv[1]]
setattr(patched, name, die)
refresh.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_loses_nothing_and_repeats_nothing(work_dir: WorkDir):
    arguments = ["--work-dir", str(work_dir.path), "--settings", str(work_dir.settings)]
    iterations = []
    for where in ("log", "finish", "teardown", "confirm", "mark"):  # before the rows are written, during and after
        iterations.append(1000 * (len(iterations) + 1))
        work_dir.evaluated(checkpoint(iterations[-1]), iterations[-1] / 10000, 0.5)
        killed = subprocess.run([sys.executable, "-c", KILL_AT, where, *arguments], cwd=HOME, capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = subprocess.run([sys.executable, "-m", "recorder.refresh", *arguments], cwd=HOME, capture_output=True)
    assert json.loads(done.stdout.splitlines()[-1])["error"] is None
    assert sorted(row["iteration"] for row in work_dir.rows(run_id("proj", "gpt"))) == iterations


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_nothing_and_repeats_nothing(work_dir: WorkDir):
    for iteration in (1000, 2000, 3000):
        work_dir.evaluated(checkpoint(iteration), iteration / 10000, 0.5)
    command = [sys.executable, "-m", "recorder.refresh", "--work-dir", str(work_dir.path)]
    command += ["--settings", str(work_dir.settings)]
    for wanted in (1, 2, 3):  # killed as soon as so many runs' directories are there, finished or not
        process = subprocess.Popen(command, cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(work_dir.path.glob("wandb/offline-run-*"))) < wanted:
            time.sleep(0.005)
        process.kill()
        process.wait()
    assert subprocess.run(command, cwd=HOME, capture_output=True, check=False).returncode == 0
    assert sorted(row["iteration"] for row in work_dir.rows(run_id("proj", "gpt"))) == [1000, 2000, 3000]


@pytest.mark.slow
def test_the_lock_lasts_until_the_service_of_a_killed_publisher_is_gone(tmp_path: Path):
    code = (
        "import os, signal, subprocess, sys; from pathlib import Path; from recorder.refresh import publisher_lock\n"
        "with publisher_lock(Path(sys.argv[1])):\n"
        "    print(subprocess.Popen(['sleep', '600'], close_fds=True, start_new_session=True, stdout=2).pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=HOME, stdout=subprocess.PIPE, text=True)
    service = int(killed.stdout)
    with (tmp_path / "publisher.lock").open("a") as stream:
        with pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(service, signal.SIGKILL)
        fcntl.flock(stream, fcntl.LOCK_EX)
