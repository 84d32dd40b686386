"""What it costs to evaluate a task in shares: CPU seconds and computed tokens beside those of the undivided task, pair by pair.

    OMP_NUM_THREADS=1 python benchmarks/shares.py [--data ../shared/data] [--items 400] [--shares 8 40] [--pairs 3] [--json FILE]

A random GPT-2 (fp32, CPU, GPT-2's vocabulary; ``--width``, ``--layers``) answers hellaswag (ranked, no examples) and a subject
of MMLU (ranked, five examples). Both ways end with predictions and result on disk; the shares are evaluated one after the
other in one process, with their files, so that all that differs is what shares cost. A line of the table:

- *ratio*: CPU seconds in shares over those of the whole, the median of the pairs;
- *a share*: the difference, by share, in milliseconds: what dealing out so finely costs whatever the model;
- *tokens*: unique tokens in shares over those of the whole: what cuts compute again;
- *spread*: the longest share's seconds over what its weight promised.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TASKS = {"hellaswag": "hellaswag_ppl", "mmlu": "mmlu_available_ppl"}


def make_model(data: Path, path: Path, width: int, layers: int) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    words = data / "tokenizers" / "gpt2"
    GPT2TokenizerFast(vocab=str(words / "vocab.json"), merges=str(words / "merges.txt")).save_pretrained(path)
    torch.manual_seed(0)
    config: Any = GPT2Config(n_embd=width, n_layer=layers, n_head=max(1, width // 64))
    GPT2LMHeadModel(config).save_pretrained(path)


class Bench:
    """One task on the loaded model."""

    def __init__(self, model: Any, model_path: Path, task: Any, directory: Path) -> None:
        from autoeval.checkpoints import fingerprint
        from autoeval.tasks.plan import EvaluationPlan, TaskPlan
        from autoeval.tasks.work import Work
        from recorder.results import CheckpointRef

        self._model = model
        self._work = Work(task.name, task.version, "icl", task)
        ref = CheckpointRef("m", 1, fingerprint(model_path), str(model_path))
        where = str(directory / "m" / "iter_0000001")
        self._plan = EvaluationPlan(ref, "huggingface", str(model_path), where, str(directory / "logs"), TaskPlan())

    def whole(self) -> tuple[float, float]:
        """CPU seconds, unique tokens."""
        from autoeval.openicl.asking import records_of
        from autoeval.tasks.icl import ask_icl_task, icl_outcome
        from autoeval.tasks.metering import Meter
        from autoeval.tasks.work import Outcome, record

        began, meter = time.process_time(), Meter(self._model)
        found = icl_outcome(self._work.task, records_of(ask_icl_task(self._work.task, self._model), self._model))
        cost = meter.read().cost()
        record(self._plan, self._work, Outcome(found.predictions, found.scores, found.items), cost)
        return time.process_time() - began, cost["unique_tokens"]

    def shares(self, weights: list[float]) -> tuple[float, float, list[float]]:
        """CPU seconds, unique tokens, the seconds of each share."""
        from autoeval.tasks.shares import Cut
        from autoeval.tasks.sharing import SharedTask
        from autoeval.tasks.work import record

        began = time.process_time()
        shared = SharedTask(self._plan, self._work, Cut(self._work.name, tuple(weights)))
        self._plan.result_path(self._work.name).unlink(missing_ok=True)
        each = []
        for name in shared.cut.names:
            started = time.process_time()
            shared.keep(name, shared.evaluate(name, self._model))
            each.append(time.process_time() - started)
        outcome, cost = shared.joined(self._model)
        record(self._plan, self._work, outcome, cost)
        return time.process_time() - began, cost["unique_tokens"], each


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("AUTOEVAL_DATA", ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--shares", type=int, nargs="+", default=[8, 40])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from autoeval.models.hf import HuggingFaceModel
    from autoeval.partitioners.balanced import factored
    from autoeval.tasks.cutting import most_shares
    from autoeval.tasks.icl import load_icl_tasks

    rows = []
    print(f"{'task':<28}{'items':>6}{'shares':>7}{'most':>6}{'ratio':>7}{'a share':>10}{'tokens':>8}{'spread':>8}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model")
        make_model(options.data, path, options.width, options.layers)
        model = HuggingFaceModel(path, dtype="float32", device="cpu")
        for kind, config in TASKS.items():
            task = load_icl_tasks([config], data_dir=options.data / "opencompass", limit=options.items)[0]
            for count in options.shares:
                weights = factored(1.0, max(1, count // 5), least=0.0, most=count)
                bench = Bench(model, path, task, Path(directory, kind))
                bench.whole()  # buffers, caches
                pairs = [(bench.whole(), bench.shares(weights)) for _ in range(options.pairs)]
                ratio = statistics.median(shares[0] / whole[0] for whole, shares in pairs)
                each = statistics.median((shares[0] - whole[0]) / len(weights) for whole, shares in pairs)
                tokens = pairs[0][1][1] / pairs[0][0][1]
                seconds = [statistics.median(shares[2][i] for _, shares in pairs) for i in range(len(weights))]
                promised = [sum(seconds) * weight / sum(weights) for weight in weights]
                spread = max(got / want for got, want in zip(seconds[1:], promised[1:], strict=True))
                row = {"task": task.name, "items": len(task.samples), "shares": len(weights), "most": most_shares(task)}
                row |= {"ratio": ratio, "share_ms": 1000 * each, "tokens": tokens, "spread": spread}
                rows.append(row)
                print(
                    f"{task.name:<28}{row['items']:>6}{row['shares']:>7}{row['most']:>6}{ratio:>7.3f}"
                    f"{1000 * each:>8.1f}ms{tokens:>8.3f}{spread:>8.2f}",
                    flush=True,
                )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
