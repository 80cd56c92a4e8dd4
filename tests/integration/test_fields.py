"""What is a field of an object, and that nothing which looks like one is lost.

Source: design section 4 (fields, in-place changes), section 6.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

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


def test_default_list_is_not_shared_between_objects(store, tmp_path):
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
