"""The rarer inferencers on tiny models: CLP, several texts, self-consistency, chat, the cost of a corpus, meta templates."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from autoeval.models.hf import HuggingFaceModel
from autoeval.models.requests import Cost, GenerationResult
from autoeval.openicl.corpus import rolling_windows
from autoeval.openicl.styles import MetaStyle
from autoeval.tasks.icl import evaluate_records, infer_samples, run_icl_task
from tests.tasks.test_tasks_icl import infer, load, log_softmax, model, write_task

__all__ = ["model"]  # the fixture: a GPT-2 and a Llama
META = {
    "round": [
        {"role": "HUMAN", "begin": "H:", "end": "\n"},
        {"role": "BOT", "begin": "B:", "end": "\n", "generate": True},
    ]
}
CHOICES = ["A", "B"]


def test_choices_are_ranked_by_the_next_tokens_probability(model: HuggingFaceModel, tmp_path: Path) -> None:
    rows = [{"q": f"item {number}", "gold": "AB"[number % 2]} for number in range(8)]
    cfg = infer("Q: {q}? Answer:", {"type": "CLPInferencer", "choices": CHOICES})
    task = load(
        write_task(
            tmp_path,
            rows,
            infer_cfg=cfg,
            reader_cfg={"output_column": "gold"},
            eval_cfg={"evaluator": {"type": "AUCROCEvaluator"}},
        )
    )
    outcome = run_icl_task(task, model)
    scores, golds = [], []
    for number, row in enumerate(rows):
        ids = model.tokenizer(f"Q: {row['q']}? Answer:")["input_ids"]
        wanted = [model.tokenizer(one, add_special_tokens=False)["input_ids"][0] for one in CHOICES]
        expected = torch.softmax(log_softmax(model, ids)[-1, wanted], dim=0).tolist()
        record = outcome.predictions[str(number)]
        assert record["prediction"] == pytest.approx(expected, abs=1e-5)
        assert record["pred_label"] == expected.index(max(expected)) and record["gold"] == number % 2
        scores.append(expected[1])
        golds.append(number % 2)
    from sklearn.metrics import roc_auc_score

    assert outcome.scores[0].metric == "auc"
    assert outcome.scores[0].value == pytest.approx(roc_auc_score(golds, scores))
    with pytest.raises(ValueError, match="is 3 tokens, CLPInferencer needs one"):
        bad = infer("{q}", {"type": "CLPInferencer", "choices": ["zzz", "B"]})
        run_icl_task(load(write_task(tmp_path / "b", rows, infer_cfg=bad, reader_cfg={"output_column": "gold"})), model)


def generate(tmp_path: Path, rows: list[dict[str, Any]], inferencer: dict[str, Any], **changes: Any) -> Any:
    cfg = infer("Q: {q} A:{gold}", inferencer)
    reader = {"input_columns": ["q"], "output_column": "gold"}
    return load(write_task(tmp_path, rows, infer_cfg=cfg, reader_cfg=reader, **changes))


def test_several_texts_differ_come_again_and_count_together(model: HuggingFaceModel, tmp_path: Path) -> None:
    rows = [{"q": "the sky", "gold": "x"}, {"q": "the sky", "gold": "y"}]
    options = {"type": "GenInferencer", "max_out_len": 4, "temperature": 1.0, "num_return_sequences": 4}
    task = generate(tmp_path, rows, options)
    first, again = (infer_samples(task, model, task.samples) for _ in range(2))
    assert first == again
    assert infer_samples(task, model, task.samples[1:]) == first[1:], "an item does not depend on the others"
    texts = first[0]["prediction"]
    assert len(texts) == 4 and len(set(texts)) > 1 and texts != first[1]["prediction"]
    made = generate(tmp_path / "b", [{"q": "the sky", "gold": texts[0]}], options)
    scores, items = evaluate_records(made, first[:1])
    assert items[0].value == scores[0].value == Counter(texts)[texts[0]] / 4
    with pytest.raises(ValueError, match="needs a temperature"):
        generate(tmp_path / "c", rows, {"type": "GenInferencer", "num_return_sequences": 2})
    sampled = {"do_sample": True, "temperature": 1.0, "num_return_sequences": 4}
    same = generate(tmp_path / "d", rows, {"type": "GenInferencer", "max_out_len": 4, "generation_kwargs": sampled})
    assert infer_samples(same, model, same.samples) == first
    one = {"do_sample": True, "temperature": 1.0, "top_k": 1}
    likeliest = generate(tmp_path / "e", rows, {"type": "GenInferencer", "max_out_len": 4, "generation_kwargs": one})
    greedy = generate(tmp_path / "f", rows, {"type": "GenInferencer", "max_out_len": 4})
    assert infer_samples(likeliest, model, likeliest.samples) == infer_samples(greedy, model, greedy.samples)
    with pytest.raises(ValueError, match="'typical_p' is not supported"):
        generate(tmp_path / "g", rows, {"type": "GenInferencer", "generation_kwargs": {"typical_p": 0.9}})


def test_self_consistency_takes_the_majority(model: HuggingFaceModel, tmp_path: Path) -> None:
    rows = [{"q": "?", "gold": "7"}, {"q": "?", "gold": "7"}, {"q": "?", "gold": "7"}]
    eval_cfg = {
        "evaluator": {"type": "MATHEvaluator"},
        "pred_postprocessor": {"type": "gsm8k"},
        "sc_size": 3,
    }
    options = {"type": "SCInferencer", "sc_size": 3, "max_out_len": 3, "temperature": 0.7}
    task = generate(tmp_path, rows, options, eval_cfg=eval_cfg)
    made = infer_samples(task, model, task.samples)
    assert all(len(record["prediction"]) == 3 for record in made)
    answers = [["so 7.0", "it is 8", "7"], ["8", "", "no"], ["7", "8", "9"]]
    records = [{**record, "prediction": texts} for record, texts in zip(made, answers, strict=True)]
    _, items = evaluate_records(task, records)
    assert [item.value for item in items] == [1.0, 0.0, 1.0]


class Talker:
    """A model behind a chat interface: it repeats what it was told, in capitals."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.cost = Cost()
        self.tokenizer, self.max_seq_len = None, 100

    def generate_messages(self, requests: Any) -> list[GenerationResult]:
        self.asked += [[(m["role"], m["content"]) for m in request.messages] for request in requests]
        texts = [request.messages[-1]["content"].upper() for request in requests]
        return [GenerationResult(text, (), (), "stop") for text in texts]


