"""run.py as its users run it: real processes, real tiny models, real files."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from autoeval.models.hf import HuggingFaceModel
from tests.run.conftest import PPL, World, make_world
from tests.run.test_run_server import KEY, Backend, serving
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

BOTH = ("--datasets", "small", "written")


@pytest.fixture(scope="module")
def tour(models_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One world for all tests of this file; each has a work directory of its own."""
    world = make_world(tmp_path_factory.mktemp("tour"))
    for name in ("gpt2", "chat"):
        (world.root / name).symlink_to(models_directory / name)
    return world


def base(work_dir: str, *more: str) -> tuple[str, ...]:
    return ("--hf-type", "base", "--hf-path", "gpt2", "-w", work_dir, *more)


def directory(world: World, work_dir: str) -> Path:
    (found,) = (world.root / work_dir).iterdir()
    return found


def tree(path: Path, *kinds: str) -> dict[str, bytes]:
    files = sorted(file for kind in kinds for file in (path / kind).rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def table(run: Path) -> list[list[str]]:
    newest = max((run / "summary").glob("*.csv"))
    with newest.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


@pytest.fixture(scope="module")
def at_once(tour: World) -> tuple[Path, str]:
    """The run's directory and what was said: everything in one process, on the screen."""
    said = tour.run(*base("debug", *BOTH, "--dump-eval-details", "--debug")).stderr
    return directory(tour, "debug"), said


def test_stage_by_stage_and_in_parts_is_the_same_as_all_at_once(tour: World, at_once: tuple[Path, str]) -> None:
    cut = ("--max-num-workers", "2", "--max-partition-size", "30", "--gen-task-coef", "3")
    steps = base("steps", *BOTH, "--dump-eval-details", *cut)
    tour.run(*steps, "-m", "infer")
    run = directory(tour, "steps")
    assert set(tree(run, "predictions", "results", "summary")) == {  # 2 prompts an item of small, 3 for written
        "predictions/gpt2_hf/small_0.json",
        "predictions/gpt2_hf/small_1.json",
        "predictions/gpt2_hf/written.json",
    }
    assert (run / "logs" / "infer" / "gpt2_hf" / "small_0.out").exists()
    made = tree(run, "predictions")
    tour.run(*steps, "-m", "eval", "-r")
    results = tree(run, "results")
    assert set(results) == {"results/gpt2_hf/small.json", "results/gpt2_hf/written.json"}
    shown = tour.run(*steps, "-m", "viz", "-r", run.name).stdout
    rows = table(run)
    assert rows[0] == ["dataset", "version", "metric", "mode", "gpt2_hf"]
    small = json.loads(results["results/gpt2_hf/small.json"])
    assert [row[0] for row in rows[1:]] == ["small", "written"] and rows[1][3] == "ppl" and rows[2][3] == "gen"
    assert rows[1][4] == f"{small['accuracy']:.2f} ± {small['accuracy_stderr']:.2f}" and rows[1][4] in shown
    assert len(list((run / "configs").glob("*.py"))) >= 2 and tree(run, "predictions") == made

    debug, said = at_once
    assert "20 of 20 items" in said and not (debug / "logs").exists()
    whole = {name: json.loads(content) for name, content in tree(debug, "predictions").items()}
    parts = {name: json.loads(content) for name, content in made.items()}
    assert set(whole) == {"predictions/gpt2_hf/small.json", "predictions/gpt2_hf/written.json"}
    halves = [*parts["predictions/gpt2_hf/small_0.json"].values(), *parts["predictions/gpt2_hf/small_1.json"].values()]
    for half, one in zip(halves, whole["predictions/gpt2_hf/small.json"].values(), strict=True):
        for label in ("label: A", "label: B"):  # beside others in a batch a sum has other last digits
            here, there = half.pop(label), one.pop(label)
            assert here["prompt"] == there["prompt"] and here["PPL"] == pytest.approx(there["PPL"])
        assert half == one
    assert parts["predictions/gpt2_hf/written.json"] == whole["predictions/gpt2_hf/written.json"]
    found = tree(debug, "results")
    assert found["results/gpt2_hf/written.json"] == results["results/gpt2_hf/written.json"]
    assert json.loads(found["results/gpt2_hf/small.json"])["items"] == small["items"]
    assert table(debug)[1:] == rows[1:]


def test_a_plan_is_printed_and_nothing_is_written(tour: World) -> None:
    arguments = base("planned", *BOTH, "large", "--limit", "8")
    shown = tour.run(*arguments, "--dry-run").stdout
    assert not (tour.root / "planned").exists()
    assert "infer: 1 task\n  OpenICLInfer[gpt2_hf/small,gpt2_hf/written,gpt2_hf/large]" in shown
    assert "eval: 3 tasks" in shown and shown.count("autoeval.tasks.openicl_eval") == 3
    rows = [line.split() for line in shown.splitlines() if line.startswith("gpt2_hf ")]
    assert rows == [  # items, done, to do, parts, cost
        ["gpt2_hf", "small", "8", "0", "8", "1", "16"],
        ["gpt2_hf", "written", "8", "0", "8", "1", "160"],
        ["gpt2_hf", "large", "8", "0", "8", "1", "16"],
    ]
    assert "cost in all: 192" in shown
    # A plan can be made where neither the model nor all of the data is.
    (tour.root / "config" / "datasets" / "absent.py").write_text(PPL.format(name="absent"))
    result = tour.run(
        "--hf-path", "no-model", "--datasets", "small", "absent", "--dry-run", "--max-partition-size", "9"
    )
    assert "path 'no-model': no such file" in result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("no-model_hf ")]
    assert rows == [["no-model_hf", "small", "20", "0", "20", "5", "40"], ["no-model_hf", "absent", *"?????"]]
    assert "absent: " in result.stdout and "'./data/absent.jsonl' is missing" in result.stdout


