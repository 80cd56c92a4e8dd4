"""Fields to states and back: what is shared stays shared, what changed is found."""

from __future__ import annotations

import datetime
import threading
import uuid
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pytest

from activestore.errors import (
    InvalidRequestError,
    RequirementError,
    UnsupportedValueError,
)
from activestore.model import ID_SLOT, ActiveObject
from activestore.objects.digests import aligned_memory
from activestore.objects.snapshot import Snapshotter, migrate
from activestore.wire.state import ObjectState, apply_delta

DATA_BYTES = 8 * 1000


class Box(ActiveObject):
    a: Any
    b: Any
    c: Any


class Dataset(ActiveObject):
    rows: Final[np.ndarray]
    seen: list
    n: int


class Layer:
    """A user's own class, of a module that can be imported."""

    def __init__(self, weights: np.ndarray, lock: object = None) -> None:
        self.weights = weights
        self.lock = lock


class Objects:
    """Gives ids to active objects and finds them again, as an executor does."""

    def __init__(self) -> None:
        self.known: dict[bytes, object] = {}

    def ref_of(self, obj: Any) -> bytes | None:
        if not isinstance(obj, ActiveObject):
            return None
        ref = obj.__dict__.setdefault(ID_SLOT, uuid.uuid4().bytes)
        self.known[ref] = obj
        return ref

    def resolve(self, ref: bytes) -> object:
        return self.known[ref]


def snapshotter(cls: type, **options: Any) -> Snapshotter:
    objects = Objects()
    return Snapshotter(
        cls,
        class_name=f"m.{cls.__name__}",
        revision=b"r" * 16,
        class_version=3,
        ref_of=objects.ref_of,
        resolve=objects.resolve,
        **options,
    )


def shipped(state: ObjectState) -> ObjectState:
    """Return the state as a peer gets it: bytes, no memory of the object's."""
    return state._replace(buffers=[bytes(b) for b in state.buffers])


def box(**fields: Any) -> Box:
    made = Box()
    made.__dict__.update(fields)
    return made


PLAIN = [
    None, True, 7, -(2**70), 1.5, 2j, "text", b"bytes", Decimal("1.10"),
    datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3,
    tzinfo=datetime.timezone.utc), datetime.time(1, 2), datetime.timedelta(seconds=3),
    uuid.UUID(int=5), (1, "a", (2.0, None)), frozenset({1, 2}),
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_a_plain_value_is_its_own_field_and_comes_back(value: object) -> None:
    taker, obj = snapshotter(Box), box(a=value)

    state, _ = taker.take(obj)
    back = Box()
    taker.load(back, shipped(state))

    assert list(state.fields) == ["a"]
    assert state.graph == b""
    assert back.a == value
    assert type(back.a) is type(value)


GRAPH = [
    [1, [2]], {"k": {1, 2}}, bytearray(b"x"), b"x" * 100_000, "y" * 100_000, "\ud800",
    np.float32(2.5), (1, [2]), tuple(range(2000)),
    datetime.datetime(2026, 10, 25, 2, 30, fold=1),
]  # fmt: skip


@pytest.mark.parametrize("value", GRAPH, ids=lambda v: repr(v)[:20])
def test_any_other_value_goes_to_the_graph_and_comes_back(value: object) -> None:
    taker, obj = snapshotter(Box), box(a=value)

    state, before = taker.take(obj)
    back = Box()
    baseline = taker.load(back, shipped(state))

    assert state.graph_fields == ("a",)
    assert back.a == value
    assert type(back.a) is type(value)
    assert taker.changes(obj, before) is None
    assert taker.changes(back, baseline) is None


