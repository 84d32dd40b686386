"""What is in ``.metadata`` is read as PyTorch wrote it, and reading it never runs anything."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from autoeval.checkpoints.dcp_metadata import DcpMetadataError, read_dcp_metadata

HOME = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real checkpoint written by torch.distributed.checkpoint."""
    import torch
    import torch.distributed.checkpoint as dcp

    directory = tmp_path_factory.mktemp("dcp") / "iter_0000001"
    state = {
        "decoder.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "embedding.weight": torch.zeros(5, 2, dtype=torch.bfloat16),
        "scale": torch.tensor(3.5),
        "args": {"hidden_size": 64},
    }
    dcp.save(state, storage_writer=dcp.FileSystemWriter(directory), no_dist=True)
    return directory


def test_every_tensor_is_found_where_it_was_written(saved: Path) -> None:
    import io

    import torch

    metadata = read_dcp_metadata(saved)
    assert metadata.tensors["decoder.weight"].shape == (3, 4)
    assert metadata.tensors["decoder.weight"].dtype == "float32"
    assert metadata.tensors["embedding.weight"].dtype == "bfloat16"
    assert metadata.tensors["scale"].shape == ()
    (item,) = [item for item in metadata.items if item.key == "decoder.weight"]
    assert (item.kind, item.offsets, item.sizes) == ("tensor", (0, 0), (3, 4))
    blob = (saved / item.file).read_bytes()[item.offset : item.offset + item.length]
    assert torch.equal(torch.load(io.BytesIO(blob), weights_only=True), torch.arange(12.0).reshape(3, 4))
    assert {item.kind for item in metadata.items if item.key.startswith("args")} == {"bytes"}


def test_storage_files_are_as_long_as_their_items_say(saved: Path) -> None:
    sizes = read_dcp_metadata(saved).file_sizes()
    assert sizes == {name: (saved / name).stat().st_size for name in sizes}


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_torn_metadata_is_an_error_that_names_the_file(saved: Path, tmp_path: Path, length: int) -> None:
    whole = (saved / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(whole[:length])
    with pytest.raises(DcpMetadataError, match=r"\.metadata"):
        read_dcp_metadata(tmp_path / ".metadata")


class _Evil:
    def __init__(self, function: object, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, os.mkdir, subprocess.call])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, function: object) -> None:
    marker = tmp_path / "it_ran"
    argument = {eval: f"open({str(marker)!r}, 'w')", os.mkdir: str(marker)}.get(function, f"touch {marker}")  # type: ignore[call-overload]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(_Evil(function, argument)))
    with pytest.raises(DcpMetadataError):
        read_dcp_metadata(tmp_path / ".metadata")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../outside.distcp", "/etc/passwd", "..", "a\\b", ""])
def test_a_storage_file_outside_the_checkpoint_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(saved).read_metadata()
    for place in metadata.storage_data.values():
        place.relative_path = name
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(DcpMetadataError, match="file name without a path"):
        read_dcp_metadata(tmp_path / ".metadata")


def test_the_room_is_light() -> None:
    program = "import sys, autoeval.checkpoints; print(sorted(set(sys.modules) & {'torch', 'numpy', 'pydantic'}))"
    found = subprocess.run([sys.executable, "-c", program], cwd=HOME, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
