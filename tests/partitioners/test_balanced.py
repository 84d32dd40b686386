"""Tasks dealt out by cost: what holds for every input, tried on many drawn at random."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest

from autoeval.partitioners.balanced import balanced, estimated, length


def drawn(count: int = 300, most: int = 9) -> Iterator[tuple[list[str], dict[str, float], int, float]]:
    """(tasks, their seconds, slots, seconds of loading)"""
    for seed in range(count):
        chance = random.Random(seed)
        tasks = [f"t{number}" for number in range(chance.randint(1, most))]
        chance.shuffle(tasks)
        seconds = {task: chance.choice([0.0, 1.0, 5.0, chance.uniform(0, 100), 1000.0]) for task in tasks}
        yield tasks, seconds, chance.randint(1, 6), chance.choice([0.0, 1.0, 30.0, 500.0])


def longest(parts: list[list[str]], cost: dict[str, float]) -> float:
    return max(length(part, cost) for part in parts)


def best(tasks: list[str], cost: dict[str, float], parts: int) -> float:
    """The least that the longest of ``parts`` parts can last, by trying all."""
    return min(
        max(math.fsum(cost[t] for t, part in zip(tasks, where, strict=True) if part == one) for one in range(parts))
        for where in itertools.product(range(parts), repeat=len(tasks))
    )


def test_every_task_is_in_one_part_in_its_order_and_no_part_is_empty() -> None:
    for tasks, seconds, slots, load in drawn():
        known = {task: value for task, value in seconds.items() if value != 5.0}
        sizes = {task: value + 1 for task, value in seconds.items() if value != 1000.0}
        for parts in (balanced(tasks, known, slots, load_seconds=load, sizes=sizes), balanced(tasks, {}, slots)):
            assert sorted(task for part in parts for task in part) == sorted(tasks)
            assert 1 <= len(parts) <= slots and all(parts)
            assert all(part == sorted(part, key=tasks.index) for part in parts)


def test_the_longest_part_comes_first_and_the_same_input_gives_the_same_parts() -> None:
    for tasks, seconds, slots, load in drawn():
        parts = balanced(tasks, seconds, slots, load_seconds=load)
        lengths = [length(part, seconds) for part in parts]
        assert lengths == sorted(lengths, reverse=True)
        reversed_keys = dict(reversed(seconds.items()))  # the order of a dictionary is nothing that one sees
        assert balanced(list(tasks), reversed_keys, slots, load_seconds=load) == parts


def test_the_longest_part_is_within_grahams_bound_of_the_best() -> None:
    for tasks, seconds, slots, _ in drawn(count=60, most=6):
        parts = balanced(tasks, seconds, min(slots, 3))
        bound = 4 / 3 - 1 / (3 * len(parts))
        assert longest(parts, seconds) <= bound * best(tasks, seconds, len(parts)) + 1e-6


def test_a_part_is_opened_only_when_it_saves_more_than_it_costs_to_load() -> None:
    for tasks, seconds, slots, load in drawn():
        parts = balanced(tasks, seconds, slots, load_seconds=load)
        for fewer in range(1, len(parts)):
            saved = longest(balanced(tasks, seconds, fewer), seconds) - longest(parts, seconds)
            assert saved > (len(parts) - fewer) * load - 1e-6
        more = balanced(tasks, seconds, slots, load_seconds=load / 2)
        assert len(more) >= len(parts)  # the cheaper the loading, the more parts
    assert balanced(["a", "b"], {"a": 5, "b": 5}, 2, load_seconds=10) == [["a", "b"]]
    assert balanced(["a", "b"], {"a": 50, "b": 50}, 2, load_seconds=10) == [["a"], ["b"]]
    assert balanced(["a", "b", "c"], {"a": 90, "b": 50, "c": 45}, 3, load_seconds=10) == [["b", "c"], ["a"]]


def test_what_was_not_measured_is_estimated_by_its_size() -> None:
    seconds, sizes = (
        {"a": 10.0, "b": 40.0, "c": math.nan, "e": -1.0},
        {"a": 5.0, "b": 20.0, "c": 50.0, "d": 1.0, "e": 3.0},
    )
    cost = estimated(["a", "b", "c", "d", "e", "f"], seconds, sizes)
    assert cost == {"a": 10.0, "b": 40.0, "c": 100.0, "d": 2.0, "e": 6.0, "f": 25.0}
    assert estimated(["a", "b"], {}, {"a": 7.0}) == {"a": 7.0, "b": 1.0}
    assert estimated(["a", "b"], {"a": 3.0}, {}) == {"a": 3.0, "b": 3.0}
    assert estimated(["a", "b"], {"a": 3.0}, {"b": 100.0}) == {"a": 3.0, "b": 3.0}  # nothing says what a size costs


def test_where_nothing_was_measured_all_slots_are_used_by_size() -> None:
    parts = balanced(["a", "b", "c", "d"], {}, 2, load_seconds=1e9, sizes={"a": 100, "b": 10, "c": 10, "d": 10})
    assert parts == [["a"], ["b", "c", "d"]]
    assert balanced(["a", "b", "c"], {}, 3) == [["a"], ["b"], ["c"]]


def test_wrong_input_is_named() -> None:
    assert balanced([], {}, 3) == []
    with pytest.raises(ValueError, match="slots is 0"):
        balanced(["a"], {}, 0)
    with pytest.raises(ValueError, match="twice"):
        balanced(["a", "a"], {}, 1)
