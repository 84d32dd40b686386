"""The scripts as users start them, schemas of what they answer, and a small task in Natural Instructions' format."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("AUTOEVAL_DATA", HOME.parent / "shared" / "data"))
DIMENSIONS = [
    "inference_ability",
    "reading_comprehension",
    "chinese_language_skill",
    "command_compliance",
    "innovation_capacity",
]
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
ERROR = {"type": ["number", "null"], "minimum": 0}
COUNT = {"type": "integer", "minimum": 1}
DETAIL = {
    "type": "object",
    "required": ["metric", "score", "stderr", "n", "chance", "guessing", "metrics", "mode", "task_version"],
    "properties": {"score": SHARE, "stderr": ERROR, "n": COUNT, "chance": {"type": ["number", "null"]}},
}
COMPARED = {
    "type": ["object", "null"],
    "required": ["difference", "stderr", "p_value", "detectable", "n", "verdict"],
    "properties": {"p_value": SHARE, "verdict": {"enum": ["better", "worse", "cannot tell"]}},
}
DIAGNOSED = {
    "type": "object",
    "required": ["verdict", "reasons", "against_chance"],
    "properties": {
        "verdict": {"enum": ["weak", "fine", "cannot tell"]},
        "reasons": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "against_chance": COMPARED,
        "against_reference": COMPARED,
    },
}


def _by_dimension(names: list[str], each: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict.fromkeys(names, each),
        "required": names,
        "additionalProperties": False,
    }


def five_dimensions_schema(names: list[str]) -> dict[str, Any]:
    diagnosis = {
        "type": "object",
        "required": ["weak_dimensions", "summary", "dimensions"],
        "properties": {
            "weak_dimensions": {"type": "array", "items": {"enum": names}, "uniqueItems": True},
            "summary": {"type": "string", "minLength": 1},
            "dimensions": _by_dimension(names, DIAGNOSED),
        },
    }
    return {
        "type": "object",
        "required": ["code", "msg", "evaluation_results", "diagnosis", "details", "model"],
        "additionalProperties": False,
        "properties": {
            "code": {"const": 0},
            "msg": {"const": "Success"},
            "evaluation_results": _by_dimension(names, SHARE),
            "diagnosis": diagnosis,
            "details": _by_dimension(names, DETAIL),
            "model": {"type": "object", "required": ["name", "source", "path", "prompts"]},
        },
    }


def performance_schema(metrics: list[str]) -> dict[str, Any]:
    data = {
        "type": "object",
        "required": ["evaluation_results", "details", "n", "language", "model", "estimates"],
        "properties": {
            "evaluation_results": _by_dimension(metrics, SHARE),
            "details": _by_dimension(metrics, {"type": "object", "required": ["score", "stderr", "n", "meaning"]}),
            "n": COUNT,
            "estimates": {
                "type": "object",
                "required": ["memory_bytes", "duration_seconds", "memory_usage", "evaluation_duration"],
            },
        },
    }
    return {
        "type": "object",
        "required": ["code", "msg", "data"],
        "additionalProperties": False,
        "properties": {"code": {"const": 0}, "msg": {"const": "Success"}, "data": data},
    }


def run_script(name: str, *arguments: str, cwd: Path | None = None) -> tuple[int, dict[str, Any], str]:
    """``eval/<name>.sh``: its exit status, its answer, and what it said on standard error."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [str(HOME / "eval" / f"{name}.sh"), *arguments],
        cwd=cwd or HOME,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout), ended.stderr


def call_script(name: str, arguments: list[str], capfd: Any) -> tuple[int, dict[str, Any]]:
    """The same in this process, which has the libraries already: its exit status and its answer."""
    spec = importlib.util.spec_from_file_location(name, HOME / "eval" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    capfd.readouterr()
    code = module.main(arguments)
    return code, json.loads(capfd.readouterr().out)


def save_instructions(path: Path) -> Path:
    """A task of our own in BIG-bench's layout: a question about a passage is to be written."""
    examples = [
        {
            "input": f"Passage: The {animal} sat on the {place} and looked at the moon for a while.",
            "target": [f"What did the {animal} sit on?", f"Who sat on the {place}?"],
        }
        for animal in ("cat", "dog", "fox", "owl")
        for place in ("mat", "log", "wall")
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"task_prefix": "Write a question about the passage.", "examples": examples}))
    return path
