from __future__ import annotations

from collections.abc import Callable

import pytest
from checkpoint_files import Save, make


@pytest.fixture(scope="session")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Save, Save]]:
    """Two saves of one iteration in a layout, with equal sizes and other weights; written once a session."""
    made: dict[str, tuple[Save, Save]] = {}

    def get(layout: str) -> tuple[Save, Save]:
        if layout not in made:
            first, second = (make(layout, tmp_path_factory.mktemp(layout), version) for version in (1, 2))
            assert {name: len(content) for name, content in first.files.items()} == {
                name: len(content) for name, content in second.files.items()
            }
            made[layout] = first, second
        return made[layout]

    return get
