"""HELM scenarios evaluated in this process through HELM's own Runner: right numbers, each checkpoint its own."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from helm_tiny_models import DirectModel

from autoeval.helm.run import HelmOutcome, HelmRunError, run_helm_task
from autoeval.helm.spec import HelmTask, task_version
from autoeval.models.requests import GenerationRequest, GenerationResult, LanguageModel
from recorder.results import Score

pytestmark = pytest.mark.slow


def make_task(*entries: str, metrics: tuple[str, ...] = (), eval_instances: int = 6) -> HelmTask:
    name = entries[0].split(":")[0]
    return HelmTask(name, task_version(entries, eval_instances), entries, metrics, eval_instances)


def evaluate(task: HelmTask, model: LanguageModel, path: Path, output: Path, **options: float) -> HelmOutcome:
    return run_helm_task(task, model, model_name=path.name, output_path=output, suite="suite", **options)


def score(outcome: HelmOutcome, metric: str) -> Score:
    return next(score for score in outcome.scores if score.metric == metric)


def run_directory(output: Path, model: str) -> Path:
    (directory,) = (output / "runs" / "suite").glob(f"*model=autoeval_{model}")
    return directory


DYCK = "dyck_language:num_parenthesis_pairs=3"


def test_two_checkpoints_in_one_process_get_two_different_and_right_results(
    tiny_models: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from autoeval.models.hf import HuggingFaceModel

    task = make_task(DYCK, metrics=("EM-indicator", "BPB"))
    capfd.readouterr()
    outcomes = {
        path.name: evaluate(task, HuggingFaceModel(path, dtype="float32", device="cpu"), path, tmp_path)
        for path in tiny_models
    }
    assert capfd.readouterr().out == ""
    bits = [score(outcome, "BPB").value for outcome in outcomes.values()]
    assert bits[0] != pytest.approx(bits[1], rel=1e-3)
    for path, measured in zip(tiny_models, bits, strict=True):
        assert measured == pytest.approx(bits_per_byte_directly(path, tmp_path), rel=1e-4)
    first, second = outcomes.values()
    assert [item.key for item in first.items] == [item.key for item in second.items]
    assert score(first, "EM-indicator").n == 6 == len(first.items)
    assert first.cost["num_train_instances"] <= 3 and "prompt_truncated" in first.cost


def bits_per_byte_directly(path: Path, output: Path) -> float:
    """HELM's metric from the definition: a plain greedy loop over the prompts HELM sent, no batch, no cache."""
    model = DirectModel(path)
    state = json.loads((run_directory(output, path.name) / "scenario_state.json").read_text())
    logprob, size = 0.0, 0
    for request_state in state["request_states"]:
        request = request_state["request"]
        prompt = tuple(model.tokenizer(request["prompt"])["input_ids"])
        (wanted,) = model.generate([GenerationRequest(prompt, request["max_tokens"], tuple(request["stop_sequences"]))])
        (completion,) = request_state["result"]["completions"]
        assert completion["text"] == wanted.text
        logprob += sum(wanted.token_logprobs)
        size += sum(len(model.tokenizer.decode([token]).encode()) for token in wanted.tokens)
    return -logprob / size / math.log(2)


def test_helm_forgets_a_checkpoint_when_it_is_done(tiny_models: tuple[Path, Path], tmp_path: Path) -> None:
    from helm.benchmark import model_deployment_registry, model_metadata_registry, tokenizer_config_registry
    from helm.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer

    from autoeval.helm.runner import ENGINES

    evaluate(make_task(DYCK), DirectModel(tiny_models[0]), tiny_models[0], tmp_path)
    left: list[object] = [
        *ENGINES,
        *HuggingFaceTokenizer._tokenizers,
        *(entry.name for entry in model_metadata_registry.ALL_MODELS_METADATA),
        *(entry.name for entry in model_deployment_registry.ALL_MODEL_DEPLOYMENTS),
        *tokenizer_config_registry.TOKENIZER_NAME_TO_CONFIG,
    ]
    assert not [name for name in left if str(name).startswith("autoeval/")]


