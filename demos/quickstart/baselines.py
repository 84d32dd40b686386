"""What counting words achieves: the demo's baselines, measured on the same questions as the checkpoints.

``python demos/quickstart/baselines.py [--output baselines.yaml]`` counts n-grams of the demo's corpus (n = 1 and 3),
asks these models everything that ``evaluator.yaml`` asks, through the same code, and writes ``baselines.yaml`` as
``recorder/wandb_writer.py`` and the leaderboard read it. The corpus has a fixed seed, so the numbers do not change.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DEMO = Path(__file__).resolve().parent
_ROOT = _DEMO.parents[1]
if str(_ROOT) not in sys.path:  # as a script, from any directory
    sys.path.insert(0, str(_ROOT))

from autoeval.models.requests import (  # noqa: E402
    Cost,
    GenerationRequest,
    GenerationResult,
    LoglikelihoodRequest,
    LoglikelihoodResult,
)
from demos.quickstart.language import END_OF_TEXT, write_language  # noqa: E402
from demos.quickstart.train import encode_corpus  # noqa: E402
from recorder.files import write_atomic  # noqa: E402
from recorder.statistics import with_spread  # noqa: E402

ORDERS = (1, 3)
WEIGHT = 0.9  # of the longest context seen; the rest goes to the shorter one (Jelinek and Mercer's interpolation)


class NgramModel:
    """Token n-grams, interpolated down to a uniform distribution. A ``LanguageModel`` as ``autoeval.models`` has it."""

    def __init__(self, ids: Sequence[int], order: int, tokenizer: Any):
        self.order, self.tokenizer, self.max_seq_len, self.cost = order, tokenizer, 256, Cost()
        self._vocabulary = len(tokenizer)
        self._end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        self._next: list[dict[tuple[int, ...], Counter[int]]] = [{} for _ in range(order)]
        for position in range(order - 1, len(ids)):
            for length in range(order):
                context = tuple(ids[position - length : position])
                self._next[length].setdefault(context, Counter())[ids[position]] += 1
        self._totals = [{context: n.total() for context, n in table.items()} for table in self._next]

    def probability(self, context: Sequence[int], token: int) -> float:
        value = 1 / self._vocabulary
        for length in range(min(self.order, len(context) + 1)):
            key = tuple(context[len(context) - length :])
            total = self._totals[length].get(key)
            if total:
                value = WEIGHT * self._next[length][key][token] / total + (1 - WEIGHT) * value
        return value

    def likeliest(self, context: Sequence[int]) -> int:
        """The likeliest next token; the longest context that was seen decides."""
        for length in reversed(range(min(self.order, len(context) + 1))):
            counts = self._next[length].get(tuple(context[len(context) - length :]))
            if counts:
                return max(counts, key=lambda token: (counts[token], -token))
        return self._end

    def loglikelihoods(self, requests: Sequence[LoglikelihoodRequest]) -> list[LoglikelihoodResult]:
        results = []
        for request in requests:
            text = list(request.context) or [self._end]
            logprobs, greedy = [], True
            for token in request.continuation:
                greedy = greedy and self.likeliest(text) == token
                logprobs.append(math.log(self.probability(text, token)))
                text.append(token)
            results.append(LoglikelihoodResult(tuple(logprobs), greedy))
        return results

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        return [self._generate(request) for request in requests]

    def _generate(self, request: GenerationRequest) -> GenerationResult:
        written: list[int] = []
        logprobs: list[float] = []
        while len(written) < request.max_new_tokens:
            context = [*request.prompt, *written]
            token = self.likeliest(context)
            text = self.tokenizer.decode([*written, token])
            cuts = [text.index(stop) for stop in request.stop if stop in text]
            if token == self._end or cuts:
                text = text[: min(cuts)] if cuts else self.tokenizer.decode(written)
                return GenerationResult(text, tuple(written), tuple(logprobs), "stop")
            written.append(token)
            logprobs.append(math.log(self.probability(context, token)))
        return GenerationResult(self.tokenizer.decode(written), tuple(written), tuple(logprobs), "length")


def load_tokenizer(language: Path, output: Path) -> Any:
    """The demo's tokenizer as Hugging Face loads it, saved into ``output`` because HELM wants a directory."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    files = ByteLevelBPETokenizer(str(language / "vocab.json"), str(language / "merges.txt"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=files._tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, model_max_length=256
    )
    tokenizer.save_pretrained(str(output))
    return tokenizer


def measure(work: Path) -> list[dict[str, Any]]:
    """One entry of ``evals:`` for each order. ``work`` is an empty directory for the language and HELM's output."""
    from autoeval.config import load_config
    from autoeval.helm.run import run_helm_task
    from autoeval.helm.spec import Benchmark, load_helm_tasks
    from autoeval.tasks.icl import load_icl_tasks, run_icl_task

    language, helm_output = work / "language", work / "helm"
    write_language(language)
    scenario = helm_output / "scenarios" / "custom_mcqa"
    scenario.mkdir(parents=True)
    (scenario / "helm_mcqa.jsonl").write_bytes((language / "helm_mcqa.jsonl").read_bytes())
    tokenizer = load_tokenizer(language, work / "tokenizer")
    config = load_config(_DEMO / "evaluator.yaml")[0]
    assert config.helm is not None and config.icl is not None
    icl_tasks = load_icl_tasks(config.icl.datasets, data_dir=language, limit=config.icl.limit)
    helm_tasks = load_helm_tasks(
        config.helm.helm_spec_template_path,
        eval_instances=config.helm.eval_instances,
        benchmarks=[Benchmark(b.name, tuple(b.metrics)) for b in config.helm.benchmarks or []],
    )
    ids = encode_corpus(language)
    entries = []
    for order in ORDERS:
        model = NgramModel(ids, order, tokenizer)
        name = f"{order}-gram"
        result: dict[str, dict[str, float]] = {}
        for task in icl_tasks:
            result[task.name] = _values(run_icl_task(task, model).scores)
        for helm_task in helm_tasks:
            outcome = run_helm_task(
                helm_task,
                model,
                model_name=name,
                output_path=helm_output,
                suite=name,
            )
            result[helm_task.name] = _values(outcome.scores)
        entries.append(
            {"eval_type": "helm", "source": "file", "model_name": name,
             "token_num": round(len(ids) / 1e9, 9), "eval_result": result}
        )  # fmt: skip
    return entries


def _values(scores: Sequence[Any]) -> dict[str, float]:
    values = {}
    for score in scores:
        values[score.metric] = round(score.value, 4)
        stderr = with_spread(score.value, score.stderr, score.n)
        if stderr is not None:
            values[f"{score.metric}_stderr"] = round(stderr, 4)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    import yaml

    parser = argparse.ArgumentParser(description="Measure the demo's n-gram baselines.")
    parser.add_argument("--output", type=Path, default=_DEMO / "baselines.yaml")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        entries = measure(Path(work))
    header = (
        "# Measured by `python demos/quickstart/baselines.py`: n-gram counts of the demo's corpus, asked the same\n"
        "# questions as the checkpoints through the same code. token_num is in billions.\n"
    )
    content = {"project": "quickstart", "ledger": "run/evaluation/ledger.sqlite", "evals": entries}
    write_atomic(arguments.output, header + yaml.safe_dump(content, sort_keys=False))
    print(f"baselines written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
