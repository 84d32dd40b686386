"""Model performance on a file of conversations: metrics, lines that are wrong, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from autoeval.datasets.messages import conversation
from autoeval.datasets.rows import DatasetError, Row
from autoeval.model_eval.arguments import read_metrics
from autoeval.model_eval.dataset_metrics import evaluator_of, is_chinese, load_task, output_files
from autoeval.tasks.icl import evaluate_records
from tests.eval_scripts.dimensions_world import call_script, performance_schema, run_script
from tests.tiny_models import save_tiny_model

SCRIPT = "model_performance_evaluation"
GOOD = [
    {"messages": [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "Pong!"}]},
    {"instruction": "Name the colour of the sky.", "input": "", "output": "blue"},
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "the cat sat"},
        ]
    },
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", "llama", window=512)


@pytest.mark.slow
def test_the_published_command(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", GOOD)
    flags = ["--max_seq_len", "512", "--per_device_batch_size", "10", "--gpu_id", "0", "--max_new_tokens", "12"]
    output = tmp_path / "output_path"
    metrics = ["Acc", "F1", "BLEU", "Rouge"]
    code, answer, said = run_script(
        *(SCRIPT, "--model_name_or_path", str(model), "--dataset_path", str(file)),
        *("--evaluation_metrics", *metrics, *flags, "--output_path", str(output)),
    )
    assert code == 0
    jsonschema.validate(answer, performance_schema(metrics))
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [line["where"] for line in lines] == [f"{file}:{number}" for number in (1, 2, 3)]
    assert lines[2]["messages"][-1] == {"role": "user", "content": "c"} and lines[2]["reference"] == "the cat sat"
    for name in ("Acc", "F1", "Rouge"):  # means of what each line says
        mean = sum(line["metrics"][name] for line in lines) / 3
        assert answer["data"]["evaluation_results"][name] == pytest.approx(mean, abs=1e-4)
    assert json.loads((output / "results.json").read_text()) == answer["data"]
    before = said.index("memory:"), said.index("duration:")
    assert max(before) < said.index("3 of 3 items")  # the estimates come before the first item


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("{not json", "not a line of JSON"),
        ('["a list"]', "expected a JSON object"),
        ({"text": "x"}, "expected 'messages', or 'instruction' or 'input' with 'output'"),
        ({"messages": []}, "'messages' is not a list of messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "the last message is not an answer"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 0 has the role 'bot'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "message 0 is the assistant's, expected the system"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 0 is not an object with role and content"),
        ({"instruction": "x", "output": ""}, "the last message is not an answer"),
        ({"instruction": "x", "input": 5, "output": "y"}, "'input' is 5, expected a text"),
    ],
)
def test_a_wrong_line_is_an_answer_with_its_number_and_nothing_is_written(
    wrong: Any, expected: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "test.jsonl", [GOOD[0], GOOD[1], wrong])
    code, answer = call_script(
        SCRIPT,
        [
            *("--model_name_or_path", str(model), "--dataset_path", str(file)),
            *("--evaluation_metrics", "Acc", "--output_path", str(tmp_path / "out")),
        ],
        capfd,
    )
    assert (code, answer["code"], answer["data"]) == (2, 2, {})
    assert f"{file}:3: " in answer["msg"] and expected in answer["msg"]
    assert not (tmp_path / "out").exists()


def test_an_unknown_metric_and_a_missing_flag_are_answers_too(capfd: pytest.CaptureFixture[str]) -> None:
    code, answer = call_script(SCRIPT, ["--model_name_or_path", "x"], capfd)
    assert (code, answer["data"]) == (2, {}) and "--dataset_path" in answer["msg"]
    flags = ["--model_name_or_path", "x", "--dataset_path", "y", "--evaluation_metrics", "Meteor"]
    code, answer = call_script(SCRIPT, flags, capfd)
    assert code == 2 and "unknown metric 'Meteor' (known: Acc, F1, BLEU, Rouge)" in answer["msg"]
    assert read_metrics(["acc", "BLEU,rouge"]) == ["Acc", "BLEU", "Rouge"]
    assert read_metrics(['["F1",', '"Acc"]']) == ["F1", "Acc"]


def test_instruction_and_input_are_one_question() -> None:
    row = Row({"instruction": "Translate into French.", "input": "cat", "output": "chat"}, "x:1")
    assert conversation(row)[0] == {"role": "user", "content": "Translate into French.\ncat"}
    with pytest.raises(DatasetError, match="x:1"):
        conversation(Row({}, "x:1"))


def test_chinese_is_scored_by_characters(tmp_path: Path) -> None:
    rows = [{"instruction": f"问题{place}", "output": "我们每天早上九点开门。"} for place in range(3)]
    task = load_task(write(tmp_path / "zh.jsonl", rows), 16)
    assert is_chinese(task)
    assert not is_chinese(load_task(write(tmp_path / "en.jsonl", GOOD), 16))
    made = ["我们每天早上九点开门。", "我们早上开门。", "不知道"]
    records = [{"prediction": text, "gold": "我们每天早上九点开门。", "rounds": 1} for text in made]

    def values(name: str) -> list[float]:
        import dataclasses

        chosen = dataclasses.replace(task, eval_cfg={"evaluator": evaluator_of(name, True)})
        scores, items = evaluate_records(chosen, records)
        return [item.value for item in items if item.metric == scores[0].metric]

    # 6 characters of the answer are among the reference's 10: 2 · 6 / (6 + 10).
    assert values("F1") == pytest.approx([1.0, 0.75, 0.0])
    assert values("BLEU")[0] == pytest.approx(1.0) and values("BLEU")[2] < 0.05 < values("BLEU")[1] < 1.0
    assert values("Rouge")[0] == pytest.approx(1.0)


def test_where_the_output_goes(tmp_path: Path) -> None:
    assert output_files(None) is None
    assert output_files(str(tmp_path / "a.json")) == (tmp_path / "a.jsonl", tmp_path / "a.json")
    assert output_files(str(tmp_path / "b")) == (tmp_path / "b/predictions.jsonl", tmp_path / "b/results.json")
    (tmp_path / "c").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        output_files(str(tmp_path / "c"))


@pytest.mark.parametrize("output", ["test.jsonl", "test.json"])
def test_the_data_set_is_not_overwritten(output: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "test.jsonl", GOOD)
    before = file.read_bytes()
    flags = ["--model_name_or_path", "x", "--dataset_path", str(file), "--evaluation_metrics", "Acc"]
    code, answer = call_script(SCRIPT, [*flags, "--output_path", str(tmp_path / output)], capfd)
    assert code == 2 and "is the data set and would be overwritten" in answer["msg"]
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_a_gpu_that_is_not_here_is_said_and_the_cpu_taken(caplog: pytest.LogCaptureFixture) -> None:
    from autoeval.model_eval.arguments import device_of_gpu

    assert device_of_gpu("cpu") == "cpu" and not caplog.records
    assert device_of_gpu("99") == "cpu" and "gpu_id 99" in caplog.text
    with pytest.raises(ValueError, match="gpu_id 'first': expected the number of a GPU, or cpu"):
        device_of_gpu("first")
