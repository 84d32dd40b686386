"""How fast and how lean a conversion is: against `cp` of the same bytes, and against the classic way.

    python benchmarks/convert.py [--megabytes 512] [--repeats 5] [--directory DIR] [--cold] [--no-classic]

Makes a real bfloat16 Llama with megatron-core, saved by Megatron's code in both layouts (legacy with AdamW's moments
and fp32 master weights beside it), then measures in turns, so that what else runs on the machine hits all alike:

    cp           `cp` of the converted model's files            cp+sync      the same, and on the disk
    torch        our convert() of the legacy layout, on the disk
    torch_dist   our convert() of the torch_dist layout, on the disk
    classic      torch.load of the whole legacy file, a transformers model, save_pretrained, on the disk

Each runs in a process of its own whose imports are done before the clock starts. Memory is what the process had beyond
its imports: all resident pages (VmHWM), and anonymous ones (RssAnon, sampled), which the system cannot take back.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME))
MB = 1_000_000


def main() -> int:
    options = _options()
    if options.child:
        print(json.dumps(CHILDREN[options.child](Path(options.source), Path(options.output))))
        return 0
    with tempfile.TemporaryDirectory(prefix="convert-benchmark-", dir=options.directory) as name:
        here = Path(name)
        _child("write", here, here, options.megabytes)
        layouts = {layout: here / layout / "iter_0000010" for layout in ("torch", "torch_dist")}
        model = here / "hf"
        _child("convert", layouts["torch"], model)
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        print(f"{size / MB:.0f} MB of bfloat16 weights; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for layout, source in layouts.items():
            whole = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
            print(f"  {layout} checkpoint: {whole / MB:.0f} MB")
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "cp": lambda: _copy(model, here / "copy", sync=False),
            "cp+sync": lambda: _copy(model, here / "copy", sync=True),
            **{name: (lambda s=s: _child("convert", s, here / "made")) for name, s in layouts.items()},
        }
        if not options.no_classic:
            ways["classic"] = lambda: _child("classic", layouts["torch"], here / "made")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                shutil.rmtree(here / "made", ignore_errors=True)
                os.sync()
                if options.cold:
                    _forget(model, *layouts.values())
                found[name].append(way())
            print(
                "  turn:", ", ".join(f"{name} {runs[-1]['seconds']:.2f} s" for name, runs in found.items()), flush=True
            )
        _print(found, size)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512, help="of weights, about")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where; default: the temporary directory")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each run")
    parser.add_argument("--no-classic", action="store_true")
    parser.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    return parser.parse_args()


def _print(found: dict[str, list[dict[str, float]]], size: int) -> None:
    print(f"\n{'':12} {'seconds':>8} {'MB/s':>6} {'RSS MB':>7} {'anon MB':>8}   speed against cp, cp+sync, classic")
    for name, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        memory = [f"{max(run[key] for run in runs) / MB:.0f}" if key in runs[0] else "" for key in ("rss", "anonymous")]
        line = f"{name:12} {seconds:8.2f} {size / MB / seconds:6.0f} {memory[0]:>7} {memory[1]:>8}  "
        for other in ("cp", "cp+sync", "classic"):
            if other in found:
                ratios = [b["seconds"] / a["seconds"] for a, b in zip(runs, found[other], strict=True)]
                line += f" {statistics.median(ratios):.2f} [{min(ratios):.2f} to {max(ratios):.2f}]"
        print(line)


def _copy(source: Path, target: Path, *, sync: bool) -> dict[str, float]:
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    if sync:
        subprocess.run(["sync", *map(str, target.iterdir())], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return {"seconds": seconds}


def _forget(*directories: Path) -> None:
    for path in (path for directory in directories for path in directory.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _child(what: str, source: Path, output: Path, megabytes: int = 0) -> dict[str, float]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--child",
        what,
        "--source",
        str(source),
        "--output",
        str(output),
    ]
    ran = subprocess.run(
        [*command, "--megabytes", str(megabytes)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"{what}: {ran.stderr[-3000:]}")
    measured: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return measured


@contextmanager
def _measured() -> Iterator[dict[str, float]]:
    """Seconds, and the growth of resident and anonymous memory in bytes."""
    result: dict[str, float] = {}
    done = threading.Event()
    before = _status("RssAnon")
    highest = [before]

    def watch() -> None:
        while not done.wait(0.02):
            highest.append(max(highest.pop(), _status("RssAnon")))

    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    resident = _status("VmHWM")
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    yield result
    result["seconds"] = time.perf_counter() - started
    done.set()
    watcher.join()
    result["rss"] = _status("VmHWM") - resident
    result["anonymous"] = highest[0] - before


def _status(key: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024


def write(directory: Path, _output: Path) -> dict[str, float]:
    """The checkpoints, in both layouts. The model is trained for one step, so that the optimizer has its moments."""
    import torch

    from autoeval.convert import megatron_cpu

    parameters = int(sys.argv[sys.argv.index("--megabytes") + 1]) * MB // 2
    hidden, ffn, vocabulary = 1024, 2816, 32000
    layer = hidden * (hidden + 2 * hidden // 4 + hidden) + 3 * hidden * ffn
    args = megatron_cpu.gpt_args(
        num_layers=max(1, (parameters - 2 * vocabulary * hidden) // layer), hidden_size=hidden, ffn_hidden_size=ffn,
        num_attention_heads=16, group_query_attention=True, num_query_groups=4, swiglu=True, normalization="RMSNorm",
        position_embedding_type="rope", add_bias_linear=False, untie_embeddings_and_output_weights=True,
        padded_vocab_size=vocabulary, max_position_embeddings=2048, seq_length=2048, bf16=True,
        params_dtype=torch.bfloat16,
    )  # fmt: skip
    megatron_cpu.initialize()
    model = megatron_cpu.build_gpt(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    master = [parameter.detach().clone() for parameter in model.parameters()]
    model.to(torch.bfloat16)
    megatron_cpu.save_legacy(directory / "torch", 10, model, args, _MixedPrecision(optimizer, master))
    megatron_cpu.save_torch_dist(directory / "torch_dist", 10, model, args)
    return {}


class _MixedPrecision:
    """What Megatron's mixed-precision optimizer saves: the inner optimizer, and the weights in fp32."""

    def __init__(self, optimizer: Any, master: list[Any]):
        self._optimizer, self._master = optimizer, master

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict(), "fp32_from_fp16_params": [self._master]}


