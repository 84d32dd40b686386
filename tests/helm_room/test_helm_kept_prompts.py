"""Kept prompts go when nobody can use them, or has for long; never what another process reads day by day."""

from __future__ import annotations

import os
import time
from pathlib import Path

from autoeval.helm.kept_prompts import NO_DATA, UNUSED_DAYS, mark_used, prune

DAY = 86400.0


def kept(output: Path, name: str, *, days: float, stamp: str = "of-some-data", size: int = 100) -> Path:
    path = output / "prompts" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{stamp}\n".ljust(size, "x"))
    used = time.time() - days * DAY
    os.utime(path, (used, used))
    return path


def test_what_is_unused_for_long_or_whose_data_are_gone_goes(tmp_path: Path) -> None:
    (tmp_path / "scenarios" / "mmlu").mkdir(parents=True)
    staged = tmp_path / "scenario_instances" / "raft:subset=overruling"
    staged.mkdir(parents=True)
    (staged / "input_instances.json").write_text("[]")
    stays = [
        kept(tmp_path, "mmlu-a.json", days=UNUSED_DAYS - 1),
        kept(tmp_path, "raft-b.json", days=2),  # of staged instances
        kept(tmp_path, "dyck-language-c.json", days=2, stamp=NO_DATA),  # HELM makes its data
        kept(tmp_path, ".mmlu-d.json.x.tmp", days=0),  # another process writes it just now
        kept(tmp_path, "notes.txt", days=400),  # the user's
    ]
    goes = [
        kept(tmp_path, "mmlu-e.json", days=UNUSED_DAYS + 1),
        kept(tmp_path, "dyck-language-f.json", days=UNUSED_DAYS + 1, stamp=NO_DATA),
        kept(tmp_path, "boolq-g.json", days=0),  # made of files that are no more: its stamp cannot be met again
        kept(tmp_path, ".mmlu-h.json.y.tmp", days=2),  # of a process that was killed
    ]
    assert sorted(prune(tmp_path)) == sorted(goes)
    assert sorted((tmp_path / "prompts").iterdir()) == sorted(stays)
    assert prune(tmp_path / "nowhere") == []


def test_of_too_many_the_longest_unused_go_but_none_that_was_used_within_a_day(tmp_path: Path) -> None:
    (tmp_path / "scenarios" / "mmlu").mkdir(parents=True)
    paths = [kept(tmp_path, f"mmlu-{days}.json", days=days) for days in (0.5, 2, 3, 4)]
    assert prune(tmp_path, most_bytes=250) == [paths[3], paths[2]]
    assert prune(tmp_path, most_bytes=0) == [paths[1]]
    assert paths[0].exists()


def test_a_run_that_uses_them_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "scenarios" / "mmlu").mkdir(parents=True)
    path = kept(tmp_path, "mmlu-a.json", days=UNUSED_DAYS + 1)
    mark_used(path)
    mark_used(path.with_name("gone"))
    assert prune(tmp_path) == [] and path.exists()
