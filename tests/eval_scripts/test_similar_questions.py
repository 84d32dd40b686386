"""analyze_similar_questions_and_intents, run as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import eval.analyze_similar_questions_and_intents as script
from autoeval.eval_output import run_script
from autoeval.intents.pairs import similar_pairs
from autoeval.intents.records import RecordError, questions, read_records
from tests.eval_scripts.intents_world import banking77, clinc150, plant, save_word_embedder

HOME = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("AUTOEVAL_DATA", HOME.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "intents").is_dir(), reason=f"no data in {DATA} (AUTOEVAL_DATA)")
SCRIPT = HOME / "eval" / "analyze_similar_questions_and_intents.sh"
ENVIRONMENT = os.environ | {"PYTHON": sys.executable}


def run(*arguments: str | Path, cwd: Path) -> tuple[int, dict, str]:
    done = subprocess.run([SCRIPT, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout), done.stderr


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict, str]:
    """The same without a process of its own, which would import torch again."""
    status = run_script(script.parser(), script.work, [str(one) for one in arguments])
    printed = capsys.readouterr()
    return status, json.loads(printed.out), printed.err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ["how do I lose my card", "where is my card", "my card is lost where is it", "what is the exchange rate"]
    return save_word_embedder(tmp_path_factory.mktemp("sbert"), texts)


def record(question: str, intent: str, **more: object) -> dict:
    return {"instruction": question, "input": "", "intent": intent, "output": f"on {intent}"} | more


@pytest.mark.slow
def test_mismatches_and_similar_intents_with_their_lines(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "combine_data.json"
    rows = [
        record("where is my card", "lost_card"),
        record("what is the exchange rate", "rates"),
        {"intruction": "Where is my card", "input": [], "intent": "card lost", "output": "look"},
        record("what is the exchange rate", "rates"),
    ]
    data.write_text(json.dumps(rows))
    status, answer, _ = run_here(capsys, "--data_file_path", data, "--model_path", model)
    assert status == 0 and answer["code"] == 0
    assert answer["data"] == {
        "mismatched_intents": [
            {
                "questionPair": ["where is my card", "Where is my card"],
                "intent1": "lost_card",
                "intent2": "card lost",
                "answer1": "on lost_card",
                "answer2": "look",
                "lineNumbers": [0, 2],
            }
        ],
        "similar_intents": [{"intentPair": ["lost_card", "card lost"], "lineNumbers": [0, 2]}],
    }


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("load", [banking77, clinc150])
def test_planted_mismatches_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], load) -> None:
    """Precision counts every pair that was not planted as wrong, although some are mistakes of the data set itself."""
    rows = load(DATA, 4000)
    records, planted = plant(rows, 100)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in records))
    model = save_word_embedder(tmp_path / "sbert", [text for text, _ in rows])
    status, answer, _ = run_here(capsys, "--data_file_path", data, "--model_path", model)
    assert status == 0, answer
    found = {tuple(pair["lineNumbers"]) for pair in answer["data"]["mismatched_intents"]}
    recall = len(found & planted) / len(planted)
    precision = len(found & planted) / len(found)
    print(f"{load.__name__}: recall {recall:.3f}, precision {precision:.3f}, {len(found)} pairs")
    assert recall >= 0.7 and precision >= 0.9  # measured: docs/similar_questions.md


def test_pairs_are_those_of_the_whole_matrix() -> None:
    generator = numpy.random.default_rng(0)
    vectors = generator.normal(size=(500, 8)).astype(numpy.float32)
    vectors[100:140] = vectors[:40] + 0.05 * generator.normal(size=(40, 8))
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    groups = generator.integers(0, 5, 500)
    exact = vectors.astype(numpy.float64) @ vectors.astype(numpy.float64).T
    i, j = numpy.nonzero(numpy.triu(exact >= 0.8, 1) & (groups[:, None] != groups[None]))
    for block in (7, 64, 1000):
        found = similar_pairs(vectors, groups, 0.8, most=10_000, block=block)
        assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == set(
            zip(i.tolist(), j.tolist(), strict=True)
        )
        assert found.total == len(i) > 40
    few = similar_pairs(vectors, groups, 0.8, most=10, block=64)
    assert few.total == len(i)
    assert few.similarity == pytest.approx(sorted(exact[i, j], reverse=True)[:10], abs=1e-12)


@pytest.mark.slow
def test_the_number_of_listed_pairs_is_bounded(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record("where is my card", f"intent{i}")) + "\n" for i in range(200)))
    arguments = ["--data_file_path", data, "--model_path", model, "--max_pairs", "50"]
    status, answer, _ = run_here(capsys, *arguments)
    assert status == 0 and len(answer["data"]["mismatched_intents"]) == 50
    assert "19900 pairs of questions are mismatched: the 50 most similar are listed" in caplog.text


def test_an_instruction_that_all_share_is_no_question(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [
        {"instruction": "Name the intent.", "input": "['a b', 'c d']", "intent": "x", "output": ""},
        {"instruction": "Name the intent.", "input": "[not a list", "intent": "y", "output": ""},
    ]
    data.write_text("\n\n".join(json.dumps(one) for one in rows))
    asked = questions(read_records(data))
    assert [(one.text, one.record.line) for one in asked] == [("a b", 0), ("c d", 0), ("[not a list", 2)]
    data.write_text(json.dumps([rows[0], rows[1] | {"instruction": "And this?"}]))
    assert [one.text for one in questions(read_records(data))] == [
        "Name the intent.\na b\nc d",
        "And this?\n[not a list",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            '{"instruction": "a", "input": "", "intent": "x", "output": ""}\n{"instruction": ',
            "line 1 (from 0): no JSON",
        ),
        ('[{"instruction": "a", "intent": "x", "output": ""}, 5]', "line 1 (from 0): expected an object"),
        ('{"instruction": "a", "input": "", "output": ""}', "line 0 (from 0): intent: expected a text, found nothing"),
        ('{"instruction": "a", "input": {}, "intent": "x", "output": ""}', "line 0 (from 0): input: expected a text"),
        ('{"instruction": " ", "input": "[]", "intent": "x", "output": ""}', "line 0 (from 0): there is no question"),
        ("[\n{},\n{]", "line 2 (from 0): no JSON"),
        ("[" * 100_000, "cannot be read: maximum recursion depth"),
        ('{"n": ' + "9" * 5000 + "}", "line 0 (from 0): cannot be read: Exceeds the limit"),
        ("", "no records in it"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    data = tmp_path / "data.json"
    data.write_text(text)
    with pytest.raises(RecordError) as error:
        read_records(data)
    assert str(error.value).startswith(f"{data}: ") and complaint in str(error.value)


@pytest.mark.slow
def test_a_directory_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([record("a", "x")]))
    empty = tmp_path / "empty"
    empty.mkdir()
    status, answer, _ = run_here(capsys, "--data_file_path", data, "--model_path", empty)
    assert status == answer["code"] == 2 and f"{empty}: no sentence-transformers model" in answer["msg"]


def test_what_is_wrong_is_answered_in_json(tmp_path: Path) -> None:
    model = tmp_path
    data = tmp_path / "data.json"
    data.write_text(json.dumps([record("a", "x")]))
    for arguments, text in (
        (["--data_file_path", "nowhere.json", "--model_path", model], "nowhere.json: No such file or directory"),
        (["--data_file_path", data, "--model_path", "nowhere"], "nowhere: no such directory"),
        (["--data_file_path", data], "the following arguments are required: --model_path"),
        (["--data_file_path", data, "--model_path", model, "--similarity_threshold", "91"], "between -1 and 1"),
        (["--data_file_path", data, "--model_path", model, "--batch_size", "x"], "whole number of at least 1, found x"),
    ):
        status, answer, _ = run(*arguments, cwd=tmp_path)
        assert status == answer["code"] == 2 and answer["data"] == {}
        assert text in answer["msg"]