def convert(source: Path, output: Path) -> dict[str, float]:
    from transformers import GenerationConfig

    from autoeval.convert import convert, planned_bytes

    assert GenerationConfig
    planned_bytes(source)  # loads all that a worker has loaded since its first checkpoint
    with _measured() as result:
        convert(source, output, tokenizer=None)
    return result


def classic(source: Path, output: Path) -> dict[str, float]:
    import argparse

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with _measured() as result:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(source / "mp_rank_00/model_optim_rng.pt", map_location="cpu", weights_only=True)
        args, weights = state["args"], state["model"]
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=args.padded_vocab_size, hidden_size=args.hidden_size, intermediate_size=args.ffn_hidden_size,
                num_hidden_layers=args.num_layers, num_attention_heads=args.num_attention_heads,
                num_key_value_heads=args.num_query_groups, max_position_embeddings=args.max_position_embeddings,
                rms_norm_eps=args.norm_epsilon, tie_word_embeddings=False, dtype=torch.bfloat16,
            )
        ).to(torch.bfloat16)  # fmt: skip
        model.load_state_dict(_mapped(weights, args))
        model.save_pretrained(output)
        subprocess.run(["sync", *map(str, output.iterdir())], check=True)
    return result


def _mapped(weights: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    groups, size = args.num_query_groups, args.kv_channels
    queries = args.num_attention_heads // groups
    made = {
        "model.embed_tokens.weight": weights["embedding.word_embeddings.weight"],
        "model.norm.weight": weights["decoder.final_layernorm.weight"],
        "lm_head.weight": weights["output_layer.weight"],
    }
    for i in range(args.num_layers):
        layer = {key.removeprefix(f"decoder.layers.{i}."): w for key, w in weights.items() if f".layers.{i}." in key}
        fused = layer["self_attention.linear_qkv.weight"].view(groups, queries + 2, size, -1)
        gate, up = layer["mlp.linear_fc1.weight"].chunk(2)
        for name, tensor in {
            "input_layernorm": layer["input_layernorm.weight"],
            "self_attn.q_proj": fused[:, :queries].reshape(-1, args.hidden_size),
            "self_attn.k_proj": fused[:, queries].reshape(-1, args.hidden_size),
            "self_attn.v_proj": fused[:, queries + 1].reshape(-1, args.hidden_size),
            "self_attn.o_proj": layer["self_attention.linear_proj.weight"],
            "post_attention_layernorm": layer["pre_mlp_layernorm.weight"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer["mlp.linear_fc2.weight"],
        }.items():
            made[f"model.layers.{i}.{name}.weight"] = tensor
    return made


CHILDREN = {"write": write, "convert": convert, "classic": classic}

if __name__ == "__main__":
    sys.exit(main())
