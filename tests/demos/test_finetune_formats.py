"""Conversations to token ids: what is learned, in every mode, by fast tokenizers and by those that tell no offsets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

FINETUNE = Path(__file__).resolve().parents[2] / "demos" / "finetune"
sys.path.insert(0, str(FINETUNE))

import chat_formats  # noqa: E402
import conversations  # noqa: E402
import finetune  # noqa: E402
import tiny_model  # noqa: E402

TALK = [
    {"role": "user", "content": "几点开门？"},
    {"role": "assistant", "content": "九点。"},
    {"role": "user", "content": "And on Sunday?"},
    {"role": "assistant", "content": "At ten."},
]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>", "<reserved_106>", "<reserved_107>"]


class Slow:
    """A tokenizer without offsets, as the slow ones are."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._tokenizer(text, **options)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny")
    tiny_model.save(place, hidden=16, layers=1)
    return place


def tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    made: Any = AutoTokenizer.from_pretrained(directory)
    made.add_special_tokens({"additional_special_tokens": SPECIALS})
    return made


@pytest.mark.parametrize(
    ("mode", "shown", "learned"),
    [
        ("auto", "<s>[INST] 几点开门？ [/INST] 九点。 </s><s>[INST] And", [" 九点。 </s>", " At ten. </s>"]),
        ("glm", "[Round 0]\n问：几点开门？\n答：九点。</s>\n[Round 1]\n问：And", ["九点。</s>\n", "At ten.</s>\n"]),
        ("glm2", "[Round 1]\n\n问：几点开门？\n\n答：九点。</s>\n\n[Round 2]", ["九点。</s>\n\n", "At ten.</s>\n\n"]),
        ("glm3", "<|user|>\n 几点开门？<|assistant|>\n 九点。</s><|user|>\n And", ["九点。</s>", "At ten.</s>"]),
        (
            "baichuan2_13b",
            "<reserved_106>几点开门？<reserved_107>九点。</s><reserved_106>And",
            ["九点。</s>", "At ten.</s>"],
        ),
        (
            "qwen1.5",
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n几点开门？<|im_end|>\n"
            "<|im_start|>assistant\n九点。<|im_end|>\n<|im_start|>user\nAnd",
            ["九点。<|im_end|>\n", "At ten.<|im_end|>\n"],
        ),
    ],
)
def test_each_mode_is_written_its_way_and_answers_are_learned(
    mode: str, shown: str, learned: list[str], directory: Path
) -> None:
    words = tokenizer(directory)
    chosen = chat_formats.choose_format(words, mode)
    for one in (words, Slow(words)):
        made = conversations.encode(one, TALK, chosen.tokens, 4096)
        assert words.decode(made["input_ids"]).startswith(shown)
        runs: list[list[int]] = [[]]
        for label in made["labels"]:
            if label == conversations.IGNORED:
                runs += [[]] if runs[-1] else []
            else:
                runs[-1].append(label)
        assert [words.decode(run) for run in runs if run] == learned


def test_the_prompt_that_is_learned_is_the_one_that_is_asked(directory: Path) -> None:
    """What stands before an answer in training is what the evaluator sends: the template with the generation prompt."""
    for mode in chat_formats.MODES:
        words = tokenizer(directory)
        chosen = chat_formats.choose_format(words, mode)
        made = conversations.encode(words, TALK[:2], chosen.tokens, 4096)
        first = next(place for place, label in enumerate(made["labels"]) if label != conversations.IGNORED)
        asked = words.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
        assert made["input_ids"][:first] == words(asked, add_special_tokens=False)["input_ids"], mode


def test_a_mode_of_another_family_is_refused(directory: Path) -> None:
    from transformers import AutoTokenizer

    words: Any = AutoTokenizer.from_pretrained(directory)
    with pytest.raises(ValueError, match="baichuan2_13b: the tokenizer has no token <reserved_106>"):
        chat_formats.choose_format(words, "baichuan2_13b")


def test_faq_asks_each_question_alone(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "system", "content": "Be brief."}, *TALK]}) + "\n")
    (whole,) = conversations.read_conversations(file, "general")
    assert len(whole) == 5
    first, second = conversations.read_conversations(file, "faq")
    assert [one["content"] for one in second] == ["Be brief.", "And on Sunday?", "At ten."]
    assert len(first) == 3


def test_answers_beyond_the_length_are_left_out_and_nothing_left_is_an_error(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tokenizer(directory)
    chosen = chat_formats.choose_format(words, "auto")
    long = [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y"}]
    kept = finetune.encoded(words, [TALK, long], chosen.tokens, 64, Path("train.jsonl"))
    assert len(kept) == 1 and len(kept[0]["input_ids"]) == 64
    assert "1 of 2 are left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no answer begins within --max_seq_len 64"):
        finetune.encoded(words, [long], chosen.tokens, 64, Path("train.jsonl"))


def test_padding_is_masked_and_not_learned() -> None:
    batch = conversations.Padding(9)(
        [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_bad_data_and_a_missing_model_are_named(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n')
    flags = ["--data_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    assert finetune.main(["--model_name_or_path", str(directory), *flags]) == 2
    assert f"{tmp_path / 'train.jsonl'}:1: 'messages' is not a list" in capsys.readouterr().err
    assert finetune.main(["--model_name_or_path", str(tmp_path), *flags]) == 2
    assert "there is no config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_our_own_data_can_be_read() -> None:
    for name in ("train", "test"):
        found = conversations.read_conversations(FINETUNE / "datasets" / f"{name}.jsonl", "general")
        assert len(found) >= 10
