"""Classes of scripts: named after their script, and told of when code differs.

Source: design section 4, publishing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from activestore.errors import NoSuchMethodError

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(60)]

ALICE = """
import sys
import activestore
from activestore import ActiveObject, activemethod

class Counter(ActiveObject):
    total: float
    def __init__(self): self.total = 1.5
    @activemethod
    def add(self, n): self.total += n; return f"alice {self.total}"

class Outer(ActiveObject):
    n: int = 0
    class Inner(ActiveObject):
        n: int = 0
        @activemethod
        def up(self): self.n += 1; return self.n

def make():
    class Local(ActiveObject):
        n: int = 0
        @activemethod
        def up(self): self.n += 10; return self.n
    return Local

def main():
    with activestore.connect(sys.argv[1], timeout_s=20.0):
        try:
            counter = Counter.get_by_alias("alice")
        except activestore.errors.AliasNotFoundError:
            counter = Counter().make_persistent(alias="alice")
        print(counter.add(1))
        if "more" in sys.argv:
            print(Outer.Inner().make_persistent(alias="inner").up(),
                  make()().make_persistent(alias="local").up())

if __name__ == "__main__":
    main()
"""

BOB = """
import sys
import activestore
from activestore import ActiveObject, activemethod

class Counter(ActiveObject):
    value: int
    def __init__(self): self.value = 10
    @activemethod
    def add(self, n): self.value += n; return f"bob {self.value}"

with activestore.connect(sys.argv[1], timeout_s=20.0):
    counter = Counter()
    counter.make_persistent(alias=sys.argv[2])
    print(counter.add(1))
"""


def run(directory: Path, name: str, text: str, *arguments: str) -> Any:
    """Run a script; return what it printed and what it warned of."""
    (directory / name).write_text(textwrap.dedent(text))
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(directory / name), *arguments],
        capture_output=True, text=True, timeout=40, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_classes_of_two_scripts_with_one_name_stay_two(peer, tmp_path):
    assert run(tmp_path, "alice.py", ALICE, peer.endpoint) == ("alice 2.5\n", "")
    assert run(tmp_path, "bob.py", BOB, peer.endpoint, "bob") == ("bob 11\n", "")
    assert run(tmp_path, "alice.py", ALICE, peer.endpoint) == ("alice 3.5\n", "")

    peer.restart()

    store = peer.connect()
    assert store.get("alice").add(1) == "alice 4.5"
    assert store.get("bob").add(1) == "bob 12"
    names = {row["alias"]: row["class_name"] for row in store.objects()}
    assert names == {"alice": "alice.Counter", "bob": "bob.Counter"}


def test_class_of_a_script_is_found_where_the_script_is_imported(
    peer, tmp_path, monkeypatch
):
    run(tmp_path, "alice.py", ALICE, peer.endpoint)
    store = peer.connect()
    monkeypatch.syspath_prepend(str(tmp_path))
    alice = __import__("alice")
    try:
        found = store.get_for_class("alice", alice.Counter)
        assert type(found).__mro__[1] is alice.Counter
        assert found.add(1) == "alice 3.5"

        store.publish(alice)
        made = alice.Counter().make_persistent(alias="imported", store=store)
        assert made.add(1) == "alice 2.5"
    finally:
        del sys.modules["alice"]
    assert run(tmp_path, "alice.py", ALICE, peer.endpoint) == ("alice 4.5\n", "")


def test_nested_class_and_class_of_a_function_survive_a_restart(peer, tmp_path):
    printed, _ = run(tmp_path, "alice.py", ALICE, peer.endpoint, "more")
    assert printed.splitlines()[-1] == "1 10"

    peer.restart()

    store = peer.connect()
    assert [store.get("inner").up(), store.get("local").up()] == [2, 20]


def test_two_classes_of_one_script_can_call_each_other(make_peer, tmp_path):
    """Each is a package of its own; one executor holds both."""
    peer = make_peer(executors=1, executors_max=1)
    text = """
        import sys
        import activestore
        from activestore import ActiveObject, activemethod

        class Leaf(ActiveObject):
            n: int = 0
            @activemethod
            def up(self): self.n += 1; return self.n

        class Root(ActiveObject):
            leaf: Leaf
            def __init__(self, leaf): self.leaf = leaf
            @activemethod
            def up(self): return self.leaf.up() * 100

        with activestore.connect(sys.argv[1], timeout_s=20.0):
            leaf = Leaf().make_persistent()
            print(leaf.up(), Root(leaf).make_persistent().up())
        """

    assert run(tmp_path, "tree.py", text, peer.endpoint) == ("1 200\n", "")


def test_class_replaced_from_another_file_is_told(peer, tmp_path):
    (tmp_path / "here").mkdir()
    run(tmp_path, "bob.py", BOB, peer.endpoint, "first")

    changed = BOB.replace("value: int", "value: int\n    unit: str")
    changed = changed.replace('f"bob', 'f"other bob')
    _, told = run(tmp_path / "here", "bob.py", changed, peer.endpoint, "second")

    assert "the class bob.Counter was published from" in told
    assert "objects of bob.Counter that are stored already lack unit" in told


def test_edited_class_is_told_of_at_the_first_get(peer, tmp_path):
    run(tmp_path, "alice.py", ALICE, peer.endpoint)
    commented = ALICE.replace("def main", "# A comment changes nothing.\n\ndef main")
    assert run(tmp_path, "alice.py", commented, peer.endpoint) == ("alice 3.5\n", "")

    edited = ALICE.replace('f"alice', 'f"edited')
    printed, told = run(tmp_path, "alice.py", edited, peer.endpoint)

    assert printed.startswith("alice ")
    assert told.count("differs from the published one") == 1
    assert "store.publish(Counter)" in told


METERS = """
from activestore import ActiveObject, activemethod

