"""Whatever part of a save is on disk, whatever the tracker says, however long ago: no half model is ever complete."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoint_files import LAYOUTS, TRACKER, Save, look, put, watcher, write

from autoeval.checkpoints import SettleTimes, detect_format, fingerprint

Saves = Callable[[str], tuple[Save, Save]]
LONG_AFTER = 100_000.0  # seconds: the writer has crashed, every settle time is over
# What the tracker may say while iteration 4 is written: nothing yet, torn, behind, at (a save in place), ahead.
TRACKERS = (None, b"", b"2", b"4", b"6", b"6\0\0", b"release")


def never_complete(root: Path, save: Save, state: str) -> None:
    for seconds_later in (0.0, LONG_AFTER):
        found = look(root, seconds_later=seconds_later, model_type=save.model_type)
        assert found.complete == (), f"{save.layout}, {seconds_later:.0f} s later: {state}"


def steps(save: Save) -> Iterator[tuple[str, bytes]]:
    """Every state of every file while it is written: cut short at several lengths, then whole."""
    for name, content in save.files.items():
        for length in sorted({0, 1, len(content) // 2, len(content) - 64, len(content) - 1} & set(range(len(content)))):
            yield name, content[:length]
        yield name, content


@pytest.mark.parametrize("tracker_is_newer", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_prefix_of_a_save_is_complete(layout: str, tracker_is_newer: bool, tmp_path: Path, saves: Saves) -> None:
    save, _ = saves(layout)
    for number, tracker in enumerate(TRACKERS if save.model_type == "megatron" else (None,)):
        root = tmp_path / str(number)
        directory = save.directory(root, 4)
        directory.mkdir(parents=True)
        whole: set[str] = set()
        never_complete(root, save, "an empty directory")
        for name, content in steps(save):
            write(directory / name, content, 2.0)
            if tracker is not None:
                write(root / TRACKER, tracker, 1.0 if tracker_is_newer else 500.0)
            if content == save.files[name]:
                whole.add(name)
            if not save.weights <= whole:
                never_complete(root, save, f"tracker {tracker!r}, {name} has {len(content)} bytes")
        if save.model_type == "megatron":
            write(root / TRACKER, b"4", 1.0)
        for name, content in save.after.items():
            write(directory / name, content, 0.9)
        (checkpoint,) = look(root, model_type=save.model_type).complete
        assert (checkpoint.iteration, checkpoint.path, checkpoint.tokens) == (4, directory, 2.0)
        assert checkpoint.format == detect_format(directory) == save.format


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("huggingface")])
def test_a_whole_megatron_save_waits_for_its_tracker(layout: str, tmp_path: Path, saves: Saves) -> None:
    """DCP's marks prove the content, so a tracker that never comes only delays; legacy files have no other proof."""
    save, _ = saves(layout)
    now = time.time()
    directory = put(save, tmp_path, 4, age=5.0)
    for tracker, seconds in ((None, 10.0), (b"", 10.0), (b"2", 60.0)):
        if tracker is None:
            (tmp_path / TRACKER).unlink()
        else:
            write(tmp_path / TRACKER, tracker, 300.0)
        ((iteration, reason),) = look(tmp_path, now=now).waiting
        assert iteration == 4 and TRACKER in reason
        assert look(tmp_path, now=now + seconds - 6.0).complete == ()
        found = look(tmp_path, now=now + seconds + 60.0)
        assert [checkpoint.path for checkpoint in found.complete] == ([] if save.format == "torch" else [directory])
    patient = SettleTimes(marks=1000.0, behind=2000.0)
    assert look(tmp_path, seconds_later=1500.0, settle=patient).complete == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_save_in_place_is_never_a_mixture(layout: str, tmp_path: Path, saves: Saves) -> None:
    """While it is written over an old one all old marks are valid; it may crash anywhere, and the run may go on."""
    old, new = saves(layout)
    directory = put(old, tmp_path, 4, age=5000.0)
    (before,) = look(tmp_path, model_type=old.model_type).complete
    on_disk = dict(old.files)
    for name, content in steps(new):
        if name == ".metadata" and content != new.files[name]:
            continue  # written to another name, then renamed
        write(directory / name, content, 2.0)
        on_disk[name] = content
        of_one_save = any(all(on_disk[part] == save.files[part] for part in save.weights) for save in (old, new))
        # The tracker of the old save; of a later save; of a run that went back, and on without saving 4 again.
        for tracker, age in ((b"4", 4990.0), (b"6", 4000.0), (b"6", 1.0), (b"2", 1.0)):
            if old.model_type == "megatron":
                write(tmp_path / TRACKER, tracker, age)
            if not of_one_save:
                never_complete(tmp_path, old, f"{name} has {len(content)} bytes of the new save, tracker {tracker!r}")
    if old.model_type == "megatron":
        write(tmp_path / TRACKER, b"4", 1.0)
    for name, content in new.after.items():
        write(directory / name, content, 0.9)
    (after,) = look(tmp_path, model_type=old.model_type).complete
    assert after.fingerprint != before.fingerprint
    assert after.iteration == before.iteration


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_that_retention_deletes_is_not_complete(layout: str, tmp_path: Path, saves: Saves) -> None:
    """Seen: the shards go first and the marks outlive them. Any other order must be seen through too."""
    save, _ = saves(layout)
    orders = (list(save.files), list(reversed(save.files)), sorted(save.files))
    for number, order in enumerate(orders):
        root = tmp_path / str(number)
        directory = put(save, root, 4, age=1000.0)
        looking = watcher(root, model_type=save.model_type)
        assert len(looking.scan().complete) == 1
        gone: set[str] = set()
        for name in order:
            (directory / name).unlink()
            gone.add(name)
            if gone & save.weights:
                assert looking.scan().complete == (), f"without {sorted(gone)}"
                never_complete(root, save, f"without {sorted(gone)}")


