"""OpenICL tasks on tiny models: decisions equal the formulas recomputed by hand; broken things are errors."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from autoeval.datasets.rows import DatasetError
from autoeval.models.hf import HuggingFaceModel
from autoeval.tasks.configs import find_config, read_configs
from autoeval.tasks.icl import IclTask, load_icl_task, load_icl_tasks, run_icl_task
from tests.tiny_models import save_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("AUTOEVAL_DATA", REPOSITORY.parent / "shared" / "data")) / "opencompass"


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceModel:
    directory = save_tiny_model(tmp_path_factory.mktemp(request.param), request.param, window=256)
    return HuggingFaceModel(directory, device="cpu")


ROWS: list[dict[str, Any]] = [
    {"q": "What is the sky?", "choices": ["blue", "a lazy dog", "42"], "gold": 0},
    {"q": "Who jumps?", "choices": ["the quick brown fox", "mat"], "gold": 1},
    {"q": "12 + 30?", "choices": ["yes", "42", "no", "D", "30"], "gold": 1},
]


CONTEXT = "Q: What is the sky? A:"


def write_task(directory: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """A configuration and its data, in ``directory``; ``changes`` replace keys of the dataset."""
    directory.mkdir(parents=True, exist_ok=True)
    chosen = ROWS if rows is None else rows
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    options: dict[str, Any] = {
        "abbr": "own",
        "type": "JsonlDataset",
        "path": "rows.jsonl",
        "reader_cfg": {"input_columns": ["q"], "output_column": "gold", "choices_column": "choices"},
        "infer_cfg": {
            "prompt_template": {"type": "PromptTemplate", "template": "Q: {q} A: {choice}"},
            "retriever": {"type": "ZeroRetriever"},
            "inferencer": {"type": "PPLInferencer"},
        },
        "eval_cfg": {"evaluator": {"type": "AccEvaluator"}},
        **changes,
    }
    (directory / "own_ppl.py").write_text(f"own_datasets = [{options!r}]\n")
    return directory / "own_ppl.py"


def infer(template: Any, inferencer: dict[str, Any], **more: Any) -> dict[str, Any]:
    prompt = {"type": "PromptTemplate", "template": template, **more.pop("prompt", {})}
    return {"prompt_template": prompt, "retriever": {"type": "ZeroRetriever"}, "inferencer": inferencer, **more}


def load(config: Path, **keywords: Any) -> IclTask:
    return load_icl_tasks([str(config)], data_dir=config.parent, **keywords)[0]


def log_softmax(model: HuggingFaceModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model.model(torch.tensor([ids])).logits[0].float(), dim=-1)


def perplexity(model: HuggingFaceModel, prompt: str) -> float:
    """OpenCompass's: cross entropy of all tokens but the first, over the number of all tokens."""
    ids = model.tokenizer(prompt)["input_ids"]
    table = log_softmax(model, ids)
    return -float(sum(table[place, token] for place, token in enumerate(ids[1:]))) / len(ids)


def answer_logprob(model: HuggingFaceModel, context: str, answer: str) -> tuple[float, int]:
    head, ids = model.tokenizer(context)["input_ids"], model.tokenizer(context + answer)["input_ids"]
    table = log_softmax(model, ids)
    return float(sum(table[place - 1, ids[place]] for place in range(len(head), len(ids)))), len(ids) - len(head)


def test_perplexity_ranking_is_opencompasss_formula(model: HuggingFaceModel, tmp_path: Path) -> None:
    outcome = run_icl_task(load(write_task(tmp_path)), model)
    right = []
    for number, row in enumerate(ROWS):
        record = outcome.predictions[str(number)]
        expected = [perplexity(model, f"Q: {row['q']} A: {choice}") for choice in row["choices"]]
        measured = [record[f"label: {label}"]["PPL"] for label in range(len(expected))]
        assert measured == pytest.approx(expected, abs=1e-4)
        assert record["prediction"] == str(expected.index(min(expected)))
        right.append(float(expected.index(min(expected)) == row["gold"]))
    score = outcome.scores[0]
    assert (score.metric, score.value, score.n) == ("acc", pytest.approx(sum(right) / 3), 3)
    assert score.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 5) / 3)
    assert [item.value for item in outcome.items] == right


