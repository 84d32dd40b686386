"""Models of a configuration as they are built: adapters, chat templates, directories elsewhere, what is refused."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from autoeval.models.remote import local_directory
from autoeval.tasks.model_configs import build_model, style_of
from autoeval.tasks.openicl import OpenICLEvalTask, OpenICLInferTask
from autoeval.tasks.stored import model_identity
from tests.run.conftest import World


def base(path: Path, **more: Any) -> dict[str, Any]:
    return {"type": "HuggingFaceBaseModel", "abbr": "m", "path": str(path), "device": "cpu", **more}


def test_an_adapter_is_merged(models_directory: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    bare: Any = build_model(base(models_directory / "chat"))
    adapted = get_peft_model(bare.model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path / "lora"))
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        expected = adapted(tokens).logits
    model: Any = build_model(base(models_directory / "chat", peft_path=str(tmp_path / "lora")))
    with torch.no_grad():
        assert torch.allclose(model.model(tokens).logits, expected, atol=1e-4)
        plain: Any = build_model(base(models_directory / "chat"))
        assert not torch.allclose(plain.model(tokens).logits, expected, atol=1e-2)
    with pytest.raises(ValueError, match="the adapter does not fit the model"):
        build_model(base(models_directory / "gpt2", peft_path=str(tmp_path / "lora")))
    with pytest.raises(FileNotFoundError, match="no adapter"):
        build_model(base(models_directory / "gpt2", peft_path=str(tmp_path)))


def test_a_tokenizer_elsewhere_and_the_options_of_hugging_face(models_directory: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(models_directory / "gpt2" / name, tmp_path / name)
    options = {
        "tokenizer_path": str(models_directory / "gpt2"),
        "model_kwargs": {"torch_dtype": "torch.bfloat16", "device_map": "cpu", "trust_remote_code": True},
        "tokenizer_kwargs": {"padding_side": "left"},
        "batch_size": 3,
        "max_seq_len": 100,
    }
    model: Any = build_model({"type": "HuggingFace", "path": str(tmp_path), **options})
    assert model.model.dtype == torch.bfloat16 and model.device.type == "cpu"
    assert (model.batch_tokens, model.max_seq_len) == (300, 100) and model.tokenizer.eos_token == "</s>"
    with pytest.raises(ValueError, match=r"device_map \{'': 0\}: this process sees 0 GPUs"):
        build_model({**base(tmp_path), "device": None, "model_kwargs": {"device_map": {"": 0}}})


def test_chat_models_use_their_template(models_directory: Path) -> None:
    chat = {**base(models_directory / "chat"), "type": "HuggingFacewithChatTemplate"}
    from autoeval.openicl.prompt_template import Turn

    turns = [Turn("be kind", "SYSTEM"), Turn("hello", "HUMAN"), Turn("", "BOT")]
    assert style_of(chat, build_model(chat)).render(turns, generate=True) == "<system>be kind<user>hello<assistant>"
    without = {**chat, "path": str(models_directory / "gpt2")}
    with pytest.raises(ValueError, match="has no chat_template"):
        style_of(without, build_model(without))
    meta = {"round": [{"role": "HUMAN", "begin": "[", "end": "]"}, {"role": "BOT", "begin": ">", "generate": True}]}
    assert style_of({**chat, "meta_template": meta}).render(turns[1:], generate=True) == "[hello]>"


def test_a_model_in_object_storage(models_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOEVAL_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    for file in (models_directory / "gpt2").iterdir():
        store.pipe_file(f"/bucket/gpt2/{file.name}", file.read_bytes())
    store.pipe_file("/bucket/gpt2/optimizer.pt", b"large")
    model: Any = build_model(base(Path("x")) | {"path": "memory://bucket/gpt2"})
    assert model.path.parent == tmp_path / "cache" / "models" and not (model.path / "optimizer.pt").exists()
    assert local_directory("memory://bucket/gpt2") == model.path  # a copy is made once
    store.pipe_file("/bucket/gpt2/generation_config.json", b'{"eos_token_id": 1, "max_length": 77}')
    assert local_directory("memory://bucket/gpt2") != model.path  # the files there are others now
    assert not list((tmp_path / "cache" / "models").glob(".*"))
    with pytest.raises(FileNotFoundError, match="no model files there"):
        local_directory("memory://bucket/none")
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed, and no test before has used it
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ValueError, match=r"s3://bucket/gpt2: .*s3fs"):
        local_directory("s3://bucket/gpt2")
    with pytest.raises(FileNotFoundError, match="neither a directory here nor a model in the Hugging Face cache"):
        local_directory("nobody/no-such-model")


def test_the_identity_of_a_model_is_its_files(models_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(models_directory / "gpt2", tmp_path / "m")
    config = base(tmp_path / "m", batch_size=1)
    before = model_identity(config)
    assert before == model_identity({**config, "batch_size": 8, "abbr": "other", "max_out_len": 3})
    assert before != model_identity({**config, "max_seq_len": 99})
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert before != model_identity(config)
    before = model_identity(config)
    tokenizer = tmp_path / "m" / "tokenizer.json"
    elsewhere = {**config, "tokenizer_path": str(shutil.copy(tokenizer, tmp_path / "t.json"))}
    with_other_tokenizer = model_identity(elsewhere)
    for file in (tokenizer, tmp_path / "t.json"):
        file.write_text(file.read_text() + "\n")
    assert before != model_identity(config) and with_other_tokenizer != model_identity(elsewhere)


def job(world: World, models_directory: Path, *names: str) -> dict[str, Any]:
    from autoeval.run.job import job_dataset
    from autoeval.tasks.configs import read_configs

    datasets = []
    for name in names:
        file = world.root / "config" / "datasets" / f"{name}.py"
        datasets.append(job_dataset(file, read_configs(file)[0].options))
    model = base(models_directory / "gpt2")
    common = {"work_dir": str(world.root / "out"), "data_dir": str(world.root / "data")}
    return {"models": [model], "datasets": [datasets], **common}


def test_tasks_infer_and_evaluate(
    world: World, models_directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(world, models_directory, "small", "written")
    config["models"][0]["meta_template"] = {
        "round": [{"role": "HUMAN", "begin": "[", "end": "]"}, {"role": "BOT", "begin": ">", "generate": True}]
    }
    infer = OpenICLInferTask(config)
    assert infer.name == "OpenICLInfer[m/small,m/written]" and infer.num_gpus == 1
    assert "{task_cmd}" not in infer.get_command("c.json") and "openicl_infer c.json" in infer.get_command("c.json")
    assert infer.get_log_path() == world.root / "out" / "logs" / "infer" / "m" / "small.out"
    assert infer.run() == 0 and all(path.exists() for path in infer.get_output_paths())
    written = json.loads(infer.get_output_paths()[1].read_text())
    assert list(written) == [str(number) for number in range(10)]
    assert written["3"]["origin_prompt"] == "[Q: 3 is the mat on the cat A:]>" and written["3"]["gold"] == "A"
    assert OpenICLEvalTask(config | {"dump_details": True}).run() == 0
    result = json.loads((world.root / "out" / "results" / "m" / "small.json").read_text())
    predictions = json.loads(infer.get_output_paths()[0].read_text())
    right = [
        float(one["prediction"] == row["gold"])
        for one, row in zip(predictions.values(), world.rows("small"), strict=True)
    ]
    assert (
        result["accuracy"] == pytest.approx(100 * sum(right) / 20)
        and list(result["items"]["accuracy"].values()) == right
    )
    assert (result["n"], result["mode"], result["chance"], len(result["version"])) == (20, "ppl", 50.0, 12)
    assert result["details"]["type"] == "PPL" and result["details"]["0"]["references"] == world.rows("small")[0]["gold"]
    details = json.loads((world.root / "out" / "results" / "m" / "written.json").read_text())["details"]
    assert details["type"] == "GEN" and details["3"]["prompt"] == written["3"]["origin_prompt"]

    # One dataset that fails does not take the others with it, and says what is wrong.
    (world.root / "data" / "small.jsonl").write_text('{"q": "x", "gold": "C"}\n')
    (world.root / "out" / "results" / "m" / "written.json").unlink()
    caplog.set_level(logging.ERROR)
    assert OpenICLEvalTask(config).run() == 2
    assert "m/small: " in caplog.text and "small.jsonl:1: 'gold' is 'C'" in caplog.text
    assert (world.root / "out" / "results" / "m" / "written.json").exists()
    config["datasets"][0][0]["abbr"] = "small/1"  # called in the log as its files are: the summary looks for that
    assert OpenICLEvalTask(config).run() == 2 and "m/small_1: " in caplog.text

    tries = []

    def crash(*arguments: Any, **options: Any) -> None:
        tries.append(arguments)
        raise RuntimeError("CUDA is out of memory")

    monkeypatch.setattr("autoeval.tasks.openicl.build_model", crash)
    rows = [json.dumps({"q": "x", "gold": "A"}) for _ in range(3)]
    (world.root / "data" / "small.jsonl").write_text("\n".join(rows))
    (world.root / "out" / "predictions" / "m" / "small.json").unlink()
    large = OpenICLInferTask(job(world, models_directory, "large", "small"))
    assert large.run() == 1 and len(tries) == 1 and "m/large: RuntimeError: CUDA is out of memory" in caplog.text
    assert not large.get_output_paths()[0].exists()
