"""Messages to members: how much one carries, and of which epoch a whole state is."""

from __future__ import annotations

from activestore.core.register import Register
from activestore.ids import ObjectId, PeerId
from activestore.peer.posting import _as_read, _batches
from activestore.storage.engine import Change
from activestore.wire.replicas import (
    ENTRIES_BYTES_MAX,
    ENTRIES_MAX,
    Accept,
    Ballot,
    Config,
    Shipment,
)

A, B, C = (PeerId(name * 6) for name in (b"a", b"b", b"c"))
OBJECT = ObjectId(b"o" * 16)
CONFIG = Config(3, (A, B, C), wanted=3)


def accept(body_bytes: int, *buffers_bytes: int) -> Accept:
    change = Shipment(bytes(body_bytes), [bytes(size) for size in buffers_bytes])
    return Accept(OBJECT, Ballot(5, A), 20, None, CONFIG, False, 19, False, change)


def size_of(message: Accept) -> int:
    change = message.change
    return len(change.body) + sum(map(len, change.buffers))


def test_entries_are_parted_by_what_their_buffers_weigh() -> None:
    large = accept(100, ENTRIES_BYTES_MAX, 5)
    half = accept(100, ENTRIES_BYTES_MAX // 2)
    small = accept(100)
    messages = [small, large, half, small, half, small, small]
    batches = _batches(list(messages), ENTRIES_BYTES_MAX)
    assert [one for batch in batches for one in batch] == messages
    assert [len(batch) for batch in batches] == [1, 1, 2, 3]
    for batch in batches:
        assert len(batch) == 1 or sum(map(size_of, batch)) <= ENTRIES_BYTES_MAX


def test_entries_without_a_state_are_parted_by_their_count() -> None:
    messages = [accept(0)] * (2 * ENTRIES_MAX + 1)
    batches = _batches(messages, ENTRIES_BYTES_MAX)
    assert [len(one) for one in batches] == [ENTRIES_MAX, ENTRIES_MAX, 1]


def test_a_state_of_another_epoch_does_not_leave_under_the_old_one() -> None:
    """This peer led under 5; meanwhile it took another state number 20 of leader 6."""
    ordered = accept(0)._replace(change=None)
    mine = Register(Ballot(5, A), Ballot(5, A), 21, CONFIG)
    others = Register(Ballot(6, B), Ballot(6, B), 20, CONFIG)
    change = Change(OBJECT, is_delete=True)
    assert _as_read(ordered, others, change) is None
    sent = _as_read(ordered, mine, change)
    assert type(sent) is Accept
    assert (sent.epoch, sent.number) == (mine.epoch, 21)
