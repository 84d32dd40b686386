"""What HELM costs: its own command line beside our path, in CPU seconds of whole processes, and of a second checkpoint.

    OMP_NUM_THREADS=1 python benchmarks/helm_cost.py --data ../shared/data [--instances 100] [mmlu hellaswag …]

A random GPT-2 (6 layers, width 384, GPT-2's vocabulary, fp32, CPU) answers the same instances in both. "ours" loads HELM
and the model too; "second" is what the next checkpoint costs in the same process, its model's work included and its
loading not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = {
    "mmlu": "mmlu:subject=anatomy,method=multiple_choice_joint",
    "hellaswag": "commonsense:dataset=hellaswag,method=multiple_choice_separate_original",
    "narrative_qa": "narrative_qa:max_train_instances=1",
    "gsm": "gsm:max_train_instances=3",
}


def make_model(data: Path, path: Path, seed: int) -> None:
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
    GPT2LMHeadModel(GPT2Config(n_embd=384, n_layer=6, n_head=6)).save_pretrained(path)
    tokenizer.save_pretrained(path)


def ours(entry: str, instances: int, output: Path, models: list[Path]) -> None:
    """In a process of its own: two checkpoints, the second timed."""
    from autoeval.helm.run import run_helm_task
    from autoeval.helm.spec import HelmTask
    from autoeval.models.hf import HuggingFaceModel

    class Timed(HuggingFaceModel):
        """Counts the CPU seconds of its answers."""

        spent = 0.0

        def loglikelihoods(self, requests):
            return self._timed(super().loglikelihoods, requests)

        def generate(self, requests):
            return self._timed(super().generate, requests)

        def _timed(self, method, requests):
            before = time.process_time()
            answers = method(requests)
            self.spent += time.process_time() - before
            return answers

    task = HelmTask("task", "version", (entry,), (), instances)
    for path in models:
        model = Timed(path, dtype="float32", device="cpu")
        before = time.process_time()
        run_helm_task(task, model, model_name=path.name, output_path=output, suite="ours")
        print(f"{time.process_time() - before:.2f} {model.spent:.2f}", flush=True)


def cpu_seconds(command: list[str], output: Path) -> tuple[float, str]:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "NLTK_DATA": str(output / "nltk_data"),
    }  # fmt: skip
    before = os.times()
    done = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return after.children_user + after.children_system - before.children_user - before.children_system, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="HELM's own cost beside ours")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--ours", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", default=list(ENTRIES))
    options = parser.parse_args()
    if options.ours:
        entry, output, *models = options.ours
        ours(entry, options.instances, Path(output), [Path(model) for model in models])
        return
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        shutil.copytree(options.data / "helm_scenarios", output / "scenarios")
        shutil.copytree(options.data / "nltk_data", output / "nltk_data")
        models = [output / "first", output / "second"]
        for seed, path in enumerate(models):
            make_model(options.data, path, seed)
        print(
            "| run | HELM, CPU s | ours, CPU s | ratio | second: CPU s | of it the model |\n|---|---|---|---|---|---|"
        )
        for name in options.names:
            helm_run = [
                str(Path(sys.executable).with_name("helm-run")), "-r", f"{ENTRIES[name]},model=huggingface/first",
                "--suite", "helm", "-m", str(options.instances), "-o", str(output), "--disable-cache", "-n", "1",
                "--exit-on-error", "--enable-local-huggingface-models", str(models[0]),
            ]  # fmt: skip
            theirs, _ = cpu_seconds(helm_run, output)
            mine = [sys.executable, __file__, "--instances", str(options.instances), "--ours", ENTRIES[name]]
            both, printed = cpu_seconds([*mine, str(output), *map(str, models)], output)
            second, inside = map(float, printed.split()[-2:])
            first = both - second
            print(
                f"| {name} | {theirs:.1f} | {first:.1f} | {theirs / first:.1f} | {second:.2f} | {inside:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
