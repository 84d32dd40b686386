"""A checkpoint is a pickle from somebody else: whatever it says, nothing of it runs, and nothing outside it is read."""

from __future__ import annotations

import argparse
import contextlib
import fractions
import io
import json
import os
import pickle
import random
import signal
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from autoeval.checkpoints.dcp_metadata import DcpMetadataError, parse_dcp_metadata
from autoeval.convert import ConversionError, convert
from autoeval.convert.megatron_cpu import gpt_args
from autoeval.convert.source import open_source

pytestmark = pytest.mark.filterwarnings("ignore")
EMBEDDING = "embedding.word_embeddings.weight"


class Evil:
    """Unpickled freely, it makes the file ``proof``."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.proof}",))


class EvilEval(Evil):
    def __reduce__(self) -> Any:
        return (eval, (f"open({str(self.proof)!r}, 'w')",))


def torch_dist(directory: Path, common_state: Any, **stored: Any) -> Path:
    """Where megatron-core from 0.19 keeps its arguments: in a stored item."""
    fsdp_dtensor(directory, {"common_state/shard_0_1": common_state, EMBEDDING: torch.ones(256, 64), **stored})
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (directory / "metadata.json").write_text(json.dumps(backend))
    return directory


def fsdp_dtensor(directory: Path, state: dict[str, Any]) -> Path:
    directory.mkdir()
    dcp.save(state, checkpoint_id=directory, planner=dcp.DefaultSavePlanner(flatten_state_dict=False), no_dist=True)
    return directory


def legacy(directory: Path, rank: str = "mp_rank_00", **state: Any) -> Path:
    (directory / rank).mkdir(parents=True)
    torch.save(state, directory / rank / "model_optim_rng.pt")
    return directory


def in_first_rank(source: Path, evil: Evil) -> None:
    legacy(source, args=evil)


def in_arguments(source: Path, evil: Evil) -> None:
    legacy(source, args=argparse.Namespace(hook=evil))


def in_optimizer(source: Path, evil: Evil) -> None:
    legacy(source, args=gpt_args(), model={}, optimizer={"state": evil})


def in_second_rank(source: Path, evil: Evil) -> None:
    legacy(source, args=gpt_args(tensor_model_parallel_size=2), model={})
    legacy(source, "mp_rank_01", args=evil, model={})


def in_common_pt(source: Path, evil: Evil) -> None:
    torch_dist(source, [{"args": gpt_args()}])
    torch.save({"args": evil}, source / "common.pt")


def in_common_state(source: Path, evil: Evil) -> None:
    torch_dist(source, [{"args": evil}])


def in_dcp_arguments(source: Path, evil: Evil) -> None:
    fsdp_dtensor(source, {f"model.{EMBEDDING}": torch.ones(256, 64), "args": evil})


def as_metadata(source: Path, evil: Evil) -> None:
    torch_dist(source, [{"args": gpt_args()}])
    (source / ".metadata").write_bytes(pickle.dumps(evil))


def inside_metadata(source: Path, evil: Evil) -> None:
    torch_dist(source, [{"args": gpt_args()}])
    change_metadata(source, lambda metadata: setattr(metadata, "planner_data", evil))


def as_a_tensor(source: Path, evil: Evil) -> None:
    """A tensor's blob exchanged for one of the same length, so that .metadata is still true."""
    torch_dist(source, [{"args": gpt_args(num_layers=1)}])
    blob = io.BytesIO()
    torch.save(evil, blob)
    for index, place in metadata_of(source).storage_data.items():
        if index.fqn == EMBEDDING:
            with (source / place.relative_path).open("r+b") as stream:
                stream.seek(place.offset)
                stream.write(zipped(blob.getvalue(), place.length))


PLACES = [
    in_first_rank, in_arguments, in_optimizer, in_second_rank, in_common_pt, in_common_state, in_dcp_arguments,
    as_metadata, inside_metadata, as_a_tensor,
]  # fmt: skip


def zipped(blob: bytes, length: int) -> bytes:
    """The same records in a zip of exactly ``length`` bytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        # A record costs its name twice, 30 + 46 bytes of headers, and its content.
        end = sum(76 + 2 * len(e.filename) + e.file_size for e in new.infolist()) + 22
        new.writestr("archive/padding", b"\0" * (length - end - 76 - 2 * len("archive/padding")))
    assert len(made.getvalue()) == length
    return made.getvalue()


def metadata_of(source: Path) -> Any:
    return pickle.loads((source / ".metadata").read_bytes())  # noqa: S301 - our own


def change_metadata(source: Path, change: Callable[[Any], Any]) -> None:
    metadata = metadata_of(source)
    change(metadata)
    (source / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("evil", [Evil, EvilEval])
@pytest.mark.parametrize("place", PLACES)
def test_nothing_runs(tmp_path: Path, place: Callable[[Path, Evil], None], evil: type[Evil]) -> None:
    proof, source = tmp_path / "proof", tmp_path / "iter_0000001"
    place(source, evil(proof))
    with pytest.raises(ConversionError, match=r"builtins\.eval|posix\.system"):
        opened = open_source(source)
        opened.tensor(EMBEDDING)
    with pytest.raises(ConversionError):
        convert(source, tmp_path / "hf", tokenizer=None)
    assert not proof.exists() and not (tmp_path / "hf").exists()


def test_these_places_would_run_it(tmp_path: Path) -> None:
    """The control: PyTorch's own readers do, so the test above can fail."""
    common_state, metadata, legacy_file = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    in_common_state(common_state, Evil(tmp_path / "proof1"))
    dcp.load({"common_state/shard_0_1": None}, checkpoint_id=common_state, no_dist=True)
    as_metadata(metadata, Evil(tmp_path / "proof2"))
    with contextlib.suppress(AttributeError):  # what was run gave no metadata
        dcp.FileSystemReader(metadata).read_metadata()
    in_first_rank(legacy_file, Evil(tmp_path / "proof3"))
    torch.load(legacy_file / "mp_rank_00/model_optim_rng.pt", weights_only=False)
    assert all((tmp_path / f"proof{n}").exists() for n in (1, 2, 3))


