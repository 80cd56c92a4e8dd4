"""What names an object, and what is asked about it."""

from __future__ import annotations

from typing import Any

import pytest

from activestore import ActiveObject
from activestore.client import codewatch, naming
from activestore.client.naming import Found
from activestore.client.proxy import StandIns
from activestore.errors import InvalidRequestError
from activestore.ids import ObjectId
from activestore.wire import values

ONE = ObjectId(b"home06" + b"\x00" + b"1" * 9)
INTERFACE = {"class_name": "model.Counter", "doc": "", "fields": {}, "methods": {}}


class Note(ActiveObject):
    """Made here, kept nowhere."""


class Peer:
    """Answers resolve as a peer does; `is_old`: one that knows nothing of interfaces."""

    def __init__(self, *, is_old: bool = False) -> None:
        self.is_old = is_old
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, operation: str, **parameters: Any) -> Any:
        self.asked.append((operation, parameters))
        if operation == "interface":
            return {"interface": INTERFACE, "revision": b"r" * 16}
        answer: dict[str, Any] = {"object_id": ONE, "class_name": "model.Counter"}
        unless = parameters.get("interface_unless")
        if not self.is_old and unless is not None and "model.Counter" not in unless:
            answer["interface"] = INTERFACE
        return answer


def test_interface_comes_with_the_answer_about_an_alias() -> None:
    peer = Peer()

    found = naming.identify(peer, "hits", ())

    assert found == Found(ONE, "model.Counter", INTERFACE)
    assert len(peer.asked) == 1


def test_interface_that_is_known_is_not_sent_again() -> None:
    found = naming.identify(Peer(), "hits", ["model.Other", "model.Counter"])

    assert found.interface is None


def test_interface_is_not_asked_for_where_only_the_id_is_wanted() -> None:
    peer = Peer()

    naming.identify(peer, "hits")

    assert peer.asked == [("resolve", {"alias": "hits"})]


def test_classes_named_in_a_question_are_bounded() -> None:
    peer = Peer()

    naming.identify(peer, "hits", [f"model.C{n}" for n in range(1000)])

    named = peer.asked[0][1]["interface_unless"]
    assert named == [f"model.C{n}" for n in range(984, 1000)]


@pytest.mark.parametrize("name", [ONE, ONE.hex(), values.Ref(ONE, "model.Counter")])
def test_id_is_found_without_asking(name: Any) -> None:
    peer = Peer()

    assert naming.identify(peer, name).object_id == ONE
    assert peer.asked == []


@pytest.mark.parametrize("name", [b"short", 7, None])
def test_what_names_nothing_is_refused(name: Any) -> None:
    with pytest.raises(InvalidRequestError, match="expected an alias, an id or an"):
        naming.identify(Peer(), name)


def test_object_that_is_not_persistent_is_told_so() -> None:
    with pytest.raises(
        InvalidRequestError, match="this Note is not persistent: `make_"
    ):
        naming.identify(Peer(), Note())


@pytest.mark.parametrize("is_old", [False, True])
def test_peer_without_interfaces_in_its_answers_is_asked_for_them(is_old: bool) -> None:
    peer = Peer(is_old=is_old)
    stand_ins = StandIns(object(), lambda parameters: INTERFACE)  # type: ignore[arg-type]

    found = naming.identify(peer, "hits", stand_ins.class_names())
    if found.interface is not None:
        stand_ins.learn(found.class_name, found.interface)
    stand_in = stand_ins.get(found.object_id, found.class_name)

    assert type(stand_in).__name__ == "Counter"
    assert stand_ins.class_names() == ["model.Counter"]


def test_code_is_compared_with_the_interface_that_has_come() -> None:
    peer = Peer()

    codewatch.compare(peer, Peer, INTERFACE)
    assert peer.asked == []
    codewatch.compare(peer, Peer)

    assert [operation for operation, _ in peer.asked] == ["interface"]
