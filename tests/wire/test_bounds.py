"""The bounds of a value: both sides draw them at the same place.

What `encode` accepts `decode` accepts; what a stranger sends beyond a bound is refused
before it takes memory.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activestore.errors import (
    RemoteProtocolError,
    TooLargeError,
    UnsupportedValueError,
    error_from_wire,
)
from activestore.wire import codec, values
from activestore.wire.limits import (
    BUFFER_BYTES_MIN,
    VALUE_DEPTH_MAX,
    VALUE_ELEMENTS_MAX,
)


def nested(wrap: Callable[[Any], Any], levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = wrap(value)
    return value


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "dict": lambda inner: {"a": inner},
    "frozenset": lambda inner: frozenset([inner]),
    "mixed": lambda inner: [inner] if type(inner) is tuple else (inner,),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_deepest_value_that_is_sent_is_received(wrap: str) -> None:
    value = nested(WRAPS[wrap], VALUE_DEPTH_MAX)
    body, buffers = values.encode(value)
    assert values.decode(body, buffers) == value
    with pytest.raises(TooLargeError, match="depth"):
        values.encode(nested(WRAPS[wrap], VALUE_DEPTH_MAX + 1))


@given(
    st.recursive(
        st.integers() | st.text(max_size=5) | st.none(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=60,
    ),
    st.integers(0, 40),
    st.sampled_from(sorted(WRAPS)),
)
@settings(deadline=None, max_examples=300, derandomize=True)
def test_what_is_sent_is_received(core: Any, levels: int, wrap: str) -> None:
    value = core
    if wrap != "frozenset":
        for _ in range(levels):
            value = WRAPS[wrap](value)
    try:
        body, buffers = values.encode(value)
    except TooLargeError:
        return
    assert values.decode(body, buffers) == value


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda n: list(range(n)), VALUE_ELEMENTS_MAX),
        (lambda n: tuple(range(n)), VALUE_ELEMENTS_MAX),
        (lambda n: set(range(n)), VALUE_ELEMENTS_MAX),
        (lambda n: dict.fromkeys(range(n), 0), VALUE_ELEMENTS_MAX // 2),
        (lambda n: [[0]] * n, VALUE_ELEMENTS_MAX // 2),
    ],
)
def test_the_largest_value_that_is_sent_is_received(
    make: Callable[[int], Any], most: int
) -> None:
    value = make(most)
    body, buffers = values.encode(value)
    assert values.decode(body, buffers) == value
    with pytest.raises(TooLargeError, match="elements") as raised:
        values.encode(make(most + 1), path="result")
    assert "result" in str(raised.value)
    assert f"limit of {VALUE_ELEMENTS_MAX:,}" in str(raised.value)


def hidden(code: int, count: int) -> bytes:
    """Return a value whose elements are all in the payload of extensions."""
    inner = msgpack.ExtType(code, msgpack.packb([{}] * count))
    return bytes(msgpack.packb([inner] * 4))


@pytest.mark.parametrize(
    "code", [values.TUPLE, values.ERROR, values.ARRAY, values.DATE]
)
def test_elements_inside_extensions_are_counted_before_memory_is_taken(
    code: int,
) -> None:
    body = hidden(code, VALUE_ELEMENTS_MAX // 2)
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError, match="elements"):
        values.decode(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * len(body)


def test_one_buffer_cannot_be_asked_for_twice() -> None:
    large = msgpack.ExtType(values.BYTES, msgpack.packb(0))
    body = msgpack.packb([large, large])
    assert values.decode(msgpack.packb([large]), [b"x"]) == [b"x"]
    with pytest.raises(RemoteProtocolError, match="twice"):
        values.decode(body, [b"x" * BUFFER_BYTES_MIN])


def test_a_message_without_frames_is_malformed() -> None:
    with pytest.raises(RemoteProtocolError, match="without frames"):
        codec.decode_frames([])


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_an_error_about_text_that_cannot_travel_can_travel(text: str) -> None:
    with pytest.raises(UnsupportedValueError) as raised:
        values.encode({text: {1: object()}})
    told = raised.value
    code, fields = told.code, values.decode(values.encode_error(told))
    assert type(fields) is list
    assert str(error_from_wire(code, tuple(fields))) == str(told)
    raw = UnsupportedValueError("str", text)
    fields = values.decode(values.encode_error(raw))
    assert type(fields) is list
    assert "\\ud" in fields[1]


def test_a_float_that_differs_between_machines_is_refused() -> None:
    numpy = pytest.importorskip("numpy")
    if numpy.dtype(numpy.longdouble).itemsize == 8:
        pytest.skip("long double is a plain double here")
    with pytest.raises(UnsupportedValueError, match="not the same on every machine"):
        values.encode({"a": numpy.zeros(2, numpy.longdouble)})
    with pytest.raises(UnsupportedValueError, match="not the same on every machine"):
        values.encode(numpy.longdouble(1))
    for dtype in ("<f16", "<c32"):
        payload = msgpack.packb([dtype, [0], "C", b""])
        with pytest.raises(RemoteProtocolError, match="dtype"):
            values.decode(msgpack.packb(msgpack.ExtType(values.ARRAY, payload)))


class TestFrames:
    def test_a_frame_of_more_rows_of_text_than_elements(self) -> None:
        pandas = pytest.importorskip("pandas")
        rows = 2 * VALUE_ELEMENTS_MAX
        frame = pandas.DataFrame(
            {
                "plain": [f"row {i} é" for i in range(rows)],
                "gaps": pandas.array(["x", None] * (rows // 2), dtype="string"),
            }
        )
        body, buffers = values.encode(frame)
        assert len(body) < BUFFER_BYTES_MIN
        made = values.decode(body, buffers)
        pandas.testing.assert_frame_equal(made, frame)

    def test_cells_that_are_missing_stay_what_they_were(self) -> None:
        pandas = pytest.importorskip("pandas")
        series = pandas.Series(["a", None, float("nan"), 3], dtype=object)
        made: Any = values.decode(*values.encode(series))
        assert made[1] is None
        assert made[2] != made[2]
        assert [made[0], made[3]] == ["a", 3]

    @pytest.mark.parametrize("zone", ["Europe/Madrid", "UTC", "+02:00"])
    def test_zones(self, zone: str) -> None:
        pandas = pytest.importorskip("pandas")
        series = pandas.Series(pandas.date_range("2026-03-01", periods=3, tz=zone))
        made: Any = values.decode(*values.encode(series))
        assert list(made) == list(series)
        assert [one.utcoffset() for one in made] == [one.utcoffset() for one in series]

    @pytest.mark.parametrize("zone", ["dateutil//etc/passwd", "../../etc/passwd"])
    def test_a_zone_never_names_a_file(self, zone: str) -> None:
        numpy = pytest.importorskip("numpy")
        pytest.importorskip("pandas")
        stamps = numpy.zeros(1, "<M8[ns]")
        column = {"dtype": "zoned", "values": stamps, "zone": zone}
        payload, _ = values.encode(["timestamp", column])
        body = msgpack.packb(msgpack.ExtType(values.SERIES, payload))
        with pytest.raises(RemoteProtocolError):
            values.decode(body)
