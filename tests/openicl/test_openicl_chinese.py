"""BLEU by characters and by words, F1 over characters, and a dialogue asked by the tokenizer's own template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jieba
import pytest
from sacrebleu.metrics.bleu import BLEU

from autoeval.openicl.evaluators import build_evaluator
from autoeval.openicl.metric import bootstrap_stderr

OURS = ["光荣和公司开发的", "北京大学在北京", "不知道"]
THEIRS = [["光荣和ω-force", "光荣公司"], ["北京大学位于北京"], ["上海"]]


def test_bleu_is_sacrebleus_by_characters_and_by_jiebas_words() -> None:
    metrics = build_evaluator({"type": "BleuEvaluator", "tokenize": "zh", "also": ["jieba"]}).score(OURS, THEIRS)
    assert [metric.name for metric in metrics] == ["bleu", "bleu_jieba"]
    columns = [[one[0] for one in THEIRS], [one[1] if len(one) > 1 else None for one in THEIRS]]
    expected = BLEU(tokenize="zh", effective_order=True).corpus_score(OURS, columns).score / 100
    assert metrics[0].value == pytest.approx(expected)

    def cut(text: str | None) -> str | None:
        return None if text is None else " ".join(jieba.cut(text))

    by_words = BLEU(tokenize="none", effective_order=True, force=True).corpus_score(
        [str(cut(text)) for text in OURS], [[cut(text) for text in column] for column in columns]
    )
    assert metrics[1].value == pytest.approx(by_words.score / 100)
    assert metrics[0].value != pytest.approx(metrics[1].value)
    assert all(metric.stderr is not None and metric.stderr > 0 for metric in metrics)
    alone = build_evaluator({"type": "BleuEvaluator", "tokenize": "zh", "resamples": 0}).score(OURS, THEIRS)
    assert len(alone) == 1 and alone[0].stderr is None
    assert bootstrap_stderr(len, 5, 1) is None


def test_f1_over_characters_counts_chinese_and_other_words() -> None:
    (metric,) = build_evaluator({"type": "F1Evaluator", "tokenize": "zh"}).score(
        ["九点 open", "nine o'clock"], ["早上九点 Open！", "nine"]
    )
    assert metric.values == pytest.approx((2 * 3 / (3 + 5), 2 * 1 / (3 + 1)))
    with pytest.raises(ValueError, match="tokenize 'jieba': expected squad or zh"):
        build_evaluator({"type": "F1Evaluator", "tokenize": "jieba"})


def test_a_dialogue_is_asked_by_the_tokenizers_template_when_its_task_says_so(tmp_path: Path) -> None:
    from autoeval.models.hf import HuggingFaceModel
    from autoeval.tasks.configs import DatasetConfig
    from autoeval.tasks.icl import infer_samples, load_icl_task
    from tests.tiny_models import save_tiny_model

    save_tiny_model(tmp_path / "model", "gpt2")
    (tmp_path / "x.jsonl").write_text('{"instruction": "ping", "output": "Pong!"}\n')

    def asked(model: Any, **options: Any) -> str:
        config = {
            "abbr": "x",
            "type": "MessagesDataset",
            "path": "x.jsonl",
            "reader_cfg": {"output_column": "reference"},
            "infer_cfg": {
                "retriever": {"type": "ZeroRetriever"},
                "inferencer": {"type": "ChatInferencer", "max_out_len": 2, **options},
            },
            "eval_cfg": {"evaluator": {"type": "AccEvaluator"}},
        }
        task = load_icl_task(DatasetConfig(tmp_path / "x.py", config), data_dir=tmp_path)
        return str(infer_samples(task, model, task.samples)[0]["origin_prompt"])

    model = HuggingFaceModel(tmp_path / "model")
    assert asked(model, chat_template=True) == "ping"  # there is no template
    model.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    assert asked(model, chat_template=True) == "<user>ping<answer>"
    assert asked(model) == "ping"
