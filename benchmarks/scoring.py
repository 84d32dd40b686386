"""The scorer against others on the same model directory and items, in turns: CPU and wall seconds, tokens, agreement.

    python benchmarks/scoring.py [--work mmlu …] [--peers lm_eval …] [--model gpt2|llama] [--items N] [--rounds 3]
                                [--lm-eval SITE_PACKAGES] [--json FILE] [--profile]

Works: ``mmlu`` (5-shot), ``hellaswag`` (0-shot), ``hellaswag5`` (5-shot), ``tnews`` (15 labels), ``generation``
(2-shot gsm8k and boolq questions, 32 tokens). Peers, each against what we do for the same question:

* ``lm_eval``: lm-evaluation-harness's ``HFLM`` at its best batch size (1 for mmlu, else 16, ``--batch``). Where it is
  not in this environment, ``--lm-eval`` names the site-packages that have it: ``pip install --target /tmp/lm_eval
  --no-deps lm_eval==0.4.13 evaluate jsonlines sqlitedict tqdm-multiprocess zstandard word2number more-itertools
  pytablewriter rouge-score``.
* ``opencompass``: whole prompts by their exact perplexity, and ``model.generate``, one at a time (see scoring_peers.py).
* ``helm``: crfm-helm's own ``HuggingFaceClient``: one token after each question of mmlu, the log-probabilities of every
  choice's whole prompt elsewhere. We answer the same ``Request`` objects.
* ``bf16``: ourselves in bf16 against ourselves in fp32.

One process, one thread; each round runs both sides, and ratios are medians of the rounds' ratios. "of limit" is the
time that the machine's matrix product, measured beside, needs for every distinct token in every layer and for the logits
asked for, over the time taken; in brackets without what the last layer need not compute (see ``needed``). Items
are real (AUTOEVAL_DATA), the model's weights random: what a score is worth does not change what it costs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402 - after the path and the environment, here and below
from scoring_items import WORKS, Work, save_model  # noqa: E402
from scoring_peers import Helm, LmEval, Meter, OpenCompass, metered  # noqa: E402

from autoeval.models.hf import HuggingFaceModel  # noqa: E402
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest  # noqa: E402
from autoeval.models.trie import Walk, key_of  # noqa: E402

NEW_TOKENS = 32
TIE = 2e-4  # a decision may differ where the two best are closer than this
PEERS = ("lm_eval", "opencompass", "helm", "bf16")
# Items of a default run, which takes minutes; the slow peers get fewer.
ITEMS = {
    "mmlu": {"lm_eval": 60, "opencompass": 20, "helm": 60},
    "hellaswag": {"lm_eval": 60, "opencompass": 40, "helm": 40},
    "hellaswag5": {"lm_eval": 20, "opencompass": 10, "helm": 10},
    "tnews": {"lm_eval": 20, "opencompass": 15, "helm": 15},
    "generation": {"lm_eval": 100, "opencompass": 60, "helm": 60},
}
Tokens = tuple[int, ...]
Run = Callable[[Meter], Any]


@dataclass
class Pair:
    """Both sides of one row: how each runs, what they must compute, and how their answers are compared."""

    ours: Run
    theirs: Run
    inputs: Sequence[Tokens]
    grown: int
    agree: Callable[[Any, Any], dict[str, Any]]


# --------------------------------------------------------------------------------------------------------- our side


class Ours:
    def __init__(self, directory: Path, dtype: str, budget: int | None) -> None:
        self.model = HuggingFaceModel(directory, device="cpu", dtype=dtype, batch_tokens=budget or "auto")

    def _counted(self, run: Callable[[], Any]) -> Run:
        def counted(meter: Meter) -> Any:
            cost = self.model.cost
            before = cost.computed_tokens, cost.extra.get("logit_positions", 0)
            answers = run()
            meter.tokens += cost.computed_tokens - before[0]
            meter.logits += int(cost.extra["logit_positions"] - before[1])
            return answers

        return counted

    def score(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> Run:
        asked = [LoglikelihoodRequest(*pair) for pair in pairs]
        return self._counted(lambda: [result.logprob for result in self.model.loglikelihoods(asked)])

    def generate(self, prompts: Sequence[Tokens]) -> Run:
        asked = [GenerationRequest(prompt, NEW_TOKENS) for prompt in prompts]
        return self._counted(lambda: [result.text for result in self.model.generate(asked)])

    def helm(self, requests: Sequence[Any]) -> Run:
        from autoeval.helm.engine import answer

        return self._counted(lambda: answer(self.model, requests))


# ------------------------------------------------------------------------------------------------------------ pairs


def pair_of(peer: str, work: str, items: Work, ours: Ours, setting: Setting) -> Pair:
    """What ``peer`` and we do for ``items``."""
    tokenizer, model = ours.model.tokenizer, ours.model.model
    if work == "generation":
        return _generation_pair(peer, items, ours, setting)
    if peer in ("lm_eval", "bf16"):
        pairs = items.pairs(tokenizer)
        inputs = [context + said[:-1] for context, said in pairs]
        if peer == "bf16":
            return Pair(setting.half().score(pairs), ours.score(pairs), inputs, 0, same_scores(items.choices))
        lm = LmEval(model, tokenizer, setting.site, setting.batch or (1 if work == "mmlu" else 16))
        return Pair(ours.score(pairs), metered_run(model, lm.score, pairs), inputs, 0, same_scores(items.choices))
    whole = [tuple(tokenizer(text)["input_ids"]) for text in items.texts()]
    if peer == "opencompass":
        asked = [(text[:1], text[1:]) for text in whole]
        run = metered_run(model, OpenCompass(model, tokenizer).perplexities, whole)
        return Pair(ours.score(asked), run, [text[:-1] for text in whole], 0, same_scores(items.choices))
    helm = setting.helm()
    if work == "mmlu":
        requests = helm.requests(items.contexts, 1)
        inputs = [tuple(tokenizer(text)["input_ids"]) for text in items.contexts]
        return Pair(ours.helm(requests), metered_run(helm.model, helm.answer, requests), inputs, 0, same_answers(0))
    requests = helm.requests(items.texts(), 0)
    inputs = [text[:-1] for text in whole]
    agree = same_answers(items.choices)
    return Pair(ours.helm(requests), metered_run(helm.model, helm.answer, requests), inputs, 0, agree)


def _generation_pair(peer: str, items: Work, ours: Ours, setting: Setting) -> Pair:
    tokenizer, model = ours.model.tokenizer, ours.model.model
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in items.contexts]
    grown = (NEW_TOKENS - 1) * len(prompts)  # a text's first token comes from its prompt
    if peer == "helm":
        helm = setting.helm()
        requests = helm.requests(items.contexts, NEW_TOKENS)
        run = metered_run(helm.model, helm.answer, requests)
        return Pair(ours.helm(requests), run, prompts, grown, same_answers(0))
    if peer == "bf16":
        return Pair(setting.half().generate(prompts), ours.generate(prompts), prompts, grown, same_texts)
    if peer == "opencompass":
        loop = OpenCompass(model, tokenizer)
        run = metered_run(model, lambda asked: loop.generate(asked, NEW_TOKENS), prompts)
    else:
        lm = LmEval(model, tokenizer, setting.site, setting.batch or 16)
        run = metered_run(model, lambda asked: lm.generate(asked, NEW_TOKENS), items.contexts)
    return Pair(ours.generate(prompts), run, prompts, grown, same_texts)


def metered_run(model: Any, run: Callable[[Any], Any], asked: Any) -> Run:
    def counted(meter: Meter) -> Any:
        with metered(model, meter):
            return run(asked)

    return counted


def same_scores(choices: int) -> Callable[[Sequence[float], Sequence[float]], dict[str, Any]]:
    def agree(own: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
        changed = 0
        for start in range(0, len(own), choices):
            here, there = own[start : start + choices], other[start : start + choices]
            chosen = max(range(choices), key=there.__getitem__)
            changed += max(here) - here[chosen] > TIE
        return {
            "max_delta": max(abs(a - b) for a, b in zip(own, other, strict=True)),
            "decisions": changed,
            "of": len(own) // choices,
        }

    return agree


def same_texts(own: Sequence[str], other: Sequence[str]) -> dict[str, Any]:
    return {"texts": sum(a != b for a, b in zip(own, other, strict=True)), "of": len(own)}


def same_answers(choices: int) -> Callable[[Sequence[Any], Sequence[Any]], dict[str, Any]]:
    """HELM's results: with ``choices`` their log-probabilities and what is chosen by them, else their texts.

    The log-probabilities of HELM's greedy texts are no measure: its client gives those at temperature 1e-7, all 0.
    """

    def agree(own: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
        ours, theirs = ([result.completions[0] for result in results] for results in (own, other))
        if not choices:
            return same_texts([one.text for one in ours], [one.text for one in theirs])
        totals = [[sum(token.logprob for token in one.tokens) for one in both] for both in (ours, theirs)]
        return same_scores(choices)(*totals)

    return agree


# ---------------------------------------------------------------------------------------------------- the measurement


class Setting:
    """What several rows share and what is made when a row asks for it."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory, self.site, self.batch, self.budget = directory, options.lm_eval, options.batch, options.budget
        self._helm: Helm | None = None
        self._half: Ours | None = None

    def helm(self) -> Helm:
        self._helm = self._helm or Helm(self.directory)
        return self._helm

    def half(self) -> Ours:
        self._half = self._half or Ours(self.directory, "bfloat16", self.budget)
        return self._half