def test_an_interrupted_run_goes_on_where_it_stopped(tour: World) -> None:
    (tour.root / "config" / "datasets" / "long.py").write_text(PPL.format(name="long"))
    rows = [{"q": f"{i} jumps over the lazy dog", "gold": "A"} for i in range(3000)]
    (tour.root / "data" / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = base("killed", "--datasets", "small", "long")
    process = subprocess.Popen(
        tour.command("--config-dir", "config", *arguments),
        cwd=tour.root,
        env=tour.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: bool(list((tour.root / "killed").glob("*/predictions/gpt2_hf/tmp_long.json"))), 300)
        (task,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 130 and "interrupted; -r goes on" in errors, errors
    assert not task.is_running()
    run = directory(tour, "killed")
    predictions = run / "predictions" / "gpt2_hf"
    assert (predictions / "small.json").exists() and not (predictions / "long.json").exists()
    done = len(json.loads((predictions / "tmp_long.json").read_text()))
    assert 0 < done < 3000
    first = (predictions / "small.json").stat().st_mtime_ns
    shown = tour.run(*arguments, "-r", "--dry-run").stdout
    assert "infer: 1 task\n  OpenICLInfer[gpt2_hf/long]" in shown
    tour.run(*arguments, "-r")
    assert (
        f"long: {done} of 3000 items are there already" in (run / "logs" / "infer" / "gpt2_hf" / "long.out").read_text()
    )
    assert (predictions / "small.json").stat().st_mtime_ns == first and not (predictions / "tmp_long.json").exists()
    tour.run(*base("undisturbed", "--datasets", "small", "long"))
    other = directory(tour, "undisturbed")
    assert tree(run, "predictions", "results") == tree(other, "predictions", "results") and table(run) == table(other)

    # Data that changed meanwhile is refused, with file and item; nothing is computed.
    rows[2]["q"] += "?"
    (tour.root / "data" / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = tour.run(*arguments, "-r", code=2).stderr
    assert "long.json: item 2 cannot be used again: the row or its in-context examples changed" in refused


def test_what_failed_is_in_the_summary(tour: World) -> None:
    broken = tour.root / "broken"
    broken.mkdir()
    for file in (tour.root / "gpt2").iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    (tour.root / "two.py").write_text(
        "models = [dict(type='HuggingFaceBaseModel', abbr=name, path=name) for name in ('gpt2', 'broken')]\n"
    )
    (tour.root / "config" / "datasets" / "absent.py").write_text(PPL.format(name="absent"))
    result = tour.run("--models", "two.py", "--datasets", "small", "absent", "-w", "failed", "--retry", "0", code=1)
    run = directory(tour, "failed")
    rows = {row[0]: row for row in table(run)}
    assert "±" in rows["small"][4]
    assert rows["small"][5].startswith("missing: inference failed")
    assert "the data './data/absent.jsonl' is missing" in rows["absent"][4]
    summary = next((run / "summary").glob("*.txt")).read_text()
    for text in (summary, result.stderr):
        assert "OpenICLInfer[broken/small,broken/absent] failed with code 1" in text
        assert f"log: {run.relative_to(tour.root) / 'logs' / 'infer' / 'broken' / 'small.out'}" in text
        assert "SafetensorError" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "eval", "--hf-path", "gpt2", "--datasets", "written"), "-m eval needs the run that it is about"),
        (("-m", "viz", "-r", "--hf-path", "gpt2", "--datasets", "written", "-w", "no"), "there is no run in no"),
        (("-r", "20200101_000000", "--hf-path", "gpt2", "--datasets", "written"), "-r 20200101_000000: "),
        (
            ("--dlc", "--aliyun-cfg", "none.cfg", "--hf-path", "gpt2", "--datasets", "written"),
            "none.cfg: No such file or directory; expected the DLC settings",
        ),
        (("--slurm", "--dlc"), "not allowed with argument"),
        (("--slurm",), "--slurm needs -p PARTITION"),
        (("-p", "x"), "-p belongs to --slurm"),
        (("--qos", "high", "--hf-path", "gpt2", "--datasets", "written"), "--qos belongs to --slurm"),
        (("--hf-path", "absent/model/here", "--datasets", "written"), "no such file or directory"),
        (("--hf-path", "gpt2", "--datasets", "writen"), "written"),
        (("--max-num-workers", "0"), "expected a number of at least 1"),
        (("--retry", "often"), "invalid _count value"),
        (("nothing.py",), "nothing.py: no such configuration file"),
        ((), "there are no models"),
    ],
)
def test_a_wrong_command_line_is_told_in_a_line(tour: World, arguments: tuple[str, ...], message: str) -> None:
    result = tour.run(*arguments, code=2)
    assert message in result.stderr and "Traceback" not in result.stderr and result.stdout == ""
    assert not (tour.root / "outputs").exists()


