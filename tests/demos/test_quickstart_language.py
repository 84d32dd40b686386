"""The demo's language: the same from the same seed, honest questions, and a tokenizer that loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demos.quickstart import language


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("language")
    language.write_language(output, count=3000)
    return output


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_same_seed_writes_the_same_bytes(written: Path, tmp_path: Path) -> None:
    language.write_language(tmp_path, count=3000)
    for name in ("corpus.txt", "vocab.json", "merges.txt", "facts_ppl.jsonl", "patterns_gen.jsonl", "helm_mcqa.jsonl"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name


def test_another_seed_tells_another_world() -> None:
    assert list(language.documents(20, seed=1)) != list(language.documents(20, seed=2))


def test_there_are_enough_questions(written: Path) -> None:
    assert len(_rows(written / "facts_ppl.jsonl")) >= 200
    assert len(_rows(written / "patterns_gen.jsonl")) >= 100
    assert len(_rows(written / "helm_mcqa.jsonl")) >= 50


def test_no_fact_is_told_in_the_wording_of_its_question(written: Path) -> None:
    corpus = (written / "corpus.txt").read_text()
    for row in _rows(written / "facts_ppl.jsonl"):
        assert f"{row['prompt']} " not in corpus, row
    for row in _rows(written / "helm_mcqa.jsonl"):
        assert f"{row['input']['text']} " not in corpus, row


def test_every_fact_is_told_in_another_wording(written: Path) -> None:
    corpus = (written / "corpus.txt").read_text()
    for fact in language.facts():
        others = [index for index in range(4) if index != fact.wording]
        assert any(fact.sentence(index) in corpus for index in others), fact


def test_no_asked_pattern_stands_in_the_corpus(written: Path) -> None:
    lines = set((written / "corpus.txt").read_text().replace(language.END_OF_TEXT, "\n").splitlines())
    for row in _rows(written / "patterns_gen.jsonl"):
        assert f"{row['prompt']} {row['answer']}" not in lines
        assert not any(line.startswith(f"{row['prompt']} ") for line in lines), row


def test_the_right_choice_is_the_true_one_and_its_place_tells_nothing() -> None:
    truth = {(fact.person, fact.relation): fact.value for fact in language.facts()}
    places = [0] * language.CHOICES
    for question in language.fact_questions():
        assert question.choices[question.answer] == truth[question.fact.person, question.fact.relation]
        assert len(set(question.choices)) == language.CHOICES
        places[question.answer] += 1
    assert min(places) > sum(places) / language.CHOICES * 0.7, places


def test_brackets_are_closed() -> None:
    lines = [line for text in language.documents(500) for line in text.splitlines() if line.startswith("Input:")]
    assert len(lines) > 50
    for line in lines:
        expected: list[str] = []
        for symbol in line.removeprefix("Input: ").split():
            if symbol in "([":
                expected.append({"(": ")", "[": "]"}[symbol])
            else:
                assert expected.pop() == symbol
        assert not expected
        assert len(line.split()) <= 110


def test_the_tokenizer_gives_the_text_back(written: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer(str(written / "vocab.json"), str(written / "merges.txt"))
    for text in ["we know Mira lives in Tolgrad .\n", "Count : 7 8 9 -> 10\n", "Ünïcode, tabs\tand 火"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id(language.END_OF_TEXT) is not None
    assert tokenizer.get_vocab_size() <= language.VOCABULARY_SIZE
