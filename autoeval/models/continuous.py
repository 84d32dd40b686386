"""Continuous batching: prompts walk their trie while the texts that have begun grow, in the same passes.

A pass has one token of every text under way and, as far as slots and the budget allow, the next tokens of the trie of
all prompts. Where a prompt ends, its keys and values go to a slot and its text begins; a text that ends frees its slot
for the next prompt in the very next pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autoeval.models.attention import Part, Slot, State
from autoeval.models.memory import slots_within, tokens_within
from autoeval.models.network import Network
from autoeval.models.projection import summarize
from autoeval.models.scoring import count, halve, refuse_nan
from autoeval.models.stems import Stem, stems_of
from autoeval.models.text import Row, append, pick
from autoeval.models.trie import Segment, Walk, key_of

SLOTS = {"cpu": 128, "cuda": 256}  # texts that grow at once, at most


def decode_walking(model: Any, network: Network, rows: Sequence[Row]) -> None:
    """Generate all ``rows``. Running out of memory starts those again that have not ended, with half of everything."""
    most = SLOTS.get(network.device.type, SLOTS["cpu"])
    while waiting := [row for row in rows if not row.finish_reason]:
        batch = _Batch(model, network, waiting, min(most, len(waiting), max(1, model.batch_tokens)))
        try:
            batch.run()
        except torch.OutOfMemoryError as error:
            halve(model, model.batch_tokens, error)
            most = max(1, batch.slots // 2)


def _room(tokens: int) -> int:
    """Tokens of a slot for ``tokens``: half a power of two, so that texts in slots of one kind are of similar length."""
    return math.ceil(2 ** (math.ceil(2 * math.log2(max(tokens, 16))) / 2))


@dataclass(eq=False)
class _Text:
    """A row with the stem that has its first tokens, and the size of its slot."""

    row: Row
    stem: Stem | None

    @property
    def grows(self) -> bool:
        """Whether it has more than the one token that its prompt's pass gives: only then it needs a slot."""
        return self.row.request.max_new_tokens > 1

    @property
    def above(self) -> int:
        return 0 if self.stem is None else self.stem.length

    @property
    def room(self) -> int:
        return _room(self.row.size - self.above)

    @property
    def kept(self) -> int:
        """Tokens in its slot before the newest one is computed."""
        return len(self.row.prompt) + len(self.row.tokens) - 1 - self.above


