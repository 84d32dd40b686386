"""Fixtures of the HELM room: two tiny random models on disk, and the project's real data where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helm_tiny_models import make_model


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return make_model(root / "first", 1), make_model(root / "second", 2)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data shared by the project; tests that need it are skipped where it isn't."""
    directory = Path(os.environ.get("AUTOEVAL_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
    if not (directory / "helm_scenarios").is_dir():
        pytest.skip(f"no HELM data in {directory}")
    return directory
