"""From a checkpoint's last byte to its scores in the ledger: how long, and how much of it the model computes.

    python benchmarks/checkpoint_latency.py [--checkpoints 4] [--items 200] [--backlog 3] [--json FILE] [--directory DIR]

Real checkpoints (megatron-core, torch_dist, fp32, GPT-2 style: 8 layers, d = 384, vocabulary 50,257) are delivered file
by file, the mark last, to a save directory that the real daemon watches. Each comes when the one before is in the
ledger, so it finds a daemon that has nothing to do and a worker that is loaded: the second and later ones count. Then
``--backlog`` checkpoints come at once, and the seconds from one's scores to the next one's are measured: what of their
conversion does not hide behind the evaluation of the one before shows there. With ``--backlog 0`` none come.

Tasks: five-shot MMLU and zero-shot HellaSwag, ``--items`` of each, from AUTOEVAL_DATA; without it, questions of the same
shape from random words. "model" is the time of the model's answers (``seconds`` in every result's cost). One thread
unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("AUTOEVAL_DATA", HOME.parent / "shared" / "data"))
MARKS = (".metadata", "metadata.json")
INTERVAL = 100

SAVES = """
import sys, torch
from autoeval.convert import megatron_cpu as cpu
cpu.initialize()
arguments = cpu.gpt_args(num_layers=8, hidden_size=384, num_attention_heads=6, padded_vocab_size=50304,
                         max_position_embeddings=1024, seq_length=1024)
model = cpu.build_gpt(arguments)
for number in range(1, int(sys.argv[2]) + 1):
    torch.manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    cpu.save_torch_dist(sys.argv[1], number * 100, model, arguments)
"""

CONFIG = """
auto_eval:
  project_name: latency
  model_name: gpt2-33m
  work_dir: out
  megatron:
    checkpoint_path: checkpoints
    tokenizer_type: {tokenizer}
    {files}
  icl: {{datasets: [{datasets}], data_dir: {data}, limit: {items}}}
  wandb: {{mode: disabled}}
  order: oldest-first
  model: {{verify: never, device: {device}}}
"""

OWN_DATASET = """
own_datasets = [
    dict(
        abbr=name,
        type='JsonlDataset',
        path=r'{file}',
        reader_cfg=dict(input_columns=['question', 'choices'], output_column='answer', choices_column='choices'),
        infer_cfg=dict(
            prompt_template=dict(type='PromptTemplate', template='{{question}}'),
            retriever=dict(type='ZeroRetriever'),
            inferencer=dict(type='LLInferencer'),
        ),
        eval_cfg=dict(evaluator=dict(type='AccEvaluator')),
    )
    for name in ('words',)
]
"""


def main() -> int:
    options = _options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="latency-", dir=options.directory) as name:
        project = Path(name)
        total = options.checkpoints + options.backlog
        _python("-c", SAVES, str(project / "saves"), str(total))
        tasks = _write_project(project, options)
        with _daemon(project, total) as alive:
            rows = [_one(project, number * INTERVAL, alive) for number in range(1, options.checkpoints + 1)]
            gaps = _backlog(project, options.checkpoints, total, alive)
        _tell(rows, gaps, tasks, options)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=4, help="that come one after the other")
    parser.add_argument("--backlog", type=int, default=3, help="that come at once, afterwards")
    parser.add_argument("--items", type=int, default=200, help="of each task")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--directory", type=Path, help="where; default: the temporary directory")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.checkpoints < 2:
        parser.error("--checkpoints: expected at least 2; the first one is not counted")
    return options


def _python(*arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HOME), "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])


def _write_project(project: Path, options: argparse.Namespace) -> str:
    """evaluator.yaml with what it names; what the tasks are called."""
    tokens = DATA / "tokenizers" / "gpt2"
    if (DATA / "opencompass" / "mmlu").is_dir() and tokens.is_dir():
        tokenizer, files = "gpt2", f"vocab_path: {tokens / 'vocab.json'}\n    merge_path: {tokens / 'merges.txt'}"
        datasets, data, told = (
            "mmlu_available_ppl, hellaswag_ppl",
            DATA / "opencompass",
            "MMLU 5-shot and HellaSwag 0-shot",
        )
    else:
        sys.path.insert(0, str(HOME))
        from tests.tiny_models import save_tiny_tokenizer

        save_tiny_tokenizer(project / "tokenizer")
        tokenizer, files = "huggingface", "tokenizer_path: tokenizer"
        _write_words(project, options.items)
        datasets, data, told = "./own.py", project, "questions from random words (no AUTOEVAL_DATA)"
    settings = {"tokenizer": tokenizer, "files": files, "datasets": datasets, "data": data}
    text = CONFIG.format(**settings, items=options.items, device=options.device)
    (project / "evaluator.yaml").write_text(text, encoding="utf-8")
    (project / "checkpoints").mkdir()
    return told


def _write_words(project: Path, count: int) -> None:
    draw = random.Random(0)

    def words(number: int) -> str:
        return " ".join("".join(draw.choices("abcdefghij", k=draw.randrange(2, 8))) for _ in range(number))

    heads = [words(60) for _ in range(max(1, count // 20))]
    items = [
        {"question": f"{heads[n % len(heads)]}\n{words(12)}", "choices": [words(4) for _ in range(4)], "answer": 0}
        for n in range(count)
    ]
    (project / "words.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    (project / "own.py").write_text(OWN_DATASET.format(file=project / "words.jsonl"), encoding="utf-8")


@contextlib.contextmanager
def _daemon(project: Path, total: int) -> Iterator[Callable[[], None]]:
    """The daemon at work; what is yielded ends the program when the daemon has ended."""
    command = [sys.executable, "evaluator.py", "--config", str(project / "evaluator.yaml"), "--begin-iteration"]
    command += [str(INTERVAL), "--iteration-interval", str(INTERVAL), "--end-iteration", str((total + 1) * INTERVAL)]
    with (project / "daemon.err").open("wb") as errors:
        process = subprocess.Popen(command, cwd=HOME, stderr=errors)

    def alive() -> None:
        if process.poll() is not None:
            raise SystemExit((project / "daemon.err").read_text()[-3000:])

    try:
        _wait_until(lambda: "watching" in _log(project), alive)
        yield alive
    finally:
        process.terminate()
        process.wait()


def _wait_until(condition: Callable[[], bool], alive: Callable[[], None]) -> None:
    while not condition():
        alive()
        time.sleep(0.05)


def _log(project: Path) -> str:
    path = project / "out" / "logs" / "daemon.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _deliver(project: Path, iteration: int) -> float:
    """Write a save as Megatron does, its marks last; the Unix time of the last byte."""
    source = project / "saves" / f"iter_{iteration:07d}"
    target = project / "checkpoints" / source.name
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for name in sorted(files, key=lambda name: name.name in MARKS):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    (project / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(iteration), encoding="ascii")
    return time.time()


def _query(project: Path, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    path = project / "out" / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(query, parameters).fetchall()


def _state(project: Path, iteration: int) -> str:
    rows = _query(project, "SELECT state, error FROM checkpoints WHERE iteration = ?", iteration)
    if rows and rows[0][0] in ("failed", "missed"):
        raise SystemExit(f"iteration {iteration} {rows[0][0]}: {rows[0][1]}")
    return rows[0][0] if rows else ""


def _scored_at(project: Path, iteration: int) -> tuple[float, float]:
    """When the first and the last of the checkpoint's scores were in the ledger, Unix time."""
    times = [at for (at,) in _query(project, "SELECT recorded_at FROM scores WHERE iteration = ?", iteration)]
    return min(times), max(times)


