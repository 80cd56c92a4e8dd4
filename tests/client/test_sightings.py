"""What a client has seen of replicated objects. Source: reliability.md 3.8, monotonic reads."""

from __future__ import annotations

import pytest

from activestore.client import sightings as sightings_module
from activestore.client.replicating import call_extra
from activestore.client.sightings import Sightings
from activestore.ids import ObjectId
from activestore.remote import CallOptions
from activestore.wire.messages import Call, Reply, Request
from tests.client.sessions import OBJECT, greeted, open_call, open_question

ID = ObjectId(OBJECT)
CALL = Call(1, OBJECT, "peek", 0, 0, 1, 0)
STALE = CallOptions(staleness_s=5)


def test_newest_state_that_was_seen_travels_with_a_read_that_may_be_stale():
    seen = Sightings()
    seen.note(CALL, {"epoch": 3, "number": 10})

    assert call_extra(seen, ID, STALE, None) == {"staleness_ms": 5000, "seen": [3, 10]}


@pytest.mark.parametrize(
    "later", [(3, 9), (2, 10), (3, 10)], ids=["number", "leader", "the same"]
)
def test_older_answer_that_comes_later_takes_nothing_back(later):
    seen = Sightings()
    seen.note(CALL, {"epoch": 3, "number": 10})

    seen.note(CALL, {"epoch": later[0], "number": later[1]})

    assert seen.of(OBJECT) == (3, 10)


def test_new_lineage_may_begin_with_a_lower_number():
    """After `force` what the others had is gone: waiting for it would be for ever."""
    seen = Sightings()
    seen.note(CALL, {"epoch": 3, "number": 10})

    seen.note(CALL, {"epoch": 4, "number": 8})

    assert seen.of(OBJECT) == (4, 8)


@pytest.mark.parametrize(
    "told", [{}, {"epoch": 3}, {"epoch": "3", "number": 1}, {"epoch": 3, "number": None},
             {"buffers": [70000]}],
)  # fmt: skip
def test_answer_that_does_not_tell_is_no_sighting(told):
    seen = Sightings()

    seen.note(CALL, told)

    assert len(seen) == 0
    assert call_extra(seen, ID, STALE, None) == {"staleness_ms": 5000}


def test_sightings_are_bounded_and_the_latest_stay(monkeypatch):
    monkeypatch.setattr(sightings_module, "SEEN_MAX", 2)
    seen = Sightings()
    for name in (b"a", b"b", b"a", b"c"):
        seen.note(CALL._replace(object_id=name * 16), {"epoch": 1, "number": 1})

    assert [seen.of(name * 16) is not None for name in (b"a", b"b", b"c")] == [
        True, False, True,
    ]  # fmt: skip


def test_call_without_such_options_carries_nothing_of_it():
    seen = Sightings()
    seen.note(CALL, {"epoch": 3, "number": 10})

    assert call_extra(seen, ID, CallOptions(timeout_s=1.0), None) is None
    assert call_extra(seen, ID, CallOptions(direct=False), {"stream": 16}) == {
        "stream": 16, "direct": False,
    }  # fmt: skip
    assert call_extra(seen, ID, CallOptions(with_info=True), None) == {"info": True}


def test_staleness_below_a_millisecond_is_not_none():
    options = CallOptions(staleness_s=1e-9)

    assert call_extra(Sightings(), ID, options, None) == {"staleness_ms": 1}


def test_session_notes_what_any_answer_tells():
    session = greeted()
    call = open_call(session)

    session.take(Reply(call.sequence, {"epoch": 2, "number": 7}), 0.1)

    assert session.sightings.of(OBJECT) == (2, 7)


def test_answer_to_a_question_is_of_no_object():
    session = greeted()
    question = open_question(session)
    assert type(question.message) is Request

    session.take(Reply(question.sequence, {"epoch": 2, "number": 7}), 0.1)

    assert len(session.sightings) == 0