DIALOGUE = [{"q": ["hi", "bye"], "gold": ["HI", "CIAO"]}, {"q": ["one"], "gold": ["ONE"]}]


@pytest.mark.parametrize(
    ("mode", "first", "values"),
    [
        ("last", [[("user", "hi"), ("assistant", "HI"), ("user", "bye")]], [0.0, 1.0]),
        ("every", [[("user", "hi")], [("user", "hi"), ("assistant", "HI"), ("user", "bye")]], [0.5, 1.0]),
        ("every_with_gt", [[("user", "hi")], [("user", "hi"), ("assistant", "HI"), ("user", "bye")]], [0.5, 1.0]),
    ],
)
def test_chat_with_history(mode: str, first: Any, values: list[float], tmp_path: Path) -> None:
    template = {"round": [{"role": "HUMAN", "prompt": "{q}"}, {"role": "BOT", "prompt": "{gold}"}]}
    cfg = infer(template, {"type": "ChatInferencer", "infer_mode": mode})
    task = load(
        write_task(tmp_path, DIALOGUE, infer_cfg=cfg, reader_cfg={"input_columns": ["q"], "output_column": "gold"})
    )
    talker = Talker()
    outcome = run_icl_task(task, talker)  # type: ignore[arg-type]
    assert [asked for asked in talker.asked if asked[0] == ("user", "hi")] == first
    assert [item.value for item in outcome.items] == values


def test_chat_with_a_model_of_this_process_renders_the_history(model: HuggingFaceModel, tmp_path: Path) -> None:
    dialogue = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    rows = [{"dialogue": [*dialogue, {"role": "user", "content": "so?"}, {"role": "assistant", "content": "no"}]}]
    cfg = infer("{dialogue}", {"type": "ChatInferencer", "max_out_len": 3})
    task = load(write_task(tmp_path, rows, infer_cfg=cfg, reader_cfg={"input_columns": ["dialogue"]}))
    outcome = run_icl_task(task, model, style=MetaStyle(META))
    assert outcome.predictions["0"]["origin_prompt"] == "H:hi\nB:yes\nH:so?\nB:"
    assert outcome.predictions["0"]["gold"] == "no"


def test_a_meta_template_reaches_the_model_and_its_answer_is_cut(model: HuggingFaceModel, tmp_path: Path) -> None:
    template = {"round": [{"role": "HUMAN", "prompt": "Q: {q}"}, {"role": "BOT", "prompt": "{gold}"}]}
    cfg = infer(template, {"type": "GenInferencer", "max_out_len": 3})
    eval_cfg = {"evaluator": {"type": "AccEvaluator"}, "pred_role": "BOT"}
    reader = {"input_columns": ["q"], "output_column": "gold"}
    task = load(write_task(tmp_path, [{"q": "?", "gold": "yes"}], infer_cfg=cfg, reader_cfg=reader, eval_cfg=eval_cfg))
    style = MetaStyle(META)
    (record,) = infer_samples(task, model, task.samples, style=style)
    assert record["origin_prompt"] == "H:Q: ?\nB:"
    scores, _ = evaluate_records(task, [{**record, "prediction": "yes\nH: what"}], style=style)
    assert scores[0].value == 1.0


def corpus(tmp_path: Path, texts: list[str]) -> Any:
    cfg = infer("{text}", {"type": "PPLOnlyInferencer"})
    eval_cfg = {"evaluator": {"type": "BPBEvaluator"}}
    return load(
        write_task(tmp_path, [{"text": text} for text in texts], infer_cfg=cfg, reader_cfg={}, eval_cfg=eval_cfg)
    )


