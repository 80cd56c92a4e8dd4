"""Claims of aliases on the disk of a keeper; and the names that an engine lists."""

from __future__ import annotations

import pytest

from activestore.core.names import TENTATIVE_S, Claim, Free
from activestore.errors import InvalidRequestError, RemoteProtocolError
from activestore.ids import ObjectId, PeerId
from activestore.peer import announcing, keeping
from activestore.storage.engine import ZERO_ID, Change, Row
from tests.storage.changes import new, oid

ME, OTHER = PeerId(b"mmmmmm"), PeerId(b"oooooo")


def claim(number: int, claimed_s: float = 50.0, *, confirmed: bool = True) -> Claim:
    return Claim(oid(number), OTHER, claimed_s, confirmed)


def test_names_are_listed_in_pages_with_the_time_of_their_objects(engine):
    for number in range(5):
        engine.commit([new(number, alias=f"n{number}", created_s=10.0 + number)])
    engine.commit([new(9)])

    first = engine.names(limit=3)
    rest = engine.names(first[-1][0], limit=3)

    assert [row[0] for row in first + rest] == [f"n{number}" for number in range(5)]
    assert first[1] == ("n1", oid(1), 11.0)
    assert engine.names("n4") == []


def test_claims_outlive_the_peer_that_kept_them(reopen):
    engine = reopen()
    keeping.keep(engine, ME, [("n", claim(1))], 100.0)
    keeping.keep(engine, ME, [("m", claim(2, confirmed=False))], 100.0)

    again = reopen()

    assert keeping.claim_of(again, "n") == claim(1)
    tentative = keeping.claim_of(again, "m")
    assert tentative is not None
    assert tentative.lapses_s == 100.0 + TENTATIVE_S
    assert dict(keeping.claims_of(again)).keys() == {"n", "m"}


def test_object_that_is_here_has_its_name_without_any_row(engine):
    engine.commit([new(1, alias="n", created_s=40.0)])

    votes = keeping.keep(engine, ME, [("n", claim(2, confirmed=False))], 100.0).votes
    kept = keeping.keep(engine, ME, [("n", claim(2, 50.0))], 100.0)

    assert votes["n"] == Claim(oid(1), ME, 40.0, True)
    assert kept.votes["n"].object_id == oid(1)
    assert not kept.losers


def test_object_that_is_here_gives_way_to_an_older_one_and_is_told(engine):
    engine.commit([new(1, alias="n", created_s=40.0)])

    kept = keeping.keep(engine, ME, [("n", claim(2, 30.0))], 100.0)

    assert kept.votes["n"] == claim(2, 30.0)
    assert kept.losers == [("n", Claim(oid(1), ME, 40.0, True), claim(2, 30.0))]


def test_copy_that_is_not_the_object_has_no_name(engine):
    row = Row("staged", oid(1), b"x")
    engine.commit([new(1, alias="n", created_s=40.0, rows=[row])])

    votes = keeping.keep(engine, ME, [("n", claim(2))], 100.0).votes

    assert votes["n"].object_id == oid(2)


def test_name_is_freed_only_for_the_object_that_has_it(engine):
    keeping.keep(engine, ME, [("n", claim(1))], 100.0)

    still = keeping.keep(engine, ME, [("n", Free(oid(2)))], 100.0).votes
    freed = keeping.keep(engine, ME, [("n", Free(oid(1))), ("n", claim(3))], 100.0)

    assert still["n"].object_id == oid(1)
    assert freed.votes["n"].object_id == oid(3)


def test_row_that_makes_no_sense_is_no_claim(engine):
    engine.commit([Change(ZERO_ID, rows=[Row("name", b"n", b"\xc1")])])

    assert keeping.claim_of(engine, "n") is None
    assert keeping.keep(engine, ME, [("n", claim(1))], 1.0).votes["n"] == claim(1)


def test_claims_come_out_of_the_wire_as_they_went_in():
    items = [("n", claim(1)), ("m", claim(2, confirmed=False)), ("f", Free(oid(3)))]

    assert keeping.heard(keeping.told(items)) == items


@pytest.mark.parametrize(
    "row",
    [
        5,
        [],
        ["n", b"short", b"mmmmmm", 1.0, True],
        ["n", bytes(16), b"mm", 1.0, True],
        ["n", bytes(16), b"mmmmmm", float("nan"), True],
        ["n", bytes(16), b"mmmmmm", 1, True],
        ["n", bytes(16), b"mmmmmm", 1.0, 1],
        ["", bytes(16), b"mmmmmm", 1.0, True],
        ["n" * 300, bytes(16), b"mmmmmm", 1.0, True],
    ],
)
def test_claim_that_is_malformed_is_refused(row):
    with pytest.raises((RemoteProtocolError, InvalidRequestError)):
        keeping.heard([row])
    assert keeping.votes_heard({"votes": [row]}) is None


def test_too_many_claims_at_once_are_refused():
    rows = keeping.told([("n", Free(ObjectId(bytes(16))))] * 257)

    with pytest.raises(RemoteProtocolError, match="256"):
        keeping.heard(rows)


def test_copy_of_what_another_peer_leads_claims_no_name(engine):
    engine.commit([new(1, alias="n", created_s=40.0), new(2, alias="m")])
    known = Claim(oid(1), OTHER, 40.0, True)

    assert keeping.own_claim(engine, ME, "n", {oid(1)}) is None
    assert keeping.keep(engine, ME, [("n", known)], 100.0, {oid(1)}).votes["n"] == known
    walked = [alias for alias, c in announcing._names(engine, ME, {oid(1)})]
    assert walked == ["m", "n"], "its own, and the one that it keeps for the other"
    holders = dict(announcing._names(engine, ME, {oid(1)}))
    assert holders["n"].holder == OTHER
