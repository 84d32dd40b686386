"""From hidden states to log-probabilities, without ever holding the logits of all the vocabulary.

The vocabulary is taken in tiles: what a tile's product writes is still in the processor's cache when its maximum and
its sum are taken, and the buffer is always the same. With GPT-2's vocabulary that halves the time of this step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from autoeval.models.network import Network

TILE = {"cpu": 2048, "cuda": 16384}  # words of the vocabulary at once
ROWS = {"cpu": 1024, "cuda": 4096}  # hidden states at once
MANY = 256  # of them, from which on places are looked for only where needed


@dataclass(frozen=True)
class Summary:
    """Of the logits of each hidden state [rows], in fp32."""

    best: torch.Tensor  # the likeliest token; the first of equals
    best_logit: torch.Tensor
    log_total: torch.Tensor  # logsumexp


def log_probabilities(
    network: Network, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(``targets`` [n]) after ``hidden`` [r, d] at ``rows`` [n] (ascending), and whether it is the likeliest token.

    Both [n], in fp32 and bool.
    """
    hidden, rows, targets = (network.to_head(one) for one in (hidden, rows, targets))
    logprobs = torch.empty(len(rows), dtype=torch.float32, device=hidden.device)
    greedy = torch.empty(len(rows), dtype=torch.bool, device=hidden.device)
    most = ROWS.get(hidden.device.type, ROWS["cpu"])
    for start in range(0, len(hidden), most):
        bounds = torch.searchsorted(rows, torch.tensor([start, start + most], device=rows.device)).tolist()
        here = slice(*bounds)
        summary, picked = summarize(network, hidden[start : start + most], rows[here] - start, targets[here])
        which = rows[here] - start
        logprobs[here] = picked - summary.log_total[which]
        greedy[here] = summary.best[which] == targets[here]
    return logprobs, greedy


def summarize(
    network: Network, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor
) -> tuple[Summary, torch.Tensor]:
    """``hidden`` [r, d] -> its summary, and the logits of ``targets`` [n] after ``hidden[rows]`` [n]."""
    hidden, rows, targets = (network.to_head(one) for one in (hidden, rows, targets))
    count, device = len(hidden), hidden.device
    picked = torch.zeros(len(targets), dtype=torch.float32, device=device)
    best = torch.zeros(count, dtype=torch.long, device=device)
    top = torch.full((count,), -torch.inf, device=device)
    total = torch.zeros(count, device=device)
    for first, logits in _tiles(network, hidden):
        inside = ((targets >= first) & (targets < first + logits.shape[1])).nonzero()[:, 0]
        if len(inside):
            picked[inside] = logits[rows[inside], targets[inside] - first]
        highest = _improve(logits, first, best, top)
        higher = torch.maximum(highest, top)
        # A NaN stays one: it is refused where the results are read.
        total = total * (top - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(dim=-1)
        top = higher
    return Summary(best, top, top + total.log()), picked


def _improve(logits: torch.Tensor, first: int, best: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """The highest of a tile's ``logits`` [rows, words]; where it is above ``top``, its word goes to ``best`` [rows].

    On a CPU finding a place takes ten times as long as finding a maximum, and a row's k-th tile has its highest so far
    in one of k cases: where there are many rows, only those are looked through.
    """
    if len(logits) < MANY or logits.device.type != "cpu":
        highest, where = logits.max(dim=-1)
        torch.where(highest > top, where + first, best, out=best)
        return highest
    highest = logits.amax(dim=-1)
    better = (highest > top).nonzero()[:, 0]
    if len(better):
        best[better] = (logits if len(better) == len(logits) else logits[better]).argmax(dim=-1) + first
    return highest


def _tiles(network: Network, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """(first word, logits [rows, words] in fp32 that may be written over), over the vocabulary."""
    layer = network.projection
    if not network.split or type(layer) is not torch.nn.Linear or layer.weight.device.type == "meta":
        most = network.rows_at_once()
        pieces = (hidden[start : start + most] for start in range(0, len(hidden), most))
        whole = [network.logits(piece).to(hidden.device) for piece in pieces]
        yield 0, torch.cat(whole) if len(whole) > 1 else whole[0].clone()
        return
    weight, bias = layer.weight, layer.bias
    size = TILE.get(hidden.device.type, TILE["cpu"])
    buffer = hidden.new_empty(len(hidden) * min(size, len(weight)))
    for first in range(0, len(weight), size):
        words = weight[first : first + size]
        logits = buffer[: len(hidden) * len(words)].view(len(hidden), len(words))
        torch.mm(hidden, words.T, out=logits)
        if bias is not None:
            logits += bias[first : first + size]
        yield first, network.finish(logits).float()
