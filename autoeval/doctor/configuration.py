"""Reading an evaluator.yaml that may be wrong: every complaint about it, and as much of it as can be used anyway."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from autoeval.config import AutoEval, load_config, nested_section, with_absolute_paths
from autoeval.doctor.finding import Finding, ok, problem
from autoeval.planning import FIVE_DIMENSIONS, WatchOptions
from autoeval.runner_sections import KINDS
from autoeval.yaml_file import ConfigError, YamlFile

CHECK = "configuration"
_UNSET = re.compile(r"\$\{\w+\}")  # a variable that the environment lacks was left as it stands


def read(path: Path, watch: WatchOptions) -> tuple[list[AutoEval], list[Finding]]:
    """The runs of ``path`` and what is wrong with the file.

    Of a wrong file the runs are incomplete: what cannot be used is ``None``. No runs where it cannot be read at all.
    """
    try:
        runs = load_config(path)
    except ConfigError as error:
        findings = [_complaint(line) for line in str(error).splitlines()]
        return _usable(path), findings
    findings = _missing_sections(runs, watch, path)
    return runs, findings or [ok(CHECK, f"{path.absolute()}: {len(runs)} run{'s' if len(runs) > 1 else ''}")]


def _complaint(line: str) -> Finding:
    return problem(CHECK, line, "", "correct it there; the README and docs/ describe each key")


def _missing_sections(runs: Sequence[AutoEval], watch: WatchOptions, path: Path) -> list[Finding]:
    """What the command line asks for and the file lacks."""
    findings = []
    for run in runs:
        if getattr(run, watch.model_type) is None:
            found = f"{path}: auto_eval.{watch.model_type}: the section is missing ({run.model_name})"
            action = f"add it, or give --model-type {'huggingface' if run.huggingface else 'megatron'}"
            findings.append(problem(CHECK, found, "the section that --model-type names", action))
        section = "icl" if watch.eval_type == FIVE_DIMENSIONS else watch.eval_type
        if section != "all" and getattr(run, section) is None:
            found = f"{path}: auto_eval.{section}: the section is missing ({run.model_name})"
            findings.append(
                problem(CHECK, found, "the section that --eval-type names", "add it, or another --eval-type")
            )
    return findings


def _usable(path: Path) -> list[AutoEval]:
    try:
        source = YamlFile(path)
    except ConfigError:
        return []
    content = source.content.get("auto_eval")
    entries = content if isinstance(content, list) else [content]
    partial = [_partial(AutoEval, entry) for entry in entries if isinstance(entry, dict)]
    return [with_absolute_paths(entry, path.resolve().parent) for entry in partial]


def _partial(model: type[BaseModel], content: dict[Any, Any]) -> Any:
    """A ``model`` of the fields that can be used. What is not given has its default, what is given wrong is ``None``."""
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        values[name] = None if field.is_required() else field.get_default(call_default_factory=True)
        alone = create_model("Alone", **{name: (field.annotation, field)})  # type: ignore[call-overload]  # by its name
        keys = [name, *getattr(field.validation_alias, "choices", ())]
        given = next((content[key] for key in keys if key in content), None)
        if given is None or (isinstance(given, str) and _UNSET.search(given)):
            continue
        try:
            values[name] = getattr(alone.model_validate({keys[-1]: given}), name)
        except ValidationError:
            nested = None if name in KINDS else nested_section(field.annotation)
            values[name] = None if nested is None or not isinstance(given, dict) else _partial(nested, given)
    return model.model_construct(**values)
