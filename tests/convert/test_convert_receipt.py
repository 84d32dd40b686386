"""What a receipt says is so, and what does not pass its checks is moved away and never used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from handmade import legacy_checkpoint, small_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from autoeval.convert import (
    ConversionError,
    ExpectedLoss,
    Quarantined,
    Receipt,
    check,
    convert,
    held_out_loss,
    read_receipt,
)

TEXT = "The fox said hello to the hens; they held a council of war. " * 12


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return legacy_checkpoint(tmp_path / "save/iter_0000001")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Receipt:
    return convert(source, tmp_path / "hf", tokenizer=small_tokenizer(tmp_path))


def by_hand(directory: Path, ids: torch.Tensor, window: int) -> float:
    """Every token but the first, each predicted from those before it in its window of the training length."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    losses = []
    for position in range(1, len(ids)):
        start = (position - 1) // window * window
        scores = model(ids[start:position].unsqueeze(0)).logits[0, -1].log_softmax(-1)
        losses.append(-float(scores[ids[position]]))
    return sum(losses) / len(losses)


def test_the_loss_is_the_mean_over_windows(made: Receipt, tmp_path: Path, text: Path) -> None:
    ids = torch.tensor(AutoTokenizer.from_pretrained(tmp_path / "hf")(TEXT).input_ids)[:301]
    with torch.no_grad():
        expected = by_hand(tmp_path / "hf", ids, window=128)
    loss, tokens = held_out_loss(tmp_path / "hf", text, max_tokens=300)
    assert tokens == 300 and loss == pytest.approx(expected, abs=1e-5)
    numpy.save(tmp_path / "ids.npy", ids.numpy().astype("uint16"))
    assert held_out_loss(tmp_path / "hf", tmp_path / "ids.npy") == (pytest.approx(expected, abs=1e-5), 300)


def test_a_loss_near_the_runs_own_is_recorded(source: Path, tmp_path: Path, text: Path) -> None:
    tokenizer = small_tokenizer(tmp_path)
    receipt = convert(source, tmp_path / "hf", tokenizer=tokenizer, expected_loss=ExpectedLoss(5.6, text))
    assert receipt == read_receipt(tmp_path / "hf") and receipt.loss
    loss, tokens = held_out_loss(tmp_path / "hf", text)
    assert receipt.loss["loss"] == loss and receipt.loss["tokens"] == tokens and receipt.loss["passed"]
    assert receipt.loss["difference"] == pytest.approx(loss - 5.6)
    before = (tmp_path / "hf/receipt.json").stat().st_mtime_ns
    assert convert(source, tmp_path / "hf", tokenizer=tokenizer, expected_loss=ExpectedLoss(5.6, text)) == receipt
    assert (tmp_path / "hf/receipt.json").stat().st_mtime_ns == before
    text.write_text(TEXT[::-1])  # another text is another question
    other = convert(source, tmp_path / "hf", tokenizer=tokenizer, expected_loss=ExpectedLoss(5.6, text))
    assert other.loss and other.loss["loss"] != loss and other.checksum == receipt.checksum
    assert receipt.loss["limit"] == max(math.log(259) - 5.6, 0) / 2


