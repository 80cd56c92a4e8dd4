"""Classes that change, and classes that have no module.

Source: design section 4 ("Publishing a changed class makes a new class version").
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from activestore.errors import (
    ActiveStoreError,
    InvalidRequestError,
    NoSuchMethodError,
    RequirementError,
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(40)]

FIRST = """
from activestore import ActiveObject, activemethod

class Meter(ActiveObject):
    class_version = 1
    total: int

    def __init__(self):
        self.total = 0

    @activemethod
    def add(self, n):
        self.total += n
        return self.total
"""

SECOND = """
from activestore import ActiveObject, activemethod

class Meter(ActiveObject):
    class_version = 2
    total_wh: int
    unit: str

    def __init__(self):
        self.total_wh = 0
        self.unit = "Wh"

    @classmethod
    def __migrate__(cls, old_version, fields):
        return {"total_wh": fields["total"] * 1000, "unit": f"from {old_version}"}

    @activemethod
    def add(self, n):
        self.total_wh += n
        return self.total_wh, self.unit

    @activemethod(readonly=True)
    def read(self):
        return self.total_wh
"""

BAD_MIGRATION = SECOND.replace("class_version = 2", "class_version = 3").replace(
    'return {"total_wh"', 'raise RuntimeError("cannot migrate"); return {"total_wh"'
)

FROM_MAIN = """
import sys
import activestore
from activestore import ActiveObject, activemethod

SCALE = 10

class Notebook(ActiveObject):
    cells: list

    def __init__(self):
        self.cells = []

    @activemethod
    def write(self, text):
        self.cells.append(text * SCALE)
        return len(self.cells)

with activestore.connect(sys.argv[1], timeout_s=20.0):
    notebook = Notebook()
    notebook.make_persistent(alias="notes")
    print(notebook.write("a"), notebook.write("b"))
"""


def write(path, text: str) -> str:
    """Write a module and return its path."""
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_objects_move_to_a_changed_class(peer, store, tmp_path):
    store.publish(write(tmp_path / "meters.py", FIRST))
    meter = store.create("meters.Meter", alias="meter")
    assert meter.add(7) == 7

    store.publish(write(tmp_path / "meters.py", SECOND))

    fresh = peer.connect().get("meter")
    assert fresh.add(1) == (7001, "from 1")
    assert fresh.read() == 7001
    peer.restart()
    again = peer.connect().get("meter")
    assert again.add(1) == (7002, "from 1"), "it migrates once"


def test_store_that_published_sees_the_new_interface(store, tmp_path):
    store.publish(write(tmp_path / "meters.py", FIRST))
    store.create("meters.Meter", alias="meter").add(7)

    store.publish(write(tmp_path / "meters.py", SECOND))

    assert store.get("meter").read() == 7000


def test_migration_that_raises_leaves_the_object_as_it_was(peer, store, tmp_path):
    store.publish(write(tmp_path / "meters.py", FIRST))
    store.create("meters.Meter", alias="meter").add(7)

    store.publish(write(tmp_path / "meters.py", BAD_MIGRATION))
    with pytest.raises(ActiveStoreError, match="cannot migrate"):
        peer.connect().get("meter").add(1)

    store.publish(write(tmp_path / "meters.py", SECOND))
    assert peer.connect().get("meter").add(1) == (7001, "from 1")


def test_publishing_the_same_code_again_changes_nothing(store, tmp_path):
    path = write(tmp_path / "meters.py", FIRST)
    first = store.publish(path)
    meter = store.create("meters.Meter")
    meter.add(1)

    assert store.publish(path) == first
    assert meter.add(1) == 2


def test_class_of_main_survives_a_restart(peer, store, tmp_path):
    script = write(tmp_path / "script.py", FROM_MAIN)
    command = [sys.executable, script, peer.endpoint]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1 2\n"), done.stderr

    peer.restart()

    notes = peer.connect().get("notes")
    assert notes.write("c") == 3
    assert notes.cells == ["a" * 10, "b" * 10, "c" * 10]


def test_package_with_modules_that_import_each_other(peer, store, tmp_path):
    package = tmp_path / "shapes"
    package.mkdir()
    write(package / "__init__.py", "")
    write(package / "areas.py", "def square(side): return side * side\n")
    write(
        package / "models.py",
        """
        from activestore import ActiveObject, activemethod
        from shapes.areas import square

        class Square(ActiveObject):
            side: int
            def __init__(self, side): self.side = side
            @activemethod(readonly=True)
            def area(self): return square(self.side)
        """,
    )

    store.publish(str(package))

    assert store.create("shapes.models.Square", 4, alias="sq").area() == 16
    peer.restart()
    assert peer.connect().get("sq").area() == 16


def test_module_with_a_syntax_error_is_refused_with_file_and_line(store, tmp_path):
    path = write(tmp_path / "broken.py", "x = 1\ndef f(:\n    pass\n")

    with pytest.raises(InvalidRequestError) as caught:
        store.publish(path)

    assert "broken" in str(caught.value)
    assert "2" in str(caught.value)


def test_module_that_raises_at_import_is_refused_with_its_error(store, tmp_path):
    path = write(tmp_path / "angry.py", "x = 1\nraise ValueError('not today')\n")

    with pytest.raises(InvalidRequestError, match="not today"):
        store.publish(path)


def test_module_that_needs_a_missing_one_is_refused_by_name(store, tmp_path):
    path = write(
        tmp_path / "needy.py",
        """
        import a_module_nobody_has
        from activestore import ActiveObject
        class Needy(ActiveObject): pass
        """,
    )

    with pytest.raises(RequirementError) as caught:
        store.publish(path)

    assert "a_module_nobody_has" in str(caught.value)


def test_class_that_requires_what_the_peer_lacks_is_refused(store, tmp_path):
    path = write(
        tmp_path / "heavy.py",
        """
        from activestore import ActiveObject
        class Heavy(ActiveObject):
            requires = ("nothing-like-this>=2.0",)
        """,
    )

    with pytest.raises(RequirementError) as caught:
        store.publish(path)
        store.create("heavy.Heavy")

    assert "nothing-like-this" in str(caught.value)


def test_method_that_is_gone_from_the_class_is_named(store, tmp_path):
    store.publish(write(tmp_path / "meters.py", SECOND))
    old = store.create("meters.Meter")
    assert old.read() == 0

    store.publish(
        write(tmp_path / "meters.py", SECOND.replace("def read", "def other"))
    )

    with pytest.raises(NoSuchMethodError) as caught:
        old.read()
    assert "other" in str(caught.value)


def test_class_that_asks_more_than_the_machine_has_is_refused(store):
    store.publish(str(Path(__file__).with_name("resource_models.py")))

    assert store.create("resource_models.Modest").where() == "here"
    with pytest.raises(RequirementError) as caught:
        store.create("resource_models.Greedy")

    memory, quantum = caught.value.missing
    assert memory.startswith("memory_mb: 1e+12 (here ")
    assert quantum == "quantum_cores: 2 (here 0)"
