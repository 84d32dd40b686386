"""A checkpoint directory belongs to whoever trains: whatever is in it, the daemon goes on and runs none of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import threading
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from autoeval.checkpoints import DcpMetadataError, ScanResult, Watcher
from autoeval.checkpoints.dcp_metadata import parse_dcp_metadata
from autoeval.checkpoints.inert_pickle import load_inert, refuse_far_memo
from autoeval.checkpoints.pin import CheckpointChanged, _link_all

DEEP = "[" * 200_000


def look(root: Path, model_type: str = "megatron") -> ScanResult:
    """One look, which must come back: a daemon that waits for a pipe evaluates nothing any more."""
    watcher = Watcher(
        root, "gpt", token_per_iteration=None, begin=0, end=None, interval=1, check_interval_seconds=60.0,
        model_type=model_type,
    )  # fmt: skip
    found: list[ScanResult] = []
    looking = threading.Thread(target=lambda: found.append(watcher.scan()), daemon=True)
    looking.start()
    looking.join(90)
    assert found, "the look raised, or still waits"
    return found[0]


def megatron(root: Path) -> Path:
    directory = root / "iter_0001000"
    directory.mkdir(parents=True)
    (root / "latest_checkpointed_iteration.txt").write_text("1000")
    return directory


def hugging_face(root: Path) -> Path:
    directory = root / "checkpoint-1000"
    directory.mkdir(parents=True)
    return directory


def rank_file(directory: Path, arguments: object) -> Path:
    path = directory / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model_optim_rng/data.pkl", pickle.dumps({"args": arguments}, 2))
    return path


@pytest.mark.parametrize("name", [".metadata", "metadata.json", "mp_rank_00/model_optim_rng.pt", "../tracker"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    directory = megatron(tmp_path)
    path = tmp_path / "latest_checkpointed_iteration.txt" if name == "../tracker" else directory / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    assert [iteration for iteration, _ in look(tmp_path).waiting] == [1000]


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_pipe_in_a_hugging_face_directory_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(hugging_face(tmp_path) / name)
    ((_, reason),) = look(tmp_path, "huggingface").waiting
    assert f"{name}: not a regular file" in reason


def test_a_device_is_not_read(tmp_path: Path) -> None:
    (megatron(tmp_path) / ".metadata").symlink_to("/dev/zero")
    ((_, reason),) = look(tmp_path).waiting
    assert "not a regular file" in reason


@pytest.mark.parametrize(
    "name", ["metadata.json", "integrity.json", "config.json", "model.safetensors.index.json", "adapter_config.json"]
)
def test_json_that_is_nested_without_end(tmp_path: Path, name: str) -> None:
    hugging = name not in ("metadata.json", "integrity.json")
    directory = hugging_face(tmp_path) if hugging else megatron(tmp_path)
    if name.startswith("model"):
        (directory / "config.json").write_text("{}")
    (directory / name).write_text(DEEP)
    assert len(look(tmp_path, "huggingface" if hugging else "megatron").waiting) == 1


def test_a_safetensors_header_that_is_nested_without_end(tmp_path: Path) -> None:
    directory = hugging_face(tmp_path)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(len(DEEP).to_bytes(8, "little") + DEEP.encode())
    ((_, reason),) = look(tmp_path, "huggingface").waiting
    assert "no readable header" in reason


def test_arguments_that_ask_for_billions_of_rank_files(tmp_path: Path) -> None:
    """Every file name would be made before the first is missed."""
    many = dict.fromkeys(("tensor_model_parallel_size", "expert_model_parallel_size"), 65536)
    rank_file(
        megatron(tmp_path), Namespace(**many, expert_tensor_parallel_size=65536, pipeline_model_parallel_size=65536)
    )
    ((_, reason),) = look(tmp_path).unsupported
    assert "no run has so many ranks" in reason


def test_an_encrypted_rank_file(tmp_path: Path) -> None:
    path = rank_file(megatron(tmp_path), Namespace())
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1  # the flag "encrypted"
    path.write_bytes(content)
    assert len(look(tmp_path).waiting) == 1


@pytest.mark.parametrize("name", ["iter_" + "9" * 40, "iter_" + "٣" * 7])
def test_a_number_that_the_ledger_cannot_hold_is_no_iteration(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert look(tmp_path) == ScanResult()


def test_names_that_are_no_text_or_steer_a_terminal(tmp_path: Path) -> None:
    directory = hugging_face(tmp_path)
    (directory / "config.json").write_text("{}")
    shards = {"a": "\x1b[2J\ud800.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with open(os.fsencode(directory) + b"/\xff.safetensors", "wb"):  # noqa: PTH123 - a Path has no such name
        pass
    ((_, reason),) = look(tmp_path, "huggingface").waiting
    assert reason == "\\x1b[2J\\ud800.safetensors is missing"


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\xff", b"r\x00\x00\x00\x10", b"p4294967295\n", b"p-1\n"])
def test_eleven_bytes_do_not_take_all_memory(put: bytes) -> None:
    """CPython's unpickler makes room for every number below the one under which something is remembered."""
    with pytest.raises(DcpMetadataError, match="it remembers something as number"):
        parse_dcp_metadata(b"\x80\x02N" + put + b".")
    with pytest.raises(pickle.UnpicklingError):
        load_inert(b"\x80\x04\x8c\x02r\xff" + b"h\x00" * 5 + b"\x8c\x01r" + put + b".")


@pytest.mark.parametrize("protocol", range(6))
def test_what_python_writes_itself_remembers_nothing_far_away(protocol: int) -> None:
    """Of every protocol; and an operation's code inside of a text is none."""
    value = {i: ["r\x7f\x7f\x7f\x7f" * i, i / 3, b"p9999999999\n" * i, 2 ** (9 * i), (None, True)] for i in range(300)}
    content = pickle.dumps(value, protocol)
    refuse_far_memo(content)
    for end in range(0, 2000, 7):  # cut short: for the unpickler to say
        refuse_far_memo(content[:end])
    with pytest.raises(pickle.UnpicklingError):
        refuse_far_memo(content[:-1] + b"r\xff\xff\xff\x7f.")
    assert pickle.Unpickler(io.BytesIO(content)).load() == value  # noqa: S301 - written above


@pytest.fixture
def of_another_user(tmp_path: Path) -> Callable[[Path], None]:
    """Make ``path`` a link of another user's to a file of ours."""
    if os.geteuid() != 0:
        pytest.skip("only root can make files of another user")
    secret = tmp_path / "secret"
    secret.write_text("{}")

    def link(path: Path) -> None:
        path.symlink_to(secret)
        os.lchown(path, 12345, 12345)

    return link


def test_another_users_link_to_our_file_is_not_followed(
    tmp_path: Path, of_another_user: Callable[[Path], None]
) -> None:
    directory = hugging_face(tmp_path / "run")
    of_another_user(directory / "config.json")
    found = look(tmp_path / "run", "huggingface")
    assert found.unsupported == ((1000, "config.json is a link to a file of another user, which is not followed"),)


def test_nor_is_it_pinned(tmp_path: Path, of_another_user: Callable[[Path], None]) -> None:
    """A link may take a file's place after it was looked at."""
    directory = hugging_face(tmp_path / "run")
    of_another_user(directory / "config.json")
    with pytest.raises(CheckpointChanged, match="a link to a file of another user"):
        _link_all(directory, tmp_path / "pins")
    assert not (tmp_path / "pins" / "config.json").exists()
