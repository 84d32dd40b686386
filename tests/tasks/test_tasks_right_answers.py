"""The right answer, written as a model would write it, counts as right in every generating configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from autoeval.datasets.rows import DatasetError
from autoeval.openicl.sandbox import isolation_problem
from autoeval.tasks.configs import config_files, find_config, read_configs
from autoeval.tasks.icl import IclTask, evaluate_records, load_icl_task, load_icl_tasks

DATA = Path(os.environ.get("AUTOEVAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "opencompass"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
GENERATING = sorted(
    file.stem for file in config_files() if file.stem.endswith("_gen") and not file.stem.startswith("humaneval")
)


def written(task: IclTask, row: Any) -> str:
    """The gold answer in a sentence."""
    column = str(task.prompting.reader.output_column)
    gold = row[column]
    gold = str(gold[0] if isinstance(gold, list) else gold)
    labels = (task.eval_cfg.get("dataset_postprocessor") or {}).get("labels")
    if labels:
        gold = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[list(labels).index(gold)]
    name = str((task.eval_cfg.get("pred_postprocessor") or {}).get("type", ""))
    before = {"first-option": "The answer is ", "bbh-mcq": "So the answer is ", "cmrc": "答案是："}.get(name, "")
    if name == "bbh-freeform":
        return f"We think. So the answer is {gold}.\n"
    return " " + before + gold


@pytest.mark.parametrize("name", GENERATING)
def test_the_right_answer_is_right(name: str) -> None:
    tried = 0
    for config in read_configs(find_config(name, None)):
        try:
            task = load_icl_task(config, data_dir=DATA, limit=25)
        except DatasetError:  # a file that is not there; which ones, other tests say
            continue
        right = [{"prediction": written(task, sample.row)} for sample in task.samples]
        if "sc_size" in task.eval_cfg:
            right = [{"prediction": [one["prediction"], "no", one["prediction"]]} for one in right]
        scores, _ = evaluate_records(task, right)
        assert scores[0].value == 1.0, (config.abbr, scores[0])
        wrong = [{**one, "prediction": "ﬂ zzz"} for one in right]
        assert evaluate_records(task, wrong)[0][0].value < 0.2
        tried += 1
    assert tried or name == "mmlu_gen"


@pytest.mark.slow
@pytest.mark.skipif(isolation_problem() is not None, reason=f"no isolation here: {isolation_problem()}")
def test_humanevals_own_solutions_pass() -> None:
    limit = None if os.environ.get("AUTOEVAL_EVERY_ITEM") else 20
    (task,) = load_icl_tasks(["humaneval_gen"], data_dir=DATA, limit=limit, allow_code_execution=True)
    records = [{"prediction": sample.row["canonical_solution"]} for sample in task.samples]
    with pytest.raises(ValueError, match="--allow-code-execution"):
        evaluate_records(task, records)
    (score,), items = evaluate_records(task, records, allow_code_execution=True)
    assert (score.metric, score.value, score.n) == ("pass@1", 1.0, len(task.samples))
    wrong = [{"prediction": "    raise ValueError"} for _ in task.samples]
    (score,), _ = evaluate_records(task, wrong, allow_code_execution=True)
    assert score.value == 0.0 and len(items) == len(task.samples)
