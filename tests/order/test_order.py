"""The order of evaluation: properties that hold whatever arrives when."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from autoeval.order import Order, given_up, in_turn

ORDERS: tuple[Order, ...] = ("newest-first", "oldest-first", "bisect")


def widest_gap(points: set[int]) -> int:
    ordered = sorted(points)
    return max(b - a for a, b in itertools.pairwise(ordered))


@pytest.mark.parametrize("order", ORDERS)
def test_everything_has_its_turn_once(order: Order) -> None:
    chance = random.Random(order)
    for _ in range(200):
        waiting = chance.sample(range(1, 100), chance.randint(0, 30))
        evaluated = chance.sample(range(1, 100), chance.randint(0, 10))
        ordered = list(in_turn(order, waiting, evaluated))
        assert sorted(ordered) == sorted(waiting)


def test_the_two_plain_orders() -> None:
    assert list(in_turn("newest-first", [3, 1, 2], [9])) == [3, 2, 1]
    assert list(in_turn("oldest-first", [3, 1, 2], [])) == [1, 2, 3]


def test_bisect_takes_the_ends_and_then_halves_the_widest_gap() -> None:
    assert list(in_turn("bisect", range(1, 10), [])) == [9, 1, 5, 7, 3, 8, 6, 4, 2]
    assert list(in_turn("bisect", [20, 30, 40, 60], [10, 50])) == [60, 30, 40, 20]
    assert next(in_turn("bisect", [11, 12, 40], [10, 50])) == 40  # nearest to the middle, 30


def test_bisect_looks_at_an_iteration_that_was_saved_again_as_never_evaluated() -> None:
    assert next(in_turn("bisect", [50, 20], [10, 30, 50])) == 50
    assert next(in_turn("bisect", [30, 12], [10, 30, 50])) == 30


def test_with_bisect_k_evaluations_leave_no_gap_much_wider_than_the_best_possible() -> None:
    for n in (16, 33, 100):
        points: set[int] = set()
        for count, iteration in enumerate(in_turn("bisect", range(n + 1), []), start=1):
            points.add(iteration)
            if count >= 2:
                best = n / (count - 1)  # equal gaps
                assert widest_gap(points) <= 2 * best + 1


def simulate(order: Order, arrivals_while_evaluating: Callable[[], int], steps: int, max_backlog: int | None) -> int:
    """The longest wait of a checkpoint while it was the newest, in evaluations begun before its own."""
    waiting, evaluated, newest, begun_since, longest = {1}, set[int](), 1, 0, 0
    for _ in range(steps):
        waiting -= set(given_up(order, waiting, evaluated, max_backlog))
        if waiting:
            chosen = next(in_turn(order, waiting, evaluated))
            waiting.remove(chosen)
            evaluated.add(chosen)  # it counts from the moment it begins
            if newest in waiting:
                begun_since += 1
                longest = max(longest, begun_since)
        for _ in range(arrivals_while_evaluating()):
            newest, begun_since = newest + 1, 0
            waiting.add(newest)
    return longest


@pytest.mark.parametrize("max_backlog", [None, 1, 3])
@pytest.mark.parametrize("order", ["newest-first", "bisect"])
def test_the_newest_is_never_more_than_one_evaluation_away(order: Order, max_backlog: int | None) -> None:
    chance = random.Random(7)
    # It may have to wait for the evaluation under way when it arrives, for none that begins later.
    assert simulate(order, lambda: chance.choice((0, 1, 1, 2, 5)), 300, max_backlog) == 0


def test_oldest_first_keeps_the_newest_waiting_at_most_for_the_backlog() -> None:
    assert simulate("oldest-first", iter([1] * 20 + [0] * 200).__next__, 200, None) == 0  # evaluation keeps up
    assert simulate("oldest-first", iter([10] + [0] * 200).__next__, 100, None) == 9
    assert simulate("oldest-first", iter([10] + [0] * 200).__next__, 100, 3) == 2


@pytest.mark.parametrize("order", ORDERS)
def test_beyond_max_backlog_the_last_in_turn_are_given_up_but_never_the_newest(order: Order) -> None:
    chance = random.Random(order)
    for _ in range(200):
        waiting = set(chance.sample(range(1, 100), chance.randint(1, 30)))
        evaluated = set(chance.sample(range(1, 100), chance.randint(0, 10)))
        most = chance.randint(1, 12)
        dropped = given_up(order, waiting, evaluated, most)
        left = waiting - set(dropped)
        assert len(left) == min(most, len(waiting)) and max(waiting) in left
        turns = [i for i in in_turn(order, waiting, evaluated) if i != max(waiting)]
        assert turns[: len(left) - 1] == [i for i in turns if i in left]
    assert given_up("oldest-first", [1, 2, 3, 4, 5], [], 2) == [2, 3, 4]
    assert given_up("newest-first", [1, 2, 3, 4, 5], [], 2) == [1, 2, 3]
    assert given_up("bisect", [1, 2, 3, 4, 5], [], 3) == [2, 4]
    assert given_up("bisect", [1, 2, 3], [], None) == []
