"""Our numbers are HELM's: the same runs through HELM's own executor and client give the same texts and statistics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from autoeval.helm.contained import quiet
from autoeval.helm.run import run_helm_task
from autoeval.helm.spec import HelmTask, with_model
from autoeval.offline.environment import offline

pytestmark = pytest.mark.slow

STOCK = "stock/reference"
HELLASWAG = "commonsense:dataset=hellaswag,method=multiple_choice_separate_original"

MMLU = ("anatomy", "astronomy", "college_biology", "formal_logic", "computer_security")


def run_stock(entry: str, path: Path, window: int, output: Path, eval_instances: int) -> None:
    """HELM as ``helm-run`` drives it: one request at a time through ``HuggingFaceClient``."""
    from helm.benchmark import model_deployment_registry as deployments
    from helm.benchmark import tokenizer_config_registry as tokenizers
    from helm.benchmark.executor import ExecutionSpec
    from helm.benchmark.model_metadata_registry import get_unknown_model_metadata, register_model_metadata
    from helm.benchmark.presentation.run_entry import RunEntry
    from helm.benchmark.run import run_entries_to_run_specs
    from helm.benchmark.runner import Runner, set_benchmark_output_path
    from helm.common.authentication import Authentication

    if STOCK not in tokenizers.TOKENIZER_NAME_TO_CONFIG:
        arguments = {"pretrained_model_name_or_path": str(path)}
        tokenizer = tokenizers.TokenizerSpec("helm.tokenizers.huggingface_tokenizer.HuggingFaceTokenizer", arguments)
        tokenizers.register_tokenizer_config(
            tokenizers.TokenizerConfig(STOCK, tokenizer, "<|endoftext|>", "<|endoftext|>")
        )
        register_model_metadata(get_unknown_model_metadata(STOCK))
        client = deployments.ClientSpec(
            "helm.clients.huggingface_client.HuggingFaceClient",
            {**arguments, "device": "cpu", "apply_chat_template": False},
        )
        deployments.register_model_deployment(
            deployments.ModelDeployment(STOCK, client, STOCK, STOCK, max_sequence_length=window)
        )
    set_benchmark_output_path(str(output))
    (spec,) = run_entries_to_run_specs([RunEntry(with_model(entry, STOCK))], max_eval_instances=eval_instances)
    execution = ExecutionSpec(url=None, auth=Authentication(""), local_path=str(output / "local"), parallelism=1)
    with offline(), quiet():
        Runner(execution, str(output), "suite", False, False, False, False, True).run_one(spec)


def statistics(output: Path, model: str) -> dict[str, float]:
    (directory,) = (output / "runs" / "suite").glob(f"*model={model}")
    stats = json.loads((directory / "stats.json").read_text())
    return {json.dumps(stat["name"], sort_keys=True): stat["mean"] for stat in stats if stat["count"]}


def completions(output: Path, model: str) -> list[str]:
    (directory,) = (output / "runs" / "suite").glob(f"*model={model}")
    state = json.loads((directory / "scenario_state.json").read_text())
    return [request_state["result"]["completions"][0]["text"] for request_state in state["request_states"]]


# What HELM's client cannot tell: it takes a generated token's log-probability after dividing the logits by 1e-7 (always
# 0), and gives no reason for the end. Times are times.
NOT_COMPARABLE = ("logprob", "perplexity", "bits_per_byte", "max_prob", "ece_", "selective_", "platt_")
DIFFERENT = ("finish_reason", "runtime", "batch_size")


@pytest.mark.parametrize(
    ("entry", "folder", "generates"),
    [
        ("dyck_language:num_parenthesis_pairs=3", None, True),
        ("synthetic_reasoning:mode=pattern_match,eval_split=test,max_train_instances=2", None, True),
        (HELLASWAG, "hellaswag", False),
        ("commonsense:dataset=hellaswag,method=multiple_choice_separate_calibrated", "hellaswag", False),
        *((f"mmlu:subject={subject},method=multiple_choice_joint", "mmlu", True) for subject in MMLU),
        ("truthful_qa:task=mc_single,method=multiple_choice_joint", "truthful_qa", True),
        ("boolq", "boolq", True),
        ("narrative_qa:max_train_instances=1", "narrativeqa", True),
        ("gsm:max_train_instances=1", "gsm", True),
    ],
)
def test_the_statistics_equal_those_of_helm_itself(
    entry: str,
    folder: str | None,
    generates: bool,
    tiny_models: tuple[Path, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    from autoeval.models.hf import HuggingFaceModel

    if folder is not None:
        data = request.getfixturevalue("data_dir")
        (tmp_path / "scenarios").mkdir()
        shutil.copytree(data / "helm_scenarios" / folder, tmp_path / "scenarios" / folder)
        shutil.copytree(data / "nltk_data", tmp_path / "nltk_data")
    path = tiny_models[0]
    model = HuggingFaceModel(path, dtype="float32", device="cpu")
    task = HelmTask("task", "version", (entry,), (), 4)
    run_helm_task(task, model, model_name="ours", output_path=tmp_path, suite="suite")
    run_stock(entry, path, model.max_seq_len, tmp_path, 4)
    assert completions(tmp_path, "autoeval_ours") == completions(tmp_path, "stock_reference")
    ours, theirs = statistics(tmp_path, "autoeval_ours"), statistics(tmp_path, "stock_reference")
    skipped = DIFFERENT + (NOT_COMPARABLE if generates else ())
    compared = [name for name in theirs if not any(part in name for part in skipped)]
    assert len(compared) > 5
    assert {name: ours[name] for name in compared} == pytest.approx({name: theirs[name] for name in compared}, abs=1e-5)
