"""A model directory comes from a hub: loading it runs no code of it and reads nothing beside it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "tests"))

from tiny_models import save_tiny_model, save_tiny_tokenizer  # noqa: E402

from autoeval.models.loading import load_model  # noqa: E402


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    return tmp_path / "proof"


@pytest.fixture
def copy(whole: Path, tmp_path: Path, proof: Path) -> Path:
    """A model with code of its own beside it, which leaves ``proof`` when it runs."""
    directory = tmp_path / "model"
    shutil.copytree(whole, directory)
    code = f"open({str(proof)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
    (directory / "own.py").write_text(code)
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(code + "def generate(*_, **__): pass\n")
    return directory


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


AUTO_MAP = {
    "AutoConfig": "own.Config",
    "AutoModelForCausalLM": "own.Model",
    "AutoTokenizer": ["own.Tokenizer", None],
}


def test_code_that_an_unknown_model_brings_is_refused(copy: Path, proof: Path) -> None:
    change(copy / "config.json", auto_map=AUTO_MAP, model_type="unheard-of")
    with pytest.raises(ValueError, match="custom code"):
        load_model(copy)
    assert not proof.exists()


def test_code_that_a_known_model_brings_is_left_alone(copy: Path, proof: Path) -> None:
    change(copy / "config.json", auto_map=AUTO_MAP)
    change(copy / "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="Tokenizer")
    assert type(load_model(copy).model).__module__.startswith("transformers.models.gpt2")
    assert not proof.exists()


def test_trust_remote_code_in_a_configuration_is_told_and_not_obeyed(
    copy: Path, proof: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The key is known, so that OpenCompass's files can be read, and has no effect."""
    from autoeval.tasks.model_configs import build_model

    change(copy / "config.json", auto_map=AUTO_MAP)
    caplog.set_level("INFO")
    trusting = {"trust_remote_code": True}
    build_model(
        {"type": "HuggingFaceBaseModel", "path": str(copy), "model_kwargs": trusting, "tokenizer_kwargs": trusting}
    )
    assert "trust_remote_code has no effect" in caplog.text
    assert not proof.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_from_the_hub_is_refused(copy: Path, key: str) -> None:
    """transformers would download compiled code of that name and run it."""
    change(copy / "config.json", **{key: "someone/fast-attention"})
    with pytest.raises(ValueError, match="'someone/fast-attention', code from the hub"):
        load_model(copy)


def with_index(directory: Path, file: str) -> None:
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "pt") as stored:
        names = list(stored.keys())
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (directory / "model.safetensors").rename(directory.parent / "other.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("absolute", [False, True])
def test_weights_outside_of_the_directory_are_refused(copy: Path, tmp_path: Path, absolute: bool) -> None:
    from autoeval.models.in_place import shapes_in

    with_index(copy, str(tmp_path / "other.safetensors") if absolute else "../other.safetensors")
    with pytest.raises(ValueError, match="is not inside of the model's directory"):
        load_model(copy)
    assert shapes_in(copy) is None  # nor are they read into the module that is loaded already


class Evil:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch '{self.proof}'",)


def zipped(evil: Evil, path: Path) -> None:
    import torch

    torch.save({"transformer.wte.weight": evil}, path)


def plain(evil: Evil, path: Path) -> None:
    path.write_bytes(pickle.dumps(evil))


@pytest.mark.parametrize("write", [zipped, plain])
def test_weights_that_are_a_pickle_run_nothing(copy: Path, proof: Path, write: Callable[[Evil, Path], None]) -> None:
    (copy / "model.safetensors").unlink()
    write(Evil(proof), copy / "pytorch_model.bin")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_model(copy)
    assert not proof.exists()


def test_an_adapter_that_is_a_pickle_or_imports_runs_nothing(whole: Path, tmp_path: Path, proof: Path) -> None:
    """PEFT imports the package that ``megatron_core`` names, if it is told of Megatron."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapter = tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(whole)
    get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)).save_pretrained(adapter)
    change(adapter / "adapter_config.json", base_model_name_or_path=str(whole))
    change(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="antigravity")
    with pytest.raises(ValueError, match="valid prefix"):
        load_model(adapter)
    assert "antigravity" not in sys.modules
    change(adapter / "adapter_config.json", megatron_config=None, megatron_core="megatron.core")
    (adapter / "adapter_model.safetensors").unlink()
    zipped(Evil(proof), adapter / "adapter_model.bin")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_model(adapter)
    assert not proof.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% set x = messages.append(1) %}",
        "{% include '/etc/passwd' %}",
        "{% for x in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_chat_template_cannot_leave_jinjas_sandbox(tmp_path: Path, template: str) -> None:
    """As styles render it: through the tokenizer."""
    from autoeval.openicl.styles import build_style

    tokenizer = save_tiny_tokenizer(tmp_path)
    tokenizer.chat_template = template
    style = build_style(None, tokenizer=tokenizer, chat=True)
    with pytest.raises(Exception, match=r"unsafe|undefined|immutable|no loader|Range too big|has no attribute"):
        style.render([{"role": "HUMAN", "prompt": "Hello"}])


@pytest.mark.slow
def test_a_sentence_transformers_own_modules_are_refused(tmp_path: Path, proof: Path) -> None:
    from autoeval.intents.embedding import Embedder, EmbeddingError

    (tmp_path / "own.py").write_text(f"open({str(proof)!r}, 'w').close()\nclass Model: pass\n")
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Model"}]))
    (tmp_path / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(EmbeddingError):
        Embedder(tmp_path)
    assert not proof.exists()
