"""Installed packages against requirements.txt (what works) and constraints.txt (what was tested)."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from autoeval.config import AutoEval
from autoeval.doctor.finding import Finding, ok, problem, warning

HOME = Path(__file__).resolve().parents[2]
LEAST_PYTHON = (3, 10)
_INSTALL = "setup_scripts/install.sh brings what is pinned"

# Without these a run of another kind works: why they are wanted.
_HELM = "HELM's scenarios (section helm)"
_WANTED_FOR = {
    "crfm-helm": _HELM,
    "pyhocon": _HELM,
    "pytrec-eval-terrier": _HELM,
    "megatron-core": "comparing conversions with Megatron (model.verify)",
    "jieba": "Chinese ROUGE",
    "rouge-chinese": "Chinese ROUGE",
    "sentence-transformers": "TopkRetriever, similar questions",
    "rank-bm25": "BM25Retriever",
    "peft": "adapters (run.py --peft-path)",
    "wandb-workspaces": "the W&B report",
}
_OF_RUNNER = {"ray": "ray", "dlc": "alibabacloud-pai-dlc20201203"}


def examine_packages(configs: Iterable[AutoEval]) -> Iterator[Finding]:
    """The Python, what is missing, what is too old or too new, what differs from what was tested."""
    from packaging.requirements import Requirement

    python = f"Python {'.'.join(map(str, sys.version_info[:3]))} in {sys.prefix}"
    if sys.version_info < LEAST_PYTHON:
        yield problem("python", python, "Python 3.10 or newer", "PYTHON=python3.11 setup_scripts/install.sh")
    else:
        yield ok("python", python)
    needed = set(_needed(configs))
    required = [Requirement(line) for line in _lines(HOME / "requirements.txt")]
    runners = [Requirement(line) for line in _lines(HOME / "requirements-dev.txt")]
    required += [one for one in runners if _canonical(one.name) in needed]
    pins = dict(line.split("==") for line in _lines(HOME / "constraints.txt") if "==" in line)
    pins = {_canonical(name): version for name, version in pins.items()}
    good, other = 0, []
    for requirement in required:
        name = _canonical(requirement.name)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield _missing(name, str(requirement), needed)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            finding = problem if name in needed or name not in _WANTED_FOR else warning
            yield finding(f"package {name}", f"version {version}", str(requirement), _INSTALL)
        elif version.partition("+")[0] != pins.get(name, version):
            other.append(f"{name} {version} (tested: {pins[name]})")
        else:
            good += 1
    if other:
        yield warning(
            "packages", f"other versions than the tested ones: {', '.join(other)}", "constraints.txt", _INSTALL
        )
    yield ok("packages", f"{good} of {len(required)} are the tested versions")


def _missing(name: str, requirement: str, needed: set[str]) -> Finding:
    purpose = _WANTED_FOR.get(name)
    if purpose is None or name in needed:
        return problem(f"package {name}", "is not installed", requirement, _INSTALL)
    return warning(f"package {name}", f"is not installed, it is for {purpose}", requirement, _INSTALL)


def _needed(configs: Iterable[AutoEval]) -> Iterator[str]:
    """What these runs cannot do without, of what another run could."""
    for config in configs:
        if config.helm is not None:
            yield from (name for name, purpose in _WANTED_FOR.items() if purpose == _HELM)
        if config.megatron is not None and config.model is not None and config.model.verify == "always":
            yield "megatron-core"
        for runner in (config.runner, config.conversion_runner):
            kind = getattr(runner, "type", None)
            if kind == "dlc" and getattr(getattr(runner, "aliyun_cfg", None), "dlc_config_path", None):
                continue  # the dlc command is used
            if kind in _OF_RUNNER:
                yield _OF_RUNNER[kind]


def _lines(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
