"""What of a job is there already, and what is left: asked before anything is computed again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoeval.run.job import Job
from autoeval.tasks.icl import IclTask
from autoeval.tasks.job_data import count_items, cut, load_task
from autoeval.tasks.model_configs import with_model_defaults
from autoeval.tasks.names import output_path
from autoeval.tasks.results import up_to_date
from autoeval.tasks.stored import complete, model_identity, origins, prediction_files, unfinished_path

Options = Mapping[str, Any]


class Progress:
    """A job in one output directory. Data is read only where something is there to be compared with it."""

    def __init__(self, job: Job, directory: Path) -> None:
        self.job, self.directory = job, directory
        self._tasks: dict[str, IclTask] = {}
        self._counts: dict[str, int] = {}
        self._models: dict[str, str] = {}

    def count(self, dataset: Options) -> int:
        """How many items ``dataset`` has."""
        key = repr(dataset)
        if key not in self._counts:
            self._counts[key] = count_items(dataset, self.job.keep(self.directory))
        return self._counts[key]

    def inferred(self, model: Options, dataset: Options) -> bool:
        """Whether all predictions are there. Raises ``StoredError`` for some that are not of today's data."""
        predictions = self.directory / "predictions"
        whole = output_path(predictions, model, dataset)
        if not prediction_files(predictions, model, dataset) and not unfinished_path(whole).exists():
            return False
        return complete(predictions, model, dataset, origins(self._task(model, dataset), self._identity(model)))

    def evaluated(self, model: Options, dataset: Options, *, remove: bool = True) -> bool:
        """Whether the result is there and of today's predictions; one that is not is removed (``remove``)."""
        path = output_path(self.directory / "results", model, dataset)
        if not path.exists():
            return False
        version = self._task(model, dataset).version
        if up_to_date(self.directory, model, dataset, version, details=self.job.dump_details):
            return True
        if remove:
            path.unlink()
        return False

    def _identity(self, model: Options) -> str:
        key = repr(model)
        if key not in self._models:
            self._models[key] = model_identity(model)
        return self._models[key]

    def _task(self, model: Options, dataset: Options) -> IclTask:
        """The task; parts of one dataset share its data, which is read once."""
        asked = with_model_defaults(dataset, model)
        wanted = asked.pop("test_range", None)
        key = repr({**asked, "abbr": ""})
        if key not in self._tasks:
            self._tasks[key] = load_task(asked, self.job.keep(self.directory))
        return cut(self._tasks[key], wanted, str(asked["config_file"]))
