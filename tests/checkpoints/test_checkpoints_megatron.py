"""What megatron-core itself writes is understood: by one process, by two with virtual stages, and asynchronously."""

from __future__ import annotations

import io
import multiprocessing
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import megatron_saves
import pytest
from checkpoint_files import TRACKER, look, watcher, write

from autoeval.checkpoints import SettleTimes, pinned, read_dcp_metadata, unchanged
from tests import forked


def run(root: Path, world: int) -> Path:
    pytest.importorskip("megatron.core")
    said = [root / f"rank{rank}.txt" for rank in range(world)]
    ranks = [forked.start(megatron_saves.save, root, rank, world, output=said[rank]) for rank in range(world)]
    forked.finish(ranks, said)
    return root


@pytest.fixture(scope="session")
def saves_of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("megatron1"), 1)


@pytest.fixture(scope="session")
def saves_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("megatron2"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["saves_of_one", "saves_of_two"])
@pytest.mark.parametrize("layout", ["torch_dist", "torch"])
def test_what_megatron_saved_is_complete(
    processes: str, layout: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    saved: Path = request.getfixturevalue(processes)
    found = look(saved / layout, token_per_iteration=0.25)
    assert found.waiting == ()
    (checkpoint,) = found.complete
    assert (checkpoint.format, checkpoint.iteration, checkpoint.tokens) == (layout, 2, 0.5)
    with pinned(checkpoint, tmp_path) as held:
        assert unchanged(held)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["saves_of_one", "saves_of_two"])
@pytest.mark.parametrize("layout", ["torch_dist", "torch"])
def test_no_prefix_of_what_megatron_wrote_is_complete(
    processes: str, layout: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """File by file in the order of their times, each also cut short; the tracker is there, and newer, all the while."""
    saved: Path = request.getfixturevalue(processes)
    source = saved / layout / "iter_0000002"
    files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    names = [str(path.relative_to(source)) for path in files]
    if layout == "torch":
        assert len(names) == (1 if processes == "saves_of_one" else 2)
    else:
        assert names[0] == "common.pt" and names[-2:] == [".metadata", "metadata.json"] and len(names) >= 5
    target = tmp_path / "iter_0000002"
    for name, path in zip(names, files, strict=True):
        content = path.read_bytes()
        for length in (0, len(content) // 3, len(content) - 64, len(content) - 1):
            write(target / name, content[:length], 2.0)
            write(tmp_path / TRACKER, b"2", 1.0)
            for seconds_later in (0.0, 100_000.0):
                assert look(tmp_path, seconds_later=seconds_later).complete == (), f"{name} cut to {length} bytes"
        write(target / name, content, 2.0)
    assert [checkpoint.iteration for checkpoint in look(tmp_path).complete] == [2]
    for name in names:
        shutil.copytree(target, tmp_path / "kept")
        (target / name).unlink()
        assert look(tmp_path, seconds_later=100_000.0).complete == (), f"without {name}"
        shutil.rmtree(target)
        (tmp_path / "kept").rename(target)


@contextmanager
def asynchronous(root: Path) -> Iterator[Iterator[str]]:
    """Steps of two asynchronous saves; each is over when it is told, the next begins when it is asked for."""
    told, here = multiprocessing.Pipe()
    process = forked.start(megatron_saves.save_asynchronously, root, here, output=root / "said.txt")
    here.close()

    def steps() -> Iterator[str]:
        while True:
            try:
                yield told.recv()
            except EOFError:
                return
            told.send("go on")

    try:
        yield steps()
        forked.finish([process], [root / "said.txt"])
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
def test_two_asynchronous_saves_of_megatron_in_flight(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    root = tmp_path / "async"
    looking = watcher(root, settle=SettleTimes(marks=3600.0, behind=3600.0))  # however slow the machine is
    seen: list[tuple[str, list[int], list[int]]] = []
    with asynchronous(tmp_path) as steps:
        for step in steps:
            found = looking.scan()
            assert found.abandoned == found.unsupported == ()
            if step == "written":
                assert any((root / "iter_0000002").glob("*.distcp"))
            seen.append((step, [c.iteration for c in found.complete], [iteration for iteration, _ in found.waiting]))
    assert seen == [
        ("begun", [], [2, 4]),
        ("written", [], [2, 4]),
        ("written", [], [2, 4]),
        ("marked", [], [2, 4]),
        ("finished", [2], [4]),
        ("marked", [2], [4]),
        ("finished", [2, 4], []),
    ]


@pytest.mark.slow
def test_every_stored_tensor_has_the_place_and_shape_that_the_metadata_says(saves_of_one: Path) -> None:
    import torch

    directory = saves_of_one / "torch_dist" / "iter_0000002"
    metadata = read_dcp_metadata(directory)
    assert metadata.tensors["decoder.layers.mlp.linear_fc1.weight"].shape == (2, 192, 64)
    assert metadata.tensors["embedding.word_embeddings.weight"].dtype == "float32"
    assert any(key.startswith("optimizer.") for key in metadata.tensors)
    covered: dict[str, int] = {}
    for item in metadata.items:
        if item.kind == "bytes":
            continue
        blob = (directory / item.file).read_bytes()[item.offset : item.offset + item.length]
        tensor = torch.load(io.BytesIO(blob), weights_only=True)
        assert item.sizes is not None and tensor.numel() == torch.Size(item.sizes).numel()
        covered[item.key] = covered.get(item.key, 0) + tensor.numel()
    assert covered == {key: torch.Size(value.shape).numel() for key, value in metadata.tensors.items()}