def test_the_refusal_names_the_class(tmp_path: Path) -> None:
    legacy(tmp_path / "iter_0000001", args=fractions.Fraction(1, 3))
    with pytest.raises(ConversionError, match=r"refused, because it names fractions\.Fraction"):
        open_source(tmp_path / "iter_0000001")
    with pytest.raises(DcpMetadataError, match=r"refused, because it names fractions\.Fraction"):
        parse_dcp_metadata(pickle.dumps(fractions.Fraction(1, 3)))


class OldEnum:
    """A member of an enum as Python 3.11.0 to 3.11.3 pickles it."""

    def __reduce__(self) -> Any:
        return (getattr, (torch.serialization.LoadEndianness, "LITTLE"))


def test_what_megatron_saves_beside_tensors_is_no_obstacle(tmp_path: Path) -> None:
    numpy_state = np.random.RandomState(1).get_state()
    args = gpt_args(
        num_layers=1,
        exit_signal=signal.SIGTERM,
        # Python up to 3.10 writes SIGTERM as a name of the module signal, as any Python does with a function.
        exit_signal_of_python_3_10=signal.getsignal,
        attention_backend=OldEnum(),
        rank_zero=types.SimpleNamespace(a=1),
        cache=Path("/cache"),
        device=torch.device("cpu"),
        params_dtype=torch.bfloat16,
        optimizer_class=torch.optim.AdamW,
        sizes=torch.Size([1, 2]),
        names={"a", "b"},
    )
    model = {EMBEDDING: torch.ones(256, 64), "decoder.layers.0.mlp.linear_fc1.weight": torch.ones(1)}
    rng = [
        {"random_rng_state": random.getstate(), "np_rng_state": numpy_state, "torch_rng_state": torch.get_rng_state()}
    ]
    source = legacy(tmp_path / "iter_0000001", args=args, model=model, rng_state=rng, extra=io.BytesIO(b"1"))
    assert torch.equal(open_source(source).tensor(EMBEDDING), torch.ones(256, 64))
    shared = torch_dist(tmp_path / "iter_0000002", [{"args": args, "rng": rng}])
    change_metadata(shared, lambda metadata: setattr(metadata, "planner_data", OldEnum()))
    assert open_source(shared).args.sizes == torch.Size([1, 2])


def test_run_config_makes_no_objects(tmp_path: Path) -> None:
    source = torch_dist(tmp_path / "iter_0000001", [{"iteration": 1}])
    evil = f"model: !!python/object/apply:os.system ['touch {tmp_path}/proof']"
    (source / "run_config.yaml").write_text(evil)
    with pytest.raises(ConversionError, match=r"run_config\.yaml: not plain YAML.*os\.system"):
        open_source(source)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("outside", ["../secret.distcp", "/etc/passwd", "sub/secret.distcp", "..", "secret\0.distcp"])
