"""run.py's tasks dealt out by what earlier runs took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoeval.datasets.rows import sliced
from autoeval.partitioners import build_partitioner
from autoeval.partitioners.base import Measured, Spent
from autoeval.run.spent import SpentBefore

MODEL = {"type": "HuggingFaceBaseModel", "abbr": "m", "path": "m"}


def dataset(abbr: str, items: int, labels: int = 0) -> dict[str, Any]:
    template = dict.fromkeys(range(labels), "{q}") if labels else "{q}"
    infer_cfg = {"prompt_template": {"template": template}}
    return {"abbr": abbr, "items": items, "reader_cfg": {}, "infer_cfg": infer_cfg}


def dealt(options: dict[str, Any], datasets: list[dict[str, Any]], measured: Measured, there: Any = ()) -> Any:
    tasks = build_partitioner(options).partition(
        [MODEL],
        datasets,
        done=lambda _, one: one["abbr"] in there,
        count=lambda one: len(sliced(range(one["items"]), one.get("test_range", ""))),
        keep={},
        measured=measured,
    )
    return [[one["abbr"] for one in task["datasets"][0]] for task in tasks]


def spent(load_seconds: float, **item_seconds: float) -> Measured:
    def measured(_model: Any, one: Any) -> Spent | None:
        found = item_seconds.get(one["abbr"].partition("_")[0])
        return None if found is None else Spent(found, load_seconds)

    return measured


def test_what_was_measured_decides_and_parts_are_those_of_num_worker() -> None:
    data = [dataset("a", 16), dataset("b", 64), dataset("c", 16)]
    options = {"type": "BalancedPartitioner", "num_worker": 2}
    names = sorted(name for task in dealt({**options, "type": "NumWorkerPartitioner"}, data, spent(0)) for name in task)
    assert names == ["a", "b_0", "b_1", "c"]
    assert dealt(options, data, spent(1.0, a=10, b=1, c=1)) == [["a"], ["b_0", "b_1", "c"]]
    assert dealt(options, data, spent(1.0, a=1, b=1, c=10)) == [["c"], ["a", "b_0", "b_1"]]
    assert dealt(options, data, spent(1.0, a=1, b=1, c=10), there={"c"}) == [["a", "b_0"], ["b_1"]]
    assert dealt({**options, "strategy": "split"}, data, spent(1.0)) == [["a"], ["b_0"], ["b_1"], ["c"]]


def test_a_model_is_not_loaded_for_less_than_it_takes() -> None:
    data = [dataset("a", 16), dataset("b", 16), dataset("c", 16)]
    options = {"type": "BalancedPartitioner", "num_worker": 3}
    assert dealt(options, data, spent(60.0, a=0.5, b=0.5, c=0.5)) == [["a", "b", "c"]]
    assert dealt(options, data, spent(1.0, a=0.5, b=0.5, c=0.5)) == [["a"], ["b"], ["c"]]
    assert dealt({**options, "num_worker": 1}, data, spent(1.0)) == [["a", "b", "c"]]
    assert dealt(options, data, spent(1.0), there={"a", "b", "c"}) == []


def test_what_was_never_run_is_taken_by_its_size() -> None:
    data = [dataset("ranked", 160, labels=2), dataset("written", 16), dataset("other", 16)]  # 320, 320, 320
    options = {"type": "BalancedPartitioner", "num_worker": 2, "num_split": 1}
    assert dealt(options, data, spent(0)) == [["ranked", "other"], ["written"]]
    # 16 s and 24 s for sizes of 320: another one of 320 is taken for 20 s.
    assert dealt(options, data, spent(0, ranked=0.1, other=1.5)) == [["ranked", "written"], ["other"]]
    with pytest.raises(ValueError, match="gen_task_coef is 0"):
        build_partitioner({**options, "gen_task_coef": 0})


def note(run: Path, name: str, items: float, seconds: float, load: float = 2.0) -> None:
    file = run / "logs" / "infer" / "m" / f"{name}.seconds.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"items": items, "seconds": seconds, "load_seconds": load}))


def test_what_earlier_runs_took_is_found(tmp_path: Path) -> None:
    note(tmp_path / "20250101_000000", "old", 10, 5)
    note(tmp_path / "20250101_000000", "both", 10, 1)
    note(tmp_path / "20250102_000000", "both_0", 10, 20, load=1)
    note(tmp_path / "20250102_000000", "both_1", 30, 20, load=3)
    note(tmp_path / "20250102_000000", "ends_5", 10, 40)
    (tmp_path / "20250102_000000" / "logs" / "infer" / "m" / "torn.seconds.json").write_text('{"items": 1')
    note(tmp_path / "20250102_000000", "none", 0, 0)
    before = SpentBefore(tmp_path)
    asked = {
        name: before(MODEL, dataset(name, 1)) for name in ("old", "both", "both_7", "ends_5", "torn", "none", "new")
    }
    assert asked == {
        "old": Spent(0.5, 2.0),
        "both": Spent(1.0, 3.0),  # of the newest run that had it, its parts together
        "both_7": Spent(1.0, 3.0),
        "ends_5": Spent(4.0, 2.0),
        "torn": None,
        "none": None,
        "new": None,
    }
    assert before({**MODEL, "abbr": "n"}, dataset("old", 1)) is None