def test_the_rank_files_follow_from_the_saved_arguments(tmp_path: Path, saves: Saves) -> None:
    save, _ = saves("torch_tp2_pp2_vpp2")
    for rank in ("mp_rank_00_000", "mp_rank_01_001"):
        root = tmp_path / rank
        directory = put(save, root, 4)
        (directory / rank / "model_optim_rng.pt").unlink()
        ((_, reason),) = look(root).waiting
        assert rank in reason and "TP 2, PP 2, EP 1" in reason


@pytest.mark.parametrize(
    ("tensor", "expert", "expert_tensor", "ranks"),
    [
        (2, 2, None, ["00_000", "00_001", "01_000", "01_001"]),
        (2, 2, 1, ["00_000", "01_001"]),
        (2, 4, 1, ["00_000", "00_002", "01_001", "01_003"]),
        (1, 2, 1, ["00_000", "00_001"]),
    ],
)
def test_experts_may_be_split_otherwise_than_the_rest(
    tensor: int, expert: int, expert_tensor: int | None, ranks: list[str], tmp_path: Path
) -> None:
    """Tensor-parallel and expert ranks then go round together, so that not every pair of them has a file."""
    import torch

    arguments = argparse.Namespace(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=1,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=expert_tensor,
    )
    for rank in ranks:
        assert look(tmp_path).complete == ()
        path = tmp_path / "iter_0000004" / f"mp_rank_{rank}" / "model_optim_rng.pt"
        path.parent.mkdir(parents=True)
        torch.save({"args": arguments, "model": {}}, path)
        write(tmp_path / TRACKER, b"4", 0.0)
    assert [checkpoint.iteration for checkpoint in look(tmp_path).complete] == [4]


def test_rank_files_of_the_first_distributed_optimizer(tmp_path: Path, saves: Saves) -> None:
    """Of 2022: model_rng.pt, and the optimizer in directories of its own."""
    fingerprints = set()
    for save in saves("torch_tp2_pp2_vpp2"):
        directory = put(save, tmp_path, 4)
        for path in directory.rglob("model_optim_rng.pt"):
            path.rename(path.with_name("model_rng.pt"))
            write(path.parent.with_name(path.parent.name + "_000") / "optim.pt", b"optimizer", 1.0)
        (whole,) = look(tmp_path).complete
        fingerprints.add(whole.fingerprint)
    assert len(fingerprints) == 2
    (directory / "mp_rank_01_001/model_rng.pt").unlink()
    assert "mp_rank_01_001/model_rng.pt is missing" in look(tmp_path).waiting[0][1]