def test_metadata_leads_nowhere_else(tmp_path: Path, outside: str) -> None:
    source = torch_dist(tmp_path / "iter_0000001", [{"args": gpt_args()}])

    def elsewhere(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = outside

    change_metadata(source, elsewhere)
    with pytest.raises(ConversionError, match="expected a file name without a path"):
        open_source(source)


@pytest.mark.parametrize("linked", ["__0_0.distcp", ".metadata", "common.pt", "metadata.json", "run_config.yaml"])
def test_a_link_out_of_the_checkpoint_is_not_followed(tmp_path: Path, linked: str) -> None:
    source = torch_dist(tmp_path / "iter_0000001", [{"iteration": 1}])
    (tmp_path / "secret").write_text("not yours")
    if linked == "common.pt":
        torch.save({"args": gpt_args()}, tmp_path / "secret")
    elif linked != "run_config.yaml":
        (tmp_path / "secret").write_bytes((source / linked).read_bytes())
    (source / linked).unlink(missing_ok=True)
    (source / linked).symlink_to(tmp_path / "secret")
    with pytest.raises(ConversionError, match=f"{linked}: refused, because it leads out of the checkpoint"):
        open_source(source)


@pytest.mark.parametrize("linked", ["mp_rank_00", "mp_rank_00/model_optim_rng.pt"])
def test_a_linked_rank_is_not_followed(tmp_path: Path, linked: str) -> None:
    legacy(tmp_path / "other", args=gpt_args(), model={})
    source = tmp_path / "iter_0000001"
    (source / linked).parent.mkdir(parents=True)
    (source / linked).symlink_to(tmp_path / "other" / linked)
    with pytest.raises(ConversionError, match="refused, because it leads out of the checkpoint"):
        open_source(source)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    source = torch_dist(tmp_path / "iter_0000001", [{"args": gpt_args()}])
    shard = next(source.glob("*.distcp"))
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(ConversionError, match="not a regular file"):
        open_source(source)


def grow(metadata: Any, size: tuple[int, ...]) -> None:
    described = metadata.state_dict_metadata[EMBEDDING]
    described.size = torch.Size(size)
    described.chunks = [ChunkStorageMetadata(offsets=torch.Size([0] * len(size)), sizes=torch.Size(size))]
    for index in [i for i in metadata.storage_data if i.fqn == EMBEDDING]:
        place = metadata.storage_data.pop(index)
        metadata.storage_data[type(index)(EMBEDDING, torch.Size([0] * len(size)), 0)] = place


def lengthen(metadata: Any) -> None:
    grow(metadata, (10**12, 64))
    for place in metadata.storage_data.values():
        place.length = 10**15


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda metadata: grow(metadata, (10**12, 64)), "needs 256000000000000 bytes"),
        (lambda metadata: grow(metadata, (10**12, 0)), "needs 0 bytes"),
        (lengthen, "has [0-9]+ bytes, .metadata says"),
    ],
)
def test_a_huge_shape_takes_no_memory(tmp_path: Path, change: Callable[[Any], None], expected: str) -> None:
    source = torch_dist(tmp_path / "iter_0000001", [{"args": gpt_args()}])
    change_metadata(source, change)
    with pytest.raises(ConversionError, match=expected):
        open_source(source)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.ones(1).expand(10**6, 10**6), r"is stored in 1 elements|ends at byte"),
        (torch.empty(4, device="meta"), "not a plain tensor"),
        (torch.ones(2, 2).to_sparse(), "not a plain tensor"),
        ([1.0, 2.0], "is list, expected a tensor"),
    ],
    ids=["expanded", "no storage", "sparse", "list"],
)
def test_a_legacy_tensor_that_is_none(tmp_path: Path, tensor: Any, expected: str) -> None:
    model = {EMBEDDING: tensor, "decoder.layers.0.mlp.linear_fc1.weight": torch.ones(1)}
    legacy(tmp_path / "iter_0000001", args=gpt_args(num_layers=1), model=model)
    with pytest.raises(ConversionError, match=expected):
        open_source(tmp_path / "iter_0000001").tensor(EMBEDDING)


def test_a_tensor_is_where_its_record_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch computes the place from the records before it; were it ever wrong, the weights would be noise."""
    model = {EMBEDDING: torch.ones(256, 64), "decoder.layers.0.mlp.linear_fc1.weight": torch.ones(1)}
    source = legacy(tmp_path / "iter_0000001", args=gpt_args(num_layers=1), model=model)
    assert torch.equal(open_source(source).tensor(EMBEDDING), torch.ones(256, 64))
    original = torch.load

    def shifted(*arguments: Any, **keywords: Any) -> Any:
        state = original(*arguments, **keywords)
        state["model"][EMBEDDING].untyped_storage()._checkpoint_offset += 64
        return state

    monkeypatch.setattr(torch, "load", shifted)
    with pytest.raises(ConversionError, match="no record of the zip begins at byte"):
        open_source(source).tensor(EMBEDDING)


def test_shards_that_do_not_go_together(tmp_path: Path) -> None:
    name = "decoder.layers.0.self_attention.linear_proj.weight"
    for rank, shape in enumerate([(4, 4), (4,)]):
        args = gpt_args(num_layers=1, tensor_model_parallel_size=2)
        legacy(tmp_path / "iter_0000001", f"mp_rank_{rank:02d}", args=args, model={name: torch.ones(shape)})
    with pytest.raises(ConversionError, match=r"linear_proj\.weight cannot be put together"):
        open_source(tmp_path / "iter_0000001").tensor(name)


def test_a_compressed_record_is_not_unpacked(tmp_path: Path) -> None:
    source = legacy(tmp_path / "iter_0000001", args=gpt_args())
    file = source / "mp_rank_00/model_optim_rng.pt"
    blob = file.read_bytes()
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/9", b"\0" * 10**8)
    with pytest.raises(ConversionError, match=r"data\.pkl is compressed"):
        open_source(source)


def test_a_torn_legacy_file_is_refused(tmp_path: Path) -> None:
    source = legacy(tmp_path / "iter_0000001", args=gpt_args())
    file = source / "mp_rank_00/model_optim_rng.pt"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ConversionError, match="torn"):
        convert(source, tmp_path / "hf", tokenizer=None)
