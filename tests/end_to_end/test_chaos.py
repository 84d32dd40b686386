"""A hundred schedules of faults (``chaos.py`` says what a schedule is, and runs as many more as you like)."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

if str(Path(__file__).resolve().parents[1] / "recorder") not in sys.path:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "recorder"))

from tests.end_to_end.chaos import run_schedules, summary, told
from tests.end_to_end.forked_programs import why_not

SCHEDULES = int(os.environ.get("AUTOEVAL_CHAOS_SCHEDULES", "100"))
FIRST = int(os.environ.get("AUTOEVAL_CHAOS_SEED", "0"))
# What must have happened at least once, whatever the seeds: otherwise nothing would be shown.
HAPPENED = ("daemon KILL", "worker KILL", "end KILL", "end TERM", "end INT", "HUP", "STOP", "second", "clock", "server")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_after_every_schedule_all_is_recorded_exactly_once_with_the_scores_of_an_undisturbed_run(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if importlib.util.find_spec("megatron") is not None:
        (tmp_path / "megatron").symlink_to(request.getfixturevalue("megatron_saves"))
    results = list(run_schedules(tmp_path, range(FIRST, FIRST + SCHEDULES), jobs=6))
    print(summary(results))
    wrong = [told(result) for result in results if result.wrong]
    assert not wrong, "\n".join(wrong)
    assert len(results) == SCHEDULES and sum(result.recorded for result in results) >= SCHEDULES
    faults = sum((result.faults for result in results), Counter[str]())
    assert SCHEDULES < 100 or [name for name in HAPPENED if not faults[name]] == []
    mounted = any(result.small_disk for result in results)  # otherwise nothing can be mounted here
    assert SCHEDULES < 100 or not mounted or faults["full"]