def test_normalized_perplexity(model: HuggingFaceModel, tmp_path: Path) -> None:
    rows = [{"q": "the sky", "gold": "A"}, {"q": "a cat sat on the mat", "gold": "B"}]
    answers = {"A": " blue", "B": " a lazy dog"}
    cfg = infer(
        {label: "Q: {q}. A:</S>" + text for label, text in answers.items()},
        {"type": "PPLInferencer", "normalizing_str": "Answer:"},
        prompt={"sep_token": "</S>"},
    )
    task = load(write_task(tmp_path, rows, infer_cfg=cfg, reader_cfg={"output_column": "gold"}))
    outcome = run_icl_task(task, model)
    for number, row in enumerate(rows):
        for label, text in answers.items():
            given, count = answer_logprob(model, f"Q: {row['q']}. A:", text)
            alone, other = answer_logprob(model, "Answer:", text)
            record = outcome.predictions[str(number)][f"label: {label}"]
            assert record["PPL"] == pytest.approx(-given / count + alone / other, abs=1e-4)
            assert "</S>" not in record["prompt"]


def test_log_likelihood_ranking_with_and_without_normalisation(model: HuggingFaceModel, tmp_path: Path) -> None:
    cfg = infer("Q: {q} A: ", {"type": "LLInferencer", "continuation": "{choice}"})  # the space goes to the answer
    outcome = run_icl_task(load(write_task(tmp_path, infer_cfg=cfg)), model)
    plain, normalized, by_tokens, bits = [], [], [], []
    for row in ROWS:
        pairs = [answer_logprob(model, f"Q: {row['q']} A:", f" {choice}") for choice in row["choices"]]
        values = [value for value, _ in pairs]
        per_token = [value / count for value, count in pairs]
        by_tokens.append(float(per_token.index(max(per_token)) == row["gold"]))
        bits.append(-values[row["gold"]] / len(row["choices"][row["gold"]]) / math.log(2))
        per_byte = [value / len(choice) for value, choice in zip(values, row["choices"], strict=True)]
        plain.append(float(values.index(max(values)) == row["gold"]))
        normalized.append(float(per_byte.index(max(per_byte)) == row["gold"]))
    by_name = {score.metric: score.value for score in outcome.scores}
    assert by_name == {
        "acc": pytest.approx(sum(plain) / 3),
        "acc_norm": pytest.approx(sum(normalized) / 3),
        "acc_norm_token": pytest.approx(sum(by_tokens) / 3),
        "bpb": pytest.approx(sum(bits) / 3, abs=1e-4),
    }
    assert {score.metric: score.higher_is_better for score in outcome.scores}["bpb"] is False
    assert [item.value for item in outcome.items if item.metric == "acc_norm"] == normalized


def test_log_likelihoods_without_the_tokenizers_own_bos(model: HuggingFaceModel, tmp_path: Path) -> None:
    cfg = infer("Q: {q} A:", {"type": "LLInferencer", "add_special_tokens": False})
    record = run_icl_task(load(write_task(tmp_path, infer_cfg=cfg)), model).predictions["0"]
    head, ids = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (CONTEXT, CONTEXT + " blue"))
    table = log_softmax(model, ids)
    expected = float(sum(table[place - 1, ids[place]] for place in range(len(head), len(ids))))
    assert record["label: 0"]["loglikelihood"] == pytest.approx(expected, abs=1e-4)


