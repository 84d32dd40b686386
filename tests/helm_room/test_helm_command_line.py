"""HELM's own command line with our engine: the runner by its name, and the client by model_deployments.yaml."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoeval.helm.run import run_helm_task
from autoeval.helm.spec import HelmTask

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "dyck_language:num_parenthesis_pairs=3"
RUNNER = ("--runner-class-name", "autoeval.helm.runner.BulkRunner")

DEPLOYMENTS = """
model_deployments:
  - name: local/first
    model_name: local/first
    tokenizer_name: local/first-tokenizer
    max_sequence_length: 512
    client_spec:
      class_name: autoeval.helm.runner.EngineClient
      args: {{pretrained_model_name_or_path: {path}, dtype: float32, device: cpu}}
"""
TOKENIZERS = """
tokenizer_configs:
  - name: local/first-tokenizer
    tokenizer_spec:
      class_name: helm.tokenizers.huggingface_tokenizer.HuggingFaceTokenizer
      args: {{pretrained_model_name_or_path: {path}}}
    end_of_text_token: "<|endoftext|>"
    prefix_token: "<|endoftext|>"
"""
METADATA = """
models:
  - {name: local/first, display_name: first, description: a test, creator_organization_name: Local, access: closed,
     release_date: 2026-01-01, tags: [TEXT_MODEL_TAG, PARTIAL_FUNCTIONALITY_TEXT_MODEL_TAG]}
"""


def command(name: str, output: Path, *options: str) -> None:
    """Run one of HELM's commands in a process of its own."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "NLTK_DATA": str(output / "nltk_data"),
    }  # fmt: skip
    done = subprocess.run(
        [str(Path(sys.executable).with_name(name)), "--suite", "s", *options],
        cwd=output, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def helm_run(output: Path, model: str, *options: str, entries: tuple[str, ...] = (ENTRY,)) -> None:
    asked = [f"{entry},model={model}" for entry in entries]
    fixed = ("-m", "4", "-o", str(output), "--disable-cache", "--exit-on-error", "-n", "2")
    command("helm-run", output, "-r", *asked, *fixed, *options)


def configure(directory: Path, model: Path) -> Path:
    """HELM's three files about ``model``, for ``--local-path``."""
    directory.mkdir(parents=True)
    for name, text in (
        ("model_deployments", DEPLOYMENTS.format(path=model)),
        ("tokenizer_configs", TOKENIZERS.format(path=model)),
        ("model_metadata", METADATA),
    ):
        (directory / f"{name}.yaml").write_text(text)
    return directory


def only_run(output: Path) -> Path:
    (directory,) = (output / "runs" / "s").glob("dyck_language*")
    return directory


def answers(directory: Path) -> list[tuple[str, str, float]]:
    states = json.loads((directory / "scenario_state.json").read_text())["request_states"]
    completions = [(state["request"]["prompt"], state["result"]["completions"][0]) for state in states]
    return [(prompt, completion["text"], round(completion["logprob"], 4)) for prompt, completion in completions]


def test_helm_run_with_our_runner_or_our_client_gives_what_the_daemon_gets(
    tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    from autoeval.models.hf import HuggingFaceModel

    path = tiny_models[0]
    model = HuggingFaceModel(path, dtype="float32", device="cpu")
    run_helm_task(
        HelmTask("dyck_language", "v", (ENTRY,), (), 4), model,
        model_name="first", output_path=tmp_path / "daemon", suite="s",
    )  # fmt: skip
    (daemon,) = (tmp_path / "daemon" / "runs" / "s").glob("dyck_language*")
    expected = answers(daemon)
    assert len(expected) == 4 and any(logprob < 0 for _, _, logprob in expected)

    (tmp_path / "flag").mkdir()
    helm_run(tmp_path / "flag", f"huggingface/{path.name}", *RUNNER, "--enable-local-huggingface-models", str(path))
    assert answers(only_run(tmp_path / "flag")) == expected
    assert list((tmp_path / "flag" / "prompts").glob("dyck_language-*.json"))

    local = configure(tmp_path / "yaml" / "local", path)
    helm_run(tmp_path / "yaml", "local/first", "--local-path", str(local))  # HELM's own Runner
    assert answers(only_run(tmp_path / "yaml")) == expected


def test_wandb_writer_shows_what_helm_run_and_helm_summarize_made(
    tiny_models: tuple[Path, Path], tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from recorder.wandb_writer import main

    shutil.copytree(data_dir / "helm_scenarios" / "mmlu", tmp_path / "scenarios" / "mmlu")
    shutil.copytree(data_dir / "nltk_data", tmp_path / "nltk_data")
    local = configure(tmp_path / "local", tiny_models[0])
    entries = ("mmlu:subject=abstract_algebra", "mmlu:subject=computer_security", "mmlu:subject=college_chemistry")
    helm_run(tmp_path, "local/first", *RUNNER, "--local-path", str(local), entries=entries)
    fixed = ("-o", str(tmp_path), "--schema-validation", "off", "-n", "1")
    command("helm-summarize", tmp_path, "--local-path", str(local), *fixed)
    suite = tmp_path / "runs" / "s"
    (suite / "scenarios").mkdir(exist_ok=True)  # what is no run is passed over
    config = tmp_path / "writer.yaml"
    config.write_text(
        "project: p\nevals:\n  - {eval_type: helm, source: helm, model_name: other, token_num: 10, helm_output_dir: .,\n"
        "     helm_suite_name: s, benchmarks: [{name: mmlu, metrics: [EM]}]}\n"
    )
    assert main(["--config", str(config), "--print-only"]) == 0
    shown = re.search(r"mmlu\.EM +(\S+)(?: ± (\S+))?", capsys.readouterr().out)
    table = json.loads((suite / "groups" / "mmlu.json").read_text())[0]
    column = [cell["value"] for cell in table["header"]].index("EM")
    assert shown and float(shown[1]) == pytest.approx(table["rows"][0][column]["value"], abs=1e-4)
    assert shown[2]

    for run in suite.glob("mmlu:*"):
        shutil.rmtree(run)  # only the tables were kept
    assert main(["--config", str(config), "--print-only"]) == 0
    assert re.search(rf"mmlu\.EM +{shown[1]}\n", capsys.readouterr().out)


def test_a_deployment_that_is_no_model_directory_is_refused(tmp_path: Path) -> None:
    from helm.benchmark import model_deployment_registry as deployments
    from helm.benchmark.model_metadata_registry import get_unknown_model_metadata, register_model_metadata

    from autoeval.helm.runner import engine_of

    name = "test/remote"
    register_model_metadata(get_unknown_model_metadata(name))
    deployments.register_model_deployment(
        deployments.ModelDeployment(
            name, deployments.ClientSpec("helm.clients.simple_client.SimpleClient"), name, "simple/tokenizer1"
        )
    )
    with pytest.raises(ValueError, match=r"'test/remote'.*EngineClient.*got helm\.clients\.simple_client"):
        engine_of(name)