def test_a_list_of_what_there_is(tour: World) -> None:
    (tour.root / "config" / "datasets" / "absent.py").write_text(PPL.format(name="absent"))
    rows = [line.split(maxsplit=3) for line in tour.run("--datasets", "list").stdout.splitlines()]
    assert ["small", "small", "20", "yes"] in rows and ["written", "written", "10", "yes"] in rows
    assert any(row[:3] == ["absent", "absent", "-"] and "is missing" in row[3] for row in rows)


def test_a_chat_model_by_flags(tour: World) -> None:
    tour.run("--hf-path", "chat", "--datasets", "written", "-w", "chatted", "--limit", "3", "--max-out-len", "2")
    records = json.loads((directory(tour, "chatted") / "predictions" / "chat_hf" / "written.json").read_text())
    assert len(records) == 3
    assert all(one["origin_prompt"].startswith("<user>Q: ") for one in records.values())
    assert all(one["origin_prompt"].endswith("A:<assistant>") for one in records.values())


@contextmanager
def lark(messages: list[Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"code": 0}')

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/open-apis/bot/v2/hook/{KEY}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_served_model_with_a_key_and_lark(tour: World, at_once: tuple[Path, str]) -> None:
    backend = Backend(HuggingFaceModel(tour.root / "gpt2", device="cpu"))
    messages: list[Any] = []
    with serving(backend) as url, lark(messages) as hook:
        (tour.root / "served.py").write_text(
            "from mmengine.config import read_base\n"
            "with read_base():\n"
            "    from .config.datasets.small import small_datasets\n"
            "    from .config.datasets.written import written_datasets\n"
            "datasets = [*small_datasets, *written_datasets]\n"
            f"models = [dict(type='OpenAICompletions', abbr='served', path='m', base_url='{url}', key='{KEY}')]\n"
            f"lark_bot_url = '{hook}'\n"
        )
        shown = tour.run("served.py", "-w", "served", "-l")
        # Another address of the same model: its predictions are not used for this one.
        backend.faults = [(401, {}, f"wrong key {KEY}")] * 3
        failed = tour.run("served.py", "-w", "refused", code=1)
    run = directory(tour, "served")
    assert [row[:1] + row[2:] for row in table(run)[1:]] == [row[:1] + row[2:] for row in table(at_once[0])[1:]]
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in backend.seen)
    assert "wrong key ***" in next((directory(tour, "refused") / "summary").glob("*.txt")).read_text()
    written = [file for work in ("served", "refused") for file in (tour.root / work).rglob("*") if file.is_file()]
    assert written and not [file for file in written if KEY.encode() in file.read_bytes()]
    assert KEY not in shown.stdout + shown.stderr + failed.stdout + failed.stderr
    texts = [json.dumps(message, ensure_ascii=False) for message in messages]
    assert "'s task has been launched!" in texts[0] and "Great news: all tasks finished!" in texts[1]
    assert len(texts) == 4 and f"详细评测汇总已输出至 {run / 'summary'}" in texts[3]


def test_the_process_list_has_no_secret(tour: World) -> None:
    """The key is in the environment of the task alone, which other users cannot read."""
    backend = Backend(HuggingFaceModel(tour.root / "gpt2", device="cpu"))
    with serving(backend) as url:
        backend.lock.acquire()  # the server answers only when we say so
        (tour.root / "held.py").write_text(
            f"models = [dict(type='OpenAICompletions', abbr='served', path='m', base_url='{url}', key='{KEY}')]\n"
        )
        process = subprocess.Popen(
            tour.command("--config-dir", "config", "--models", "held.py", "--datasets", "written", "-w", "held"),
            cwd=tour.root,
            env=tour.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: bool(backend.seen), 300)
            everyone = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
            assert len(everyone) > 1
            assert not [pid for pid in everyone if KEY in " ".join(psutil.Process(pid).cmdline())]
            backend.lock.release()
            assert process.wait(90) == 0
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