def test_generation_is_scored_against_the_references(model: HuggingFaceModel, tmp_path: Path) -> None:
    ids = tuple(model.tokenizer("Q: the sky A:")["input_ids"])
    with torch.no_grad():
        prompt = torch.tensor([ids])
        made = model.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    text = model.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
    rows: list[dict[str, Any]] = [{"q": "the sky", "gold": ["nothing", text]}, {"q": "the sky", "gold": "nothing"}]
    cfg = infer("Q: {q} A:{gold}", {"type": "GenInferencer", "max_out_len": 6})
    task = load(write_task(tmp_path, rows, infer_cfg=cfg, reader_cfg={"input_columns": ["q"], "output_column": "gold"}))
    outcome = run_icl_task(task, model)
    assert [item.value for item in outcome.items] == [1.0, 0.0]
    assert outcome.predictions["0"] == {"origin_prompt": "Q: the sky A:", "prediction": text, "gold": rows[0]["gold"]}
    assert outcome.scores[0].chance is None


def test_too_long_prompts_lose_examples_then_their_beginning(model: HuggingFaceModel, tmp_path: Path) -> None:
    examples = [{"q": "the lazy dog " * 6, "choices": ["yes", "no"], "gold": 0} for _ in range(6)]
    rows = [
        {"q": "the sky", "choices": ["yes", "no"], "gold": 1},
        {"q": "the quick brown fox " * 80, "choices": ["yes", "no"], "gold": 1},
    ]
    (tmp_path / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    cfg = infer(
        "</E>Q: {q} A: {choice}",
        {"type": "PPLInferencer"},
        prompt={"ice_token": "</E>"},
        ice_template={"type": "PromptTemplate", "template": "Q: {q} A: {choice}"},
    )
    cfg["retriever"] = {"type": "FixKRetriever", "fix_id_list": [0, 1, 2, 3, 4, 5]}
    task = load(write_task(tmp_path, rows, infer_cfg=cfg, path={"test": "rows.jsonl", "train": "shots.jsonl"}))
    short, long = (run_icl_task(task, model).predictions[key] for key in ("0", "1"))
    kept = 6 - short["dropped in-context examples"]
    assert 0 < kept < 6 and short["in-context examples"].count("Q: ") == kept
    prompt = short["label: 0"]["prompt"]
    assert len(model.tokenizer(prompt)["input_ids"]) <= model.max_seq_len and "truncated tokens" not in short
    assert long["dropped in-context examples"] == 6 and long["truncated tokens"] > 0
    ids = model.tokenizer(long["label: 0"]["prompt"])["input_ids"][-model.max_seq_len :]
    table = log_softmax(model, ids)
    value = -float(sum(table[place, token] for place, token in enumerate(ids[1:]))) / len(ids)
    assert long["label: 0"]["PPL"] == pytest.approx(value, abs=1e-4)


def test_a_version_changes_with_all_that_can_change_the_score(tmp_path: Path) -> None:
    task = load(write_task(tmp_path / "a"))
    assert task.version == load(write_task(tmp_path / "b")).version, "the place does not matter"
    assert len(task.version) == 12
    others = [
        load(write_task(tmp_path / "c", ROWS[:2])),
        load(write_task(tmp_path / "d", infer_cfg=infer("{q} {choice}", {"type": "PPLInferencer"}))),
        load(write_task(tmp_path / "e", infer_cfg=infer("Q: {q} A: {choice}", {"type": "LLInferencer"}))),
        load(write_task(tmp_path / "f", eval_cfg={"evaluator": {"type": "EMEvaluator"}})),
        load(write_task(tmp_path / "a"), limit=1),
    ]
    assert len({task.version, *(other.version for other in others)}) == 6
    assert load(write_task(tmp_path / "a"), limit=3).version == task.version
    kept = load(write_task(tmp_path / "a"), limit=1).samples[0].key
    assert kept in {sample.key for sample in task.samples}


def test_what_is_wrong_is_named_before_a_model_is_asked(tmp_path: Path) -> None:
    bad_gold = [*ROWS, {"q": "?", "choices": ["x", "y"], "gold": 2}]
    with pytest.raises(DatasetError, match=r"rows\.jsonl:4: 'gold' is 2"):
        load(write_task(tmp_path, bad_gold))
    with pytest.raises(DatasetError, match="has no rows"):
        load(write_task(tmp_path, []))
    with pytest.raises(DatasetError, match=r"rows\.jsonl:1: there is no column 'question'"):
        reader = {"input_columns": ["question"], "output_column": "gold", "choices_column": "choices"}
        load(write_task(tmp_path, reader_cfg=reader))
    with pytest.raises(ValueError, match=r"own_ppl\.py: dataset 'own': .*did you mean 'AccEvaluator'"):
        load(write_task(tmp_path, eval_cfg={"evaluator": {"type": "AcEvaluator"}}))
    with pytest.raises(ValueError, match="unknown key 'retreiver'; did you mean 'retriever'"):
        load(write_task(tmp_path, infer_cfg={"retreiver": {}}))
    with pytest.raises(ValueError, match="did you mean 'hellaswag_ppl'"):
        load_icl_tasks(["helaswag_ppl"], data_dir=tmp_path)
    with pytest.raises(DatasetError, match=r"hellaswag_ppl\.py: the data .* is missing"):
        load_icl_tasks(["hellaswag_ppl"], data_dir=tmp_path)
    (tmp_path / "broken.py").write_text("x = [")
    with pytest.raises(ValueError, match=r"broken\.py: cannot be read"):
        load_icl_tasks([str(tmp_path / "broken.py")], data_dir=tmp_path)


def test_a_broken_model_has_no_score(tmp_path: Path) -> None:
    model = HuggingFaceModel(save_tiny_model(tmp_path / "hf"), device="cpu")
    next(iter(model.model.parameters())).data.fill_(float("nan"))
    for name in ("PPLInferencer", "LLInferencer"):
        template = "Q: {q} A:" if name == "LLInferencer" else "Q: {q} A: {choice}"
        with pytest.raises(ValueError, match="not a number: its weights are broken"):
            run_icl_task(load(write_task(tmp_path / "t", infer_cfg=infer(template, {"type": name}))), model)
    cfg = infer("Q: {q} A:", {"type": "GenInferencer", "max_out_len": 3})
    reader = {"output_column": "gold"}
    with pytest.raises(ValueError, match="not a number: its weights are broken"):
        run_icl_task(load(write_task(tmp_path / "t", infer_cfg=cfg, reader_cfg=reader)), model)


# Configurations whose files are in the real data, with a metric that each must give.
COMPLETE = {
    file.stem: "acc"
    for file in sorted((REPOSITORY / "config" / "datasets").rglob("[!_]*.py"))
    # The five dimensions have tests of their own (tests/eval_scripts): not all of their data is here.
    if file.parent.name != "five_dimensions"
    and file.stem not in ("mmlu_ppl", "mmlu_ll", "mmlu_gen", "m3ke_test_ppl", "winograd_ppl")
} | {
    "CLUE_CMRC_gen": "exact_match",
    "narrativeqa_gen": "f1",
    "truthfulqa_gen": "rougeL_acc",
    "truthfulqa_mc2": "mc2",
    "truthfulqa": "mc2",
    "wikitext_bpb": "bpb",
}
# Scored in other tests; long texts; and those of which the data has only some parts.
for _name in ("humaneval_gen", "humaneval_passk_gen", "gsm8k_gen", "gsm8k_sc_gen", "bbh_gen", "agieval_gen"):
    del COMPLETE[_name]


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data at {REAL_DATA}")
@pytest.mark.parametrize("name", sorted(COMPLETE))
def test_the_configurations_run_on_the_real_files(name: str, real_model: HuggingFaceModel) -> None:
    metrics: dict[str, Any] = {}
    for task in load_icl_tasks([name], data_dir=REAL_DATA, limit=6):
        outcome = run_icl_task(task, real_model)
        assert len(outcome.predictions) == 6
        assert {score.n for score in outcome.scores} == {6}
        assert all(math.isfinite(score.value) for score in outcome.scores)
        metrics |= {score.metric: score for score in outcome.scores}
        json.dumps(outcome.predictions, allow_nan=False)
    assert COMPLETE[name] in metrics
    assert ("acc_norm" in metrics) == (name.endswith("_ll") and name != "lambada_ll") or name.startswith("truthfulqa")


PARTS = [("bbh_gen", 14, 27), ("agieval_gen", 6, 21)]


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data at {REAL_DATA}")
@pytest.mark.parametrize(("name", "there", "parts"), PARTS)
def test_benchmarks_of_many_files_name_those_that_are_missing(name: str, there: int, parts: int) -> None:
    configs = read_configs(find_config(name, None))
    assert len(configs) == parts
    tasks = []
    for config in configs:
        try:
            tasks.append(load_icl_task(config, data_dir=REAL_DATA, limit=2))
        except DatasetError as error:
            assert "missing" in str(error) and str(config.options["name"]) in str(error)
    assert len(tasks) == there
    for task in tasks:
        prompt = task.prompting.prompt(task.samples[0].row, blank=True)
        assert str(task.samples[0].row.columns.get("input") or task.samples[0].row["problem"]) in prompt


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data at {REAL_DATA}")
def test_an_incomplete_benchmark_is_an_error() -> None:
    with pytest.raises(DatasetError, match=r"_test\.csv: the file is missing \(37 of 57 subjects are\)"):
        load_icl_tasks(["mmlu_ppl"], data_dir=REAL_DATA)


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data at {REAL_DATA}")
def test_mmlu_prompts_have_five_examples_of_their_own_subject() -> None:
    (task,) = load_icl_tasks(["mmlu_available_ll"], data_dir=REAL_DATA, limit=5)
    for sample in task.samples:
        assert [example["subject"] for example in sample.examples] == [sample.row["subject"]] * 5
        text = task.prompting.prompt(sample.row)
        assert text.startswith(
            f"The following are multiple choice questions (with answers) about {sample.row['topic']}."
        )


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceModel:
    return HuggingFaceModel(save_tiny_model(tmp_path_factory.mktemp("real"), window=1024), device="cpu")


OPENCOMPASS_STYLE = """
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever
from opencompass.openicl.icl_inferencer import PPLInferencer
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.datasets import HellaswagDataset_V2

hellaswag_datasets = [
    dict(
        abbr='hs', type=HellaswagDataset_V2, path='./data/h.jsonl',
        reader_cfg=dict(input_columns=['ctx', 'A', 'B', 'C', 'D'], output_column='label', test_split='validation'),
        infer_cfg=dict(
            prompt_template=dict(type=PromptTemplate, template={
                a: dict(round=[dict(role='HUMAN', prompt='{ctx}'), dict(role='BOT', prompt='{%s}' % a)]) for a in 'ABCD'
            }),
            retriever=dict(type=ZeroRetriever),
            inferencer=dict(type=PPLInferencer)),
        eval_cfg=dict(evaluator=dict(type=AccEvaluator)))
]
"""


def test_a_configuration_that_imports_opencompass_is_read_without_it(tmp_path: Path) -> None:
    row = {"query": "Sport: He runs", "choices": ["fast", "up", "on", "by"], "gold": 2}
    (tmp_path / "h.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "theirs.py").write_text(OPENCOMPASS_STYLE)
    (task,) = load_icl_tasks([str(tmp_path / "theirs.py")], data_dir=tmp_path)
    sample = task.samples[0]
    assert task.prompting.gold(sample.row) == "C"
    assert task.prompting.prompt(sample.row, label="C") == "He runs\non"


def test_code_execution_is_refused_when_tasks_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "openai_humaneval").mkdir()
    with pytest.raises(ValueError, match=r"'openai_humaneval'.*icl\.allow_code_execution: true"):
        load_icl_tasks(["humaneval_gen"], data_dir=tmp_path)
    with pytest.raises(DatasetError):  # allowed, it goes on to the data
        load_icl_tasks(["humaneval_gen"], data_dir=tmp_path, allow_code_execution=True)
