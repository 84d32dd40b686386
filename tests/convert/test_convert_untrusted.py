"""A checkpoint is a pickle from somebody else: whatever it says, nothing of it runs."""

from __future__ import annotations

import argparse
import fractions
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from autoeval.convert import ConversionError, convert
from autoeval.convert.megatron_cpu import gpt_args


class Evil:
    """Unpickled freely, it makes the file ``proof``."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.proof}",))


class EvilEval(Evil):
    def __reduce__(self) -> Any:
        return (eval, (f"open({str(self.proof)!r}, 'w')",))


def torch_dist(directory: Path, common_state: Any) -> Path:
    """Where megatron-core from 0.19 keeps its arguments: in a stored item."""
    directory.mkdir()
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    state = {"common_state/shard_0_1": common_state, "x": torch.ones(2)}
    dcp.save(state, checkpoint_id=directory, planner=planner, no_dist=True)
    (directory / "metadata.json").write_text(
        json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})
    )
    return directory


@pytest.mark.parametrize("evil", [Evil, EvilEval])
@pytest.mark.parametrize("place", ["legacy", "common.pt", ".metadata", "stored item", "inside args"])
@pytest.mark.filterwarnings("ignore")
def test_nothing_runs(tmp_path: Path, place: str, evil: type[Evil]) -> None:
    proof, source = tmp_path / "proof", tmp_path / "iter_0000001"
    expected = r"builtins\.eval|posix\.system|cannot be read safely"
    if place == "legacy":
        (source / "mp_rank_00").mkdir(parents=True)
        torch.save({"args": evil(proof)}, source / "mp_rank_00/model_optim_rng.pt")
    elif place == "inside args":
        (source / "mp_rank_00").mkdir(parents=True)
        torch.save({"args": argparse.Namespace(hook=evil(proof))}, source / "mp_rank_00/model_optim_rng.pt")
    elif place == "stored item":
        torch_dist(source, [{"args": evil(proof)}])
    else:
        torch_dist(source, [{"args": gpt_args()}])
        if place == "common.pt":
            torch.save({"args": evil(proof)}, source / "common.pt")
        else:
            (source / ".metadata").write_bytes(pickle.dumps(evil(proof)))
            expected = r"\.metadata"
    with pytest.raises(ConversionError, match=expected):
        convert(source, tmp_path / "hf", tokenizer=None)
    assert not proof.exists() and not (tmp_path / "hf").exists()


def test_the_refusal_names_the_class(tmp_path: Path) -> None:
    (tmp_path / "iter_0000001/mp_rank_00").mkdir(parents=True)
    torch.save({"args": fractions.Fraction(1, 3)}, tmp_path / "iter_0000001/mp_rank_00/model_optim_rng.pt")
    with pytest.raises(ConversionError, match=r"refused, because it names fractions\.Fraction"):
        convert(tmp_path / "iter_0000001", tmp_path / "hf", tokenizer=None)


def test_a_torn_legacy_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "iter_0000001/mp_rank_00/model_optim_rng.pt"
    file.parent.mkdir(parents=True)
    torch.save({"args": gpt_args()}, file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ConversionError, match="torn"):
        convert(tmp_path / "iter_0000001", tmp_path / "hf", tokenizer=None)
