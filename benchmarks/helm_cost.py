"""What HELM costs: HELM's own command line beside our path, in CPU seconds, pair by pair.

    OMP_NUM_THREADS=1 python benchmarks/helm_cost.py [--data ../shared/data] [--model gpt2] [--pairs 3] [--json FILE] [hellaswag …]

A random GPT-2 (fp32, CPU, GPT-2's vocabulary) answers the same instances in both. A line of the table:

- *HELM*: the whole process of ``helm-run`` for one run spec, as it is needed for every checkpoint;
- *cold*: the whole process of ours for the first checkpoint, with all imports (as the daemon's worker does them), loading
  and building of prompts;
- *next*: what a further checkpoint costs in that process, with loading the model, as in the daemon's worker;
- *besides*: of *next*, what was neither loading nor the model's work, and how much of that HELM's own metrics took;
- *tokens*: of all prompts, and how many of them the model computed: no more is to be had from sharing alone.

With ``--again``, the file also has the same run a second time in either process, without loading: HELM's in
``helm_again``, ours in ``again``. The table has medians; ratios are those of the pairs, and their median is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = {
    # Of all MMLU's tokens one in 7.3 is distinct. These share as much, and (almost the least of all subjects) one in 5.7.
    "mmlu_college_mathematics": "mmlu:subject=college_mathematics,method=multiple_choice_joint",
    "mmlu_anatomy": "mmlu:subject=anatomy,method=multiple_choice_joint",
    "hellaswag": "commonsense:dataset=hellaswag,method=multiple_choice_separate_original",
    "narrative_qa": "narrative_qa:max_train_instances=1",
    "gsm": "gsm:max_train_instances=3",
}
GENERATED = ("narrative_qa", "gsm")
SHAPES = {  # layers, width, heads
    "small": (6, 384, 6),
    "gpt2": (12, 768, 12),
}


def make_model(data: Path, path: Path, shape: str, seed: int) -> None:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary, merges = (next((data / "tokenizers").rglob(name)) for name in ("*vocab.json", "*merges.txt"))
    bpe = ByteLevelBPETokenizer.from_file(str(vocabulary), str(merges))
    special = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=special, bos_token=special, model_max_length=1024
    )
    torch.manual_seed(seed)
    layers, width, heads = SHAPES[shape]
    GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=layers, n_head=heads)).save_pretrained(path)
    tokenizer.save_pretrained(path)


def helm_process(entry: str, instances: int, output: Path, model: Path, again: bool) -> dict[str, float]:
    """In a process of its own: ``helm-run``, and perhaps once more."""
    from helm.benchmark import run

    spent = []
    for suite in ("helm", "helm-again")[: 1 + again]:
        sys.argv = [
            "helm-run", "-r", f"{entry},model=huggingface/{model.name}", "--suite", suite, "-m", str(instances),
            "-o", str(output), "--disable-cache", "-n", "1", "--exit-on-error",
            "--enable-local-huggingface-models", str(model),
        ]  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr):
            run.main()
        spent.append(time.process_time())
    return {"helm": spent[0], **({"helm_again": spent[1] - spent[0]} if again else {})}


def timed(owner: type, name: str, spent: dict[str, float]) -> None:
    """Count the CPU seconds of a method under its name."""
    original = getattr(owner, name)

    def method(*arguments, **keywords):
        before = time.process_time()
        try:
            return original(*arguments, **keywords)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - before

    setattr(owner, name, method)


def our_process(entry: str, instances: int, output: Path, models: list[Path], again: bool) -> dict[str, float]:
    """In a process of its own: two checkpoints, and perhaps the second once more."""
    from autoeval.helm import imports
    from autoeval.tasks.worker import warm_up

    warm_up()
    imports.finish()
    imported = time.process_time()
    from autoeval.helm.run import run_helm_task
    from autoeval.helm.spec import HelmTask
    from autoeval.models.hf import HuggingFaceModel

    spent: dict[str, float] = {}
    for name in ("loglikelihoods", "generate"):
        timed(HuggingFaceModel, name, spent)
    task = HelmTask("task", "version", (entry,), (), instances)
    found: dict[str, float] = {}
    for path in models:
        started = time.process_time()
        spent.clear()
        model = HuggingFaceModel(path, dtype="float32", device="cpu")
        loaded = time.process_time()
        run_helm_task(task, model, model_name=path.name, output_path=output, suite="ours")
        done = time.process_time()
        asked = spent.get("loglikelihoods", 0.0) + spent.get("generate", 0.0)
        if not found:
            from helm.benchmark.metrics.metric import Metric
            from helm.benchmark.metrics.reference_metric import ReferenceMetric

            for metric in (Metric, ReferenceMetric):
                timed(metric, "evaluate", spent)
            found = {"ours": done, "imports": imported, "prompt_tokens": model.cost.prompt_tokens}
            found["computed_tokens"] = model.cost.computed_tokens - model.cost.generated_tokens
        else:
            found |= {"next": done - started, "next_model": asked, "next_load": loaded - started}
            found |= {"besides": done - loaded - asked, "metrics": spent["evaluate"]}
    if again:
        started = time.process_time()
        run_helm_task(task, model, model_name="again", output_path=output, suite="ours")
        found["again"] = time.process_time() - started
    return found


def measured(mode: str, entry: str, instances: int, output: Path, models: list[Path], again: bool) -> dict[str, float]:
    command = [sys.executable, __file__, *(["--again"] if again else []), "--instances", str(instances)]
    command += [f"--{mode}", entry, str(output)]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "NLTK_DATA": str(output / "nltk_data"),
    }  # fmt: skip
    done = subprocess.run(
        [*command, *map(str, models)], cwd=output, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, options: argparse.Namespace, output: Path, models: list[Path]) -> dict[str, object]:
    """All pairs of one scenario; which of the two comes first alternates."""
    instances = options.generated_instances if name in GENERATED else options.instances
    pairs = []
    for number in range(options.pairs):
        pair: dict[str, float] = {}
        for mode in ("theirs", "ours") if number % 2 == 0 else ("ours", "theirs"):
            for folder in ("runs", "prompts"):
                shutil.rmtree(output / folder, ignore_errors=True)
            pair |= measured(
                mode, ENTRIES[name], instances, output, models if mode == "ours" else models[:1], options.again
            )
        pairs.append(pair)
    middle = {key: statistics.median(pair[key] for pair in pairs) for key in pairs[0]}
    ratio = {
        f"helm/{ours}": statistics.median(pair[theirs] / pair[ours] for pair in pairs)
        for theirs, ours in (("helm", "ours"), ("helm", "next"), ("helm_again", "again"))
        if ours in middle
    }
    return {"name": name, "instances": instances, "pairs": pairs, "median": middle, "ratio": ratio}


def row(result: dict) -> str:
    middle, ratio = result["median"], result["ratio"]
    cells = [
        f"{result['name']}, {result['instances']}", *(f"{middle[key]:.1f}" for key in ("helm", "ours")),
        f"**{ratio['helm/ours']:.1f}**", f"{middle['next']:.1f}", f"**{ratio['helm/next']:.1f}**",
        f"{middle['besides']:.2f} ({middle['metrics']:.2f})",
        f"{middle['prompt_tokens']:.0f}, {middle['computed_tokens']:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    name = names[0] if names else "CPU"
    return f"{name}, {os.cpu_count()} cores, one thread, load {os.getloadavg()[0]:.1f}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def write(options: argparse.Namespace, results: list[dict]) -> None:
    versions = {name: version(name) for name in ("crfm-helm", "torch", "transformers")}
    shape = dict(zip(("layers", "width", "heads"), SHAPES[options.model], strict=True))
    content = {"model": shape, "unit": "CPU seconds", "machine": machine(), "versions": versions, "results": results}
    options.json.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="HELM's own cost beside ours, in CPU seconds")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--model", choices=SHAPES, default="gpt2", help="shape of the random model")
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--generated-instances", type=int, default=20, help="of narrative_qa and gsm")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="also measure a second run in either process")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--ours", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--theirs", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", default=list(ENTRIES), help=f"of {', '.join(ENTRIES)}")
    options = parser.parse_args()
    if options.ours or options.theirs:
        entry, output, *models = options.ours or options.theirs
        paths = [Path(model) for model in models]
        found = (
            our_process(entry, options.instances, Path(output), paths, options.again)
            if options.ours
            else helm_process(entry, options.instances, Path(output), paths[0], options.again)
        )
        print(json.dumps(found))
        return
    if unknown := sorted(set(options.names) - set(ENTRIES)):
        parser.error(f"no such scenario: {', '.join(unknown)}")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        shutil.copytree(options.data / "helm_scenarios", output / "scenarios")
        shutil.copytree(options.data / "nltk_data", output / "nltk_data")
        models = [output / "first", output / "second"]
        for seed, path in enumerate(models):
            make_model(options.data, path, options.model, seed)
        print(machine())
        print("| run, instances | HELM | cold | ratio | next | ratio | besides (HELM's metrics) | tokens |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for name in options.names:
            results.append(compare(name, options, output, models))
            print(row(results[-1]), flush=True)
            if options.json:
                write(options, results)


if __name__ == "__main__":
    main()
