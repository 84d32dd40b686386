"""The installers: they parse, explain themselves, refuse what cannot work, and pin what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    ROOT / ".ci" / "run",
    *(ROOT / "setup_scripts").glob("*.sh"),
    *(ROOT / "thirdparty").glob("*.sh"),
    *(ROOT / "demos").glob("*/run.sh"),
]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


def _run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_executable_bash(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert _run("bash", "-n", script).returncode == 0
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.suffix == ".sh"], ids=lambda path: path.name)
def test_help_says_how_to_call_it_and_does_nothing(script: Path) -> None:
    done = _run(script, "--help")
    assert done.returncode == 0
    assert f"{script.name}" in done.stdout and "set -euo" not in done.stdout


def test_install_refuses_a_python_that_is_none(tmp_path: Path) -> None:
    done = _run(ROOT / "setup_scripts" / "install.sh", tmp_path / "venv", PYTHON="/bin/false")
    assert done.returncode == 1
    assert "Python 3.10" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_install_refuses_an_unknown_option() -> None:
    done = _run(ROOT / "setup_scripts" / "install.sh", "--fast")
    assert done.returncode == 2 and "--fast" in done.stderr


def test_the_test_script_does_not_remove_a_directory_that_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    done = _run(ROOT / "setup_scripts" / "test.sh", TEST_VENV=str(tmp_path))
    assert done.returncode == 2
    assert (tmp_path / "precious").read_text() == "kept"


def test_the_quickstart_names_a_missing_python_and_leaves_old_output_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done = _run(ROOT / "demos" / "quickstart" / "run.sh", tmp_path / "no-python", tmp_path)
    assert done.returncode == 2 and "install.sh" in done.stderr
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_everything_required_is_pinned_to_a_version_in_its_range(name: str) -> None:
    pins = {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in PINS.items()}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            package = re.sub(r"[-_.]+", "-", requirement.name).lower()
            assert package in pins, f"{package} is not in constraints.txt"
            assert requirement.specifier.contains(pins[package]), line


def test_the_running_environment_has_no_torchvision_that_breaks_transformers() -> None:
    done = _run(sys.executable, "-W", "ignore", "-c", "from transformers import GPT2LMHeadModel")
    assert done.returncode == 0, done.stderr