def test_a_loss_near_chance_quarantines(source: Path, tmp_path: Path, text: Path) -> None:
    """An untrained model is at chance; a run that reported 2.0 did not save it."""
    tokenizer, output = small_tokenizer(tmp_path), tmp_path / "out/hf"
    with pytest.raises(Quarantined, match=r"loss on .*text\.txt is .* above the run's own 2\.000") as caught:
        convert(source, output, tokenizer=tokenizer, expected_loss=ExpectedLoss(2.0, text))
    place = output.with_name("hf.quarantined")
    assert caught.value.directory == place and [path.name for path in output.parent.iterdir()] == [place.name]
    reason = json.loads((place / "quarantined.json").read_text())
    assert "above the run's own" in reason["reason"] and reason["receipt"]["loss"]["passed"] is False
    assert reason["receipt"]["loss"]["limit"] == pytest.approx((math.log(259) - 2.0) / 2)
    assert read_receipt(place) is None and (place / "model.safetensors").is_file()
    generous = ExpectedLoss(2.0, text, tolerance=20.0)
    assert convert(source, output, tokenizer=tokenizer, expected_loss=generous).loss
    with pytest.raises(Quarantined):  # made before, but never checked so strictly
        convert(source, output, tokenizer=tokenizer, expected_loss=ExpectedLoss(2.0, text))
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("absent.txt", None, "absent.txt"),
        ("short.txt", b"h", "1 tokens, expected at least 2"),
        ("bytes.txt", b"\xff\xfe\x00", "utf-8"),
        ("floats.npy", numpy.ones(4), "expected one row of token ids"),
        ("large.npy", numpy.array([1, 2, 300]), "token ids from 1 to 300, the model has 259"),
        ("objects.npy", numpy.array([object()], dtype=object), "objects.npy"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(
    made: Receipt, tmp_path: Path, name: str, content: Any, expected: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        numpy.save(tmp_path / name, content, allow_pickle=True)
    with pytest.raises(ConversionError, match=expected) as caught:
        check(tmp_path / "hf", expected_loss=ExpectedLoss(5.0, tmp_path / name))
    assert name in str(caught.value) and not isinstance(caught.value, Quarantined)
    assert read_receipt(tmp_path / "hf") == made


def test_a_receipt_names_what_it_stands_for(made: Receipt, source: Path, tmp_path: Path) -> None:
    content = json.loads((tmp_path / "hf/receipt.json").read_text())
    assert content["format"] == "autoeval-receipt/1" and content["iteration"] == 1 and content["layout"] == "torch"
    tensors = load_file(tmp_path / "hf/model.safetensors")
    assert content["parameters"] == sum(t.numel() for t in tensors.values())
    assert content["files"]["model.safetensors"] == (tmp_path / "hf/model.safetensors").stat().st_size
    assert set(content["files"]) == {path.name for path in (tmp_path / "hf").iterdir()} - {"receipt.json"}
    other = legacy_checkpoint(tmp_path / "other/iter_0000001", init_method_std=0.01)
    state = torch.load(other / "mp_rank_00/model_optim_rng.pt", weights_only=False)
    state["model"]["decoder.final_layernorm.bias"][0] += 1e-3  # one bit pattern in all of the model
    torch.save(state, other / "mp_rank_00/model_optim_rng.pt")
    again = convert(other, tmp_path / "other_hf", tokenizer=small_tokenizer(tmp_path))
    assert again.checksum != made.checksum and again.parameters == made.parameters
    assert convert(source, tmp_path / "third", tokenizer=small_tokenizer(tmp_path)).checksum == made.checksum


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_weights_that_are_not_numbers(source: Path, tmp_path: Path, value: float, dtype: str) -> None:
    file = source / "mp_rank_00/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    state["model"]["decoder.layers.0.mlp.linear_fc1.weight"][200, 63] = value
    torch.save(state, file)
    with pytest.raises(Quarantined, match=r"h\.0\.mlp\.c_fc\.weight has NaN or infinite weights"):
        convert(source, tmp_path / "out/hf", tokenizer=None, dtype=dtype)
    left = {path.name for path in (tmp_path / "out/hf.quarantined").iterdir()}
    assert "quarantined.json" in left and not any(name.endswith((".safetensors", "receipt.json")) for name in left)


def test_a_weight_too_large_for_the_dtype_is_refused_and_a_large_sum_is_not(source: Path, tmp_path: Path) -> None:
    file = source / "mp_rank_00/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    state["model"]["decoder.layers.0.mlp.linear_fc1.bias"].fill_(60000.0)  # finite in float16, its sum is not
    torch.save(state, file)
    assert convert(source, tmp_path / "hf", tokenizer=None, dtype="float16")
    state["model"]["decoder.layers.0.mlp.linear_fc1.bias"][3] = 70000.0
    torch.save(state, file)
    with pytest.raises(Quarantined, match=r"c_fc\.bias has NaN or infinite weights \(as float16\)"):
        convert(source, tmp_path / "hf16", tokenizer=None, dtype="float16")


@pytest.mark.slow
def test_verification_is_in_the_receipt(megatron_world: Callable[[str], Path], tmp_path: Path) -> None:
    source = megatron_world("single") / "llama/torch_dist/iter_0000010"
    made = convert(source, tmp_path / "hf", tokenizer=None)
    assert made.verified is None
    checked = convert(source, tmp_path / "hf", tokenizer=None, verify=True)
    assert checked == read_receipt(tmp_path / "hf") and checked.created_at == made.created_at
    found = checked.verified
    assert found and found["passed"] and found["argmax_equal"] and found["intact"]
    assert 0 <= found["difference"] <= 1e-4 and found["megatron_version"].startswith("0.")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["one bit of a weight", "the configuration", "so that it answers NaN"])
def test_a_failed_verification_quarantines(megatron_world: Callable[[str], Path], tmp_path: Path, spoil: str) -> None:
    source, output = megatron_world("single") / "llama/torch_dist/iter_0000010", tmp_path / "hf"
    convert(source, output, tokenizer=None)
    if spoil != "one bit of a weight":
        config = json.loads((output / "config.json").read_text())
        if spoil == "the configuration":
            config["rope_parameters"]["rope_theta"] = 10000.0
        else:
            config["rms_norm_eps"] = -100.0
        content = json.dumps(config)
        # The receipt knows the files' sizes only.
        (output / "config.json").write_text(content.ljust((output / "config.json").stat().st_size))
        expected = "verification against Megatron FAILED: largest logit difference"
    else:
        with (output / "model.safetensors").open("r+b") as stream:
            stream.seek(-9000, 2)
            byte = stream.read(1)[0]
            stream.seek(-1, 1)
            stream.write(bytes([byte ^ 1]))
        expected = "the tensors read back differ from the checksum"
    with pytest.raises(Quarantined, match=expected):
        check(output, verify=True)
    reason = json.loads((tmp_path / "hf.quarantined/quarantined.json").read_text())
    assert not output.exists() and reason["receipt"]["verified"]["passed"] is False
