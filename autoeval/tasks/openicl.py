"""The two tasks of a run: ``OpenICLInferTask`` asks a model, ``OpenICLEvalTask`` scores what it answered.

Either is a plain configuration that runs in a process of its own, on any machine that sees the files:

    python -m autoeval.tasks.openicl_infer CONFIG     predictions/<model>/<dataset>.json
    python -m autoeval.tasks.openicl_eval CONFIG      results/<model>/<dataset>.json

The process ends with 0 when every output is there, with 2 when an input is wrong (another try is of no use), else 1.
One dataset that fails does not take the others with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from autoeval.offline.environment import keep_off_the_hub
from autoeval.openicl.inferencers import build_inferencer
from autoeval.tasks import BAD_INPUT, ENDS_WITH_INPUT
from autoeval.tasks.icl import infer_in_chunks
from autoeval.tasks.job_data import load_task
from autoeval.tasks.model_configs import SERVER, build_model, kind_of, style_of, with_model_defaults
from autoeval.tasks.names import dataset_abbr, model_abbr, output_path, pairs, task_name
from autoeval.tasks.results import evaluate, prediction_digest
from autoeval.tasks.stored import (
    Record,
    begun_records,
    merged_records,
    model_identity,
    origins,
    unfinished_path,
)
from recorder.files import write_json
from recorder.untrusted import PrintableRecord

logger = logging.getLogger("autoeval.openicl")

# Items asked at once. Enough for full batches; between two of them an interruption costs nothing.
CHUNK_RANKED, CHUNK_GENERATED = 256, 64
SAVE_SECONDS = 10.0


class Task:
    """What runners need to know of a task: its name, its command, where its log and outputs are.

    ``cfg``: ``models`` with one model, ``datasets`` with one list, ``work_dir``, ``data_dir``, ``limit``.
    """

    name_prefix: ClassVar[str]
    log_subdir: ClassVar[str]
    output_subdir: ClassVar[str]
    module: ClassVar[str]

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.cfg = cfg
        self.work_dir = Path(cfg["work_dir"])

    @property
    def name(self) -> str:
        return task_name(self.name_prefix, self.cfg)

    @property
    def num_gpus(self) -> int:
        """GPUs that the task would like to have."""
        return 0

    def get_command(self, cfg_path: Path | str, template: str = "{task_cmd}") -> str:
        """A shell command; ``template`` has ``{task_cmd}`` where it goes (``srun ... {task_cmd}``)."""
        command = shlex.join([sys.executable, "-m", self.module, str(cfg_path)])
        return template.replace("{task_cmd}", command)

    def get_log_path(self, file_extension: str = "out") -> Path:
        """One a task, called after its first dataset."""
        model, dataset = next(pairs(self.cfg))
        path = output_path(self.work_dir / self.log_subdir, model, dataset)
        return path.with_name(f"{path.stem}.{file_extension}")

    def get_output_paths(self) -> list[Path]:
        return [output_path(self.work_dir / self.output_subdir, *pair) for pair in pairs(self.cfg)]

    def run(self) -> int:
        """Do all datasets; the exit status. Failures are logged, with the last line naming what failed."""
        status = 0
        for model, dataset in pairs(self.cfg):
            try:
                self._do(model, with_model_defaults(dataset, model))
            except (ValueError, OSError) as error:
                status = status or BAD_INPUT
                _log(model, dataset, str(error), error)
            except Exception as error:
                status = 1
                _log(model, dataset, f"{type(error).__name__}: {error}", error)
        self._close()
        return status

    def _do(self, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
        raise NotImplementedError  # not abstract: a task may be nothing but its command

    def _close(self) -> None:
        """Let go of what was loaded."""


class OpenICLInferTask(Task):
    """Predictions of one model on some datasets. The model is loaded when the first dataset's data is known good."""

    name_prefix = "OpenICLInfer"
    log_subdir = "logs/infer"
    output_subdir = "predictions"
    module = "autoeval.tasks.openicl_infer"

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        super().__init__(cfg)
        self._model: Any = None
        self._broken: Exception | None = None
        self._load_seconds = 0.0

    @property
    def num_gpus(self) -> int:
        model = self.cfg["models"][0]
        return int((model.get("run_cfg") or {}).get("num_gpus", 0 if kind_of(model) == SERVER else 1))

    def _do(self, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
        path = output_path(self.work_dir / self.output_subdir, model, dataset)
        unfinished = unfinished_path(path)
        task = load_task(dataset, self.cfg)
        expected = origins(task, model_identity(model))
        records = begun_records(self.work_dir / self.output_subdir, model, dataset, expected)
        if records:
            logger.info("%s: %d of %d items are there already", dataset["abbr"], len(records), len(expected))
        if len(records) < len(expected):
            self._load(model)
        style = style_of(model, self._model)
        generates = build_inferencer(task.infer_cfg["inferencer"]).kind == "text"
        chunk, saved = CHUNK_GENERATED if generates else CHUNK_RANKED, 0.0
        there, began = len(records), time.monotonic()
        for made in infer_in_chunks(task, self._model, task.samples[len(records) :], chunk, style=style):
            start = len(records)
            records += [{**record, "made_from": expected[start + i]} for i, record in enumerate(made)]
            logger.info("%s: %d of %d items", dataset["abbr"], len(records), len(expected))
            if len(records) < len(expected) and time.monotonic() - saved > SAVE_SECONDS:
                _write(unfinished, records)
                saved = time.monotonic()
        _write(path, records)
        unfinished.unlink(missing_ok=True)
        self._note(model, dataset, items=len(records) - there, seconds=time.monotonic() - began)

    def _note(self, model: Mapping[str, Any], dataset: Mapping[str, Any], *, items: int, seconds: float) -> None:
        """What it took, for whoever deals out the next run's tasks (autoeval/run/spent.py): beside its log, if it has
        one. With ``--debug`` there is none, and what is traced is not what it takes."""
        note = output_path(self.work_dir / self.log_subdir, model, dataset).with_suffix(".seconds.json")
        if items and note.parent.is_dir():
            write_json(note, {"items": items, "seconds": seconds, "load_seconds": self._load_seconds})

    def _load(self, model: Mapping[str, Any]) -> None:
        """Once: a model that cannot be loaded is not tried again for every dataset."""
        if self._broken is not None:
            raise self._broken
        if self._model is None:
            began = time.monotonic()
            try:
                self._model = build_model(model)
            except Exception as error:
                self._broken = error
                raise
            self._load_seconds = time.monotonic() - began

    def _close(self) -> None:
        if self._model is not None:
            self._model.unload()
            self._model = None


class OpenICLEvalTask(Task):
    """Scores from predictions. Needs no model and no GPU."""

    name_prefix = "OpenICLEval"
    log_subdir = "logs/eval"
    output_subdir = "results"
    module = "autoeval.tasks.openicl_eval"

    def _do(self, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
        task = load_task(dataset, self.cfg)
        predictions = self.work_dir / OpenICLInferTask.output_subdir
        digest = prediction_digest(predictions, model, dataset)  # before reading: a change meanwhile shows later
        records = merged_records(predictions, model, dataset, origins(task, None))
        result = evaluate(
            task,
            records,
            predictions=digest,
            style=style_of(model),
            details=bool(self.cfg.get("dump_details")),
            allow_code_execution=bool(self.cfg.get("allow_code_execution")),
        )
        write_json(output_path(self.work_dir / self.output_subdir, model, dataset), result)
        logger.info("%s: %s", dataset["abbr"], {k: v for k, v in result.items() if isinstance(v, (int, float))})


TASKS: dict[str, type[Task]] = {"OpenICLInferTask": OpenICLInferTask, "OpenICLEvalTask": OpenICLEvalTask}


def _write(path: Path, records: list[Record]) -> None:
    write_json(path, {str(number): record for number, record in enumerate(records)})


def _log(model: Mapping[str, Any], dataset: Mapping[str, Any], message: str, error: Exception) -> None:
    """One line with the output's name, by which the summary finds it; a message of ours needs no traceback."""
    expected = type(error) in (ValueError, FileNotFoundError) or type(error).__module__.startswith("autoeval")
    logger.error("%s/%s: %s", model_abbr(model), dataset_abbr(dataset), message, exc_info=None if expected else error)


def _end_with_input() -> None:
    """End this process when the runner has gone: what is on disk is whole."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):  # not sys.stdin: its lock would be held when the interpreter ends
            pass
    os._exit(1)


def main(task_type: type[Task], arguments: list[str]) -> int:
    """One task from its configuration file (JSON)."""
    if len(arguments) != 1:
        print(f"usage: python -m {task_type.module} CONFIG.json", file=sys.stderr)
        return BAD_INPUT
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(
        level=os.environ.get("AUTOEVAL_LOG_LEVEL", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if os.environ.get(ENDS_WITH_INPUT):
        threading.Thread(target=_end_with_input, daemon=True).start()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    keep_off_the_hub()
    try:
        cfg = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{arguments[0]}: cannot be read: {error}", file=sys.stderr)
        return BAD_INPUT
    return task_type(cfg).run()
