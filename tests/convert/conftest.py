from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from megatron_world import WORLDS

HOME = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def megatron_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs one world of ``megatron_world.py`` (once), a process per rank; gives the directory of its cases."""
    pytest.importorskip("megatron.core", reason="megatron-core writes the checkpoints of these tests")
    made: dict[str, Path] = {}

    def run(world: str) -> Path:
        if world not in made:
            directory = tmp_path_factory.mktemp(world)
            environment = {
                **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME), "PYTHONWARNINGS": "ignore",
            }  # fmt: skip
            command = [sys.executable, str(Path(__file__).with_name("megatron_world.py")), str(directory), world]
            ranks = [
                subprocess.Popen(
                    [*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
                for rank in range(WORLDS[world].processes)
            ]
            try:
                output = [rank.communicate(timeout=300)[0] for rank in ranks]
            finally:
                for rank in ranks:
                    rank.kill()  # those that wait for one that failed
            assert all(rank.returncode == 0 for rank in ranks), "\n".join(text[-3000:] for text in output)
            made[world] = directory / world
        return made[world]

    return run