def _one(project: Path, iteration: int, alive: Callable[[], None]) -> dict[str, float]:
    """Deliver a checkpoint and measure; all in seconds."""
    last_byte = _deliver(project, iteration)
    _wait_until(lambda: _state(project, iteration) == "recorded", alive)
    _wait_until(lambda: _log(project).count("are up to date") >= iteration // INTERVAL, alive)  # views: in nobody's way
    (found,) = _query(project, "SELECT found_at FROM checkpoint_rows WHERE iteration = ?", iteration)
    query = "SELECT seconds, wall_seconds, computed_tokens FROM checkpoint_costs WHERE iteration = ?"
    ((model, tasks, tokens),) = _query(project, query, iteration)
    pattern = rf"iteration {iteration}: converted in ([\d.]+) s"
    first, last = _scored_at(project, iteration)
    row = {
        "latency": last - last_byte,
        "first_score": first - last_byte,
        "noticed": found[0] - last_byte,
        "conversion": float(re.findall(pattern, _log(project))[-1]),
        "model": model,
        "prompts_and_metrics": tasks - model,
        "tokens": tokens,
    }
    parts = ("noticed", "conversion", "model", "prompts_and_metrics")
    row["other"] = row["latency"] - sum(row[name] for name in parts)
    row["share"] = model / row["latency"]
    print(f"  iteration {iteration}: {row['latency']:.2f} s, {row['share']:.0%} of it the model", flush=True)
    return row


def _backlog(project: Path, known: int, total: int, alive: Callable[[], None]) -> list[dict[str, float]]:
    """Of checkpoints that wait for one another: seconds from one's last score to the next one's, and the model's."""
    iterations = [number * INTERVAL for number in range(known + 1, total + 1)]
    for iteration in iterations:
        _deliver(project, iteration)
    _wait_until(lambda: all(_state(project, iteration) in ("evaluated", "recorded") for iteration in iterations), alive)
    gaps = []
    for before, iteration in itertools.pairwise(iterations):
        gap = _scored_at(project, iteration)[1] - _scored_at(project, before)[1]
        ((model,),) = _query(project, "SELECT seconds FROM checkpoint_costs WHERE iteration = ?", iteration)
        gaps.append({"seconds": gap, "model": model, "share": model / gap})
    return gaps


def _tell(
    rows: Sequence[dict[str, float]], gaps: Sequence[dict[str, float]], tasks: str, options: argparse.Namespace
) -> None:
    later = rows[1:]
    median = {name: statistics.median(row[name] for row in later) for name in rows[0]}
    print(f"\n{tasks}, {options.items} items of each; 33 M parameters, fp32, {options.device}, ", end="")
    print(f"{os.environ['OMP_NUM_THREADS']} thread(s), {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| seconds | first checkpoint | later ones, median | share |\n|---|---|---|---|")
    names = {
        "noticed": "last byte to noticed", "conversion": "conversion, weights into the module", "model": "the model",
        "prompts_and_metrics": "prompts and metrics", "other": "all else: loading, files, ledger, messages",
        "latency": "last byte to the last score in the ledger", "first_score": "… to the first score",
    }  # fmt: skip
    for name, told in names.items():
        print(f"| {told} | {rows[0][name]:.2f} | {median[name]:.2f} | {median[name] / median['latency']:.1%} |")
    if gaps:
        seconds, share = (statistics.median(gap[name] for gap in gaps) for name in ("seconds", "share"))
        print(f"\n{options.backlog} that came at once: {seconds:.2f} s from one's scores to the next one's, ", end="")
        print(f"{share:.1%} of it the model.")
    if options.json:
        content = {"tasks": tasks, "items": options.items, "rows": rows, "median": median, "backlog": gaps}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
