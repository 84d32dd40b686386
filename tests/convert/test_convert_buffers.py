"""Memory of a tensor is used again only when nothing refers to it any more."""

from __future__ import annotations

import pytest
import torch

from autoeval.convert import buffers


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    buffers.release()


def test_memory_is_used_again_when_the_last_view_is_gone() -> None:
    tensor = buffers.empty((1024, 1024), torch.bfloat16)
    place, row, content = tensor.data_ptr(), tensor[3], memoryview(tensor.view(torch.uint8).numpy())
    assert tensor.shape == (1024, 1024) and tensor.dtype == torch.bfloat16 and tensor.is_contiguous()
    row.fill_(7.0)
    del tensor
    assert buffers.empty((1024, 1024), torch.bfloat16).data_ptr() != place, "a row is still there"
    del row
    assert buffers.empty((1024, 1024), torch.bfloat16).data_ptr() != place, "its bytes are still there"
    assert torch.frombuffer(content.cast("B"), dtype=torch.bfloat16)[3 * 1024] == 7.0
    del content
    taken = [buffers.empty((600, 1024), torch.float32) for _ in range(3)]  # another shape and dtype, somewhat more
    assert place not in {tensor.data_ptr() for tensor in taken}
    again = [buffers.empty((512, 1024), torch.float32) for _ in range(3)]
    assert place in {tensor.data_ptr() for tensor in again}


def test_what_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "KEPT_BYTES", 5 * 1024**2)
    tensors = [buffers.empty((2 * 1024**2,), torch.uint8) for _ in range(4)]
    places = {tensor.data_ptr() for tensor in tensors}
    del tensors
    tensors = [buffers.empty((2 * 1024**2,), torch.uint8) for _ in range(3)]
    assert sum(one.size for one in buffers._free) == 0
    assert len(places & {tensor.data_ptr() for tensor in tensors}) >= 2


def test_small_ones_are_the_allocators() -> None:
    assert buffers.empty((3, 0), torch.float16).shape == (3, 0)
    assert buffers.empty((), torch.float32).shape == ()
    assert not buffers._free and not buffers._returned