SCALE = 2

def scaled(n): return n * SCALE

class Meter(ActiveObject):
    n: int = 0
    @activemethod
    def up(self): self.n += scaled(1); return self.n
"""


@pytest.fixture
def meters(tmp_path, monkeypatch):
    """Return a function that imports the module `meters` as it now reads."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(text: str) -> Any:
        (tmp_path / "meters.py").write_text(text)
        sys.modules.pop("meters", None)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            return __import__("meters")
        finally:
            sys.dont_write_bytecode = before

    yield load
    sys.modules.pop("meters", None)


def test_module_with_a_changed_helper_is_told_of(peer, meters):
    store = peer.connect()
    meters(METERS).Meter().make_persistent(alias="m", store=store)
    same = meters(METERS + "\n# a comment\n").Meter
    peer.connect().get_for_class("m", same)

    changed = meters(METERS.replace("SCALE = 2", "SCALE = 3")).Meter

    with pytest.warns(UserWarning, match=r"meters.Meter here differs"):
        peer.connect().get_for_class("m", changed)


def test_method_that_only_the_class_here_has_hints_at_publish(peer, meters):
    store = peer.connect()
    meters(METERS).Meter().make_persistent(alias="m", store=store)
    changed = meters(METERS.replace("def up", "def down(self): return -1\n    "
                                    "@activemethod\n    def up")).Meter  # fmt: skip
    store = peer.connect()
    with pytest.warns(UserWarning, match="store.publish"):
        meter = store.get_for_class("m", changed)

    with pytest.raises(NoSuchMethodError, match=r"store.publish\(Meter\)"):
        meter.down()
    with pytest.raises(NoSuchMethodError, match=r"store.publish\(Meter\)"):
        meter.down.submit().result()
    store.publish(changed)
    assert meter.down() == -1


LAMP = """
import enum
import sys
import activestore
from activestore import ActiveObject, activemethod

class Color(enum.Enum):
    RED = 1
    BLUE = 2

class Lamp(ActiveObject):
    color: Color = Color.RED
    @activemethod
    def paint(self, color):
        assert isinstance(color, Color)
        self.color = color
        return self.color

with activestore.connect(sys.argv[1], timeout_s=20.0, unpickle=True):
    try:
        lamp = Lamp.get_by_alias("lamp")
        print(lamp.color is Color.BLUE)
    except activestore.errors.AliasNotFoundError:
        lamp = Lamp().make_persistent(alias="lamp")
    print(lamp.paint(Color.BLUE) is Color.BLUE)
"""


def test_enum_of_a_script_is_the_same_there_and_back(peer, tmp_path):
    assert run(tmp_path, "lamp.py", LAMP, peer.endpoint) == ("True\n", "")
    assert run(tmp_path, "lamp.py", LAMP, peer.endpoint) == ("True\nTrue\n", "")

    peer.restart()

    assert run(tmp_path, "lamp.py", LAMP, peer.endpoint) == ("True\nTrue\n", "")
