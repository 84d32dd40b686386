"""The scorer against others: CPU seconds, tokens and agreement on the same model and the same token ids.

    python benchmarks/scoring.py [--work mmlu hellaswag generation ppl] [--items 60] [--rounds 3] [--json FILE]
                                [--lm-eval SITE_PACKAGES] [--batch 1] [--model gpt2|llama] [--profile]

Systems take turns, every round all of them, in one process with one thread; ratios are medians of the rounds' ratios.
With ``--lm-eval`` (the site-packages of an environment with lm_eval, put last on the path) that is the real harness,
``HFLM``. All else that is not ours is written here, and says so in its name:

* ``plain``: rows of similar length, padded; logits only where asked. What this project did before it walked tries.
* ``opencompass-like``: one prompt at a time, logits at all its positions, the loss over it (HuggingFaceCausalLM.get_ppl).
* ``harness-like``: rows of similar length, padded, log-softmax of all logits (``HFLM._loglikelihood_tokens``).
* ``helm-like``: ``model.generate`` one prompt at a time with its scores (``HuggingFaceServer``).

Items come from AUTOEVAL_DATA (MMLU 5-shot, HellaSwag 0-shot, gsm8k and boolq questions, GPT-2's tokenizer); without it
from random tokens of the same shape. The model is random: what a score is worth does not change what it costs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402 - after the path and the environment, here and below

from autoeval.models.hf import HuggingFaceModel  # noqa: E402
from autoeval.models.requests import GenerationRequest, LoglikelihoodRequest  # noqa: E402
from autoeval.models.trie import Walk, key_of  # noqa: E402

DATA = Path(os.environ.get("AUTOEVAL_DATA", HOME.parent / "shared" / "data"))
NEW_TOKENS = 32
TIE = 2e-4  # a decision may differ where the two best are closer than this
Pair = tuple[tuple[int, ...], tuple[int, ...]]  # context, continuation


# ---------------------------------------------------------------------------------------------------- model and items


def save_model(directory: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2TokenizerFast, LlamaConfig

    torch.manual_seed(0)
    if (files := DATA / "tokenizers" / "gpt2").is_dir():
        tokenizer = GPT2TokenizerFast(vocab=str(files / "vocab.json"), merges=str(files / "merges.txt"))
        tokenizer.save_pretrained(directory)
    else:
        from tests.tiny_models import save_tiny_tokenizer

        save_tiny_tokenizer(directory)
    ends = {"bos_token_id": 50256, "eos_token_id": 50256}
    config: Any = GPT2Config(n_layer=8, n_embd=384, n_head=6, **ends)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=50257,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            **ends,
        )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


def mmlu(tokenizer: Any, count: int) -> tuple[list[Pair], int]:
    """Five-shot questions of a few subjects, 20 of each at most; four single-token labels."""
    folder = DATA / "opencompass" / "mmlu"
    if not folder.is_dir():
        return _random_pairs(count, shared=500, own=80, choices=4, length=1, group=20), 4
    texts = []
    for path in sorted((folder / "test").glob("*.csv")):
        subject = path.name.removesuffix("_test.csv")
        shots = list(csv.reader((folder / "dev" / f"{subject}_dev.csv").open(encoding="utf-8")))[:5]
        head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        head += "".join(_question(row) + f" {row[5]}\n\n" for row in shots)
        texts += [head + _question(row) for row in list(csv.reader(path.open(encoding="utf-8")))[:20]]
    texts = [text for text in texts if len(text) < 3600][:count]
    labels = [tuple(tokenizer(" " + label)["input_ids"]) for label in "ABCD"]
    contexts = [tuple(tokenizer(text)["input_ids"])[-1000:] for text in texts]
    return [(context, label) for context in contexts for label in labels], 4


def _question(row: Sequence[str]) -> str:
    return row[0] + "".join(f"\n{label}. {row[n + 1]}" for n, label in enumerate("ABCD")) + "\nAnswer:"


def hellaswag(tokenizer: Any, count: int) -> tuple[list[Pair], int]:
    path = DATA / "opencompass" / "hellaswag" / "hellaswag.jsonl"
    if not path.is_file():
        return _random_pairs(count, shared=0, own=45, choices=4, length=25, group=1), 4
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:count]]
    pairs = []
    for row in rows:
        context = tuple(tokenizer(row["query"])["input_ids"])
        pairs += [(context, tuple(tokenizer(" " + choice)["input_ids"])) for choice in row["choices"]]
    return pairs, 4


def questions(tokenizer: Any, count: int) -> list[tuple[int, ...]]:
    """Two-shot prompts of gsm8k and of boolq in turns."""
    files = [DATA / "opencompass" / name for name in ("gsm8k/test.jsonl", "SuperGLUE/BoolQ/val.jsonl")]
    if not all(path.is_file() for path in files):
        return [context for context, _ in _random_pairs(count, shared=250, own=110, choices=1, length=1, group=count)]
    forms = ("Question: {question}\nAnswer:", "{passage}\nQuestion: {question}?\nAnswer:")
    texts = []
    for path, form in zip(files, forms, strict=True):
        lines = path.read_text(encoding="utf-8").splitlines()[: 2 + (count + 1) // 2]
        rows = [json.loads(line) for line in lines]
        head = "".join(f"{form.format(**row)} {row.get('answer', 'yes')}\n\n" for row in rows[:2])
        texts.append([head + form.format(**row) for row in rows[2:]])
    return [tuple(tokenizer(text)["input_ids"])[:900] for both in zip(*texts, strict=True) for text in both][:count]


def _random_pairs(count: int, *, shared: int, own: int, choices: int, length: int, group: int) -> list[Pair]:
    draw = random.Random(0)

    def some(size: int) -> tuple[int, ...]:
        return tuple(draw.randrange(250) for _ in range(size))

    pairs: list[Pair] = []
    for number in range(count):
        if number % group == 0:
            head = some(shared)
        context = head + some(draw.randrange(own // 2, own * 3 // 2))
        pairs += [(context, some(length)) for _ in range(choices)]
    return pairs


# ------------------------------------------------------------------------------------------------------- the systems


class Meter:
    """Counts what goes through a model's forward: tokens, and positions of logits."""

    def __init__(self) -> None:
        self.tokens = self.logits = 0


