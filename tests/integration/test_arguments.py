"""What a client is told of arguments that cannot be meant, and values it cannot read.

Source: design section 4.
"""

from __future__ import annotations

import collections
import copy
import inspect
import socket
import sys
import textwrap
import time
from typing import Any

import pytest

import activestore
from activestore import ActiveObject, activemethod
from activestore.errors import (
    ConfigurationError,
    InvalidRequestError,
    NoSuchMethodError,
    UnsupportedValueError,
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(40)]

PAINTS = """
import dataclasses
import enum
from activestore import ActiveObject, activemethod

class Color(enum.Enum):
    RED = 1
    BLUE = 2

@dataclasses.dataclass
class Size:
    width: int
    height: int = 1

@dataclasses.dataclass
class Paint(ActiveObject):
    color: Color = Color.RED
    litres: float = 1.0

    @activemethod(readonly=True)
    def describe(self, size: Size | None = None) -> str:
        "Say what it is."
        return f"{self.color.name} {self.litres} {size}"

    @activemethod(readonly=True)
    def drops(self, n: int = 3):
        yield from range(n)

    @activemethod(readonly=True)
    def things(self):
        import collections
        return collections.deque([1, 2]), Size(2), range(3), self.color

    @activemethod
    def empty(self) -> float:
        "Pour it out."
        self.litres = 0.0
        return self.litres

    @classmethod
    def blue(cls):
        return cls(Color.BLUE)
"""