@pytest.mark.parametrize(
    "array",
    [
        np.arange(DATA_BYTES // 8.0),
        np.asfortranarray(np.arange(4000.0).reshape(40, 100)),
        np.arange(40_000)[::3],
        np.array([{"a": 1}, None], dtype=object),
        np.array(["x", "yy"]),
    ],
    ids=["c", "fortran", "strided", "objects", "texts"],
)
def test_arrays_come_back_writable_and_owned(array: np.ndarray) -> None:
    taker = snapshotter(Box)
    state, _ = taker.take(box(a=array))

    back = Box()
    taker.load(back, shipped(state))

    np.testing.assert_array_equal(back.a, array)
    assert back.a.dtype == array.dtype
    assert back.a.flags.f_contiguous == array.flags.f_contiguous or array.ndim == 1
    back.a[0] = back.a[1]


def test_a_loaded_object_uses_writable_memory_without_a_copy() -> None:
    taker = snapshotter(Box)
    state, _ = taker.take(box(a=np.zeros(10_000)))
    memory = aligned_memory(80_000)

    back = Box()
    taker.load(back, state._replace(buffers=[memory]))
    back.a[0] = 1.0

    assert bytes(memory[:8]) == np.float64(1.0).tobytes()


def test_what_two_fields_share_is_shared_after_a_load() -> None:
    shared = [np.zeros(DATA_BYTES)]
    taker = snapshotter(Box)
    state, _ = taker.take(box(a=shared, b={"again": shared}, c=1))

    back = Box()
    taker.load(back, shipped(state))

    assert back.b["again"] is back.a
    assert len(state.buffers) == 1


def test_active_objects_are_refs_in_fields_and_inside_containers() -> None:
    other = box(a=1)
    obj = box(a=other, b=[other], c=(other,))
    obj.b.append(obj)
    taker = snapshotter(Box)

    state, before = taker.take(obj)
    back = Box()
    taker.load(back, shipped(state))

    assert sorted(state.fields) == ["a", "c"]
    assert back.a is other
    assert back.b[0] is other
    assert back.b[1] is obj
    assert back.c == (other,)
    assert taker.changes(obj, before) is None


def test_a_default_on_the_class_is_not_stored() -> None:
    class WithDefault(ActiveObject):
        n: int = 5

    state, _ = snapshotter(WithDefault).take(WithDefault())

    assert state.fields == {}


def test_transient_attributes_are_neither_stored_nor_compared() -> None:
    taker, obj = snapshotter(Box), box(a=1)
    obj._lock = threading.Lock()  # type: ignore[attr-defined]
    state, before = taker.take(obj)

    obj._lock = None  # type: ignore[attr-defined]

    assert list(state.fields) == ["a"]
    assert taker.changes(obj, before) is None


# -- what changed
# ------------------------------------------------------------------------


def check_delta(taker: Snapshotter, obj: Any, state: ObjectState, before: Any) -> Any:
    """Check that state plus delta is the object; return the delta and the snapshot."""
    found = taker.changes(obj, before)
    assert found is not None
    delta, after = found
    back = type(obj)()
    taker.load(back, shipped(apply_delta(shipped(state), delta)))
    names = ("a", "b", "c")
    assert [back.__dict__.get(n, "-") for n in names] == [
        obj.__dict__.get(n, "-") for n in names
    ]
    assert taker.changes(obj, after) is None
    return delta, after


def test_only_the_assigned_plain_field_is_in_the_delta() -> None:
    taker, obj = snapshotter(Box), box(a=1, b="x", c=[1])
    state, before = taker.take(obj)

    obj.a = 2
    delta, _ = check_delta(taker, obj, state, before)

    assert list(delta.fields) == ["a"]
    assert delta.graph is None
    assert (delta.class_name, delta.class_version) == ("m.Box", 3)


@pytest.mark.parametrize(("old", "new"), [(1, True), (0.0, -0.0), (1, 1.0), ("", b"")])
def test_an_equal_value_of_another_kind_is_a_change(old: object, new: object) -> None:
    taker, obj = snapshotter(Box), box(a=old)
    _, before = taker.take(obj)

    obj.a = new

    assert taker.changes(obj, before) is not None


def test_an_equal_number_that_is_another_object_is_no_change() -> None:
    taker, obj = snapshotter(Box), box(a=int("1000000"))
    _, before = taker.take(obj)

    obj.a = int("1000000")

    assert taker.changes(obj, before) is None


def test_a_change_deep_in_place_is_found() -> None:
    taker, obj = snapshotter(Box), box(a={"x": [{"y": 1}]}, b=1)
    state, before = taker.take(obj)

    obj.a["x"][0]["y"] = 2

    check_delta(taker, obj, state, before)


def test_a_deleted_field_is_removed_plain_or_not() -> None:
    taker, obj = snapshotter(Box), box(a=1, b=[1], c=[2])
    state, before = taker.take(obj)

    del obj.a
    del obj.b
    delta, after = check_delta(taker, obj, state, before)
    del obj.c
    last, _ = taker.changes(obj, after) or (None, None)

    assert delta.removed == ["a"]
    assert delta.graph_fields == ("c",)
    assert last is not None
    assert (last.graph, last.graph_fields) == (b"", ())


def test_a_field_moves_between_plain_and_graph() -> None:
    taker, obj = snapshotter(Box), box(a=1, b=[1])
    state, before = taker.take(obj)

    obj.a, obj.b = [5], 6
    delta, after = check_delta(taker, obj, state, before)
    moved = apply_delta(state, delta)
    obj.a, obj.b = 7, 8
    check_delta(taker, obj, moved, after)

    assert delta.removed == ["a"]
    assert delta.graph_fields == ("a",)


def test_only_changed_buffers_travel_wherever_they_moved() -> None:
    parts = [np.full(DATA_BYTES, i, np.float64) for i in range(3)]
    taker, obj = snapshotter(Box), box(a=list(parts))
    _, before = taker.take(obj)

    obj.a = [parts[2], np.full(DATA_BYTES, 9.0), parts[0]]
    found = taker.changes(obj, before)

    assert found is not None
    kinds = [b if isinstance(b, int) else "new" for b in found[0].buffers]
    assert kinds == [2, "new", 0]


def test_only_compares_the_named_fields() -> None:
    taker, obj = snapshotter(Box), box(a=1, b=2, c=[1])
    state, before = taker.take(obj)
    obj.a, obj.b = 10, 20
    obj.c.append(2)

    plain = taker.changes(obj, before, only=("a",))
    graph = taker.changes(obj, before, only=("c",))

    assert plain is not None
    assert graph is not None
    assert (list(plain[0].fields), plain[0].graph) == (["a"], None)
    assert graph[0].graph is not None
    check_delta(taker, obj, state, before)


def test_unchanged_after_a_load_though_pickle_memoizes_other_strings() -> None:
    text = "abcdef"
    obj = box(
        a={"x": text, "y": "".join(["abc", "def"])}, b=[Layer(np.zeros(DATA_BYTES))]
    )
    taker = snapshotter(Box)
    state, _ = taker.take(obj)

    back = Box()
    baseline = taker.load(back, shipped(state))

    assert taker.changes(back, baseline) is None
    back.b[0].weights[3] = 1
    assert taker.changes(back, baseline) is not None


def test_a_reader_skips_the_digests_and_then_counts_as_changed() -> None:
    taker = snapshotter(Box)
    state, _ = taker.take(box(a=[1]))
    back = Box()

    baseline = taker.load(back, shipped(state), is_reader=True)

    assert taker.first_difference(back, baseline) is None
    assert taker.changes(back, baseline) is not None


def test_a_long_stream_is_cut_and_an_append_writes_only_its_end() -> None:
    taker, obj = snapshotter(Box), box(a=[float(i) for i in range(300_000)])
    state, before = taker.take(obj)
    assert len(state.graph) < 100

    obj.a.append(1.5)
    delta, after = check_delta(taker, obj, state, before)

    new = [b for b in delta.buffers if not isinstance(b, int)]
    assert len(new) == 1
    assert len(delta.buffers) > 5
    assert after.state_bytes > 2_700_000


@pytest.mark.parametrize("field", ["a", "b"])
def test_the_first_difference_names_the_field(field: str) -> None:
    taker = snapshotter(Box)
    obj = box(a=np.zeros(DATA_BYTES), b=np.ones(DATA_BYTES), c=1)
    _, before = taker.take(obj)
    assert taker.first_difference(obj, before) is None

    getattr(obj, field)[7] = 5

    assert taker.first_difference(obj, before) == field


# -- Final
# ---------------------------------------------------------------------------------


def dataset() -> Dataset:
    made = Dataset()
    made.__dict__.update(rows=np.zeros(DATA_BYTES), seen=[], n=0)
    return made


def test_a_final_array_is_stored_and_kept_when_its_neighbour_changes() -> None:
    taker, obj = snapshotter(Dataset), dataset()
    state, before = taker.take(obj)

    obj.seen.append(1)
    found = taker.changes(obj, before)
    assert found is not None
    back = Dataset()
    taker.load(back, shipped(apply_delta(shipped(state), found[0])))

    assert found[0].buffers == [0]
    np.testing.assert_array_equal(back.rows, obj.rows)
    assert back.seen == [1]


def test_a_final_array_is_not_read_when_nothing_else_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digested: list[int] = []
    taker, obj = snapshotter(Dataset), dataset()
    _, before = taker.take(obj)
    obj.seen.append(1)

    def count(data: Any) -> bytes:
        digested.append(memoryview(data).nbytes)
        return bytes(16)

    monkeypatch.setattr("activestore.objects.snapshot.digest_of", count)
    taker.changes(obj, before)

    assert digested
    assert max(digested) < DATA_BYTES


def test_a_final_field_assigned_late_is_stored() -> None:
    taker, obj = snapshotter(Dataset), dataset()
    rows = obj.__dict__.pop("rows")
    state, before = taker.take(obj)

    obj.__dict__["rows"] = rows
    found = taker.changes(obj, before)

    assert found is not None
    assert set(apply_delta(state, found[0]).graph_fields) == {"rows", "seen"}
    assert taker.changes(obj, found[1]) is None


# -- what cannot be kept
# -------------------------------------------------------------------


def test_the_path_to_what_cannot_be_pickled_is_named() -> None:
    obj = box(a={"model": [Layer(np.zeros(3), threading.Lock())]})

    with pytest.raises(UnsupportedValueError) as raised:
        snapshotter(Box).take(obj)

    assert raised.value.path == 'field["a"]["model"][0].lock'
    assert raised.value.type_name == "_thread.lock"


def test_a_lock_in_a_closure_is_named() -> None:
    lock = threading.Lock()

    with pytest.raises(UnsupportedValueError) as raised:
        snapshotter(Box).take(box(a=lambda: lock))

    assert raised.value.path == 'field["a"].<closure>.lock'


def test_functions_and_local_classes_travel_by_value_and_stay_unchanged() -> None:
    class Local:
        def __init__(self) -> None:
            self.n = 1

    taker, obj = snapshotter(Box), box(a=lambda x: x + 1, b=Local())
    state, before = taker.take(obj)
    assert taker.changes(obj, before) is None
    back = Box()
    baseline = taker.load(back, shipped(state))

    assert back.a(1) == 2
    assert back.b.n == 1
    assert taker.changes(back, baseline) is None


def test_a_state_that_needs_a_missing_module_names_it() -> None:
    state = ObjectState(
        "m.Box", b"r" * 16, 0, {}, b"\x80\x05cnowhere_lib.x\nY\n.", ("a",), ()
    )

    with pytest.raises(RequirementError) as raised:
        snapshotter(Box).load(Box(), state)

    assert raised.value.missing == ("nowhere_lib",)


def test_a_state_that_needs_a_removed_class_says_so() -> None:
    state = ObjectState(
        "m.Box", b"r" * 16, 0, {}, b"\x80\x05cdecimal\nGone\n.", ("a",), ()
    )

    with pytest.raises(InvalidRequestError, match="__migrate__"):
        snapshotter(Box).load(Box(), state)


# -- versions
# ------------------------------------------------------------------------------


def test_migrate_makes_the_new_fields() -> None:
    class New(ActiveObject):
        @classmethod
        def __migrate__(
            cls, old_version: int, fields: dict[str, Any]
        ) -> dict[str, Any]:
            return {"total": fields["value"] + old_version}

    assert migrate(New, 2, {"value": 40}) == {"total": 42}
    assert migrate(Box, 2, {"a": 1}) == {"a": 1}


def test_migrate_that_returns_nothing_is_refused() -> None:
    class Forgot(ActiveObject):
        @classmethod
        def __migrate__(cls, old_version: int, fields: dict[str, Any]) -> None:
            fields["x"] = 1

    with pytest.raises(InvalidRequestError, match="__migrate__"):
        migrate(Forgot, 1, {})