def plain(model: Any, pairs: Sequence[Pair], meter: Meter, budget: int = 1024) -> list[float]:
    """Distinct inputs in padded rows; logits where asked, in chunks."""
    rows: dict[tuple[int, ...], list[tuple[int, int, tuple[int, ...]]]] = {}
    for index, (context, continuation) in enumerate(pairs):
        rows.setdefault(context + continuation[:-1], []).append((index, len(context) - 1, continuation))
    waiting, answers = sorted(rows, key=len, reverse=True), [0.0] * len(pairs)
    while waiting:
        batch = waiting[: max(1, budget // len(waiting[0]))]
        del waiting[: len(batch)]
        inputs = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch], batch_first=True)
        hidden = model.get_decoder()(input_ids=inputs, use_cache=False).last_hidden_state
        meter.tokens += inputs.numel()
        for line, row in enumerate(batch):
            places = sorted({first + n for _, first, said in rows[row] for n in range(len(said))})
            logits = model.get_output_embeddings()(hidden[line, places])
            meter.logits += len(places)
            total = torch.logsumexp(logits, dim=-1)
            logits.argmax(dim=-1)
            for index, first, said in rows[row]:
                lines = [places.index(first + n) for n in range(len(said))]
                answers[index] = float((logits[lines, list(said)] - total[lines]).sum())
    return answers


def harness_like(model: Any, pairs: Sequence[Pair], meter: Meter, batch_size: int) -> list[float]:
    """Rows by length, padded on the right; the whole model and log-softmax of everything, one row a distinct input."""
    order = sorted(range(len(pairs)), key=lambda n: len(pairs[n][0]) + len(pairs[n][1]), reverse=True)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in order:
        groups.setdefault(pairs[number][0] + pairs[number][1][:-1], []).append(number)
    rows, answers = list(groups), [0.0] * len(pairs)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        inputs = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch], batch_first=True)
        logprobs = torch.log_softmax(model(inputs).logits, dim=-1)
        meter.tokens, meter.logits = meter.tokens + inputs.numel(), meter.logits + inputs.numel()
        for line, row in enumerate(batch):
            for number in groups[row]:
                context, said = pairs[number]
                table = logprobs[line, len(context) - 1 : len(context) - 1 + len(said)]
                table.argmax(dim=-1)
                answers[number] = float(table[torch.arange(len(said)), list(said)].sum())
    return answers


def opencompass_like(model: Any, texts: Sequence[tuple[int, ...]], meter: Meter) -> list[float]:
    """The perplexity of each text, one at a time: the loss over all its positions."""
    answers = []
    for text in texts:
        inputs = torch.tensor([text])
        logits = model(inputs).logits[..., :-1, :].contiguous()
        loss = torch.nn.CrossEntropyLoss(reduction="none")(logits.view(-1, logits.shape[-1]), inputs[0, 1:])
        meter.tokens, meter.logits = meter.tokens + len(text), meter.logits + len(text)
        answers.append(-float(loss.double().sum()))  # in fp32 the sum itself is off by 5e-4
    return answers


