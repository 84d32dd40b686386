"""Which items of a task go into which of its shares: neighbours in the trie of the prompts, of about the wished cost.

Prompts are compared as texts, which needs no tokenizer and puts what begins alike together just as well; what the items'
examples have in common is known without comparing. A share is then a stretch of the walk over that trie
(``autoeval.models.splitting``), cut where its neighbours share little. Where a cut falls changes no outcome: every item
is asked by itself, and metrics are of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from autoeval.openicl.inferencers import build_inferencer
from autoeval.openicl.sample import Sample
from autoeval.tasks.icl import GENERATED_WEIGHT, USUAL_OUT_LEN, IclTask

LEAST_ITEMS = 8  # of a share: with fewer the model's passes are half empty
WORTH = 0.05  # of a task's tokens may be computed again for being in several shares
KEY_CHARACTERS = 2000  # of a prompt after its examples: who has so many in common is a neighbour


def most_shares(task: IclTask) -> int:
    """How many shares of ``task`` are sensible: each of them computes the examples before its first item anew."""
    heads = {tuple(map(id, sample.examples)): sample.examples for sample in task.samples}
    examples = sum(_length(row.columns) for head in heads.values() for row in head)
    whole = examples + sum(_length(sample.row.columns) for sample in task.samples)
    by_items = len(task.samples) // LEAST_ITEMS
    if not examples:
        return max(1, by_items)
    return max(1, min(by_items, 1 + int(WORTH * whole * len(heads) / examples)))


def cut_samples(task: IclTask, weights: Sequence[float]) -> list[list[int]]:
    """The numbers of ``task``'s samples, each once, in as many shares as there are ``weights``, none empty.

    Raises ``ValueError`` for fewer samples than weights, and for what cannot be asked.
    """
    order, costs, shared = _walk(task)
    return [[order[place] for place in stretch] for stretch in cut_walk(costs, shared, weights)]


def cut_walk(costs: Sequence[float], shared: Sequence[float], weights: Sequence[float]) -> list[range]:
    """Stretches of a walk of so many inputs, of which each costs, and shares with the one before, so much."""
    import numpy as np

    from autoeval.models.splitting import stretches

    if len(costs) < len(weights):
        raise ValueError(f"{len(costs)} items cannot be cut into {len(weights)} shares")
    starts = np.concatenate([[0.0], np.cumsum(np.asarray(costs, dtype=np.float64))])
    at = [part / sum(weights) for part in itertools.accumulate(weights)][:-1]
    begins = stretches(starts, np.asarray(shared, dtype=np.float64), at)
    return [range(*pair) for pair in itertools.pairwise([*begins, len(costs)])]


def _walk(task: IclTask) -> tuple[list[int], list[float], list[float]]:
    """The samples in walking order; characters that each adds to the trie, or generates; what it shares with the one
    before."""
    from autoeval.models.trie import Walk

    heads, lengths = _heads(task.samples)
    grown, texts_of = _asking(task)
    members: dict[bytes, list[tuple[int, int]]] = {}  # of each key: samples, and how long their texts are
    for number, sample in enumerate(task.samples):
        for text in texts_of(sample):
            key = heads[number].to_bytes(4, "big") + text[:KEY_CHARACTERS].encode("utf-32-be", "surrogatepass")
            members.setdefault(key, []).append((number, len(text)))
    walk = Walk(list(members))
    known = list(members.values())
    order: list[int] = []
    costs: dict[int, float] = {}
    shared: list[float] = []
    for place, number_of_key in enumerate(walk.order):
        common, compared = walk.shared[place], len(walk.rows[place])
        for sample_number, length in known[number_of_key]:
            # Without the one that stands for the head; with the head where it is the same.
            head = lengths[sample_number]
            same = common - 1 + head if common else 0
            if sample_number not in costs:
                order.append(sample_number)
                shared.append(same)
                costs[sample_number] = grown
            costs[sample_number] += head + length - same
            common = compared  # who follows has the same key
    return order, [costs[number] for number in order], shared


def _heads(samples: Sequence[Sample]) -> tuple[list[int], list[int]]:
    """For each sample a number of its examples, in their order, and their length in characters."""
    known = {tuple(map(id, sample.examples)): sample.examples for sample in samples}
    digests = {key: tuple(row.digest for row in rows) for key, rows in known.items()}
    ranks = {digest: rank for rank, digest in enumerate(sorted(set(digests.values())))}
    lengths = {key: sum(_length(row.columns) for row in rows) for key, rows in known.items()}
    keys = [tuple(map(id, sample.examples)) for sample in samples]
    return [ranks[digests[key]] for key in keys], [lengths[key] for key in keys]


def _asking(task: IclTask) -> tuple[float, Any]:
    """Characters that an answer is worth, and what gives a sample's texts without its examples."""
    options, prompting = task.infer_cfg["inferencer"], task.prompting
    inferencer = build_inferencer(options)

    def ranked(sample: Sample) -> list[str]:
        texts = []
        for label in prompting.labels(sample.row):
            continues = prompting.continuation is not None
            prompt = prompting.prompt(sample.row, label=label, generate=continues)
            texts.append(prompt + prompting.answer(sample.row, label) if continues else prompt)
        return texts

    if inferencer.kind == "rank":
        return 0.0, ranked
    if inferencer.kind == "corpus":
        return 0.0, lambda sample: [prompting.prompt(sample.row)]
    if inferencer.kind == "probability":
        return 0.0, lambda sample: [prompting.prompt(sample.row, blank=True, generate=True)]
    tokens = int(getattr(inferencer, "max_out_len", USUAL_OUT_LEN)) * int(getattr(inferencer, "sequences", 1))
    grown = 4.0 * GENERATED_WEIGHT * tokens
    if hasattr(inferencer, "infer_mode"):  # a dialogue: its rounds are made one after the other
        return grown, lambda sample: [" ".join(map(str, sample.row.columns.values()))]
    return grown, lambda sample: [prompting.prompt(sample.row, blank=True, generate=True)]


def _length(columns: dict[str, Any]) -> int:
    return sum(len(str(value)) for value in columns.values())
