"""W&B's history equals the ledger after every one of 200 random schedules of faults (``wandb_faults.py``)."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from wandb_faults import in_parallel

SCHEDULES = int(os.environ.get("AUTOEVAL_FAULT_SCHEDULES", "200"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_history_equals_the_ledger_after_every_schedule():
    results = in_parallel(range(SCHEDULES), jobs=8)
    assert len(results) == SCHEDULES
    assert {result.seed: result.wrong for result in results if result.wrong} == {}
    happened = sum((result.faults for result in results), Counter[str]())
    expected = {"kill", "status", "drop", "lost", "twice", "down", "stale", "delete"}
    assert SCHEDULES < 50 or expected <= happened.keys()