def helm_like(model: Any, prompts: Sequence[tuple[int, ...]], meter: Meter, count: int) -> list[tuple[int, ...]]:
    answers = []
    for prompt in prompts:
        inputs = torch.tensor([prompt])
        made = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        tokens = made.sequences[0, len(prompt) :].tolist()
        for score, token in zip(made.scores, tokens, strict=True):
            torch.log_softmax(score[0], dim=-1)[token].item()
        meter.tokens += len(prompt) + len(tokens) - 1
        meter.logits += len(tokens)
        answers.append(tuple(tokens))
    return answers


def harness(model: HuggingFaceModel, site: str, batch_size: int) -> Any:
    """The real lm-evaluation-harness on the same loaded model."""
    sys.path.append(site)
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=batch_size, device="cpu")


# ---------------------------------------------------------------------------------------------------- the measurement


def matmul_peak() -> float:
    """FLOP per CPU second of a large product in fp32, the best of five."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        torch.mm(a, b)
        seconds.append(time.process_time() - started)
    return 2 * 2048**3 / min(seconds)


def needed(model: HuggingFaceModel, inputs: Sequence[tuple[int, ...]], grown: int, logits: float) -> float:
    """FLOP that cannot be avoided: each distinct token of ``inputs`` through the layers and its attention to all before
    it, ``grown`` more tokens after them, and ``logits`` rows of the output projection.
    """
    walk = Walk(list({key_of(one): None for one in inputs}))
    seen = sum(int((walk.tokens([one])[1] + 1).sum()) for one in walk.segments(0, walk.size))
    seen += grown * statistics.mean(map(len, inputs))
    config = model.model.config
    attention = 4 * config.hidden_size * config.num_hidden_layers * seen
    head = model.model.get_output_embeddings().weight
    vectors = {id(p) for m in model.model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    body = sum(p.numel() for p in model.model.parameters() if id(p) not in vectors | {id(head)})
    return 2 * ((walk.size + grown) * body + logits * head.numel()) + attention


def compare(
    name: str,
    systems: dict[str, Callable[[Meter], Any]],
    rounds: int,
    agree: Callable[[Any, Any], str],
    model: HuggingFaceModel,
    inputs: Sequence[tuple[int, ...]],
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {system: [] for system in systems}
    answers: dict[str, Any] = {}
    meters: dict[str, Meter] = {}
    for _ in range(rounds):
        for system, run in systems.items():
            meters[system] = Meter()
            started = time.process_time()
            answers[system] = run(meters[system])
            seconds[system].append(time.process_time() - started)
    peak = matmul_peak()
    logits = meters["ours"].logits
    grown = logits - len(inputs) if name == "generation" else 0  # the first token of a text comes from its prompt
    flop = needed(model, inputs, grown, logits)
    print(f"\n{name}: {rounds} rounds; the machine's matmul {peak / 1e9:.0f} GFLOP a CPU second")
    print(f"{'system':<18}{'CPU s':>9}{'ours is':>10}{'tokens':>10}{'logits':>10}{'of limit':>10}  agreement")
    table = {}
    for system, spent in seconds.items():
        ratio = statistics.median(other / own for other, own in zip(spent, seconds["ours"], strict=True))
        share = flop / (statistics.median(spent) * peak)
        said = agree(answers["ours"], answers[system])
        meter = meters[system]
        shown = [f"{value:>10,}" if value else f"{'?':>10}" for value in (meter.tokens, meter.logits)]
        print(f"{system:<18}{statistics.median(spent):>9.2f}{ratio:>9.1f}×{''.join(shown)}{share:>10.0%}  {said}")
        table[system] = {
            "cpu_seconds": spent,
            "ratio": ratio,
            "tokens": meter.tokens,
            "logit_positions": meter.logits,
            "fraction_of_limit": share,
            "agreement": said,
        }
    return {"work": name, "peak_flops": peak, "systems": table}


def same_scores(choices: int) -> Callable[[Sequence[float], Sequence[float]], str]:
    def agree(own: Sequence[float], other: Sequence[float]) -> str:
        worst = max(abs(a - b) for a, b in zip(own, other, strict=True))
        changed = 0
        for start in range(0, len(own), choices):
            here, there = own[start : start + choices], other[start : start + choices]
            chosen = max(range(choices), key=there.__getitem__)
            changed += max(here) - here[chosen] > TIE
        return f"max |Δ| {worst:.1e}, {changed} decisions differ"

    return agree


def same_texts(own: Sequence[str], other: Sequence[str]) -> str:
    return f"{sum(a != b for a, b in zip(own, other, strict=True))} of {len(own)} texts differ"


def measure(model: HuggingFaceModel, work: str, options: argparse.Namespace) -> dict[str, Any]:
    def before(meter: Meter) -> None:
        meter.tokens, meter.logits = -model.cost.computed_tokens, -int(model.cost.extra.get("logit_positions", 0))

    def after(meter: Meter) -> None:
        meter.tokens += model.cost.computed_tokens
        meter.logits += int(model.cost.extra["logit_positions"])

    def ours(requests: Sequence[LoglikelihoodRequest]) -> Callable[[Meter], list[float]]:
        def run(meter: Meter) -> list[float]:
            before(meter)
            answers = [result.logprob for result in model.loglikelihoods(requests)]
            after(meter)
            return answers

        return run

    hf, batch = model.model, options.batch or (1 if work == "mmlu" else 16)
    model.cost.extra.clear()
    systems: dict[str, Callable[[Meter], Any]]
    if work == "generation":
        prompts = questions(model.tokenizer, options.items)

        def generate(meter: Meter) -> list[str]:
            before(meter)
            answers = [one.text for one in model.generate([GenerationRequest(p, NEW_TOKENS) for p in prompts])]
            after(meter)
            return answers

        systems = {
            "ours": generate,
            "helm-like": lambda meter: _texts(model, helm_like(hf, prompts, meter, NEW_TOKENS)),
        }
        if options.lm_eval:
            lm = harness(model, options.lm_eval, batch)
            systems[f"lm_eval, batch {batch}"] = lambda meter: _harness_texts(lm, model, prompts)
        return compare(work, systems, options.rounds, same_texts, model, prompts)
    pairs, choices = (hellaswag if work == "hellaswag" else mmlu)(model.tokenizer, options.items)
    if work == "ppl":
        texts = [context + said for context, said in pairs]
        asked = [LoglikelihoodRequest(text[:1], text[1:]) for text in texts]
        systems = {"ours": ours(asked), "opencompass-like": lambda meter: opencompass_like(hf, texts, meter)}
        return compare(
            "mmlu, perplexity of whole prompts",
            systems,
            options.rounds,
            same_scores(choices),
            model,
            [text[:-1] for text in texts],
        )
    systems = {
        "ours": ours([LoglikelihoodRequest(*pair) for pair in pairs]),
        "plain": lambda meter: plain(hf, pairs, meter),
    }
    if options.lm_eval:
        lm = harness(model, options.lm_eval, batch)
        encoded = [(("", str(number)), list(pair[0]), list(pair[1])) for number, pair in enumerate(pairs)]
        systems[f"lm_eval, batch {batch}"] = lambda _: [
            value for value, _ in lm._loglikelihood_tokens(encoded, disable_tqdm=True)
        ]
    else:
        systems[f"harness-like, {batch}"] = lambda meter: harness_like(hf, pairs, meter, batch)
    inputs = [context + said[:-1] for context, said in pairs]
    return compare(work, systems, options.rounds, same_scores(choices), model, inputs)


def _harness_texts(lm: Any, model: HuggingFaceModel, prompts: Sequence[tuple[int, ...]]) -> list[str]:
    from lm_eval.api.instance import Instance

    limits = {"until": [model.tokenizer.eos_token], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    texts = [model.tokenizer.decode(prompt) for prompt in prompts]
    asked = [Instance("generate_until", {}, (text, limits), number) for number, text in enumerate(texts)]
    return lm.generate_until(asked, disable_tqdm=True)


def _texts(model: HuggingFaceModel, written: Sequence[tuple[int, ...]]) -> list[str]:
    return [model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", default=["mmlu", "hellaswag", "generation", "ppl"])
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="the harness's batch size (default: 1 for mmlu, else 16)")
    parser.add_argument("--budget", type=int, help="our tokens a pass")
    parser.add_argument("--model", choices=["gpt2", "llama"], default="gpt2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lm-eval", metavar="SITE_PACKAGES", help="where the real lm_eval is installed")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    parser.add_argument("--profile", action="store_true", help="print where our time goes instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="scorer-") as place, torch.inference_mode():
        save_model(Path(place), options.model)
        model = HuggingFaceModel(place, device="cpu", dtype=options.dtype, batch_tokens=options.budget or "auto")
        parameters = sum(p.numel() for p in model.model.parameters()) / 1e6
        print(f"{options.model}, {parameters:.0f} M parameters, {options.dtype}; torch {torch.__version__}, one thread")
        if options.profile:
            profile(model, options)
            return
        results = [measure(model, work, options) for work in options.work]
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "results": results}, default=str, indent=1))


def profile(model: HuggingFaceModel, options: argparse.Namespace) -> None:
    for work in options.work:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as kept:
            if work == "generation":
                prompts = questions(model.tokenizer, options.items)
                model.generate([GenerationRequest(prompt, NEW_TOKENS) for prompt in prompts])
            else:
                pairs, _ = (hellaswag if work == "hellaswag" else mmlu)(model.tokenizer, options.items)
                model.loglikelihoods([LoglikelihoodRequest(*pair) for pair in pairs])
        print(work, kept.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=60))


if __name__ == "__main__":
    main()