def matmul_peak() -> float:
    """FLOP per CPU second of a large product in fp32, the best of five."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        torch.mm(a, b)
        seconds.append(time.process_time() - started)
    return 2 * 2048**3 / min(seconds)


def needed(model: Any, inputs: Sequence[Tokens], grown: int, logits: int) -> tuple[float, float]:
    """FLOP for each distinct token of ``inputs``, through all layers with its attention to all before it, ``grown`` more
    tokens after them, and ``logits`` rows of the output projection. Then the least that there is: the last layer of
    ``logits`` tokens only, and of the others its keys and values.
    """
    config = model.config
    layers, width = config.num_hidden_layers, config.hidden_size
    walk = Walk(list({key_of(one): None for one in inputs}))
    seen = sum(int((walk.tokens([one])[1] + 1).sum()) for one in walk.segments(0, walk.size))
    seen += int(grown * statistics.mean(map(len, inputs)))
    tokens = walk.size + grown
    head = model.get_output_embeddings().weight
    vectors = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    body = sum(p.numel() for p in model.parameters() if id(p) not in vectors | {id(head)})
    whole = 2 * (tokens * body + logits * head.numel()) + 4 * width * layers * seen
    shared = getattr(config, "num_key_value_heads", config.num_attention_heads)
    kept = 2 * width * width * shared // config.num_attention_heads  # weights of keys and values
    a_token = 2 * (body // layers - kept) + 4 * width * seen // tokens
    return whole, whole - max(0, tokens - logits) * a_token


def measure(pair: Pair, model: Any, rounds: int) -> dict[str, Any]:
    """Both sides in turns, ``rounds`` times."""
    sides = {"ours": pair.ours, "theirs": pair.theirs}
    cpu: dict[str, list[float]] = {"ours": [], "theirs": []}
    wall: dict[str, list[float]] = {"ours": [], "theirs": []}
    meters: dict[str, Meter] = {}
    answers: dict[str, Any] = {}
    for number in range(rounds):
        for side in sorted(sides, reverse=bool(number % 2)):
            meters[side] = Meter()
            started, clock = time.process_time(), time.perf_counter()
            answers[side] = sides[side](meters[side])
            cpu[side].append(time.process_time() - started)
            wall[side].append(time.perf_counter() - clock)
    peak = matmul_peak()
    whole, least = needed(model, pair.inputs, pair.grown, meters["ours"].logits)
    unique = Walk(list({key_of(one): None for one in pair.inputs})).size + pair.grown
    row: dict[str, Any] = {"unique_tokens": unique, "matmul_flops": peak, "rounds": rounds}
    for side, meter in meters.items():
        row[side] = {
            "cpu_seconds": cpu[side],
            "wall_seconds": wall[side],
            "tokens": meter.tokens,
            "logit_positions": meter.logits,
            "fraction_of_limit": whole / (statistics.median(cpu[side]) * peak),
            "fraction_of_least": least / (statistics.median(cpu[side]) * peak),
        }
    for name, spent in (("cpu", cpu), ("wall", wall)):
        ratios = [other / own for other, own in zip(spent["theirs"], spent["ours"], strict=True)]
        row[f"{name}_ratio"] = statistics.median(ratios)
    return row | {"agreement": pair.agree(answers["ours"], answers["theirs"])}


COLUMNS = (
    "| work, items | against | CPU s, ours / theirs | CPU ratio | wall ratio | tokens, ours / theirs (unique) | logits "
    "| of limit | agreement |"
)


def shown(work: str, items: int, peer: str, row: dict[str, Any]) -> str:
    ours, theirs = row["ours"], row["theirs"]
    agreement = row["agreement"]
    said = [f"max \\|Δ\\| {agreement['max_delta']:.1e}"] if "max_delta" in agreement else []
    counted = [name for name in ("decisions", "texts") if name in agreement]
    said += [f"{agreement[name]} of {agreement['of']} {name} differ" for name in counted]
    return (
        f"| {work}, {items} | {peer} | {statistics.median(ours['cpu_seconds']):.2f} / "
        f"{statistics.median(theirs['cpu_seconds']):.2f} | {row['cpu_ratio']:.1f}× | {row['wall_ratio']:.1f}× | "
        f"{ours['tokens']:,} / {theirs['tokens']:,} ({row['unique_tokens']:,}) | "
        f"{ours['logit_positions']:,} / {theirs['logit_positions']:,} | "
        f"{ours['fraction_of_limit']:.0%} ({ours['fraction_of_least']:.0%}) / {theirs['fraction_of_limit']:.0%} "
        f"({theirs['fraction_of_least']:.0%}) | {', '.join(said)} |"
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS[:3]))
    parser.add_argument("--items", type=int, help="items of every row (default: by work and peer)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="lm_eval's batch size (default: 1 for mmlu, else 16)")
    parser.add_argument("--budget", type=int, help="our tokens a pass")
    parser.add_argument("--model", choices=["gpt2", "llama"], default="gpt2")
    parser.add_argument("--lm-eval", metavar="SITE_PACKAGES", help="where the real lm_eval is installed")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    parser.add_argument("--profile", action="store_true", help="print where our time goes instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="scorer-") as place, torch.inference_mode():
        directory = Path(place)
        save_model(directory, options.model)
        ours, setting = Ours(directory, "float32", options.budget), Setting(directory, options)
        if options.profile:
            profile(ours, options)
            return
        millions = sum(p.numel() for p in ours.model.model.parameters()) / 1e6
        head = f"{options.model}, {millions:.0f} M parameters, fp32, one thread; torch {torch.__version__}; "
        head += f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
        print(f"{head}\n\n{COLUMNS}\n{'|---' * 9}|", flush=True)
        rows = []
        for work in options.work:
            for peer in options.peers:
                items = WORKS[work](ours.model.tokenizer, options.items or ITEMS[work].get(peer, 60))
                row = measure(pair_of(peer, work, items, ours, setting), ours.model.model, options.rounds)
                print(shown(work, len(items.contexts), peer, row), flush=True)
                rows.append({"work": work, "peer": peer, "items": len(items.contexts), **row})
                if options.json:
                    result = {"machine": head, "options": vars(options), "rows": rows}
                    options.json.write_text(json.dumps(result, default=str, indent=1), encoding="utf-8")


def profile(ours: Ours, options: argparse.Namespace) -> None:
    for work in options.work:
        items = WORKS[work](ours.model.tokenizer, options.items or 60)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as kept:
            if work == "generation":
                ours.generate([tuple(ours.model.tokenizer(text)["input_ids"]) for text in items.contexts])(Meter())
            else:
                ours.score(items.pairs(ours.model.tokenizer))(Meter())
        print(work, kept.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=60))


if __name__ == "__main__":
    main()
