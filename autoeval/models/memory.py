"""What passes and caches take, predicted from the model's shapes, and what may be taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from autoeval.models.network import Network, Shape
from autoeval.models.projection import ROWS, TILE

SLACK = 8 * 1024 * 1024  # buffers of the libraries
SHARE = {"cpu": 0.25, "cuda": 0.8}  # of the memory that is free; a CPU's is also other programs'


def free_bytes(device: torch.device) -> int:
    """Memory that may be taken on ``device``."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    return int(free * SHARE.get(device.type, SHARE["cpu"]))


def pass_bytes(network: Network, tokens: int, longest: int) -> int:
    """The most that a pass of ``tokens`` tokens over paths of ``longest`` takes, beside weights and slots."""
    return shaped_pass_bytes(network.shape, network.vocab_size, network.device.type, tokens, longest)


def shaped_pass_bytes(shape: Shape, vocab_size: int, device: str, tokens: int, longest: int) -> int:
    """The same from a model's shape alone; ``device`` is ``cpu`` or ``cuda``.

    Alive at once in a layer: the residual stream and its norm (in fp32), queries, keys and values before and after their
    rotation, the products of a gated feed-forward; of the pass's segments the masks, and of one segment, while it is
    made, its mask once more and, under a soft cap, its scores; afterwards one tile of logits, as stored and in fp32. A last
    layer that is called twice holds less: of its second call half the tokens at most, and the keys and values. Never
    too little (a test counts what is alive), and the memory asked for beside by libraries is ``SLACK``.
    """
    layer = 8 * shape.hidden + 4 * shape.attention + 4 * shape.widest
    rows = min(tokens, ROWS.get(device, ROWS["cpu"]))
    tile = rows * min(vocab_size, TILE.get(device, TILE["cpu"])) * (4 + shape.item)
    segment = min(tokens, longest) * longest
    pairs = tokens * longest * shape.groups * shape.item + segment * (shape.groups * shape.item + 4 * 4 * shape.capped)
    return SLACK + tokens * (layer * shape.item + 16) + pairs + tile + longest * shape.cache_bytes


def tokens_within(network: Network, asked: int, longest: int) -> int:
    """At most ``asked`` tokens a pass, halved until what is predicted is free."""
    limit = min(map(free_bytes, network.devices))
    while asked > 1 and pass_bytes(network, asked, longest) > limit:
        asked //= 2
    return asked


def slots_within(network: Network, rooms: Mapping[int, int], most: int, stems: Sequence[int] = ()) -> int:
    """How many texts may grow at once, at most ``most``: of each room as many as there are (``rooms``) or that many.

    ``stems``: lengths of the stems; no more of them are kept at once than texts grow.
    """
    limit = min(map(free_bytes, network.devices)) // 2
    longest = sorted(stems, reverse=True)

    def tokens(texts: int) -> int:
        return sum(room * min(many, texts) for room, many in rooms.items()) + sum(longest[:texts])

    while most > 1 and network.shape.cache_bytes * tokens(most) > limit:
        most //= 2
    return most