@pytest.fixture
def paints(tmp_path, monkeypatch):
    """Return the module with paints, imported here."""
    (tmp_path / "paints.py").write_text(
        textwrap.dedent("from __future__ import annotations\n" + PAINTS)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("paints")
    sys.modules.pop("paints", None)


# -- stand-ins -------------------------------------------------------------------------


def test_class_of_a_stand_in_makes_local_objects(store, paints):
    import dataclasses

    paint = paints.Paint(litres=2.5).make_persistent(store=store)

    blue = paint.blue()
    assert (type(blue), blue.color, blue.litres) == (paints.Paint, paints.Color.BLUE, 1)
    assert type(paint)(litres=4.0).litres == 4.0
    with activestore.connect(store.endpoint, unpickle=True) as reader:
        known = reader.get_for_class(_alias(reader, paint), paints.Paint)
        replaced = dataclasses.replace(known, litres=9.0)
    assert (type(replaced), replaced.litres) == (paints.Paint, 9.0)
    assert replaced.color is paints.Color.RED


def _alias(store: Any, obj: Any) -> str:
    return activestore.remote.id_of(obj).hex()


def test_copy_of_a_stand_in_is_itself(store, paints):
    paint = paints.Paint().make_persistent(store=store, alias="thin")
    thin = activestore.connect(store.endpoint).get("thin")

    for one in (paint, thin):
        assert copy.copy(one) is one
        assert copy.deepcopy([one])[0] is one
    thin.empty()
    with pytest.raises(InvalidRequestError, match=r"store.create\('paints.Paint'"):
        type(thin)()
    activestore.remote.caller_of(thin).close()


def test_remote_method_shows_the_words_of_its_author(store, paints):
    paint = paints.Paint().make_persistent(store=store)
    with activestore.connect(store.endpoint) as other:
        thin = other.get(activestore.remote.id_of(paint).hex())
        for one in (paint, thin):
            assert type(one).empty.__doc__ == "Pour it out."
            assert one.empty.__doc__ == "Pour it out."
            assert list(inspect.signature(type(one).describe).parameters) == [
                "self", "size",
            ]  # fmt: skip
            assert type(one).empty(one) == 0.0


def test_stream_of_a_method_that_is_no_generator_runs_nothing(store, paints):
    paint = paints.Paint(litres=2.0).make_persistent(store=store)

    with pytest.raises(InvalidRequestError, match="no generator method"):
        paint.empty.stream()

    assert paint.litres == 2.0
    assert list(paint.drops.stream(2)) == [0, 1]


def test_async_active_method_is_refused_where_it_is_written():
    with pytest.raises(TypeError, match="is async"):

        class Later(ActiveObject):
            @activemethod
            async def run(self) -> None: ...

    with pytest.raises(TypeError, match="classmethod"):

        class Static(ActiveObject):
            @activemethod
            @classmethod
            def run(cls) -> None: ...


# -- values ----------------------------------------------------------------------------


def test_opaque_value_is_loud_where_it_would_be_guessed_at(store, paints):
    paint = paints.Paint().make_persistent(store=store)
    color = paint.color

    assert isinstance(color, activestore.Opaque)
    with pytest.raises(TypeError, match="unpickle=True"):
        bool(color == paints.Color.RED)
    with pytest.raises(TypeError, match="unpickle=True"):
        bool(color != paints.Color.RED)
    with pytest.raises(AttributeError, match="unpickle=True"):
        _ = color.name
    assert color == paint.color
    assert hash(color) == hash(paint.color)
    assert copy.copy(color) == color
    paint.color = color
    assert paint.describe() == "RED 1.0 None"


def test_client_that_chose_to_unpickle_gets_the_values(store, paints):
    paint = paints.Paint().make_persistent(store=store, alias="p")

    with activestore.connect(store.endpoint, unpickle=True) as trusting:
        paint = trusting.get_for_class("p", paints.Paint)
        assert paint.color is paints.Color.RED
        assert paint.things() == (
            collections.deque([1, 2]), paints.Size(2), range(3), paints.Color.RED,
        )  # fmt: skip
        paint.color = paints.Color.BLUE
        assert paint.describe(paints.Size(3)).startswith("BLUE 1.0 Size(width=3")


def test_open_file_in_a_field_is_refused(store, tmp_path):
    from models import Echo

    with (tmp_path / "f").open("w+") as file:
        echo = Echo({"log": [file]})
        with pytest.raises(UnsupportedValueError, match="an open file") as caught:
            echo.make_persistent(store=store)

    assert caught.value.path == 'field["value"]["log"][0]'


def test_wrong_arguments_are_a_type_error_too(shared):
    counter = shared.create("models.Counter")

    for call in (
        lambda: counter.add(1, 2, 3),
        lambda: counter.add.submit(m=1).result(),
        lambda: shared.create("models.Counter", nothing=1),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert isinstance(caught.value, InvalidRequestError)


@pytest.mark.parametrize("what", [5, None, [5], object()])
def test_persist_of_what_is_no_active_object_is_refused(shared, what):
    with pytest.raises(InvalidRequestError, match="expected an ActiveObject"):
        shared.persist(what)


# -- names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alias", ["two\nlines", " blank", "0" * 32, 5, None, "\ud800", "x" * 300, "\0"]
)
def test_alias_that_cannot_name_anything_is_refused(shared, alias):
    from models import Counter

    with pytest.raises(InvalidRequestError):
        Counter().make_persistent(alias=alias, store=shared)
    with pytest.raises(InvalidRequestError):
        shared.create("models.Counter", alias=alias)


@pytest.mark.parametrize("name", ["", 5, None, b"short", "two\nlines"])
def test_name_that_names_nothing_is_refused(shared, name):
    with pytest.raises(InvalidRequestError):
        shared.get(name)


def test_id_as_identify_returns_it_is_a_name(shared):
    counter = shared.create("models.Counter", alias="by-id")
    object_id, _ = shared.identify("by-id")

    assert shared.get(object_id) is counter
    shared.delete(object_id)


@pytest.mark.parametrize(
    "endpoint", [7400, [], [7400], ["tcp://127.0.0.1:7400", None], b"tcp://x:1", {}]
)
def test_endpoint_that_is_none_is_refused(endpoint, monkeypatch):
    monkeypatch.setenv("ACTIVESTORE_ENDPOINT", "tcp://127.0.0.1:1")

    with pytest.raises(ConfigurationError):
        activestore.connect(endpoint, timeout_s=0.2)


@pytest.mark.parametrize(
    "options", [{"timeout_s": "5"}, {"name": "\ud800"}, {"name": 5}]
)
def test_option_of_connect_that_cannot_be_meant_is_refused(options):
    with pytest.raises(ConfigurationError):
        activestore.connect("tcp://127.0.0.1:1", **options)


def test_live_peer_behind_a_dead_one_is_found_soon(shared_peer):
    with socket.socket() as held:  # Bound, and nobody listens.
        held.bind(("127.0.0.1", 0))
        dead = f"tcp://127.0.0.1:{held.getsockname()[1]}"
        started_s = time.monotonic()
        with activestore.connect([dead, dead, shared_peer.endpoint]) as store:
            assert store.endpoint == shared_peer.endpoint
            assert time.monotonic() - started_s < 5.0
        started_s = time.monotonic()
        with pytest.raises(activestore.errors.UnavailableError, match=dead):
            activestore.connect([dead, dead], timeout_s=0.5)
        assert time.monotonic() - started_s < 2.0


# -- publishing ------------------------------------------------------------------------


@pytest.mark.parametrize("what", [5, None, int, object(), ["models"]])
def test_publish_of_what_is_no_code_is_refused(shared, what):
    with pytest.raises(InvalidRequestError):
        shared.publish(what)


def test_data_files_are_patterns_that_match_something(shared, tmp_path):
    root = tmp_path / "withdata"
    root.mkdir()
    (root / "__init__.py").write_text(
        "from activestore import ActiveObject, activemethod\n"
        "class Reader(ActiveObject):\n"
        "    @activemethod(readonly=True)\n"
        "    def read(self):\n"
        "        import importlib.resources as r\n"
        "        return (r.files('withdata') / 'd.txt').read_text()\n"
    )
    (root / "d.txt").write_text("content")

    with pytest.raises(InvalidRequestError, match=r"no file matches.*e\.txt"):
        shared.publish(str(root), data_files=["d.txt", "e.txt"])
    shared.publish(str(root), data_files="d.txt")

    assert shared.create("withdata.Reader").read() == "content"


def test_module_in_the_current_directory_is_found_by_name(
    shared, tmp_path, monkeypatch
):
    (tmp_path / "herepk").mkdir()
    (tmp_path / "herepk" / "__init__.py").write_text(
        "from activestore import ActiveObject\nclass Here(ActiveObject): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", ".")])

    assert shared.publish("herepk") == ["herepk.Here"]
    with pytest.raises(InvalidRequestError, match="no such file or directory here"):
        shared.publish("nowherepk")


def test_calling_a_field_is_told_as_such(shared):
    counter = shared.create("models.Counter")

    with pytest.raises(NoSuchMethodError, match="value is a field, no method"):
        shared.invoke(
            activestore.remote.id_of(counter), "value", (), {},
            activestore.remote.DEFAULT_OPTIONS,
        )  # fmt: skip
