"""The daemon as a user runs it, on Hugging Face checkpoints of tiny models (the Megatron path is in test_main_job)."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from autoeval.ending import STOP_SECONDS
from autoeval.runners.worker_process import LocalWorker
from autoeval.tasks.plan import EvaluationPlan, IclPlan, TaskPlan, save_plan
from recorder.ledger import Ledger
from recorder.results import CheckpointRef
from tests.end_to_end.daemon_world import (
    CONFIG,
    DATASET,
    deliver,
    forking,
    log_lines,
    logged,
    run,
    scores,
    started,
    states,
)
from tests.pace import Pace
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

# A pattern that takes for ever on any answer of some length.
ENDLESS = """
endless_datasets = [
    dict(
        two_datasets[0],
        abbr='endless',
        infer_cfg=dict(
            prompt_template=dict(type='PromptTemplate', template='{question}'),
            retriever=dict(type='ZeroRetriever'),
            inferencer=dict(type='GenInferencer', max_out_len=48),
        ),
        eval_cfg=dict(
            evaluator=dict(type='EMEvaluator'),
            pred_postprocessor=dict(type='match_answer_pattern', answer_pattern=r'^(([\\s\\S])+)+\\Z(?!)'),
        ),
    )
]
"""


def test_checkpoints_that_arrive_while_it_watches_are_evaluated_and_it_ends_by_itself(
    models: Path, project: Path
) -> None:
    with started(project, fresh=True) as daemon:
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if "watching" in line:
                break
        deliver(models, project, 100, 200, 300)
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    assert states(project) == {100: "recorded", 200: "recorded", 300: "recorded"}
    recorded = scores(project)
    assert {(row[0], row[1]) for row in recorded} == {(i, t) for i in (100, 200, 300) for t in ("first", "second")}
    assert {row[7] for row in recorded} == {0.1, 0.2, 0.3}
    assert (project / "out" / "report.html").exists() and (project / "out" / "leaderboard.csv").exists()
    assert (project / "out" / "tiny-gpt2" / "iter_0000100" / "results" / "tiny-gpt2" / "first.json").exists()


def test_sigkill_in_the_middle_and_a_second_start_give_the_same_scores_none_twice(
    models: Path, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(project, undisturbed, dirs_exist_ok=True)
    for directory in (project, undisturbed):
        deliver(models, directory, 100, 200, 300)
    assert run(undisturbed).returncode == 0

    results = project / "out" / "tiny-gpt2"
    with started(project, fresh=True) as daemon:
        wait_for(lambda: any(results.glob("iter_*/results/*/*.json")))
        worker_count = len(list(results.glob("iter_*/results/*/*.json")))
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    assert worker_count < 6, "the kill came too late to show anything"
    assert run(project).returncode == 0
    assert scores(project) == scores(undisturbed)
    assert len(scores(project)) == len({row[:4] for row in scores(project)})
    assert states(project) == {100: "recorded", 200: "recorded", 300: "recorded"}


def test_a_deleted_ledger_comes_back_with_all_scores_and_nothing_is_computed_again(models: Path, project: Path) -> None:
    deliver(models, project, 100)
    assert run(project, "--once").returncode == 0
    before = scores(project)
    result = project / "out" / "tiny-gpt2" / "iter_0000100" / "results" / "tiny-gpt2" / "first.json"
    written = result.stat().st_mtime_ns
    for path in (project / "out").glob("ledger.sqlite*"):
        path.unlink()
    assert run(project, "--once").returncode == 0
    assert scores(project) == before
    assert result.stat().st_mtime_ns == written


def test_a_saved_again_iteration_is_evaluated_again_and_its_old_scores_are_superseded(
    models: Path, project: Path
) -> None:
    deliver(models, project, 100)
    assert run(project, "--once").returncode == 0
    first = scores(project)
    shutil.rmtree(project / "checkpoints" / "checkpoint-100")
    shutil.copytree(models / "checkpoint-200", project / "checkpoints" / "checkpoint-100")
    assert run(project, "--once").returncode == 0
    rows = scores(project)
    assert sorted((row[1], row[8]) for row in rows) == [("first", 0), ("first", 1), ("second", 0), ("second", 1)]
    assert [(*row[:8], 0) for row in rows if row[8]] == first
    # Put back as it was, the first save is the current one again, and nothing is computed for it.
    shutil.rmtree(project / "checkpoints" / "checkpoint-100")
    deliver(models, project, 100)
    assert run(project, "--once").returncode == 0
    assert [row for row in scores(project) if not row[8]] == first


def test_saved_again_while_it_is_evaluated_both_saves_get_their_own_scores(models: Path, project: Path) -> None:
    deliver(models, project, 100, 300)
    config = project / "evaluator.yaml"
    config.write_text(CONFIG + "  order: oldest-first\n")
    with started(project, fresh=True) as daemon:  # its worker takes a while to begin
        wait_for(lambda: (project / "out" / "tiny-gpt2" / "iter_0000100" / "plan.json").exists())
        shutil.rmtree(project / "checkpoints" / "checkpoint-100")
        shutil.copytree(models / "checkpoint-200", project / "checkpoints" / "checkpoint-100")
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    current = [row for row in scores(project) if not row[8]]
    assert [(row[0], row[1]) for row in current] == [(i, t) for i in (100, 300) for t in ("first", "second")]
    # The second save has the weights of iteration 200, and so must have its scores.
    alone = project / "alone"
    shutil.copytree(project, alone, ignore=shutil.ignore_patterns("out", "checkpoints"))
    shutil.copy(project / "items.jsonl", alone)
    deliver(models, alone, 200)
    (alone / "two.py").write_text(DATASET.format(directory=alone))
    assert run(alone, "--once").returncode == 0
    assert [row[4] for row in scores(alone)] == [row[4] for row in current if row[0] == 100]


def test_a_worker_never_scores_files_that_are_not_those_of_its_plan(models: Path, project: Path) -> None:
    plan = EvaluationPlan(
        checkpoint=CheckpointRef("tiny-gpt2", 100, "0123456789abcdef", "elsewhere"),
        format="huggingface",
        source=str(models / "checkpoint-100"),
        directory=str(project / "out" / "tiny-gpt2" / "iter_0000100"),
        logs=str(project / "out" / "logs"),
        tasks=TaskPlan(icl=IclPlan((str(project / "two.py"),), str(project))),
    )
    save_plan(project / "plan.json", plan)
    events: queue.Queue[dict[str, Any]] = queue.Queue()
    with forking():
        worker = LocalWorker(lambda _, event: events.put(event), project / "worker.log")
    try:
        worker.submit(project / "plan.json")
        kinds = []
        while not kinds or not kinds[-1].startswith("checkpoint_"):
            kinds.append(events.get(timeout=120)["event"])
    finally:
        worker.close()
    assert kinds[-1] == "checkpoint_missed"
    assert not list((project / "out").rglob("results/**/*.json"))


def test_a_task_that_cannot_run_fails_alone_and_retry_mends_it(models: Path, project: Path) -> None:
    deliver(models, project, 100)
    blocker = project / "out" / "tiny-gpt2" / "iter_0000100" / "predictions" / "tiny-gpt2" / "second.json"
    (blocker / "in_the_way").mkdir(parents=True)  # a directory where the predictions file belongs
    ended = run(project, "--once")
    assert ended.returncode == 1
    assert [row[1] for row in scores(project)] == ["first"]
    status = run(project, "--status").stdout
    assert "second" in status and "failed" in status and "second.log" in status
    shutil.rmtree(blocker)
    assert "1 checkpoints will be tried again" in run(project, "--retry", "100:second").stdout
    assert run(project, "--once").returncode == 0
    assert [row[1] for row in scores(project)] == ["first", "second"]


def test_a_half_written_checkpoint_is_never_evaluated(models: Path, project: Path) -> None:
    deliver(models, project, 100)
    weights = project / "checkpoints" / "checkpoint-100" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert run(project, "--once").returncode == 0
    assert scores(project) == []


def test_once_waits_for_what_was_saved_a_moment_ago(models: Path, project: Path) -> None:
    """As after a training in the same script. By its files alone nobody can tell yet that it is whole."""
    config = CONFIG.replace("token_per_iteration: 0.001", "settle_seconds: {quiet: 15}")
    (project / "evaluator.yaml").write_text(config)
    deliver(models, project, 100)
    for file in (project / "checkpoints" / "checkpoint-100").iterdir():
        file.touch()
    assert run(project, "--once").returncode == 0
    assert logged(project, "something was saved a moment ago") and states(project) == {100: "recorded"}


def test_ctrl_c_ends_it_and_its_worker_within_five_seconds(models: Path, project: Path) -> None:
    deliver(models, project, 100, 200, 300)
    with started(project, fresh=True) as daemon:
        results = project / "out" / "tiny-gpt2"
        wait_for(lambda: any(results.glob("iter_*/plan.json")))
        with Pace() as pace:
            begun = time.monotonic()
            daemon.send_signal(signal.SIGINT)
            _, errors = daemon.communicate(timeout=60)
            assert time.monotonic() - begun < STOP_SECONDS + 0.5 + pace.takes(0.5)
    assert daemon.returncode == 128 + signal.SIGINT
    assert "starting again goes on from here" in errors
    left = subprocess.run(["pgrep", "-f", str(project)], capture_output=True, text=True, check=False)
    assert left.stdout.strip() == ""


def test_a_second_daemon_is_refused_with_the_first_ones_pid(models: Path, project: Path) -> None:
    with started(project) as first:
        wait_for(lambda: (project / "out" / "daemon.lock").exists())
        wait_for(lambda: (project / "out" / "daemon.lock").read_text() != "")
        second = run(project)
        assert second.returncode == 2
        assert f"process {first.pid} on host {socket.gethostname()}" in second.stderr


def test_commands_that_only_look(models: Path, project: Path) -> None:
    deliver(models, project, 100)
    plan = run(project, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "iteration       100  to do" in plan.stdout and "task first" in plan.stdout
    assert not (project / "out" / "ledger.sqlite").exists()
    doctor = run(project, "--doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert "everything is there" in doctor.stdout
    (project / "items.jsonl").unlink()
    doctor = run(project, "--doctor")
    assert doctor.returncode == 1
    assert "problem  task first" in doctor.stdout and "problem  task second" in doctor.stdout
    assert "items.jsonl" in doctor.stdout


@pytest.mark.parametrize("flags", [["--status"], ["--retry"]])
def test_a_damaged_ledger_is_left_to_the_daemon(project: Path, flags: list[str]) -> None:
    ledger = project / "out" / "ledger.sqlite"
    ledger.parent.mkdir(exist_ok=True)
    ledger.write_bytes(b"this is no database" * 100)
    ended = run(project, *flags)
    assert ended.returncode == 1
    assert f"{ledger} is damaged" in ended.stderr
    assert [path.name for path in ledger.parent.glob("ledger*")] == ["ledger.sqlite"]


def test_a_wrong_configuration_ends_with_2_and_says_where(project: Path) -> None:
    config = project / "evaluator.yaml"
    config.write_text(CONFIG.replace("model_name", "modelname"))
    ended = run(project)
    assert ended.returncode == 2
    assert "evaluator.yaml:4: auto_eval.modelname: unknown key; did you mean 'model_name'?" in ended.stderr
    config.write_text(CONFIG.replace("./two.py", "hellaswag_pl"))
    ended = run(project)
    assert ended.returncode == 2
    assert "hellaswag_pl" in ended.stderr


def test_an_idle_daemon_is_light(project: Path) -> None:
    with started(project, fresh=True) as daemon:
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if "watching" in line:
                break
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        (resident,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
        assert resident < 150 * 1024  # KiB

        def ticks() -> int:  # of this process, user and system
            return sum(map(int, Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

        def children() -> str:
            return Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().strip()

        def quiet() -> bool:  # it has begun to watch, and has nothing left to begin
            before = ticks()
            time.sleep(0.5)
            return ticks() - before <= 1 and not children()

        wait_for(quiet)
        before = ticks()
        time.sleep(3.0)  # what is measured is a rate
        assert (ticks() - before) / os.sysconf("SC_CLK_TCK") <= 0.03 * 3.0
        assert not children()


def ask_more(project: Path, times: int) -> None:
    """So that there is time for something to happen meanwhile."""
    items = [json.loads(line) for line in (project / "items.jsonl").read_text().splitlines()]
    more = [{**item, "question": f"{number} and {item['question']}"} for number in range(times) for item in items]
    (project / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in more))


def test_a_task_that_keeps_killing_the_worker_fails_alone(models: Path, project: Path) -> None:
    """Both are asked together first, for they ask the same; when that kills the worker, each is tried by itself."""
    ask_more(project, times=60)
    (project / "evaluator.yaml").write_text(CONFIG + "  runner: {max_attempts: 1}\n")
    deliver(models, project, 100)

    def running() -> list[str]:
        with contextlib.closing(Ledger(project / "out" / "ledger.sqlite")) as ledger:
            return [row.task for row in ledger.tasks() if row.state == "running"]

    def kill_the_worker() -> None:
        lines = [line for line in log_lines(project) if "worker is ready" in line]
        os.kill(int(lines[-1].rpartition("process ")[2].rstrip(")")), signal.SIGKILL)

    with started(project, "--end-iteration", "100") as daemon:
        wait_for(lambda: logged(project, "worker is ready") and running() == ["first", "second"])
        kill_the_worker()
        wait_for(lambda: len([line for line in log_lines(project) if "worker is ready" in line]) == 2)
        wait_for(lambda: running() == ["second"])
        kill_the_worker()
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 1, errors
    assert [row[1] for row in scores(project)] == ["first"]
    status = run(project, "--status").stdout
    assert "ended with signal 9 during 'second'" in status
    assert run(project, "--end-iteration", "100").returncode == 1  # failed for good: until --retry


def test_a_worker_that_hangs_is_ended_and_its_work_done_by_another(models: Path, project: Path) -> None:
    limits = "  runner: {heartbeat_timeout: 5, max_attempts: 3}\n"
    (project / "evaluator.yaml").write_text(CONFIG + limits)
    ask_more(project, times=20)
    deliver(models, project, 100)
    with started(project, "--end-iteration", "100") as daemon:
        wait_for(lambda: logged(project, "conversion begins"))
        line = next(line for line in log_lines(project) if "worker is ready" in line)
        hung = int(line.rpartition("process ")[2].rstrip(")"))
        os.kill(hung, signal.SIGSTOP)  # as one that waits for a device that is gone: alive, and silent
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    assert "gave no sign of life for 5 s (runner.heartbeat_timeout) and was ended" in errors
    assert not Path(f"/proc/{hung}").exists()
    assert [row[1] for row in scores(project)] == ["first", "second"]


def test_a_task_that_takes_too_long_fails_alone(models: Path, project: Path) -> None:
    """Its postprocessor never ends; the other task has its scores."""
    dataset = (project / "two.py").read_text()
    endless = dataset.replace("('first', 'second')", "('first',)") + ENDLESS
    (project / "two.py").write_text(endless)
    (project / "evaluator.yaml").write_text(CONFIG + "  runner: {task_time_limit: 10, max_attempts: 1}\n")
    deliver(models, project, 100)
    ended = run(project, "--once")
    assert ended.returncode == 1, ended.stderr
    assert "took more than 10 s (runner.task_time_limit) and was ended during 'endless'" in ended.stderr
    assert [row[1] for row in scores(project)] == ["first"]


def test_sigterm_then_a_second_one_end_it_as_one_does(project: Path) -> None:
    with started(project) as daemon:
        wait_for(lambda: logged(project, "watching"))
        daemon.send_signal(signal.SIGTERM)
        daemon.send_signal(signal.SIGTERM)
        _, errors = daemon.communicate(timeout=60)
    assert daemon.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors


def test_a_retry_of_what_there_is_not_says_what_there_is(models: Path, project: Path) -> None:
    deliver(models, project, 100)
    nothing = run(project, "--retry", "100")
    assert nothing.returncode == 2 and "nothing was ever evaluated" in nothing.stderr
    assert run(project, "--once").returncode == 0
    unknown = run(project, "--retry", "150")
    assert unknown.returncode == 2 and "there is no iteration 150: the ledger has 100" in unknown.stderr
    task = run(project, "--retry", "100:third")
    assert task.returncode == 2 and "has no task 'third', but first, second" in task.stderr


def test_that_it_waits_for_the_last_iteration_is_said_once(models: Path, project: Path) -> None:
    with started(project, "--end-iteration", "300") as daemon:
        wait_for(lambda: logged(project, "waiting for iteration 300 (--end-iteration) to appear in"))
        deliver(models, project, 100)
        wait_for(lambda: states(project).get(100) == "recorded")
        deliver(models, project, 300)
        _, errors = daemon.communicate(timeout=240)
    assert daemon.returncode == 0, errors
    assert errors.count("waiting for iteration 300") == 1
