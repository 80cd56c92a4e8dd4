"""Every value of the design travels and comes back equal; what cannot is refused."""

from __future__ import annotations

import datetime as dt
import decimal
import subprocess
import sys
import threading
import time
import uuid
import zoneinfo
from typing import Any

import pytest

from activestore import errors
from activestore.errors import TooLargeError, UnsupportedValueError
from activestore.wire import values

np = pytest.importorskip("numpy")

PLAIN = [
    None, True, 0, -1, 2**63, 2**64, -(2**70), 1.5, float("inf"), 1 + 2j, "", "ü", b"ab",
    [1, [2]], (1, (2,)), {"a": 1, 2: 3, None: 4, (1, 2): 5}, {1, 2}, frozenset({3}),
    dt.date(2020, 1, 2), dt.time(1, 2, 3, 4), dt.time(1, tzinfo=dt.timezone.utc),
    dt.datetime(2020, 1, 2, 3, 4, 5, 6), dt.datetime(2020, 1, 2, tzinfo=dt.timezone.utc),
    dt.datetime(2020, 10, 25, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1),
    dt.timedelta(-1, 2, 3), decimal.Decimal("1.50"), decimal.Decimal("-0"),
    uuid.UUID(int=7), b"x" * 100_000,
    [b"y" * 100_000, {"k": b"z" * 70_000}], values.Ref(b"1" * 16, "m.C"),
]  # fmt: skip
ARRAYS = [
    np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(10)[::2], np.arange(12).reshape(3, 4)[:, 1:3], np.zeros((0, 3)), np.array(5),
    np.arange(3, dtype=">i4"), np.array(["2020-01-01"], "M8[D]"), np.array([1], "m8[ms]"),
    np.array([(1, 2.0)], dtype=[("a", "<i4"), ("b", "<f8")]),
    np.array([(1, [2.0, 3.0])], np.dtype([("a", "i1"), ("b", "<f8", (2,))], align=True)),
    np.array([True]), np.array([1], np.float16), np.array(["ab", "c"]), np.array([b"a"]),
    np.ones(100_000), np.array([1j]), np.arange(8)[::-1],
]  # fmt: skip


def there_and_back(value: Any) -> Any:
    encoded, buffers = values.encode(value)
    return values.decode(encoded, [bytes(b) for b in buffers])


@pytest.mark.parametrize(
    "value", PLAIN, ids=lambda v: f"{type(v).__name__}-{str(v)[:20]}"
)
def test_plain_value_comes_back_equal_and_of_its_type(value: Any) -> None:
    back = there_and_back(value)

    assert type(back) is type(value)
    assert back == value


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
def test_array_comes_back_with_dtype_shape_and_content(array: Any) -> None:
    back = there_and_back(array)

    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.flags.f_contiguous == array.flags.f_contiguous or array.ndim < 2
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    "scalar",
    [np.float32(1.5), np.int64(3), np.datetime64("2020-01-01"), np.bool_(True)],
)
def test_array_scalar_keeps_its_type(scalar: Any) -> None:
    back = there_and_back(scalar)

    assert type(back) is type(scalar)
    assert back == scalar


def test_tensor_comes_back_equal() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.arange(6).reshape(2, 3), torch.ones(3, dtype=torch.bfloat16),
        torch.arange(10)[::2], torch.tensor(True), torch.zeros(0, 2),
        torch.nn.Parameter(torch.ones(2)), torch.ones(50_000),
    ):  # fmt: skip
        back = there_and_back(tensor)

        assert back.dtype == tensor.dtype
        assert torch.equal(back, tensor.detach())


def test_sparse_tensor_is_refused() -> None:
    torch = pytest.importorskip("torch")

    with pytest.raises(UnsupportedValueError, match="dense"):
        values.encode(torch.eye(3).to_sparse())


def test_frame_comes_back_equal() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "ints": [1, 2],
            "texts": ["x", None],
            "kinds": pd.Categorical(["u", "v"], ordered=True),
            "times": pd.to_datetime(["2020", "2021"]).tz_localize("Europe/Berlin"),
            "maybe": pd.array([1, None], dtype="Int64"),
        },
        index=pd.Index([5, 6], name="row"),
    )

    pd.testing.assert_frame_equal(there_and_back(frame), frame)
    pd.testing.assert_series_equal(there_and_back(frame["ints"]), frame["ints"])


