"""What is told next, and when it was told often enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from activestore.core.dissemination import Dissemination

KEYS = [bytes([n]) * 6 for n in range(9)]


def row(number: int, size: int = 20) -> bytes:
    return bytes([number]) * size


def test_told_least_goes_first_and_the_latest_of_those() -> None:
    queue = Dissemination(10)
    queue.put(KEYS[0], row(0))
    assert queue.take(20, 9) == [row(0)]
    queue.put(KEYS[1], row(1))
    queue.put(KEYS[2], row(2))

    assert queue.take(40, 9) == [row(2), row(1)]
    assert queue.take(60, 9) == [row(1), row(2), row(0)]


def test_told_often_enough_is_dropped() -> None:
    queue = Dissemination(10)
    queue.put(KEYS[0], row(0))

    told = [queue.take(100, 4) for _ in range(6)]

    assert told == [[row(0)]] * 4 + [[], []]
    assert len(queue) == 0


def test_message_to_three_peers_counts_as_three() -> None:
    queue = Dissemination(10)
    queue.put(KEYS[0], row(0))

    told = [queue.take(100, 8, copies=3) for _ in range(4)]

    assert told == [[row(0)]] * 3 + [[]]


def test_news_of_a_peer_replaces_older_news_of_it() -> None:
    queue = Dissemination(10)
    queue.put(KEYS[0], row(0))
    queue.take(100, 9)

    queue.put(KEYS[0], row(5))

    assert queue.take(100, 1) == [row(5)]
    assert len(queue) == 0


def test_full_queue_gives_up_what_was_told_most() -> None:
    queue = Dissemination(3)
    for number in range(3):
        queue.put(KEYS[number], row(number))
        if number < 2:
            queue.take(20, 9)

    queue.put(KEYS[3], row(3))

    assert len(queue) == 3
    assert set(queue.take(100, 9)) == {row(1), row(2), row(3)}
    queue.check()


def test_row_that_does_not_fit_waits_and_smaller_ones_go() -> None:
    queue = Dissemination(10)
    queue.put(KEYS[0], row(0, 30))
    queue.put(KEYS[1], row(1, 90))

    assert queue.take(50, 9) == [row(0, 30)]
    assert queue.take(100, 9) == [row(1, 90)]


OPERATIONS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 8), st.integers(16, 60)), max_size=60
)


@given(OPERATIONS)
def test_every_row_is_told_its_times_and_no_message_is_too_large(
    operations: list[tuple[int, int, int]],
) -> None:
    queue = Dissemination(6)
    told: dict[bytes, int] = {}
    for what, number, size in operations:
        if what == 0:
            told[row(number, size)] = 0
            queue.put(KEYS[number], row(number, size))
        elif what == 1:
            queue.drop(KEYS[number])
        else:
            rows = queue.take(3 * size, 4)
            assert sum(map(len, rows)) <= 3 * size
            assert len(set(rows)) == len(rows)
            for one in rows:
                told[one] += 1
                assert told[one] <= 4
        queue.check()
