"""What is a field of an object, and that nothing which looks like one is lost.

Source: design section 4 (fields, in-place changes), section 6.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from activestore.errors import InvalidRequestError

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(40)]

SHELVES = """
from activestore import ActiveObject, activemethod

class Shelf(ActiveObject):
    label: str = ""
    items: list = []
    index: dict = {"by": {}}

    @activemethod
    def put(self, item):
        self.items.append(item)
        self.index["by"][item] = len(self.items)
        return len(self.items)

    @activemethod
    def put_then_raise(self, item):
        self.items.append(item)
        raise ValueError("after the change")

    @activemethod
    def rename(self, label):
        self.label = label

    @activemethod(readonly=True)
    def content(self):
        return self.items, self.index

    @activemethod(readonly=True)
    def where(self):
        return self.label
"""

OLD_SHELVES = SHELVES.replace("    items: list = []\n", "    items: list\n").replace(
    '    index: dict = {"by": {}}\n', ""
)


def publish(store: Any, directory: Path, text: str) -> None:
    """Publish a module `shelves` of this text."""
    path = directory / "shelves.py"
    path.write_text(textwrap.dedent(text))
    store.publish(path)


@pytest.fixture
def import_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that writes a module and imports it."""
    made: list[str] = []

    def load(name: str, text: str) -> Any:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(tmp_path))
        made.append(name)
        return __import__(name)

    yield load
    for name in made:
        sys.modules.pop(name, None)


def test_default_list_that_a_method_changes_in_place_is_kept_over_a_kill(
    peer, store, tmp_path
):
    publish(store, tmp_path, SHELVES)
    shelf = store.create("shelves.Shelf", alias="a")

    assert [shelf.put("x"), shelf.put("y")] == [1, 2]
    peer.restart()

    again = peer.connect().get("a")
    assert again.content() == (["x", "y"], {"by": {"x": 1, "y": 2}})
    assert again.items == ["x", "y"]


def test_default_list_is_not_shared_between_objects(make_peer, tmp_path):
    """Both live in one process, where the class is one."""
    store = make_peer(executors=1, executors_max=1).connect()
    publish(store, tmp_path, SHELVES)
    first, second = (store.create("shelves.Shelf") for _ in range(2))

    assert first.put("mine") == 1

    assert second.content() == ([], {"by": {}})
    assert second.put("other") == 1


def test_default_list_is_as_before_when_the_method_raises(store, tmp_path):
    publish(store, tmp_path, SHELVES)
    shelf = store.create("shelves.Shelf")
    shelf.put("kept")

    with pytest.raises(ValueError, match="after the change"):
        shelf.put_then_raise("lost")

    assert shelf.items == ["kept"]


def test_object_made_persistent_in_place_keeps_its_own_default_list(
    peer, store, import_from
):
    shelves = import_from("shelves", SHELVES)
    local = shelves.Shelf()
    local.items.append("before")
    assert shelves.Shelf().items == []

    local.make_persistent(alias="local", store=store)
    local.put("after")
    peer.restart()

    assert peer.connect().get("local").items == ["before", "after"]


def test_default_list_that_came_with_a_newer_class_is_kept_when_it_changes(
    make_peer, tmp_path
):
    peer = make_peer(check_readonly="true")
    store = peer.connect()
    publish(store, tmp_path, OLD_SHELVES)
    store.create("shelves.Shelf", alias="old").rename("A")

    publish(store, tmp_path, SHELVES)
    store = peer.connect()
    shelf = store.get("old")
    version = store.locate(shelf)["version"]
    assert shelf.content() == ([], {"by": {}}), "a reader changes nothing"
    shelf.rename("A")
    assert store.locate(shelf)["version"] == version, "no change: nothing is written"
    assert shelf.put("x") == 1
    peer.restart()

    assert peer.connect().get("old").content() == (["x"], {"by": {"x": 1}})


BARE = """
from activestore import ActiveObject, activemethod

class Bare(ActiveObject):
    def __init__(self, size=0):
        self.size = size

class LateBare(ActiveObject):
    @activemethod
    def grow(self):
        self.size = 1

class Mixed(ActiveObject):
    size: int

    def __init__(self, size=0):
        self.size = size
        self.cache = {}
        self._hidden = 1

    def fill(self):
        self.cache = {"filled": self.size}

class Rebuilt(Mixed):
    def on_activate(self):
        self.cache = {}
"""


def test_class_that_annotates_nothing_is_refused_with_the_attribute(
    store, import_from, tmp_path
):
    bare = import_from("bare", BARE)

    with pytest.raises(InvalidRequestError, match=r"bare.Bare.size.*annotate it"):
        bare.Bare(3).make_persistent(store=store)
    with pytest.raises(InvalidRequestError, match=r"bare.Bare.size.*underscore"):
        store.create("bare.Bare", 3)


def test_attribute_that_a_method_sets_without_any_field_is_refused(store, import_from):
    import_from("bare", BARE)
    store.publish("bare")
    late = store.create("bare.LateBare")

    for _ in range(2):
        with pytest.raises(InvalidRequestError, match=r"LateBare.size.*annotate it"):
            late.grow()


def test_attribute_without_annotation_is_told_of_once(store, import_from):
    bare = import_from("bare", BARE)
    first, second = bare.Mixed(1), bare.Mixed(2)

    with pytest.warns(UserWarning, match=r"bare.Mixed.cache is not annotated") as told:
        store.persist([first, second])

    assert len(told) == 1
    assert told[0].filename == __file__


def test_transient_that_on_activate_rebuilds_is_nothing_to_tell(store, import_from):
    bare = import_from("bare", BARE)

    assert bare.Rebuilt(4).make_persistent(store=store).size == 4


def test_typing_error_in_an_assignment_to_a_stand_in_is_refused(store, import_from):
    bare = import_from("bare", BARE)
    here = bare.Rebuilt(4).make_persistent(store=store, alias="here")
    found = bare.Rebuilt.get_by_alias("here")
    assert found is here
    del here, found
    found = bare.Rebuilt.get_by_alias("here")

    with pytest.raises(InvalidRequestError, match=r"Rebuilt.szie.*fields: size"):
        found.szie = 5

    found.size = 5
    found.fill()
    assert found.cache == {"filled": 5}, "an undecorated method sets its transient"
    found._note = "a name with an underscore stays here"


def test_slots_are_refused_where_the_class_is_written():
    from activestore import ActiveObject

    with pytest.raises(TypeError, match="__slots__"):

        class Slotted(ActiveObject):
            __slots__ = ("value",)
            value: int
