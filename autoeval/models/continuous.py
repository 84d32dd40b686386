"""Continuous batching: prompts walk their trie while the texts that have begun grow, in the same passes.

A pass has one token of every text under way and, as far as slots and the budget allow, the next tokens of the trie of
all prompts. Where a prompt ends, its keys and values go to a slot and its text begins; a text that ends frees its slot
for the next prompt in the very next pass.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from autoeval.models.attention import Part, State
from autoeval.models.memory import slots_within
from autoeval.models.network import Network
from autoeval.models.projection import summarize
from autoeval.models.scoring import count, halve, on, refuse_nan
from autoeval.models.text import Row, append, sample
from autoeval.models.trie import Walk, key_of

logger = logging.getLogger(__name__)

SLOTS = {"cpu": 64, "cuda": 256}  # texts that grow at once, at most


def decode_walking(model: Any, network: Network, rows: Sequence[Row]) -> None:
    """Generate all ``rows``. Running out of memory starts those again that have not ended, with half of everything."""
    most = SLOTS.get(network.device.type, SLOTS["cpu"])
    while waiting := [row for row in rows if not row.finish_reason]:
        room = max(row.size for row in waiting)
        slots = min(most, len(waiting), max(1, model.batch_tokens), slots_within(network, room))
        try:
            _Batch(model, network, waiting, slots, room).run()
        except torch.OutOfMemoryError as error:
            halve(model, model.batch_tokens if slots > 1 else 1, error)
            most = slots // 2


class _Batch:
    """``rows`` in ``slots`` slots of ``room`` tokens each. ``active[i]`` is the text in slot ``i``."""

    def __init__(self, model: Any, network: Network, rows: Sequence[Row], slots: int, room: int) -> None:
        self.model, self.network, self.slots = model, network, slots
        prompts: dict[bytes, list[Row]] = {}
        for row in rows:
            row.restart()
            same = prompts.setdefault(key_of(row.prompt), [])
            if len(same) < slots:  # what is left over is for another walk
                same.append(row)
        self.walk = Walk(list(prompts))
        self.members = [list(prompts.values())[number] for number in self.walk.order]
        self.state = State(self.walk.longest, slots, room)
        self.active: list[Row] = []
        self.done = 0  # tokens of the walk
        self.next = 0  # the prompt that is being walked
        count(model.cost, unique_tokens=self.walk.size)

    def run(self) -> None:
        while self.active or self.done < self.walk.size:
            self._pass()

    def _pass(self) -> None:
        segments, began = self._admit()
        parts, last, start, slot = [], [], 0, len(self.active)
        for segment in segments:
            whole = segment.end == len(self.walk.rows[segment.row])
            taken = len(self.members[segment.row]) if whole else 0
            parts.append(Part(start, segment.depth, segment.length, tuple(range(slot, slot + taken))))
            start, slot = start + segment.length, slot + taken
            last += [start - 1] * taken
        hidden = self._forward(segments, parts)
        wanted = np.array([*range(start, start + len(self.active)), *last], dtype=np.int64)
        self.active += began
        if self.active:
            self._choose(hidden[on(self.network, wanted)])
            self._leave()

    def _admit(self) -> tuple[list[Any], list[Row]]:
        """The next tokens of the walk for which there is room, and the rows whose prompts end in them."""
        free = self.slots - len(self.active)
        until = self.done
        most = self.done + max(1, self.model.batch_tokens - len(self.active))
        began: list[Row] = []
        while self.next < len(self.members) and until < most and len(self.members[self.next]) <= free:
            end = int(self.walk.starts[self.next + 1])
            until = min(end, most)
            if until == end:
                began += self.members[self.next]
                free -= len(self.members[self.next])
                self.next += 1
        segments = self.walk.segments(self.done, until)
        self.done = until
        return segments, began

    def _forward(self, segments: Sequence[Any], parts: Sequence[Part]) -> torch.Tensor:
        ids, positions = self.walk.tokens(segments) if segments else (np.zeros(0, dtype=np.int64),) * 2
        lengths = np.array([len(row.prompt) + len(row.tokens) - 1 for row in self.active], dtype=np.int64)
        newest = np.array([row.tokens[-1] for row in self.active], dtype=np.int64)
        self.state.begin(parts, on(self.network, lengths) if self.active else None)
        ids, positions = np.concatenate([ids, newest]), np.concatenate([positions, lengths])
        self.model.cost.computed_tokens += len(ids)
        return self.network.walk(on(self.network, ids), on(self.network, positions), self.state)

    def _choose(self, hidden: torch.Tensor) -> None:
        """One more token of each active row; ``hidden`` [active, d]."""
        none = torch.zeros(0, dtype=torch.long, device=hidden.device)
        summary, _ = summarize(self.network, hidden, none, none)
        logprobs = summary.best_logit - summary.log_total
        chosen = summary.best
        for number, row in enumerate(self.active):
            if row.generator is not None:
                logits = self.network.logits(hidden[number : number + 1])[0]
                chosen[number] = sample(logits, row.request, row.generator)
                logprobs[number] = logits[chosen[number]] - summary.log_total[number]
        found = logprobs.tolist()
        refuse_nan(found)  # also when the token ends the text and would leave no trace
        count(self.model.cost, logit_positions=len(hidden))
        append(self.model, self.active, chosen.tolist(), found)

    def _leave(self) -> None:
        """Rows that have ended free their slots; the last ones move into the gaps."""
        for slot in range(len(self.active) - 1, -1, -1):
            if self.active[slot].finish_reason:
                mover = self.active.pop()
                if slot < len(self.active):
                    self.state.move(len(self.active), slot, len(mover.prompt) + len(mover.tokens))
                    self.active[slot] = mover
