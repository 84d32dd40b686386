"""YAML, JSON, HOCON, tables and archives that somebody else wrote: nothing runs, and nothing grows beyond its size."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoeval.convert.errors import ConversionError
from autoeval.convert.run_config import read_run_config
from autoeval.datasets.rows import DatasetError, read_json, read_jsonl
from autoeval.models.adapter import base_of
from autoeval.status import Status, print_status
from autoeval.tasks.stored import read_records
from autoeval.yaml_file import ConfigError, YamlFile
from recorder.baselines import BaselinesError, load_baselines
from recorder.helm_output import HelmOutputError, read_suite
from recorder.leaderboard import LeaderboardRow, write_leaderboard_csv
from recorder.messages import lark
from recorder.messages.answer import Reply
from recorder.results import ResultFileError, read_result
from recorder.sources.harness import read_harness
from recorder.sources.measurement import SourceError
from recorder.untrusted import PrintableRecord, csv_cell, parse_json, parse_yaml, printable
from recorder.writer_config import WriterConfigError, read_config

DEEP = "[" * 100_000
# Nine lines that stand for 9^9 values; the same as mappings that are merged.
LAUGHS = "\n".join(
    ["a0: &a0 [x,x,x,x,x,x,x,x,x]"] + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
)
MERGES = "\n".join(["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)])
BAD_YAML = {
    "aliases of aliases": (LAUGHS, "aliases stand for more"),
    "merges of merges": (MERGES, "aliases stand for more"),
    "an alias in itself": ("a: &a [*a]", "part of"),
    "nested": ("a: " + "[" * 600, "nested too deeply"),
    "nested a little": ("a: " + "[" * 300 + "]" * 300, "nested too deeply"),
    "a date that is none": ("a: 2024-99-99", "month must be"),
    "a number without end": ("a: " + "1" * 5000, "digits"),
    "a Python object": ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "a Python name": ("a: !!python/name:os.system", "could not determine a constructor"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_makes_no_objects_and_does_not_grow(name: str, tmp_path: Path) -> None:
    text, said = BAD_YAML[name]
    with pytest.raises(yaml.YAMLError, match=said):
        parse_yaml(text)
    path = tmp_path / "run_config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not valid YAML"):
        YamlFile(path)
    with pytest.raises(ConversionError, match="not plain YAML"):
        read_run_config(tmp_path, 100)
    with pytest.raises(BaselinesError, match="cannot be read as YAML"):
        load_baselines(path)
    with pytest.raises(WriterConfigError):
        read_config(path)


def test_yaml_with_anchors_is_read_as_ever() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]")["b"] == {"x": 1, "y": 2}
    assert parse_yaml("") is None


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "1" * 5000, "{", b"\xff"])
def test_json_that_is_wrong_in_any_way_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)


def suite(path: Path) -> Any:
    run = path.parent / "runs" / "s" / "mmlu:model=x"
    run.mkdir(parents=True)
    path.rename(run / "stats.json")
    return read_suite(path.parent, "s", [("mmlu", ["EM"])], 0)


READERS: dict[str, tuple[Callable[[Path], Any], type[Exception]]] = {
    "a result": (read_result, ResultFileError),
    "stored predictions": (read_records, ValueError),
    "lm_eval": (read_harness, SourceError),
    "helm": (suite, HelmOutputError),
    "jsonl": (read_jsonl, DatasetError),
    "json": (read_json, DatasetError),
    "adapter": (lambda path: base_of(path.parent), ValueError),
}


@pytest.mark.parametrize("name", READERS)
def test_files_of_endless_nesting_are_named(name: str, tmp_path: Path) -> None:
    read, error = READERS[name]
    path = tmp_path / "adapter_config.json"
    path.write_text(DEEP)
    with pytest.raises(error, match=str(tmp_path)):
        read(path)


def test_an_answer_of_endless_nesting_is_none() -> None:
    assert lark.judge(Reply(200, DEEP[:20_000])).verdict == "later"


FORMULAS = ['=HYPERLINK("http://x")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1"]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_spreadsheet_computes_no_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    row = LeaderboardRow(name, 1, None, -0.5, None, 1, {f"{name}.EM": -0.5}, {})
    write_leaderboard_csv(path, [row], [f"{name}.EM"])
    with path.open(newline="") as stream:
        head, cells = csv.reader(stream)
    assert (cells[0], head[6]) == (f"'{name}", f"'{name}.EM")
    assert cells[6] == "-0.5"


def test_numbers_and_plain_names_stay_what_they_are() -> None:
    assert [csv_cell(one) for one in ("-", "-0.5", "gpt-2", "", 3, None)] == ["-", "-0.5", "gpt-2", "", 3, None]


def test_a_terminal_is_not_steered() -> None:
    told = "a\x1b[2J\x1b]0;owned\x07b\x9b31m\r\u202egpj\ud800\nnext\tcolumn é 文 ▲"
    assert printable(told) == "a\\x1b[2J\\x1b]0;owned\\x07b\\u009b31m\\x0d\\u202egpj\\ud800\nnext\tcolumn é 文 ▲"


def test_neither_log_lines_nor_the_status_steer_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = PrintableRecord("x", logging.INFO, "f", 1, "%s is missing", ("\x1b[2J.distcp",), None)
    assert logging.Formatter().format(record) == "\\x1b[2J.distcp is missing"
    try:
        raise ValueError("\x1b]0;owned\x07")
    except ValueError:
        record = PrintableRecord("x", logging.ERROR, "f", 1, "told", (), sys.exc_info())
    shown = logging.Formatter().format(record)
    assert "\x1b" not in shown and "\\x1b]0;owned\\x07" in shown and "Traceback" in shown
    status = Status("gpt", str(tmp_path), (), ((1000, "\x1b[2Jx.distcp is missing"),))
    print_status([status])
    assert "\\x1b[2Jx.distcp is missing" in capsys.readouterr().out


def test_every_program_that_logs_makes_its_records_so() -> None:
    home = Path(__file__).resolve().parents[2]
    for file in [*(home / "autoeval").rglob("*.py"), *(home / "recorder").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        if "logging.basicConfig(" in text:
            assert "logging.setLogRecordFactory(PrintableRecord)" in text, file
