"""Threads that read ahead and write behind: order, bounds, errors, and that work is in fact done side by side."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddsm_zoo.utils.prefetch import passing_errors, prefetch


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(0, 6))
def test_the_results_are_those_of_map_in_its_order(items: list[int], workers: int, ahead: int) -> None:
    assert list(prefetch(lambda item: 3 * item, items, workers, ahead)) == [3 * item for item in items]


def test_two_items_are_worked_on_at_once() -> None:
    meeting = threading.Barrier(2, timeout=60)  # which nobody passes alone
    assert sorted(prefetch(lambda _: meeting.wait(), range(6), 2, 2)) == [0, 0, 0, 1, 1, 1]


def test_stages_work_side_by_side() -> None:
    """What the first stage does to an item waits for the last stage to begin with the one before."""
    begun = [threading.Event() for _ in range(4)]

    def read(item: int) -> int:
        if item >= 2:
            assert begun[item - 2].wait(60)
        return item

    def write(item: int) -> int:
        begun[item].set()
        return item

    assert list(prefetch(write, prefetch(read, range(4), 1, 1), 1, 1)) == [0, 1, 2, 3]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_than_asked_is_taken_in_advance(ahead: int) -> None:
    taken = itertools.count()
    results = prefetch(lambda item: item, taken, 2, ahead)
    for expected in range(5):
        assert next(results) == expected
    assert next(taken) <= 5 + ahead
    results.close()


def test_an_error_reaches_the_caller_and_ends_the_threads() -> None:
    before = threading.active_count()

    def fail(item: int) -> int:
        if item == 3:
            raise RuntimeError("broken")
        return item

    found = []
    with pytest.raises(RuntimeError, match="broken"):
        found.extend(item for item in prefetch(fail, range(100), 2, 4))
    assert threading.active_count() == before


def test_one_bad_item_passes_the_later_stages_and_stops_no_others() -> None:
    def read(name: str, _: None) -> int:
        return int(name)

    def invert(_: str, number: int) -> float:
        if not number:
            raise OSError("nothing there")
        return 1 / number

    stages = map(passing_errors(invert), map(passing_errors(read), [(name, None) for name in ("2", "x", "0", "4")]))
    found = list(stages)
    assert [name for name, _ in found] == ["2", "x", "0", "4"]
    assert [value for _, value in found if isinstance(value, float)] == [0.5, 0.25]
    assert isinstance(found[1][1], ValueError)
    assert isinstance(found[2][1], OSError)


def test_a_bug_is_not_taken_for_a_bad_item() -> None:
    with pytest.raises(ZeroDivisionError):
        passing_errors(lambda _, number: 1 / number)(("x", 0))
