"""Item outcomes in the ledger: a block for each result and metric, not a row for each item.

The keys of a task's items are the same at every checkpoint, so they are stored once (``item_sets``), and a block holds
the outcomes in the order of its set: a byte each where all are 0 or 1, else a double, little endian, both deflated.
A thousand items are one row of a few hundred bytes.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby

from recorder.ledger_rows import Outcomes
from recorder.results import Item

BITS, DOUBLES = "bits", "doubles"


def store_items(connection: sqlite3.Connection, result_id: int, items: Iterable[Item]) -> None:
    """Within the caller's transaction."""
    by_metric: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_metric[item.metric].append(item)
    known: dict[tuple[str, ...], int] = {}  # metrics of one task are over the same items
    for metric, of_metric in by_metric.items():
        of_metric.sort(key=lambda item: item.key)
        clusters = [item.cluster for item in of_metric]
        keys = json.dumps(
            {"keys": [item.key for item in of_metric], "clusters": clusters if any(clusters) else None},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        if (keys,) not in known:
            known[(keys,)] = _set_id(connection, keys)
        form, outcomes = _packed([item.value for item in of_metric])
        connection.execute(
            "INSERT INTO item_blocks (result_id, metric, set_id, form, outcomes) VALUES (?, ?, ?, ?, ?)",
            (result_id, metric, known[(keys,)], form, outcomes),
        )


def _set_id(connection: sqlite3.Connection, keys: str) -> int:
    content = keys.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(content).hexdigest()
    row = connection.execute("SELECT id FROM item_sets WHERE digest = ?", (digest,)).fetchone()
    if row is None:
        row = connection.execute(
            "INSERT INTO item_sets (digest, content) VALUES (?, ?) RETURNING id", (digest, zlib.compress(content, 6))
        ).fetchone()
    return int(row[0])


def item_set(content: bytes) -> tuple[list[str], list[str | None]]:
    """(keys, clusters) of a set, in the order of its blocks."""
    known = json.loads(zlib.decompress(content).decode("utf-8", "surrogatepass"))
    return known["keys"], known["clusters"] or [None] * len(known["keys"])


def unpacked(form: str, outcomes: bytes) -> Sequence[float]:
    content = zlib.decompress(outcomes)
    if form == BITS:
        return [float(value) for value in content]
    values = array("d")
    values.frombytes(content)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _packed(values: Sequence[float]) -> tuple[str, bytes]:
    if all(value in (0.0, 1.0) for value in values):
        return BITS, zlib.compress(bytes(map(int, values)), 1)
    numbers = array("d", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return DOUBLES, zlib.compress(numbers.tobytes(), 1)


def as_outcomes(keys: Sequence[str], clusters: Sequence[str | None], values: Sequence[float]) -> Outcomes:
    """Repeats of an item are averaged."""
    named = {key: cluster for key, cluster in zip(keys, clusters, strict=True) if cluster is not None}
    found = dict(zip(keys, values, strict=True))
    if len(found) < len(keys):
        repeats: dict[str, list[float]] = defaultdict(list)
        for key, value in zip(keys, values, strict=True):
            repeats[key].append(value)
        found = {key: sum(of_key) / len(of_key) for key, of_key in repeats.items()}
    return Outcomes(found, named)


def into_blocks(connection: sqlite3.Connection) -> None:
    """The migration from a row for each item (``item_rows``)."""
    rows = connection.execute("SELECT result_id, metric, key, value FROM item_rows ORDER BY result_id, metric, key")
    for result_id, of_result in groupby(rows.fetchall(), key=lambda row: row[0]):
        store_items(connection, result_id, [Item(key, metric, value) for _, metric, key, value in of_result])
    connection.execute("DROP TABLE item_rows")