def test_ranks_left_over_from_a_wider_save_do_not_matter(tmp_path: Path, saves: Saves) -> None:
    """Megatron does not clean a directory that it saves into again."""
    wide, narrow = saves("torch_tp2_pp2_vpp2")[0], saves("torch_ep2")[0]
    put(wide, tmp_path, 4, age=5000.0)
    put(narrow, tmp_path, 4, age=2.0)
    assert [checkpoint.iteration for checkpoint in look(tmp_path).complete] == [4]


@pytest.mark.parametrize("damage", ["missing", "hash", "torn"])
def test_integrity_json_is_believed(damage: str, tmp_path: Path, saves: Saves) -> None:
    save, _ = saves("torch_dist_integrity")
    directory = put(save, tmp_path, 4, age=3.0)
    manifest = save.files["integrity.json"]
    changed = {
        "missing": manifest.replace(b"common.pt", b"other.pt"),
        "hash": manifest.replace(b'".metadata": "', b'".metadata": "0'),
        "torn": manifest[:-3],
    }[damage]
    assert changed != manifest
    write(directory / "integrity.json", changed, 2.0)
    write(tmp_path / TRACKER, b"4", 1.0)
    never_complete(tmp_path, save, damage)
    assert "integrity.json" in look(tmp_path).waiting[0][1]


def test_integrity_json_of_an_earlier_save_proves_nothing(tmp_path: Path, saves: Saves) -> None:
    old, new = saves("torch_dist_integrity")
    directory = put(old, tmp_path, 4, age=5000.0)
    for name in ("common.pt", "__0_0.distcp", "__0_1.distcp", ".metadata", "metadata.json"):
        write(directory / name, new.files[name], 2.0)
    assert look(tmp_path).complete == ()
    write(tmp_path / TRACKER, b"4", 1.0)
    assert len(look(tmp_path).complete) == 1


def test_an_old_torch_file_is_unsupported_and_says_what_to_do(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "iter_0000004" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=False)
    write(tmp_path / TRACKER, b"4", 0.0)
    found = look(tmp_path)
    assert (found.complete, found.waiting, found.abandoned) == ((), (), ())
    assert "save it again" in found.unsupported[0][1]


@pytest.mark.parametrize("name", ["marks", "behind", "legacy", "quiet", "disorder", "abandoned"])
def test_settle_times_are_checked(name: str) -> None:
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=name):
            SettleTimes(**{name: wrong})


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("huggingface_bin")])
def test_a_file_that_lost_its_end_is_found_whatever_the_times_say(layout: str, tmp_path: Path, saves: Saves) -> None:
    save, _ = saves(layout)
    for name in save.weights:
        directory = put(save, tmp_path, 4, age=1000.0)
        assert len(look(tmp_path, model_type=save.model_type).complete) == 1
        times = (directory / name).stat()
        with (directory / name).open("rb+") as stream:
            stream.truncate(times.st_size - 1)
        os.utime(directory / name, ns=(times.st_atime_ns, times.st_mtime_ns))
        never_complete(tmp_path, save, f"{name} lacks its last byte")


def test_a_legacy_save_in_place_soon_after_the_old_one(tmp_path: Path, saves: Saves) -> None:
    """The old tracker tells which of the whole rank files are old; a tracker after all of them ends the save."""
    old, new = saves("torch_tp2_pp2_vpp2")
    directory = put(old, tmp_path, 4, age=100.0)
    for name in sorted(new.weights):
        write(directory / name, new.files[name], 2.0)
        if name != max(new.weights):
            never_complete(tmp_path, old, name)
    assert look(tmp_path).complete == ()
    assert len(look(tmp_path, seconds_later=59.0).complete) == 1  # all of the new save, the tracker never came


def test_megatron_bridge_writes_its_configuration_after_the_tracker(tmp_path: Path, saves: Saves) -> None:
    save, _ = saves("bridge")
    directory = put(save, tmp_path, 4, age=2.0)
    (directory / "run_config.yaml").unlink()
    never_complete(tmp_path, save, "no run_config.yaml")
    now = time.time()
    write(directory / "run_config.yaml", b"model:\n", 0.0)
    assert look(tmp_path, now=now + 0.2).complete == ()
    assert len(look(tmp_path, seconds_later=0.6).complete) == 1


