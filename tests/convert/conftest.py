from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import megatron_world as worlds
import pytest
from megatron_world import WORLDS

from tests import forked


@pytest.fixture(scope="session")
def megatron_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs one world of ``megatron_world.py`` (once), a process per rank; gives the directory of its cases."""
    pytest.importorskip("megatron.core", reason="megatron-core writes the checkpoints of these tests")
    made: dict[str, Path] = {}

    def run(world: str) -> Path:
        if world not in made:
            directory = tmp_path_factory.mktemp(world)
            said = [directory / f"rank{rank}.txt" for rank in range(WORLDS[world].processes)]
            ranks = [
                forked.start(worlds.main, directory, world, rank, output=output) for rank, output in enumerate(said)
            ]
            forked.finish(ranks, said)
            made[world] = directory / world
        return made[world]

    return run
