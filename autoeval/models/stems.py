"""Which texts that grow together read their common beginning together.

Every step of a generation reads the keys and values of all that went before. Where many prompts begin alike (few-shot
heads, or one prompt asked several times), the common part, the stem, is kept and read once for all its texts; each
text's slot has only what follows. A text has one stem at most: groups do not nest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoeval.models.trie import Walk

# Tokens that a stem must save every step, summed over its texts: less does not pay for one more call of attention.
WORTH = 256


@dataclass(frozen=True)
class Stem:
    """The first ``length`` tokens, common to the texts of some rows; ``number`` names it."""

    number: int
    length: int


@dataclass
class _Node:
    """A node of the trie with two texts below it or more, or a whole input, while its subtree is being walked."""

    depth: int
    first: int  # row
    texts: int
    saved: int  # tokens that the groups found below it save
    groups: int  # how many groups were found before it


def stems_of(walk: Walk, texts: Sequence[int]) -> list[Stem | None]:
    """The stem of each row of ``walk``, of which ``texts[row]`` texts grow; none where sharing does not pay.

    At every node of the trie either all texts below it are one group, which saves its depth for all of them but one,
    or the groups below it stay, whichever saves more.
    """
    groups: list[tuple[int, int, int]] = []  # first row, row after the last, length
    path: list[_Node] = []
    for row in range(len(walk.rows) + 1):
        shared = walk.shared[row] if row < len(walk.rows) else -1
        below = _Node(shared, row, 0, 0, len(groups))
        while path and path[-1].depth > shared:
            node = path.pop()
            node.texts, node.saved = node.texts + below.texts, node.saved + below.saved
            together = (node.texts - 1) * node.depth
            if together >= max(node.saved, WORTH):
                del groups[node.groups :]
                groups.append((node.first, row, node.depth))
                node.saved = together
            below = node
        if row == len(walk.rows):
            break
        if below.texts and path and path[-1].depth == shared:
            path[-1].texts, path[-1].saved = path[-1].texts + below.texts, path[-1].saved + below.saved
        elif below.texts:
            path.append(_Node(shared, below.first, below.texts, below.saved, below.groups))
        path.append(_Node(len(walk.rows[row]), row, texts[row], 0, len(groups)))
    found: list[Stem | None] = [None] * len(walk.rows)
    for number, (first, last, length) in enumerate(groups):
        found[first:last] = [Stem(number, length)] * (last - first)
    return found