@pytest.mark.parametrize("code", [c for c in errors.BY_CODE if c != "error"])
def test_every_error_travels(code: str) -> None:
    cls = errors.BY_CODE[code]
    samples = {"object_id": b"1" * 16, "peers_asked": (b"123456",), "size": 1, "limit": 2,
               "pid": 3, "sequence": 4, "timeout_s": 1.0, "age_s": 1.0, "limit_s": 1.0,
               "used_bytes": 1, "budget_bytes": 2, "missing": ("a",), "peers_with": ("b",),
               "known": ("c",), "available": ("d",), "retry_after_s": 0.5,
               "quarantined_s": 0.0, "peer_id": b"peer-1", "epoch": 3}  # fmt: skip
    error = errors.error_from_wire(
        code, tuple(samples.get(name, name) for name in cls.FIELDS)
    )

    back = there_and_back(error)

    assert isinstance(back, cls)
    assert back.args == error.args
    assert str(back) == str(error)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"model": {"layers": [1, object()]}}, 'result["model"]["layers"][1]'),
        ([lambda: 0], "result[0]"),
        ({(1, 2): [object()]}, "result[(1, 2)][0]"),
        ("\ud800", "result"),
        ([np.array([object()])], "result[0]"),
    ],
)
def test_what_cannot_travel_is_refused_with_its_path(value: Any, path: str) -> None:
    with pytest.raises(UnsupportedValueError) as refused:
        values.encode(value, path="result")

    assert refused.value.path == path


def test_list_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(UnsupportedValueError, match="contains itself"):
        values.encode(value)


def test_subclass_of_a_builtin_does_not_become_something_else() -> None:
    class Text(str):
        __slots__ = ()

    with pytest.raises(UnsupportedValueError):
        values.encode(Text("x"))


def test_too_deep_and_too_many_are_refused() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]

    with pytest.raises(TooLargeError, match="depth"):
        values.encode(deep)
    with pytest.raises(TooLargeError, match="elements"):
        values.encode([[0] * 10] * 20_000)


def test_pickled_value_is_opaque_without_unpickle_and_can_be_handed_back() -> None:
    encoded, _ = values.encode(object(), pickle=lambda _: ("m.T", b"pickled"))

    opaque = values.decode(encoded)

    assert isinstance(opaque, values.Opaque)
    assert (opaque.type_name, opaque.bytes_count) == ("m.T", 7)
    assert values.encode(opaque)[0] == encoded
    assert values.decode(encoded, unpickle=lambda n, d: (n, d)) == ("m.T", b"pickled")


def test_refs_are_made_and_resolved_by_the_caller() -> None:
    thing = object()

    encoded, _ = values.encode(
        {"a": [thing]}, ref_of=lambda o: b"i" * 16 + b"m.C" if o is thing else None
    )

    assert values.decode(encoded) == {"a": [values.Ref(b"i" * 16)]}
    assert values.decode(encoded, resolve=lambda ref: ref[16:]) == {"a": [b"m.C"]}


def test_large_blocks_travel_as_buffers_without_a_copy() -> None:
    array = np.arange(100_000.0)

    encoded, buffers = values.encode({"a": array})

    assert len(encoded) < 100
    assert np.shares_memory(np.frombuffer(buffers[0]), array)
    assert np.shares_memory(values.decode(encoded, buffers)["a"], array)


WITHOUT_NUMPY = """
import sys
for name in ("numpy", "torch", "pandas"):
    sys.modules[name] = None
from activestore import Array
from activestore.wire import values
for line in sys.stdin:
    value = values.decode(bytes.fromhex(line))
    if isinstance(value, Array):
        print("array", value.dtype, value.shape, value.tolist())
        assert values.decode(values.encode(value)[0]) == value
    else:
        print(type(value).__name__, value if not isinstance(value, dict) else list(value))
"""


def test_without_numpy_arrays_tensors_and_frames_still_arrive() -> None:
    torch = pytest.importorskip("torch")
    pd = pytest.importorskip("pandas")
    sent = [
        np.arange(6, dtype="<i4").reshape(2, 3),
        np.asfortranarray(np.arange(4.0).reshape(2, 2)),
        np.arange(2, dtype=">i2"),
        np.float32(1.5),
        torch.ones(2, dtype=torch.bfloat16),
        pd.DataFrame({"a": [1], "b": ["x"]}),
    ]
    lines = "\n".join(values.encode(value)[0].hex() for value in sent)

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMPY], input=lines, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "array <i4 (2, 3) [[0, 1, 2], [3, 4, 5]]",
        "array <f8 (2, 2) [[0.0, 1.0], [2.0, 3.0]]",
        "array >i2 (2,) [0, 1]",
        "float 1.5",
        "array bfloat16 (2,) [1.0, 1.0]",
        "dict ['a', 'b']",
    ]


def test_library_that_another_thread_has_half_imported_is_waited_for(
    tmp_path, monkeypatch
) -> None:
    """`sys.modules` holds a module from the first line of its import on."""
    (tmp_path / "slowly_made.py").write_text(
        "import time\ntime.sleep(0.3)\nis_whole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    thread = threading.Thread(target=__import__, args=("slowly_made",))
    thread.start()
    while "slowly_made" not in sys.modules:
        time.sleep(0.001)

    found = values.loaded_library("slowly_made")

    thread.join()
    assert found is not None
    assert found.is_whole
