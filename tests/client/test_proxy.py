"""The stand-ins of one client, and what of publishing needs no peer."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import pytest

from activestore import ActiveObject, activemethod, ids, remote
from activestore.client import proxy as proxy_module
from activestore.client import publish
from activestore.client.proxy import RemoteClass, StandIns
from activestore.errors import InvalidRequestError, UnsupportedValueError
from activestore.ids import ObjectId

HOME = ids.PeerId(b"home06")
ONE, TWO = (ObjectId(HOME + b"\x00" + bytes([n]) * 9) for n in (1, 2))


class Node(ActiveObject):
    """A value that may point to another."""

    value: int
    other: Any

    def __init__(self, value: int, other: Any = None) -> None:
        self.value = value
        self.other = other

    @activemethod
    def add(self, n: int) -> int:
        return self.value + n


NODE = f"{__name__}.Node"


class Interfaces:
    """What a peer says of classes, and what was asked."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any]] = []
        self.doc = "first"

    def __call__(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(parameters)
        name = parameters.get("class_name", "model.Counter")
        return {"class_name": name, "doc": self.doc, "fields": {"value": "int"},
                "methods": {}}  # fmt: skip


@pytest.fixture
def interfaces() -> Interfaces:
    return Interfaces()


@pytest.fixture
def stand_ins(interfaces: Interfaces) -> StandIns:
    return StandIns(object(), interfaces)  # type: ignore[arg-type]


# -- stand-ins -------------------------------------------------------------------------


def test_one_object_is_one_stand_in_while_it_is_in_use(stand_ins: StandIns) -> None:
    first = stand_ins.get(ONE, "model.Counter")

    assert stand_ins.get(ONE) is first
    assert stand_ins.resolve(ONE + b"model.Counter") is first
    assert stand_ins.known(ONE) is first
    assert stand_ins.get(TWO, "model.Counter") is not first


def test_stand_in_that_nobody_uses_is_forgotten(stand_ins: StandIns) -> None:
    stand_ins.get(ONE, "model.Counter")
    gc.collect()

    assert stand_ins.known(ONE) is None


def test_interface_is_asked_for_once_per_class(
    stand_ins: StandIns, interfaces: Interfaces
) -> None:
    kept = [stand_ins.get(one, "model.Counter") for one in (ONE, TWO)]

    assert type(kept[0]) is type(kept[1])
    assert interfaces.asked == [{"class_name": "model.Counter"}]


def test_object_of_an_unknown_class_is_asked_for_by_its_id(
    stand_ins: StandIns, interfaces: Interfaces
) -> None:
    first = stand_ins.get(ONE)

    assert interfaces.asked == [{"object_id": ONE}]
    assert type(stand_ins.get(TWO, "model.Counter")) is type(first)


def test_class_published_anew_is_asked_for_again(
    stand_ins: StandIns, interfaces: Interfaces
) -> None:
    before = stand_ins.interface_class("model.Counter")
    interfaces.doc = "second"
    cached = stand_ins.interface_class("model.Counter")

    stand_ins.refresh("model.Counter")
    stand_ins.refresh("model.NeverSeen")

    assert cached is before
    assert stand_ins.interface_class("model.Counter").__doc__ == "second"


def test_interfaces_that_are_kept_are_bounded(
    stand_ins: StandIns, interfaces: Interfaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "INTERFACES_MAX", 2)
    for name in ("model.A", "model.B", "model.C", "model.C", "model.A"):
        stand_ins.interface_class(name)

    asked = [parameters["class_name"] for parameters in interfaces.asked]
    assert asked == ["model.A", "model.B", "model.C", "model.A"]


def test_class_whose_code_is_here_makes_instances_of_itself(
    stand_ins: StandIns, interfaces: Interfaces
) -> None:
    stand_ins.use_class(Node)

    found = stand_ins.resolve(ONE + NODE.encode())

    assert isinstance(found, Node)
    assert remote.id_of(found) == ONE
    assert interfaces.asked == []


def test_object_that_became_remote_is_its_own_stand_in(stand_ins: StandIns) -> None:
    node = Node(1)
    remote.become_stand_in(node, ONE, object())  # type: ignore[arg-type]

    stand_ins.adopt(node, ONE)

    assert stand_ins.get(ONE) is node
    assert isinstance(stand_ins.get(TWO, NODE), Node), "and its class is known"


class StoreOfOne:
    """A store that knows one object."""

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name
        self.created: list[Any] = []

    def identify(self, _alias: str) -> tuple[ObjectId, str]:
        return ONE, self.class_name

    def get(self, name: str) -> str:
        return name

    def create(self, *args: Any, **kwargs: Any) -> str:
        self.created.append((args, kwargs))
        return "created"


def remote_class(store: StoreOfOne, stand_ins: StandIns) -> RemoteClass:
    """Return the stand-in of a class without its code."""
    return RemoteClass(
        store, "model.Counter", stand_ins.interface_class("model.Counter")
    )


def test_remote_class_creates_as_the_class_would(stand_ins: StandIns) -> None:
    store = StoreOfOne("model.Counter")
    counter = remote_class(store, stand_ins)

    assert counter(5, alias="hits", step=2, replicas=3) == "created"
    assert store.created == [
        (("model.Counter", 5), {"alias": "hits", "peer": "", "replicas": 3,
                                "witness": None, "step": 2})
    ]  # fmt: skip
    assert counter.__doc__ == "first"
    assert repr(counter) == "<remote class model.Counter>"


def test_remote_class_finds_its_objects_and_no_others(stand_ins: StandIns) -> None:
    assert remote_class(StoreOfOne("model.Counter"), stand_ins).get_by_alias("x") == (
        ONE.hex()
    )
    with pytest.raises(InvalidRequestError, match=r"'x' is a model\.Other, not a"):
        remote_class(StoreOfOne("model.Other"), stand_ins).get_by_alias("x")


# -- publishing ------------------------------------------------------------------------


def snapshots(*roots: tuple[Any, str]) -> list[tuple[Any, Any]]:
    """Return the states of objects, with a revision that needs no peer."""
    return publish.snapshots(roots, HOME, lambda _: b"r" * 16)


def test_snapshot_takes_what_an_object_reaches_in_a_cycle() -> None:
    first, second = Node(1), Node(2)
    first.other, second.other = [second], {"back": first}

    found = snapshots((first, "head"))

    assert [obj for obj, _ in found] == [first, second]
    assert [named.alias for _, named in found] == ["head", ""]
    assert len({named.object_id for _, named in found}) == 2
    assert all(ids.home_of(ObjectId(named.object_id)) == HOME for _, named in found)


def test_snapshot_leaves_persistent_objects_where_they_are() -> None:
    remote_one = Node(1)
    remote.become_stand_in(remote_one, ONE, object())  # type: ignore[arg-type]

    found = snapshots((Node(2, remote_one), ""))

    assert len(found) == 1


def test_snapshot_of_objects_that_share_takes_each_once() -> None:
    shared = Node(3)

    found = snapshots((Node(1, shared), "a"), (Node(2, shared), "b"))

    assert [(obj.value, named.alias) for obj, named in found] == [
        (1, "a"),
        (2, "b"),
        (3, ""),
    ]


def test_field_that_cannot_be_kept_is_named() -> None:
    with pytest.raises(UnsupportedValueError) as caught:
        snapshots((Node(1, (n for n in range(3))), ""))

    assert "other" in caught.value.path


def test_package_of_what_is_nowhere() -> None:
    with pytest.raises(InvalidRequestError):
        publish.package_of("no_such_module_anywhere")


def test_class_name_of_all_that_stands_for_an_object(stand_ins: StandIns) -> None:
    local, became = Node(1), Node(2)
    remote.become_stand_in(became, ONE, object())  # type: ignore[arg-type]

    assert publish.class_name_of_object(local) == NODE
    assert publish.class_name_of_object(became) == NODE
    proxied = stand_ins.get(TWO, "model.Counter")
    assert publish.class_name_of_object(proxied) == "model.Counter"


def test_value_without_a_wire_form_goes_there_and_back() -> None:
    name, data = publish.dump_value(range(3), lambda _: None)

    assert name.endswith("range")
    assert publish.load_value(name, data, lambda _: None) == range(3)
