"""The demo of a real run: its files can be used as they are, and its training data is Megatron's."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autoeval.config import load_config
from autoeval.helm.spec import load_helm_tasks
from recorder.baselines import load_baselines

DEMO = Path(__file__).resolve().parents[2] / "demos" / "auto_eval_helm"


@pytest.fixture(scope="module")
def preprocess() -> Any:
    spec = importlib.util.spec_from_file_location("auto_eval_helm_preprocess", DEMO / "preprocess.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_asks_for_what_the_short_spec_has_and_the_baselines_report() -> None:
    (config,) = load_config(DEMO / "evaluator.yaml")
    assert config.helm is not None and config.helm.benchmarks is not None
    tasks = load_helm_tasks(config.helm.helm_spec_template_path, eval_instances=config.helm.eval_instances)
    wanted = {benchmark.name: benchmark.metrics for benchmark in config.helm.benchmarks}
    assert sorted(wanted) == sorted(task.name for task in tasks) == ["boolq", "hellaswag", "mmlu", "narrative_qa"]
    llama, gpt_j, gpt_neox = load_baselines(DEMO / "baselines.yaml")
    assert len(llama.values) == 16 and set(gpt_neox.values) == set(gpt_j.values) == set(llama.values)
    assert {f"{name}.{metric}" for name, metrics in wanted.items() for metric in metrics} <= set(llama.values)


def test_jsonl_becomes_what_megatron_trains_on(preprocess: Any, tiny_models: tuple[Path, Path], tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models[0])
    texts = ["the quick brown fox", "yes or no", ""]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "\n")
    count, tokens = preprocess.write_dataset(corpus, tmp_path / "out" / "corpus", tokenizer)
    assert count == 2
    dataset = indexed.IndexedDataset(str(tmp_path / "out" / "corpus_text_document"))
    assert [tokenizer.decode(document) for document in dataset] == [text + "<|endoftext|>" for text in texts[:2]]
    assert sum(len(document) for document in dataset) == tokens
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "corpus_text_document.bin", "corpus_text_document.idx",
    ]  # fmt: skip


def test_a_line_that_is_no_document_is_named_and_nothing_is_left(
    preprocess: Any, tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("megatron.core.datasets.indexed_dataset")
    from transformers import AutoTokenizer

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "yes"}\n{"txt": "no"}\n')
    with pytest.raises(ValueError, match=r"corpus\.jsonl:2: .*'text'"):
        preprocess.write_dataset(corpus, tmp_path / "out" / "c", AutoTokenizer.from_pretrained(tiny_models[0]))
    assert list((tmp_path / "out").iterdir()) == []


def test_the_training_script_says_what_it_misses(tmp_path: Path) -> None:
    script = str(DEMO / "pretrain_example.sh")
    environment = {"PATH": "/usr/bin:/bin", "MEGATRON_HOME": str(tmp_path)}
    done = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "setup_megatron.sh --scripts" in done.stderr
    (tmp_path / "pretrain_gpt.py").touch()
    environment["DATA_PATH"] = str(tmp_path / "corpus")
    done = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and f"{tmp_path / 'corpus'}.bin does not exist" in done.stderr


def test_relative_paths_of_the_training_script_start_where_it_was_called(tmp_path: Path) -> None:
    (tmp_path / "megatron").mkdir()
    for name in ("megatron/pretrain_gpt.py", "corpus.bin", "corpus.idx", "vocab.json", "merges.txt"):
        (tmp_path / name).touch()
    environment = {
        "PATH": "/usr/bin:/bin", "MEGATRON_HOME": "megatron", "DATA_PATH": "corpus", "VOCAB_FILE": "vocab.json",
        "MERGE_FILE": "./merges.txt", "CHECKPOINT_PATH": "check points",
    }  # fmt: skip
    script = [str(DEMO / "pretrain_example.sh"), "--dry-run", "--log-interval", "1"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert not (tmp_path / "check points").exists()
    words = shlex.split(done.stdout)
    assert words[:4] == ["cd", str(tmp_path / "megatron"), "&&", "torchrun"] and words[-2:] == ["--log-interval", "1"]
    given = {option: words[place + 1] for place, option in enumerate(words[:-1]) if option.startswith("--")}
    assert given["--save"] == given["--load"] == str(tmp_path / "check points")
    assert given["--data-path"] == str(tmp_path / "corpus")
    assert given["--vocab-file"] == str(tmp_path / "vocab.json") and given["--merge-file"] == str(
        tmp_path / "merges.txt"
    )
    assert (given["--train-iters"], given["--save-interval"]) == ("200000", "2000")
