"""Five dimensions: the script on real data with a tiny model, and what its diagnosis says by construction."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from autoeval.model_eval.arguments import read_dimensions, read_settings
from autoeval.model_eval.five_dimensions import load_task, read_reference
from autoeval.model_eval.given_model import ModelWishes, understand
from autoeval.model_eval.outcomes import Outcome, dealt, run_task
from autoeval.model_eval.weaknesses import Reference, diagnose
from autoeval.openicl.styles import PlainStyle
from autoeval.tasks.icl import IclTask, load_icl_tasks
from recorder.results import Score
from recorder.statistics import paired_difference
from tests.convert.handmade import legacy_checkpoint, small_tokenizer
from tests.eval_scripts.dimensions_world import (
    DATA,
    DIMENSIONS,
    call_script,
    five_dimensions_schema,
    run_script,
    save_instructions,
)
from tests.tiny_models import save_tiny_model

SCRIPT = "evaluate_model_from_five_dimensions"
needs_data = pytest.mark.skipif(not (DATA / "opencompass").is_dir(), reason=f"no data in {DATA} (AUTOEVAL_DATA)")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", "llama", window=1024)


def parameters(**given: Any) -> str:
    return json.dumps({"additional_parameters": given})


def data_paths(folder: Path) -> dict[str, str]:
    here = DATA / "opencompass"
    return {
        "inference_ability": str(here / "CLUE/AFQMC/dev.json"),
        "reading_comprehension": str(here / "CLUE/CMRC/dev.json"),
        "chinese_language_skill": str(here / "FewCLUE/tnews/test_public.json"),
        "command_compliance": str(save_instructions(folder / "task.json")),
        "innovation_capacity": str(here / "m3ke"),
    }


@needs_data
@pytest.mark.slow
def test_the_published_command_gives_the_published_answer_on_real_data(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = {"max_seq_len": 512, "limit": 16, "data_dir": data_paths(tmp_path), "output_path": str(tmp_path / "first")}
    code, answer, _ = run_script(SCRIPT, str(model), json.dumps(DIMENSIONS), parameters(**kept))
    assert code == 0
    jsonschema.validate(answer, five_dimensions_schema(DIMENSIONS))
    assert {name: one["n"] for name, one in answer["details"].items()} == dict.fromkeys(DIMENSIONS, 16) | {
        "command_compliance": 12
    }
    assert answer["details"]["inference_ability"]["guessing"] == 0.5
    assert answer["details"]["innovation_capacity"]["guessing"] == 0.25
    assert set(answer["details"]["reading_comprehension"]["metrics"]) == {"bleu", "bleu_jieba"}
    assert "Chinese characters" in answer["details"]["chinese_language_skill"]["bleu"]

    # The same model against its own earlier answer, item by item: nothing can be told apart.
    again = {**kept, "reference": str(tmp_path / "first"), "output_path": str(tmp_path / "second"), "lang": "en"}
    two = ["inference_ability", "innovation_capacity"]
    code, answer = call_script(SCRIPT, [str(model), json.dumps(two), parameters(**again)], capfd)
    assert code == 0
    jsonschema.validate(answer, five_dimensions_schema(two))
    for one in answer["diagnosis"]["dimensions"].values():
        assert one["against_reference"]["difference"] == 0.0
        assert one["against_reference"]["verdict"] == "cannot tell"
    saved = json.loads((tmp_path / "second" / "five_dimensions.json").read_text())
    assert len(saved["items"]["inference_ability"]) == 16
    assert len(json.loads((tmp_path / "second" / "predictions" / "innovation_capacity.json").read_text())) == 16


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["[inference_ability]"], "evaluation_dimensions: not JSON"),
        (['["inference"]'], "unknown dimension 'inference'; did you mean 'inference_ability'?"),
        (["[]"], "expected a JSON list of names"),
        (['["inference_ability"]', "{'additional_parameters': {}}"], "options: not JSON"),
        (['["inference_ability"]', '{"additional": {}}'], "options: 'additional': expected one key"),
        (['["inference_ability"]', parameters(max_seq_length=5)], "unknown key 'max_seq_length'; did you mean"),
        (['["inference_ability"]', parameters(max_seq_len="512")], "max_seq_len is '512', expected a whole number"),
        (['["inference_ability"]', parameters(data_dir={"maths": "x"})], "data_dir: unknown dimension 'maths'"),
        (['["inference_ability"]', parameters(dtype="float99")], "dtype is 'float99', expected one of auto, float32"),
        (['["inference_ability"]', parameters(device="cuda:99")], "device is 'cuda:99', but there are"),
        (['["inference_ability"]', parameters(device="gpu")], "device is 'gpu', expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], expected: str) -> None:
    with pytest.raises(ValueError) as error:
        read_dimensions(arguments[0])
        read_settings(arguments[1])
    assert expected in str(error.value)


def test_missing_data_and_a_missing_model_are_answers_that_name_them(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = parameters(data_dir={"command_compliance": str(tmp_path / "gone.json")})
    code, answer = call_script(SCRIPT, [str(model), '["command_compliance"]', where], capfd)
    assert (code, answer["code"], answer["data"]) == (2, 2, {})
    assert str(tmp_path / "gone.json") in answer["msg"]
    code, answer = call_script(SCRIPT, [str(tmp_path / "no-model")], capfd)
    assert (code, answer["code"], answer["data"]) == (2, 2, {})
    assert "no-model" in answer["msg"]


def afqmc(folder: Path, count: int = 60) -> IclTask:
    """Question pairs of our own, a third of them the same."""
    rows = [
        {"sentence1": f"花呗怎么还款{i}", "sentence2": f"怎样还花呗{i}", "label": "1" if i % 3 == 0 else "0"}
        for i in range(count)
    ]
    (folder / "CLUE/AFQMC").mkdir(parents=True)
    (folder / "CLUE/AFQMC/dev.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (task,) = load_icl_tasks(["inference_ability"], data_dir=folder)
    return task


def answered(task: IclTask, labels: list[str]) -> Outcome:
    from autoeval.tasks.icl import evaluate_records

    records = [{"prediction": label, "label: 0": {}, "label: 1": {}} for label in labels]
    scores, items = evaluate_records(task, records, style=PlainStyle())
    own = {item.key: item.value for item in items if item.metric == "acc"}
    chance, above = dealt(task, records, own, PlainStyle())
    return Outcome("inference_ability", task.version, "ranked", scores, own, chance, above, records)


def test_one_answer_to_everything_is_no_better_than_chance_whatever_its_accuracy(tmp_path: Path) -> None:
    always = answered(afqmc(tmp_path), ["0"] * 60)
    assert always.main.value == pytest.approx(2 / 3)  # well above a guess of 1/2
    assert always.chance == pytest.approx(2 / 3)
    assert always.above_chance is not None and always.above_chance.value == 0.0 and always.above_chance.p_value == 1.0
    told = diagnose({"inference_ability": always}, lang="en")
    assert told["weak_dimensions"] == ["inference_ability"]
    assert "(p = 1;" in told["dimensions"]["inference_ability"]["reasons"][0]


def test_answers_that_belong_to_their_questions_are_above_chance(tmp_path: Path) -> None:
    task = afqmc(tmp_path)
    draw = random.Random(1)
    right = [str(sample.row["label"]) for sample in task.samples]
    able = answered(task, [label if draw.random() < 0.85 else str(1 - int(label)) for label in right])
    told = diagnose({"inference_ability": able}, lang="en")
    assert told["weak_dimensions"] == []
    assert told["dimensions"]["inference_ability"]["verdict"] == "fine"
    # Dealt anew the accuracy is what the shares of labels give: P(said 1) P(is 1) + P(said 0) P(is 0).
    said = sum(record["prediction"] == "1" for record in able.records) / 60
    assert able.chance == pytest.approx(said / 3 + (1 - said) * 2 / 3, abs=0.04)


def test_worse_than_the_reference_on_the_same_items_is_weak(tmp_path: Path) -> None:
    task = afqmc(tmp_path)
    right = [str(sample.row["label"]) for sample in task.samples]
    able = answered(task, right)
    poorer = answered(task, [label if place % 4 else str(1 - int(label)) for place, label in enumerate(right)])
    reference = Reference(able.main.value, able.stderr, 60, task.version, able.items)
    told = diagnose({"inference_ability": poorer}, {"inference_ability": reference}, lang="en")
    entry = told["dimensions"]["inference_ability"]
    assert entry["against_chance"]["verdict"] == "better"
    assert entry["against_reference"]["verdict"] == "worse"
    assert (entry["verdict"], told["weak_dimensions"]) == ("weak", ["inference_ability"])
    unpaired = dataclasses.replace(reference, items={})
    figures = diagnose({"inference_ability": poorer}, {"inference_ability": unpaired})["dimensions"]
    assert figures["inference_ability"]["against_reference"]["difference"] == pytest.approx(-0.25)
    other = dataclasses.replace(reference, version="another")
    told = diagnose({"inference_ability": poorer}, {"inference_ability": other}, lang="en")
    assert told["dimensions"]["inference_ability"]["against_reference"] is None
    assert "not comparable" in told["dimensions"]["inference_ability"]["reasons"][1]


def test_claims_are_corrected_for_their_number() -> None:
    rows = {f"item {place}": float(place < 46) for place in range(64)}  # p = 0.0011 alone
    half = dict.fromkeys(rows, 0.5)
    above = paired_difference(rows, half)
    outcome = Outcome("x", "v", "ranked", (Score("acc", 46 / 64, 0.06, 64),), rows, 0.5, above, [])
    alone = diagnose({"a": outcome})["dimensions"]["a"]["against_chance"]["p_value"]
    together = diagnose(dict.fromkeys("abcde", outcome))["dimensions"]["a"]["against_chance"]["p_value"]
    assert together == pytest.approx(5 * alone, rel=1e-4)


def test_a_saved_answer_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"evaluation_results": {"inference_ability": 0.9}, "diagnosis": {}}')
    with pytest.raises(ValueError, match="there is no 'details'"):
        read_reference(tmp_path / "x.json")


@pytest.mark.slow
def test_a_megatron_checkpoint_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOEVAL_CACHE", str(tmp_path / "cache"))
    legacy_checkpoint(tmp_path / "run" / "iter_0000100")
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("100")
    small_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        understand(str(tmp_path / "run"), ModelWishes())
    wishes = ModelWishes(tokenizer=f"{tmp_path / 'vocab.json'},{tmp_path / 'merges.txt'}", max_seq_len=4096)
    given = understand(str(tmp_path / "run"), wishes)
    assert (given.source, given.name) == ("megatron", "run-iter_0000100")
    assert given.config["max_seq_len"] < 4096  # its own window
    made = (given.directory / "config.json").stat().st_mtime_ns  # type: ignore[operator]
    again = understand(str(tmp_path / "run" / "iter_0000100"), wishes)
    assert (again.directory / "config.json").stat().st_mtime_ns == made  # type: ignore[operator]
    settings = dataclasses.replace(read_settings("{}"), data_paths={"command_compliance": str(_instructions(tmp_path))})
    loaded = given.load()
    outcome = run_task(load_task("command_compliance", given, settings), loaded, given.style(loaded))
    assert outcome.main.n == 12


def _instructions(folder: Path) -> Path:
    return save_instructions(folder / "instructions" / "task.json")


def test_a_chat_server_is_asked_for_its_name_and_generates(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._answer({"object": "list", "data": [{"id": "served-7b", "object": "model"}]})

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            text = "答案：B" if "0" in asked[-1]["messages"][-1]["content"] else "A"
            message = {"role": "assistant", "content": text}
            self._answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {}})

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        given = understand(url, ModelWishes())
        assert (given.source, given.name, given.generates_only) == ("server", "served-7b", True)
        afqmc(tmp_path, 24)
        task = load_task("inference_ability", given, dataclasses.replace(read_settings("{}"), data_dir=tmp_path))
        loaded = given.load()
        outcome = run_task(task, loaded, given.style(loaded))
    finally:
        server.shutdown()
        server.server_close()
    assert (outcome.mode, len(asked)) == ("generated", 24)
    # Items 0, 10 and 20 have a 0 in them and are answered B, the same; of them 0 is. The others are called different.
    assert outcome.main.value == pytest.approx((1 + 14) / 24)