class _Batch:
    """``rows``, of which ``slots`` grow at once. ``active[room][i]`` is the text in slot ``i`` of that room."""

    def __init__(self, model: Any, network: Network, rows: Sequence[Row], most: int) -> None:
        self.model, self.network = model, network
        prompts: dict[bytes, list[Row]] = {}
        for row in rows:
            row.restart()
            same = prompts.setdefault(key_of(row.prompt), [])
            if len(same) < most:  # what is left over is for another walk
                same.append(row)
        self.walk = Walk(list(prompts))
        groups = [list(prompts.values())[number] for number in self.walk.order]
        # A window would have to be counted from each text's own place; such texts keep all in their slots.
        seen = self.walk.longest + max((row.request.max_new_tokens for row in rows), default=0)
        whole = all(window is None or window >= seen for window in network.windows)
        growing = [sum(row.request.max_new_tokens > 1 for row in same) for same in groups]
        stems = stems_of(self.walk, growing) if whole else [None] * len(groups)
        members = [[_Text(row, stem) for row in same] for same, stem in zip(groups, stems, strict=True)]
        rooms = Counter(text.room for same in members for text in same if text.grows)
        self.slots = slots_within(network, rooms, most, [stem.length for stem in set(stems) if stem is not None])
        self.members = [same[: self.slots] for same in members]
        self.users = Counter(text.stem for same in self.members for text in same if text.grows and text.stem)
        sizes = {room: min(many, self.slots) for room, many in rooms.items()}
        self.state = State(self.walk.longest, sizes, packed=network.packed)
        self.active: dict[int, list[_Text]] = {room: [] for room in sorted(rooms)}
        self.budget = tokens_within(network, model.batch_tokens, self.walk.longest)
        self.done = 0  # tokens of the walk
        self.next = 0  # the prompt that is being walked
        count(model.cost, unique_tokens=self.walk.size)

    def run(self) -> None:
        while self.done < self.walk.size or any(self.active.values()):
            self._pass()

    def _pass(self) -> None:
        growing = [text for texts in self.active.values() for text in texts]
        kept = {room: [text.kept for text in texts] for room, texts in self.active.items()}
        segments = self._admit(len(growing))
        parts, began, last, start = [], [], [], 0
        for segment in segments:
            whole = segment.end == len(self.walk.rows[segment.row])
            members = self.members[segment.row] if whole else []
            slots = tuple(self._enter(text) for text in members if text.grows)
            parts.append(Part(start, segment.depth, segment.length, slots))
            start += segment.length
            began += members
            last += [start - 1] * len(members)
        ends, which = np.unique(np.array(last, dtype=np.int64), return_inverse=True)
        wanted = np.concatenate([ends, np.arange(start, start + len(growing))])
        hidden = self._forward(segments, parts, growing, kept, wanted)
        if len(wanted):
            order = np.concatenate([np.arange(len(ends), len(wanted)), which])
            self._choose([text.row for text in (*growing, *began)], hidden[self.network.place(order)])
            self._leave()

    def _admit(self, growing: int) -> list[Segment]:
        """The next tokens of the walk for which there is room."""
        free = self.slots - growing
        until = self.done
        most = self.done + max(1, self.budget - growing)
        while self.next < len(self.members) and until < most:
            needed = sum(text.grows for text in self.members[self.next])
            if needed > free:
                break
            end = int(self.walk.starts[self.next + 1])
            until = min(end, most)
            if until == end:
                free -= needed
                self.next += 1
        segments = self.walk.segments(self.done, until)
        self.done = until
        return segments

    def _enter(self, text: _Text) -> Slot:
        """The slot that ``text`` gets."""
        texts = self.active[text.room]
        texts.append(text)
        return Slot(text.room, len(texts) - 1, text.stem)

    def _forward(
        self,
        segments: Sequence[Segment],
        parts: Sequence[Part],
        growing: Sequence[_Text],
        kept: Mapping[int, list[int]],
        wanted: np.ndarray,
    ) -> torch.Tensor:
        """The pass itself -> [wanted, d] of the tokens of ``segments`` and then one of each of ``growing``."""
        device = self.network.place
        ids, positions = self.walk.tokens(segments) if segments else (np.zeros(0, dtype=np.int64),) * 2
        stemmed: dict[int, list[int]] = {}
        for place, text in enumerate(growing):
            if text.stem is not None:
                stemmed.setdefault(text.stem.number, []).append(place)
        self.state.begin(
            parts,
            [(room, device(np.array(own))) for room, own in kept.items() if own],
            [(stem, device(np.array(places))) for stem, places in stemmed.items()],
        )
        newest = np.array([text.row.tokens[-1] for text in growing], dtype=np.int64)
        own = np.array([text.kept + text.above for text in growing], dtype=np.int64)
        ids, positions = np.concatenate([ids, newest]), np.concatenate([positions, own])
        self.model.cost.computed_tokens += len(ids)
        return self.network.walk(device(ids), device(positions), self.state, wanted)

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
                logprobs[number] = float(logits[int(chosen[number])]) - summary.log_total[number]
        found = logprobs.tolist()
        refuse_nan(found)  # also when the token ends the text and would leave no trace
        count(self.model.cost, logit_positions=len(hidden))
        append(self.model, rows, chosen.tolist(), found)

    def _leave(self) -> None:
        """Texts that have ended free their slots; the last ones move into the gaps. Stems go with their last text."""
        for room, texts in self.active.items():
            for slot in range(len(texts) - 1, -1, -1):
                if texts[slot].row.finish_reason:
                    self._forget(texts[slot].stem)
                    mover = texts.pop()
                    if slot < len(texts):
                        self.state.move(room, len(texts), slot, mover.kept)
                        texts[slot] = mover

    def _forget(self, stem: Stem | None) -> None:
        if stem is not None:
            self.users[stem] -= 1
            if not self.users[stem]:
                self.state.drop(stem.number)