def test_bits_per_byte_of_texts_longer_than_the_window(model: HuggingFaceModel, tmp_path: Path) -> None:
    texts = ["the sky is blue", "The quick brown fox jumps over the lazy dog, é. " * 30]
    task = corpus(tmp_path, texts)
    outcome = run_icl_task(task, model)
    nats = []
    for text in texts:
        ids = [model.prefix_token, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        total, window = 0.0, model.max_seq_len
        for start in range(
            1, len(ids), window
        ):  # every token once, with as much context as the last window has room for
            end = min(start + window, len(ids))
            begin = 0 if start == 1 else max(0, end - window - 1)
            table = log_softmax(model, ids[begin : end - 1])
            total -= float(sum(table[place - 1 - begin, ids[place]] for place in range(start, end)))
        nats.append(total)
    sizes = [len(text.encode()) for text in texts]
    by_name = {score.metric: score for score in outcome.scores}
    assert by_name["bpb"].value == pytest.approx(sum(nats) / sum(sizes) / math.log(2), rel=1e-5)
    assert by_name["bpb"].higher_is_better is False and by_name["bpb"].stderr > 0
    words = sum(len(text.split()) for text in texts)
    assert by_name["word_perplexity"].value == pytest.approx(math.exp(sum(nats) / words), rel=1e-4)
    items = [item.value for item in outcome.items if item.metric == "bpb"]
    assert items == pytest.approx([n / s / math.log(2) for n, s in zip(nats, sizes, strict=True)], rel=1e-5)


def test_windows_score_every_token_once() -> None:
    for length in (1, 4, 5, 9, 12):
        windows = rolling_windows(range(length), 4)
        assert [token for one in windows for token in one.continuation] == list(range(length))
        assert all(len(one.context) + len(one.continuation) <= 5 for one in windows)
        for one in windows[1:]:
            assert one.context[-1] == one.continuation[0] - 1
            assert len(one.context) + len(one.continuation) == 5, "no context is given away"


def test_a_single_continuation_is_scored_not_ranked(model: HuggingFaceModel, tmp_path: Path) -> None:
    ids = model.tokenizer("the sky is")["input_ids"]
    best = int(log_softmax(model, ids)[-1].argmax())
    rows = [{"q": "the sky is", "gold": " blue"}, {"q": "the sky is", "gold": model.tokenizer.decode([best])}]
    cfg = infer("{q}", {"type": "LLInferencer", "continuation": "{gold}"})
    task = load(
        write_task(
            tmp_path,
            rows,
            infer_cfg=cfg,
            reader_cfg={"output_column": "gold"},
            eval_cfg={"evaluator": {"type": "GreedyEvaluator"}},
        )
    )
    outcome = run_icl_task(task, model)
    by_name = {score.metric: score for score in outcome.scores}
    values = [outcome.predictions[key]["label: answer"]["loglikelihood"] for key in "01"]
    assert by_name["perplexity"].value == pytest.approx(math.exp(-sum(values) / 2))
    assert by_name["acc"].chance is None
    assert next(item.value for item in outcome.items if item.metric == "acc") == 0.0


def test_a_range_of_rows_is_a_part_of_the_same_task(tmp_path: Path) -> None:
    rows = [{"q": f"{number}", "choices": ["a", "b"], "gold": 0} for number in range(10)]
    reader = {"input_columns": ["q"], "output_column": "gold", "choices_column": "choices"}
    whole = load(write_task(tmp_path, rows))
    part = load(write_task(tmp_path, rows, reader_cfg={**reader, "test_range": "[2:8][1:3]"}))
    assert part.samples == whole.samples[3:5]
    for wanted, count in ((4, 4), (0.2, 2), ("[-3:]", 3)):
        assert len(load(write_task(tmp_path, rows, reader_cfg={**reader, "test_range": wanted})).samples) == count
    with pytest.raises(ValueError, match=r"test_range '\[1\]': expected slices"):
        load(write_task(tmp_path, rows, reader_cfg={**reader, "test_range": "[1]"}))
    with pytest.raises(ValueError, match="leaves no items"):
        load(write_task(tmp_path, rows, reader_cfg={**reader, "test_range": "[50:]"}))


def test_a_macro_average_has_its_own_error(model: HuggingFaceModel, tmp_path: Path) -> None:
    rows = [
        {"q": f"{number}", "choices": ["yes", "no"], "gold": number % 2, "subject": "ab"[number > 3]}
        for number in range(10)
    ]
    task = load(write_task(tmp_path, rows, eval_cfg={"evaluator": {"type": "AccEvaluator"}, "group_column": "subject"}))
    outcome = run_icl_task(task, model)
    by_name = {score.metric: score for score in outcome.scores}
    values = [item.value for item in outcome.items if item.metric == "acc"]
    groups = values[:4], values[4:]
    means = [sum(group) / len(group) for group in groups]
    errors = [
        sum((value - mean) ** 2 for value in group) / (len(group) - 1) / len(group)
        for group, mean in zip(groups, means, strict=True)
    ]
    assert by_name["acc_macro"].value == pytest.approx(sum(means) / 2)
    assert by_name["acc_macro"].stderr == pytest.approx(math.sqrt(sum(errors)) / 2)