def test_the_second_checkpoint_reuses_the_prompts_of_the_first_and_gets_what_it_would_have_got_alone(
    tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = tiny_models
    task = make_task("dyck_language:num_parenthesis_pairs=3", eval_instances=4)
    assert evaluate(task, DirectModel(first), first, tmp_path / "both").cost["prompts_reused"] == 0
    assert evaluate(task, DirectModel(second), second, tmp_path / "both").cost["prompts_reused"] == 1
    evaluate(task, DirectModel(second), second, tmp_path / "alone")
    states = [
        json.loads((run_directory(tmp_path / place, second.name) / "scenario_state.json").read_text())
        for place in ("both", "alone")
    ]
    for state in states:
        for request_state in state["request_states"]:
            for timed in ("request_time", "request_datetime", "batch_request_time"):
                del request_state["result"][timed]
    assert states[0] == states[1]

    place = tmp_path / "both" / "scenarios" / "dyck_language"  # the data is other data now
    (place / "more.jsonl").write_text("{}")
    third = dataclasses.replace(task, eval_instances=4)
    shutil.rmtree(tmp_path / "both" / "runs")
    assert evaluate(third, DirectModel(second), second, tmp_path / "both").cost["prompts_reused"] == 0


def test_a_complete_run_is_not_repeated_and_a_torn_or_different_one_is(
    tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    path, model = tiny_models[0], DirectModel(tiny_models[0])
    first = evaluate(make_task(DYCK), model, path, tmp_path)
    computed = model.cost.computed_tokens
    again = evaluate(make_task(DYCK), model, path, tmp_path)
    assert (again.scores, again.items) == (first.scores, first.items)
    assert model.cost.computed_tokens == computed and again.cost["runs_reused"] == 1

    directory = run_directory(tmp_path, path.name)
    (directory / "autoeval.json").unlink()  # killed before the run was complete
    (directory / "per_instance_stats.json").write_text('[{"instance')
    healed = evaluate(make_task(DYCK), model, path, tmp_path)
    assert healed.scores == first.scores and healed.cost["runs_reused"] == 0
    assert evaluate(make_task(DYCK, eval_instances=4), model, path, tmp_path).scores[0].n == 4


def test_a_scenario_without_its_data_fails_alone_and_names_the_file(
    tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    path, model = tiny_models[0], DirectModel(tiny_models[0])
    with pytest.raises(HelmRunError) as caught:
        evaluate(make_task("boolq"), model, path, tmp_path, seconds_limit=60)
    assert str(tmp_path / "scenarios" / "boolq" / "data") in str(caught.value)
    assert "https://" in str(caught.value)
    assert evaluate(make_task(DYCK), model, path, tmp_path).scores[0].n == 6

    with pytest.raises(HelmRunError, match="boolqq"):
        evaluate(make_task("boolqq"), model, path, tmp_path)


class EndlessModel(DirectModel):
    """A model whose generation never ends."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GenerationResult]:
        while True:
            pass


def test_a_run_that_takes_too_long_is_stopped(tiny_models: tuple[Path, Path], tmp_path: Path) -> None:
    path = tiny_models[0]
    evaluate(make_task(DYCK, eval_instances=1), DirectModel(path), path, tmp_path)  # HELM is imported
    with pytest.raises(HelmRunError, match=r"2 s, the limit"):
        evaluate(make_task(DYCK), EndlessModel(path), path, tmp_path, seconds_limit=2)


def test_a_short_window_loses_shots_but_not_the_evaluation(tiny_models: tuple[Path, Path], tmp_path: Path) -> None:
    path, model = tiny_models[0], DirectModel(tiny_models[0])
    model.max_seq_len = 48  # the scenario asks for 50 new tokens: HELM itself would never end
    task = make_task("synthetic_reasoning:mode=pattern_match,eval_split=test", eval_instances=3)
    outcome = evaluate(task, model, path, tmp_path, seconds_limit=120)
    assert outcome.cost["max_tokens_capped"] == 1
    assert outcome.cost["num_train_instances"] == 0 and outcome.cost["prompt_truncated"] == 1
    assert outcome.scores[0].metric == "quasi-EM" and outcome.scores[0].n == 3


def test_ranked_choices_are_scored_as_a_direct_computation_scores_them(
    tiny_models: tuple[Path, Path], tmp_path: Path, data_dir: Path
) -> None:
    path, model = tiny_models[0], DirectModel(tiny_models[0])
    shutil.copytree(data_dir / "helm_scenarios" / "hellaswag", tmp_path / "scenarios" / "hellaswag")
    entry = "commonsense:dataset=hellaswag,method=multiple_choice_separate_original"
    outcome = evaluate(make_task(entry, eval_instances=8), model, path, tmp_path)
    (exact_match,) = outcome.scores
    assert (exact_match.metric, exact_match.n, exact_match.chance) == ("EM", 8, pytest.approx(0.25))
    values = [item.value for item in outcome.items]
    variance = sum((value - exact_match.value) ** 2 for value in values) / 7
    assert exact_match.stderr == pytest.approx(math.sqrt(variance / 8))

    state = json.loads((run_directory(tmp_path, path.name) / "scenario_state.json").read_text())
    assert {item.key.split("|")[1]: item.value for item in outcome.items} == ranked_directly(model, state)

    second = DirectModel(tiny_models[1])  # its prompts come from the disk; four requests are about one instance
    reused = evaluate(make_task(entry, eval_instances=8), second, tiny_models[1], tmp_path)
    assert reused.cost["prompts_reused"] == 1
    state = json.loads((run_directory(tmp_path, tiny_models[1].name) / "scenario_state.json").read_text())
    assert {item.key.split("|")[1]: item.value for item in reused.items} == ranked_directly(second, state)


def ranked_directly(model: DirectModel, state: dict) -> dict[str, float]:
    """instance id -> 1 when the right ending has the highest mean log-probability by one forward pass each."""
    scores: dict[str, list[float]] = {}
    right: dict[str, int] = {}
    for request_state in state["request_states"]:
        instance, index = request_state["instance"], request_state["reference_index"]
        ending = instance["references"][index]
        ids = model.tokenizer(request_state["request"]["prompt"])["input_ids"]
        count = len(model.tokenizer(" " + ending["output"]["text"])["input_ids"])
        rows = model._logprobs(ids)
        values = [float(rows[position - 1][ids[position]]) for position in range(len(ids) - count, len(ids))]
        scores.setdefault(instance["id"], []).append(sum(values) / count)
        if "correct" in ending.get("tags", []):
            right[instance["id"]] = index
    return {name: float(values.index(max(values)) == right[name]) for name, values in scores.items()}


def test_a_benchmark_of_several_runs_is_averaged_over_them(
    tiny_models: tuple[Path, Path], tmp_path: Path, data_dir: Path
) -> None:
    path, model = tiny_models[0], DirectModel(tiny_models[0])
    shutil.copytree(data_dir / "helm_scenarios" / "mmlu", tmp_path / "scenarios" / "mmlu")
    subjects = ("anatomy", "astronomy")
    task = make_task(*(f"mmlu:subject={subject}" for subject in subjects), eval_instances=5)
    outcome = evaluate(task, model, path, tmp_path)
    (exact_match,) = outcome.scores
    means = []
    for subject in subjects:
        values = [item.value for item in outcome.items if f"subject={subject}" in item.key]
        assert values
        means.append(sum(values) / len(values))
    assert exact_match.value == pytest.approx(sum(means) / 2)
    assert exact_match.metric == "EM" and exact_match.chance == pytest.approx(0.25)


def test_metrics_that_need_nltk_find_its_data_beside_the_scenarios(
    tiny_models: tuple[Path, Path], tmp_path: Path, data_dir: Path
) -> None:
    path, model = tiny_models[0], DirectModel(tiny_models[0])
    shutil.copytree(data_dir / "helm_scenarios" / "boolq", tmp_path / "scenarios" / "boolq")
    shutil.copytree(data_dir / "nltk_data", tmp_path / "nltk_data")
    task = make_task("boolq", metrics=("EM", "prefix_exact_match"), eval_instances=3)
    outcome = evaluate(task, model, path, tmp_path)
    assert [(score.metric, score.n) for score in outcome.scores] == [("EM", 3), ("prefix_exact_match", 3)]
    assert len(outcome.items) == 6


def test_sampled_completions_differ_from_each_other_and_repeat_with_the_same_seed(
    tiny_models: tuple[Path, Path],
) -> None:
    from helm.common.request import Request

    from autoeval.helm.engine import answer
    from autoeval.models.hf import HuggingFaceModel

    model = HuggingFaceModel(tiny_models[0], dtype="float32", device="cpu")
    request = Request(prompt="Rules: X + Y", temperature=1.0, num_completions=3, max_tokens=8)
    (first,), (second,) = answer(model, [request]), answer(model, [request])
    texts = [completion.text for completion in first.completions]
    assert len(set(texts)) > 1
    assert texts == [completion.text for completion in second.completions]
    other = answer(model, [dataclasses.replace(request, random="1")])[0]
    assert texts != [completion.text for completion in other.completions]


def test_an_echoed_prompt_comes_back_with_the_log_probability_of_every_token(tiny_models: tuple[Path, Path]) -> None:
    from helm.common.request import Request

    from autoeval.helm.engine import answer

    model = DirectModel(tiny_models[0])
    prompt = "Rules: X + Y = Z"
    result = answer(model, [Request(prompt=prompt, temperature=0, max_tokens=0, echo_prompt=True)])[0]
    (completion,) = result.completions
    ids = model.tokenizer(prompt)["input_ids"]
    rows = model._logprobs(ids)
    expected = [0.0] + [float(rows[i - 1][ids[i]]) for i in range(1, len(ids))]
    assert completion.text == prompt == "".join(token.text for token in completion.tokens)
    assert [token.logprob for token in completion.tokens] == pytest.approx(expected)
    assert completion.logprob == pytest.approx(sum(expected))
