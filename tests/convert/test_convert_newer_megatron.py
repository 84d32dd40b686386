"""Checkpoints of a Megatron newer than the one that is installed for tests: megatron_core_0_19_2/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoeval.convert import convert
from autoeval.convert.source import open_source

SAVED = Path(__file__).with_name("megatron_core_0_19_2")


@pytest.mark.parametrize(("case", "variant"), [("llama", "singleton"), ("mixtral", "stacked")])
def test_arguments_and_tensors_of_megatron_core_0_19(tmp_path: Path, case: str, variant: str) -> None:
    source, plain = (SAVED / case / name / "iter_0000010" for name in (variant, "legacy"))
    assert not (source / "common.pt").exists()
    found, expected = open_source(source), open_source(plain)
    assert found.names() == expected.names() and len(found.names()) > 10
    assert all(torch.equal(found.tensor(name), expected.tensor(name)) for name in expected.names())
    checksums = {convert(path, tmp_path / path.parent.name, tokenizer=None).checksum for path in (source, plain)}
    assert len(checksums) == 1
