"""For all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Files of more than a minute of processor time: begun last, one would leave the other cores idle at the end.
LONGEST = (
    "end_to_end/test_main_job.py",
    "convert/test_convert_equals_megatron.py",
    "run/test_run_runner.py",
    "demos/test_finetune_run.py",
    "recorder/test_serve.py",
    "end_to_end/test_daemon.py",
    "end_to_end/test_daemon_megatron.py",
    "end_to_end/test_chaos_slurm.py",
    "recorder/test_wandb_faults.py",
    "runners/test_runners_ray.py",
    "runners/test_runners_slurm.py",
)
LAST = ("end_to_end/test_chaos.py",)  # it keeps several cores busy by itself


def pytest_configure(config: pytest.Config) -> None:
    """A shell that starts the tests in the background has SIGINT ignored, and so would have every program that they
    start and end by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Some two thousand processes are started: each would compile our sources anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # of pytest-xdist, which else puts files of many tests before long ones


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then the others as they were collected."""
    here = Path(__file__).parent
    for name in (*LONGEST, *LAST):
        assert (here / name).exists(), f"{name} has another name now: change it in {__file__}"
    rank = {here / name: place - len(LONGEST) for place, name in enumerate(LONGEST)}
    rank |= {here / name: 1 for name in LAST}
    items.sort(key=lambda item: rank.get(item.path, 0))