def test_a_hugging_face_directory_that_is_saved_again_begins_with_its_configuration(
    tmp_path: Path, saves: Saves
) -> None:
    """The old weights stay whole while the new ones are gathered from the ranks, which can take a while."""
    save, _ = saves("huggingface_shards")
    directory = put(save, tmp_path, 4, age=5000.0)
    write(directory / "config.json", save.files["config.json"], 2.0)
    ((_, reason),) = look(tmp_path, model_type="huggingface").waiting
    assert "config.json was written after" in reason
    assert look(tmp_path, seconds_later=50.0, model_type="huggingface").complete == ()
    assert len(look(tmp_path, seconds_later=60.0, model_type="huggingface").complete) == 1  # only edited, then


def test_in_progress_abandoned_unsupported_and_complete_are_told_apart(tmp_path: Path, saves: Saves) -> None:
    save, _ = saves("torch_dist")
    shards = ("__0_0.distcp", "__0_1.distcp")

    def begin(iteration: int, age: float) -> None:
        for name in shards:
            write(save.directory(tmp_path, iteration) / name, save.files[name], age)
        os.utime(save.directory(tmp_path, iteration), (time.time() - age,) * 2)

    begin(2, 3000.0)  # crashed
    put(save, tmp_path, 4, age=2000.0)
    write(tmp_path / "iter_0000006" / "metadata.json", b'{"sharded_backend": "zarr"}', 1500.0)
    begin(8, 100.0)  # two asynchronous saves in flight, the trainer is busy with something else
    begin(10, 50.0)
    found = look(tmp_path)
    assert [checkpoint.iteration for checkpoint in found.complete] == [4]
    assert [[i for i, _ in told] for told in (found.abandoned, found.waiting, found.unsupported)] == [[2], [8, 10], [6]]
    put(save, tmp_path, 10, age=40.0)
    found = look(tmp_path)
    assert [i for i, _ in found.abandoned] == [2, 8]  # saves end in their order: 8 was not finished before 10
    put(save, tmp_path, 8, age=1.0)
    assert [checkpoint.iteration for checkpoint in look(tmp_path).complete] == [4, 8, 10]  # and yet it was


def test_after_a_rollback_later_checkpoints_say_nothing_of_a_save_in_flight(tmp_path: Path, saves: Saves) -> None:
    """They are of the time before: a save of 4 whose trainer takes minutes to finalise is not abandoned by 6."""
    old, new = saves("torch_dist")
    for iteration, age in ((2, 5000.0), (4, 4000.0), (6, 3000.0)):
        put(old, tmp_path, iteration, age=age)
    write(tmp_path / TRACKER, b"2", 900.0)
    assert [checkpoint.iteration for checkpoint in look(tmp_path).complete] == [2, 4, 6]
    for name in ("common.pt", "__0_0.distcp", "__0_1.distcp"):
        write(tmp_path / "iter_0000004" / name, new.files[name], 200.0)
    os.utime(tmp_path / "iter_0000004", (time.time() - 4000.0,) * 2)
    found = look(tmp_path)
    assert ([c.iteration for c in found.complete], [i for i, _ in found.waiting], found.abandoned) == ([2, 6], [4], ())
    assert [i for i, _ in look(tmp_path, seconds_later=1000.0).abandoned] == [4]  # nobody has touched it for long
    put(new, tmp_path, 4, age=1.0)
    assert [checkpoint.iteration for checkpoint in look(tmp_path).complete] == [2, 4, 6]


def test_integrity_json_is_part_of_the_fingerprint(tmp_path: Path, saves: Saves) -> None:
    save, _ = saves("torch_dist_integrity")
    directory = put(save, tmp_path, 4, age=100.0)
    manifest = directory / "integrity.json"
    before, times = fingerprint(directory), manifest.stat()
    manifest.write_bytes(manifest.read_bytes().replace(b"sha256", b"sha257"))
    os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(directory) != before
