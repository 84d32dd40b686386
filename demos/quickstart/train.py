"""Train a small GPT with the real megatron-core on the CPU, and save checkpoints as Megatron-LM does.

``python demos/quickstart/train.py --language DIR --save DIR`` reads what ``language.py`` wrote. Model, layers and
checkpoints are Megatron's own (``GPTModel``, ``dist_checkpointing``, the ``torch_dist`` layout); the loop, the
optimizer (AdamW, warm-up and cosine) and the log lines (in Megatron-LM's words) are here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

_ROOT = Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:  # as a script, from any directory
    sys.path.insert(0, str(_ROOT))

END_OF_TEXT = "<|endoftext|>"
LAYERS, HIDDEN, HEADS, FFN = 3, 96, 4, 256
# Attention costs a processor the square of the sequence, and a document has some hundred tokens.
SEQUENCE, BATCH, CONTEXT = 128, 16, 256
LEARNING_RATE, WARM_UP, WEIGHT_DECAY, CLIP = 6e-3, 50, 0.05, 1.0


def encode_corpus(language: Path) -> list[int]:
    """The token ids of ``corpus.txt``, documents separated by the end-of-text token."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer(str(language / "vocab.json"), str(language / "merges.txt"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    documents = (language / "corpus.txt").read_text(encoding="utf-8").split(END_OF_TEXT)
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(documents):
        ids += encoding.ids
        ids.append(end)
    return ids


def batches(ids: Sequence[int], seed: int) -> Iterator[tuple[Any, Any]]:
    """For ever: inputs and targets, both ``[BATCH, SEQUENCE]``, from random places of the corpus."""
    import torch

    stream = torch.tensor(ids, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(0, len(stream) - SEQUENCE, (BATCH,), generator=generator)
        windows = torch.stack([stream[start : start + SEQUENCE + 1] for start in starts])
        yield windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def learning_rate(iteration: int, iterations: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    warm = min(1.0, iteration / min(WARM_UP, max(1, iterations // 4)))
    cosine = 0.5 * (1 + math.cos(math.pi * iteration / iterations))
    return LEARNING_RATE * warm * (0.05 + 0.95 * cosine)


def train(arguments: argparse.Namespace, log: TextIO) -> None:
    # megatron-core says several times that Apex and Transformer Engine are missing: on a CPU that is how it should be.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core\..*")
    import torch

    from autoeval.convert import megatron_cpu

    torch.set_num_threads(arguments.threads)
    megatron_cpu.install_cpu_shim()
    megatron_cpu.initialize(seed=arguments.seed)
    torch.manual_seed(arguments.seed)

    ids = encode_corpus(arguments.language)
    vocabulary = len(json.loads((arguments.language / "vocab.json").read_text(encoding="utf-8")))
    args = megatron_cpu.gpt_args(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        ffn_hidden_size=FFN,
        num_attention_heads=HEADS,
        seq_length=SEQUENCE,
        max_position_embeddings=CONTEXT,
        padded_vocab_size=vocabulary,
        position_embedding_type="rope",
        normalization="RMSNorm",
        swiglu=True,
        add_bias_linear=False,
        untie_embeddings_and_output_weights=False,
    )
    model = megatron_cpu.build_gpt(args)
    model.train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _say(log, f" GPTModel: {parameters} parameters, vocabulary {vocabulary}, corpus of {len(ids)} tokens")

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    positions = torch.arange(SEQUENCE).unsqueeze(0).expand(BATCH, -1)
    # Given, because Megatron would make its own causal mask on a GPU. True hides.
    mask = torch.ones(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
    began, losses = time.perf_counter(), []
    data = batches(ids, arguments.seed)
    for iteration in range(1, arguments.iterations + 1):
        rate = learning_rate(iteration, arguments.iterations)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = next(data)
        # torch's cross-entropy: the backward pass of Megatron's own refuses the CPU's in-place changes to the logits.
        logits = model(inputs, positions, mask)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
        if iteration % arguments.log_interval == 0:
            milliseconds = 1000 * (time.perf_counter() - began) / len(losses)
            _say(
                log,
                f" iteration {iteration:8d}/{arguments.iterations:8d} | consumed samples: {iteration * BATCH:12d} |"
                f" elapsed time per iteration (ms): {milliseconds:.1f} | learning rate: {rate:.6E} |"
                f" global batch size: {BATCH:5d} | lm loss: {sum(losses) / len(losses):.6E} | grad norm: {norm:.3f} |",
            )
            began, losses = time.perf_counter(), []
        if iteration % arguments.save_interval == 0 or iteration == arguments.iterations:
            megatron_cpu.save_torch_dist(arguments.save, iteration, model, args)
            _say(log, f"  successfully saved checkpoint from iteration {iteration:7d} to {arguments.save}")
            began = time.perf_counter()  # saving is not training; losses since the last line go on being averaged


def _say(log: TextIO, line: str) -> None:
    for stream in (sys.stdout, log):
        print(line, file=stream, flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the quickstart's GPT with megatron-core on the CPU.")
    parser.add_argument("--language", type=Path, required=True, help="directory that language.py wrote")
    parser.add_argument("--save", type=Path, required=True, help="directory for the checkpoints")
    parser.add_argument("--log", type=Path, help="also write the log lines to this file")
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--save-interval", type=int, default=100)
    parser.add_argument("--log-interval", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1234)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    log_path = arguments.log or arguments.save.parent / "train.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w", encoding="utf-8") as log:
        train(arguments, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
