"""Continuous batching: prompts walk their trie while the texts that have begun grow, in the same passes.

A pass has one token of every text under way and, as far as slots and the budget allow, the next tokens of the trie of
all prompts. Where a prompt ends, its keys and values go to a slot and its text begins; a text that ends frees its slot
for the next prompt in the very next pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from autoeval.models.attention import Part, State
from autoeval.models.memory import slots_within, tokens_within
from autoeval.models.network import Network
from autoeval.models.projection import summarize
from autoeval.models.scoring import count, halve, on, refuse_nan
from autoeval.models.text import Row, append, pick
from autoeval.models.trie import Segment, Walk, key_of

SLOTS = {"cpu": 64, "cuda": 256}  # texts that grow at once, at most


def decode_walking(model: Any, network: Network, rows: Sequence[Row]) -> None:
    """Generate all ``rows``. Running out of memory starts those again that have not ended, with half of everything."""
    most = SLOTS.get(network.device.type, SLOTS["cpu"])
    while waiting := [row for row in rows if not row.finish_reason]:
        rooms = Counter(_room(row) for row in waiting)
        slots = slots_within(network, rooms, min(most, len(waiting), max(1, model.batch_tokens)))
        try:
            _Batch(model, network, waiting, slots).run()
        except torch.OutOfMemoryError as error:
            halve(model, model.batch_tokens, error)
            most = max(1, slots // 2)


def _room(row: Row) -> int:
    """Tokens of the slot for ``row``: half a power of two, so that texts in slots of one kind are of similar length."""
    return math.ceil(2 ** (math.ceil(2 * math.log2(max(row.size, 16))) / 2))


class _Batch:
    """``rows``, of which ``slots`` grow at once. ``active[room][i]`` is the text in slot ``i`` of that room."""

    def __init__(self, model: Any, network: Network, rows: Sequence[Row], slots: int) -> None:
        self.model, self.network, self.slots = model, network, slots
        prompts: dict[bytes, list[Row]] = {}
        for row in rows:
            row.restart()
            same = prompts.setdefault(key_of(row.prompt), [])
            if len(same) < slots:  # what is left over is for another walk
                same.append(row)
        self.walk = Walk(list(prompts))
        self.members = [list(prompts.values())[number] for number in self.walk.order]
        rooms = Counter(_room(row) for same in self.members for row in same)
        self.state = State(self.walk.longest, {room: min(many, slots) for room, many in rooms.items()})
        self.active: dict[int, list[Row]] = {room: [] for room in sorted(rooms)}
        self.budget = tokens_within(network, model.batch_tokens, self.walk.longest)
        self.done = 0  # tokens of the walk
        self.next = 0  # the prompt that is being walked
        count(model.cost, unique_tokens=self.walk.size)

    def run(self) -> None:
        while self.done < self.walk.size or any(self.active.values()):
            self._pass()

    def _pass(self) -> None:
        growing = [row for rows in self.active.values() for row in rows]
        lengths = {room: [len(row.prompt) + len(row.tokens) - 1 for row in rows] for room, rows in self.active.items()}
        segments = self._admit(len(growing))
        parts, began, last, start = [], [], [], 0
        for segment in segments:
            whole = segment.end == len(self.walk.rows[segment.row])
            members = self.members[segment.row] if whole else []
            slots = tuple(self._enter(row) for row in members)
            parts.append(Part(start, segment.depth, segment.length, slots))
            start += segment.length
            began += members
            last += [start - 1] * len(members)
        hidden = self._forward(segments, parts, growing, lengths)
        wanted = np.array([*range(start, start + len(growing)), *last], dtype=np.int64)
        if len(wanted):
            self._choose([*growing, *began], hidden[on(self.network, wanted)])
            self._leave()

    def _admit(self, growing: int) -> list[Segment]:
        """The next tokens of the walk for which there is room."""
        free = self.slots - growing
        until = self.done
        most = self.done + max(1, self.budget - growing)
        while self.next < len(self.members) and until < most and len(self.members[self.next]) <= free:
            end = int(self.walk.starts[self.next + 1])
            until = min(end, most)
            if until == end:
                free -= len(self.members[self.next])
                self.next += 1
        segments = self.walk.segments(self.done, until)
        self.done = until
        return segments

    def _enter(self, row: Row) -> tuple[int, int]:
        """The slot that ``row`` gets."""
        room = _room(row)
        self.active[room].append(row)
        return room, len(self.active[room]) - 1

    def _forward(
        self,
        segments: Sequence[Segment],
        parts: Sequence[Part],
        growing: Sequence[Row],
        lengths: Mapping[int, list[int]],
    ) -> torch.Tensor:
        """The pass itself -> [tokens of ``segments``, then one of each of ``growing``; d]."""
        device = partial(on, self.network)
        ids, positions = self.walk.tokens(segments) if segments else (np.zeros(0, dtype=np.int64),) * 2
        self.state.begin(parts, [(room, device(np.array(own))) for room, own in lengths.items() if own])
        newest = np.array([row.tokens[-1] for row in growing], dtype=np.int64)
        own = np.array([length for some in lengths.values() for length in some], dtype=np.int64)
        ids, positions = np.concatenate([ids, newest]), np.concatenate([positions, own])
        self.model.cost.computed_tokens += len(ids)
        return self.network.walk(device(ids), device(positions), self.state)

    def _choose(self, rows: Sequence[Row], hidden: torch.Tensor) -> None:
        """One more token of each of ``rows``; ``hidden`` [rows, d]."""
        none = torch.zeros(0, dtype=torch.long, device=hidden.device)
        summary, _ = summarize(self.network, hidden, none, none)
        logprobs = summary.best_logit - summary.log_total
        chosen = summary.best
        for number, row in enumerate(rows):
            if row.has_rules:
                logits = self.network.logits(hidden[number : number + 1])[0]
                chosen[number] = pick(logits, row)
                logprobs[number] = logits[chosen[number]] - summary.log_total[number]
        found = logprobs.tolist()
        refuse_nan(found)  # also when the token ends the text and would leave no trace
        count(self.model.cost, logit_positions=len(hidden))
        append(self.model, rows, chosen.tolist(), found)

    def _leave(self) -> None:
        """Rows that have ended free their slots; the last ones move into the gaps."""
        for room, rows in self.active.items():
            for slot in range(len(rows) - 1, -1, -1):
                if rows[slot].finish_reason:
                    mover = rows.pop()
                    if slot < len(rows):
                        self.state.move(room, len(rows), slot, len(mover.prompt) + len(mover.tokens) - 1)
                        rows[slot] = mover
