"""Measures memory and duration of generation for models of several sizes: what autoeval/estimates.py is fitted to.

    python benchmarks/estimates.py --output eval/measured_runs.json

Each run is a process of its own (its peak memory is its own), on one thread of the CPU. The seconds are CPU seconds, so
that other work on the machine disturbs little; the machine's rates are measured just before and just after.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = {"3M": (128, 4, 4), "11M": (256, 6, 4), "29M": (384, 8, 6), "60M": (512, 12, 8)}  # hidden, layers, heads
LOADS = [(16, 32, 16), (16, 256, 8), (8, 64, 64), (32, 128, 32)]  # items, prompt tokens, generated tokens
VOCABULARY = 8000


def make_model(directory: Path, hidden: int, layers: int, heads: int) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(directory)


def measure(directory: Path, items: int, prompt: int, generated: int) -> dict[str, Any]:
    """In a fresh process: one run, every item generating to the full."""
    import random

    import torch

    torch.set_num_threads(1)
    from autoeval.estimates import Workload, measure_machine, run_entry, size_of
    from autoeval.models.hf import HuggingFaceModel
    from autoeval.models.requests import GenerationRequest

    size = size_of(directory)
    before = measure_machine()
    base = resident()
    model = HuggingFaceModel(directory, device="cpu")
    model.stop_ids = frozenset()
    draw = random.Random(0)
    prompts = [tuple(draw.randrange(2, VOCABULARY) for _ in range(prompt)) for _ in range(items)]
    requests = [GenerationRequest(one, generated, min_new_tokens=generated) for one in prompts]
    model.generate([GenerationRequest(prompts[0][:4], 2)])  # first calls initialise libraries
    started = time.process_time()
    model.generate(requests)
    seconds = time.process_time() - started
    after = measure_machine()
    machine = before if before.flops > after.flops else after
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    work = Workload(items, prompt, generated, rows=items, batch_tokens=model.batch_tokens)
    return run_entry(size, work, machine, seconds=round(seconds, 4), bytes=peak - base)


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--one", nargs=4, metavar=("DIRECTORY", "ITEMS", "PROMPT", "GENERATED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Path(options.one[0]), *map(int, options.one[1:]))))
        return
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SIZES.items():
            make_model(Path(folder, name), *shape)
            for load in LOADS:
                command = [sys.executable, __file__, "--output", "-", "--one", str(Path(folder, name)), *map(str, load)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                runs.append({"name": name, **json.loads(answer.splitlines()[-1])})
                print(f"{name} {load}: {runs[-1]['seconds']} s, {runs[-1]['bytes'] / 1e6:.0f} MB", file=sys.stderr)
    from autoeval.estimates import calibrate
    from recorder.files import write_json

    write_json(options.output, {"runs": runs})
    print(calibrate(runs))


if __name__ == "__main__":
    main()
