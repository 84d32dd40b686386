"""The conversion itself: shards, memory, direct load, and what is left behind when something goes wrong in the middle."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import conversions
import pytest
import torch
from handmade import legacy_checkpoint, small_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from autoeval.convert import (
    ConversionError,
    OutputError,
    SourceChanged,
    convert,
    load_direct,
    planned_bytes,
    read_receipt,
    writer,
)
from autoeval.convert import __main__ as command
from tests import forked

RANK_FILE = "mp_rank_00/model_optim_rng.pt"
TOKENS = torch.arange(96).view(2, 48)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return legacy_checkpoint(tmp_path / "save/iter_0000001", num_layers=2)


@pytest.fixture
def halfway(source: Path, tmp_path: Path) -> Iterator[BaseProcess]:
    """The command line, converting ``source`` to ``tmp_path/out/hf``, half done and waiting."""
    (tmp_path / "out").mkdir()
    told, here = multiprocessing.Pipe()
    arguments = [str(source), str(tmp_path / "out/hf")]
    process = forked.start(conversions.stopping, here, arguments, output=tmp_path / "said.txt")
    here.close()
    assert told.poll(240) and told.recv() == "half", (tmp_path / "said.txt").read_text()
    yield process
    process.kill()
    process.join()


def once(action: Callable[[], object]) -> Callable[[int, int], None]:
    """Calls ``action`` in the middle of the writing."""
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        if done * 2 >= total and not seen:
            seen.append(done)
            action()

    return progress


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def mounted(directory: Path, options: str) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]).returncode == 0


def test_shards_are_those_of_save_pretrained(source: Path, tmp_path: Path) -> None:
    whole = convert(source, tmp_path / "one", tokenizer=None)
    sharded = convert(source, tmp_path / "many", tokenizer=None, max_shard_bytes=150_000)
    assert sharded.checksum == whole.checksum and sharded.parameters == whole.parameters
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 3 and not (tmp_path / "many/model.safetensors").exists()
    one = load_file(tmp_path / "one/model.safetensors")
    stored = {name: file for file in files for name in load_file(tmp_path / "many" / file)}
    assert stored == index["weight_map"] and set(stored) == set(one)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in one.values()) == planned_bytes(source)
    for file in files:  # a tensor above the limit has a file of its own
        tensors = load_file(tmp_path / "many" / file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 150_000
        assert all(torch.equal(tensor, one[name]) for name, tensor in tensors.items())
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "many"))
    assert torch.equal(first(TOKENS).logits, second(TOKENS).logits)
    assert {"config.json", "generation_config.json", "receipt.json"} <= set(left(tmp_path / "many"))


def test_the_bytes_to_be_written_are_known_before(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "hf", tokenizer=small_tokenizer(tmp_path), dtype="bfloat16")
    written = sum(t.nbytes for t in load_file(tmp_path / "hf/model.safetensors").values())
    padding = (384 - 259) * 64 * 2  # of the vocabulary, which the tokenizer cuts
    assert planned_bytes(source, "bfloat16") == written + padding
    assert planned_bytes(source, "float32") == 2 * planned_bytes(source, "float16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_direct_load_is_the_written_model(source: Path, tmp_path: Path, dtype: str) -> None:
    tokenizer = small_tokenizer(tmp_path)
    receipt = convert(source, tmp_path / "out/hf", tokenizer=tokenizer, dtype=dtype)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out/hf")
    direct = load_direct(source, tokenizer=tokenizer, dtype=dtype)
    assert direct.receipt.checksum == receipt.checksum and direct.receipt.fingerprint == receipt.fingerprint
    assert direct.model.dtype == written.dtype and not direct.model.training
    assert torch.equal(direct.model(TOKENS).logits, written(TOKENS).logits)
    assert direct.model.get_input_embeddings().weight is direct.model.get_output_embeddings().weight
    assert direct.tokenizer and direct.tokenizer("hello").input_ids and len(direct.tokenizer) == receipt.vocab_size
    assert left(tmp_path / "out") == ["hf"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "qwen3", "mixtral", "qwen2_moe", "deepseek_v3"])
def test_direct_load_fuses_what_the_module_fuses(
    megatron_world: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    source = megatron_world("single") / case / "torch_dist/iter_0000010"
    convert(source, tmp_path / "hf", tokenizer=None)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert torch.equal(load_direct(source, tokenizer=None).model(TOKENS).logits, written(TOKENS).logits)


@pytest.mark.slow
def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    """A model of 200 MB beside 400 MB of optimizer: neither is ever in memory."""
    big = legacy_checkpoint(
        tmp_path / "iter_0000001", num_layers=16, hidden_size=512, optimizer=[torch.zeros(50_000_000) for _ in "ab"]
    )
    small = legacy_checkpoint(tmp_path / "small/iter_0000001")
    ended = forked.run(conversions.measured, small, big, directory=tmp_path)
    assert ended.code == 0, ended.err
    parameters, grown = map(int, ended.out.split()[-2:])
    assert parameters * 4 > 200e6
    assert grown < 110e6, f"{grown / 1e6:.0f} MB"  # 64 MB of chunks on their way, one tensor of 4 MB and its copy


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_becomes_full_leaves_nothing(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounted(disk, "size=64m"):
        pytest.skip("cannot mount")
    try:

        def fill() -> None:
            with (disk / "other").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
                while stream.write(bytes(1 << 20)):
                    pass

        with pytest.raises(OutputError, match=r"model\.safetensors: cannot be written: No space left on device"):
            convert(source, disk / "hf", tokenizer=None, progress=once(fill))
        assert left(disk) == ["other"]
        (disk / "other").write_bytes(bytes(40 << 20))
        with pytest.raises(
            OutputError, match=r"no space left for the converted model: 0\.00 GB of weights, 0\.03 GB free"
        ):
            convert(source, disk / "hf", tokenizer=None)
        (disk / "other").unlink()
        assert convert(source, disk / "hf", tokenizer=None) == read_receipt(disk / "hf")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_that_may_not_grow_leaves_nothing(source: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with pytest.raises(OutputError, match=r"model\.safetensors: cannot be written: File too large"):
            convert(source, tmp_path / "out/hf", tokenizer=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert left(tmp_path / "out") == []


def _save_again(file: Path) -> None:
    file.write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    "change",
    [_save_again, lambda file: os.truncate(file, 300_000), Path.unlink, lambda file: shutil.rmtree(file.parents[1])],
    ids=["saved again", "truncated", "rank deleted", "deleted"],
)
def test_a_checkpoint_that_changes_while_it_is_read(
    source: Path, tmp_path: Path, change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small a model would be read to its end before the first byte is written.
    monkeypatch.setattr(writer, "_CHUNK", 4096)
    monkeypatch.setattr(writer, "_AHEAD", 1)
    convert(source, tmp_path / "out/hf", tokenizer=None)
    kept = read_receipt(tmp_path / "out/hf")
    _save_again(source / RANK_FILE)
    with pytest.raises(SourceChanged, match="iter_0000001"):
        convert(source, tmp_path / "out/hf", tokenizer=None, progress=once(lambda: change(source / RANK_FILE)))
    assert left(tmp_path / "out") == ["hf"] and read_receipt(tmp_path / "out/hf") == kept


def test_a_conversion_is_reused_wherever_its_checkpoint_is_pinned(source: Path, tmp_path: Path) -> None:
    first = convert(source, tmp_path / "hf", tokenizer=None)
    pin = tmp_path / "pins/iter_0000001.pin"
    shutil.copytree(source, pin, copy_function=os.link)
    shutil.rmtree(source)
    again = convert(pin, tmp_path / "hf", tokenizer=None)
    assert again.created_at == first.created_at and again.source == str(pin) and again == read_receipt(tmp_path / "hf")


def test_a_conversion_is_not_reused_for_another_save_of_model_rng(source: Path, tmp_path: Path) -> None:
    """The rank files of 2022 have another name, and are part of the fingerprint all the same."""
    (source / RANK_FILE).rename((source / RANK_FILE).with_name("model_rng.pt"))
    first = convert(source, tmp_path / "hf", tokenizer=None)
    os.utime(source / "mp_rank_00/model_rng.pt", (1, 1))
    assert convert(source, tmp_path / "hf", tokenizer=None).fingerprint != first.fingerprint
    _save_again(source / "mp_rank_00/model_rng.pt")
    shutil.copy(source / "mp_rank_00/model_rng.pt", source / RANK_FILE)
    with pytest.raises(ConversionError, match="older save"):
        convert(source, tmp_path / "hf", tokenizer=None)


def test_an_output_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/hf: cannot be written: .*/file$"):
        convert(source, tmp_path / "file/hf", tokenizer=None)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/thesis.tex").write_text("years of work")
    with pytest.raises(ConversionError, match="papers: exists and is not a model directory; it is left alone"):
        convert(source, tmp_path / "papers", tokenizer=None)
    assert left(tmp_path / "papers") == ["thesis.tex"] and left(tmp_path) == ["file", "papers", "save"]


def test_a_directory_that_is_read_only_is_named(source: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() == 0 and not mounted(locked, "ro"):  # root may write into any directory
        pytest.skip("cannot mount")
    try:
        with pytest.raises(OutputError, match=r"hf: cannot be written: (Permission denied|Read-only file system)"):
            convert(source, locked / "hf", tokenizer=None)
    finally:
        subprocess.run(["umount", str(locked)], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_conversion_leaves_nothing(halfway: BaseProcess, tmp_path: Path, number: int, code: int) -> None:
    assert any(name.startswith(".hf.partial-") for name in left(tmp_path / "out"))
    os.kill(halfway.pid or 0, number)
    halfway.join(240)
    said = (tmp_path / "said.txt").read_text()
    assert halfway.exitcode == code and "Traceback" not in said, said
    assert left(tmp_path / "out") == []


@pytest.mark.slow
def test_a_killed_conversion_is_swept_by_the_next(halfway: BaseProcess, source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=rf"another conversion is writing here \(process {halfway.pid}\)"):
        convert(source, tmp_path / "out/hf", tokenizer=None)
    halfway.kill()
    halfway.join()
    assert [name[:12] for name in left(tmp_path / "out")] == [".hf.lock", ".hf.partial-"]
    assert read_receipt(tmp_path / "out/hf") is None
    assert convert(source, tmp_path / "out/hf", tokenizer=None) == read_receipt(tmp_path / "out/hf")
    assert left(tmp_path / "out") == ["hf"]


def test_killed_between_the_two_renames(source: Path, tmp_path: Path) -> None:
    """The good model had been put aside and the new one was not there yet: the next start puts it back."""
    receipt = convert(source, tmp_path / "out/hf", tokenizer=None)
    (tmp_path / "out/hf").rename(tmp_path / "out/.hf.old-12345")
    (tmp_path / "out/.hf.partial-12345").mkdir()
    with pytest.raises(ConversionError, match=r"no such directory|vanish"):
        convert(tmp_path / "absent/iter_0000001", tmp_path / "out/hf", tokenizer=None)
    assert convert(source, tmp_path / "out/hf", tokenizer=None) == receipt
    assert left(tmp_path / "out") == ["hf"]


@pytest.mark.slow
def test_the_command_line_says_what_is_wrong(source: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        ended = forked.run(command.main, arguments, directory=tmp_path)
        return ended.code, ended.out, ended.err

    small_tokenizer(tmp_path)
    output = str(tmp_path / "hf")
    code, out, err = run(
        str(source.parent), output, "--iteration", "1", "--max-shard-size", "200KB", "--dtype", "float16",
        "--tokenizer", f"{tmp_path}/vocab.json,{tmp_path}/merges.txt",
    )  # fmt: skip
    assert code == 0 and f"{output}: gpt2, " in out and not err, err
    assert (tmp_path / "hf/model.safetensors.index.json").is_file()
    code, _, err = run(str(source.parent), output)
    assert code == 1 and err.startswith("error: ") and "latest_checkpointed_iteration.txt" in err
    (source.parent / "latest_checkpointed_iteration.txt").write_text("²")
    code, _, err = run(str(source.parent), output)
    assert code == 1 and err.startswith("error: ") and "expected an iteration" in err
    code, _, err = run(str(source), output, "--max-shard-size", "lots")
    assert code == 2 and "expected a size like 5GB" in err
    assert run(str(source), output, "--expected-loss", "2.5")[0] == 2
    for text, expected in (("absent.txt", "no such file"), ("vocab.json", "needs --tokenizer")):
        code, _, err = run(str(source), output, "--expected-loss", "2.5", "--held-out-text", str(tmp_path / text))
        assert code == 2 and expected in err  # before anything is converted
    code, _, err = run(str(source), str(tmp_path / "vocab.json"))
    assert code == 1 and "vocab.json: is not a directory" in err
    code, _, err = run(str(source), str(tmp_path / "new"), "--tokenizer", str(tmp_path / "absent.model"))
    assert code == 1 and "absent.model" in err and not (tmp_path / "new").exists()
    code, _, err = run(str(source.parent), output, "--iteration", "7")
    assert code == 1 and "iter_0000007: there is no such directory" in err
    assert run(str(source.parent), output, "--iteration", "-7")[0] == 2
    assert run(str(source.parent))[0] == 2
    (tmp_path / "the best one").symlink_to(source)  # a checkpoint is known by its files, not by its name
    code, out, err = run(str(tmp_path / "the best one"), str(tmp_path / "new"), "--iteration", "1")
    assert code == 0 and "gpt2" in out, err
