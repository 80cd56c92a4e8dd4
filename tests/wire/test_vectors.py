"""The schemas and the code are one: every vector decodes, or is refused, as it says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from activestore import errors
from activestore.errors import RemoteProtocolError
from activestore.wire import codec, messages, values

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
MESSAGES = json.loads((SCHEMAS / "vectors" / "messages.json").read_text())
VALUES = json.loads((SCHEMAS / "vectors" / "values.json").read_text())
PROTOCOL = (SCHEMAS / "protocol.md").read_text()
CDDL = (SCHEMAS / "messages.cddl").read_text()
KINDS = [cls.__name__ for cls in messages.HEADERS]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{i}-{row.get('message', row.get('name', row.get('why')))}"
        for i, row in enumerate(rows)
    ]


def plain(value: Any) -> Any:
    """Return a header as the vectors write it: bytes as {"hex": ...}."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("row", MESSAGES["valid"], ids=ids(MESSAGES["valid"]))
def test_valid_message_decodes_and_encodes_to_the_same_bytes(
    row: dict[str, Any],
) -> None:
    frame = bytes.fromhex(row["frame"])

    (message,) = codec.decode_frames([frame])

    assert type(message).__name__ == row["message"]
    assert plain(list(message[:-2])) == row["header"]
    assert bytes(message[-2]).hex() == row["body"]
    assert codec.encode(message) == frame


@pytest.mark.parametrize("row", MESSAGES["invalid"], ids=ids(MESSAGES["invalid"]))
def test_invalid_message_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        codec.decode_frames([bytes.fromhex(row["frame"])])

    assert row["message"] in str(refused.value)


@pytest.mark.parametrize("row", MESSAGES["malformed"], ids=ids(MESSAGES["malformed"]))
def test_malformed_frame_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        codec.decode_frames([bytes.fromhex(row["frame"])])


@pytest.mark.parametrize("name", KINDS)
def test_every_message_has_vectors_of_both_kinds(name: str) -> None:
    assert [row for row in MESSAGES["valid"] if row["message"] == name]
    assert [row for row in MESSAGES["invalid"] if row["message"] == name]


def test_every_message_has_a_rule_and_every_rule_a_message() -> None:
    rules = set(re.findall(r"^(\w+) = \[", CDDL, re.MULTILINE))

    assert rules == {name.lower() for name in KINDS}


@pytest.mark.parametrize("row", MESSAGES["valid"], ids=ids(MESSAGES["valid"]))
def test_valid_header_fits_its_rule(row: dict[str, Any]) -> None:
    cbor2 = pytest.importorskip("cbor2")
    pycddl = pytest.importorskip("pycddl")
    (message,) = codec.decode_frames([bytes.fromhex(row["frame"])])
    header = [messages.KIND_OF[type(message)], *message[:-2]]

    # Each rule alone: pycddl 0.6.4 mistakes nil in a choice of twenty arrays.
    rule = f"start = {row['message'].lower()}\n"
    pycddl.Schema(rule + CDDL).validate_cbor(cbor2.dumps(header))


def test_trailing_fields_of_a_newer_version_are_ignored() -> None:
    import msgpack

    header = msgpack.packb([messages.KIND_OF[messages.Ping], 5, {"new": 1}, "newer", 7])
    frame = len(header).to_bytes(4, "little") + bytes(4) + header

    (message,) = codec.decode_frames([frame])

    assert message == messages.Ping(5, {"new": 1})


def buffers_of(row: dict[str, Any]) -> list[bytes]:
    return [bytes.fromhex(b["repeat"]) * b["count"] for b in row.get("buffers", [])]


@pytest.mark.parametrize("row", VALUES["valid"], ids=ids(VALUES["valid"]))
def test_valid_value_decodes_and_encodes_to_the_same_bytes(row: dict[str, Any]) -> None:
    needed = {"tensor": "torch", "frame": "pandas", "series": "pandas"}.get(row["name"])
    if needed:
        pytest.importorskip(needed)

    value = values.decode(bytes.fromhex(row["bytes"]), buffers_of(row))

    encoded, buffers = values.encode(value)
    assert encoded.hex() == row["bytes"]
    assert [bytes(b) for b in buffers] == buffers_of(row)


@pytest.mark.parametrize("row", VALUES["invalid"], ids=ids(VALUES["invalid"]))
def test_invalid_value_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        values.decode(bytes.fromhex(row["bytes"]))


def test_every_extension_type_has_a_vector_and_a_row_in_the_protocol() -> None:
    section = PROTOCOL.split("## 5. Values")[1].split("## 6.")[0]
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}

    assert rows == set(values.EXTENSION_CODES)
    first_bytes = {row["bytes"] for row in VALUES["valid"]}
    for code in values.EXTENSION_CODES:
        marks = [f"{kind:02x}" for kind in (0xD4, 0xD5, 0xD6, 0xD7, 0xD8)]
        shorts = [f"{m}{code:02x}" for m in marks]
        assert any(
            text[:4] in shorts or re.match(rf"(c7..|c8....){code:02x}", text)
            for text in first_bytes
        ), f"extension {code} has no vector"


def test_protocol_lists_every_message_with_its_fields() -> None:
    section = PROTOCOL.split("## 4. Messages")[1].split("## 5.")[0]
    for cls, (kind, types) in messages.HEADERS.items():
        (row,) = re.findall(
            rf"^\| {kind} \| {cls.__name__} \|.*$", section, re.MULTILINE
        )
        for field in cls._fields[: len(types)]:
            assert field in row, f"{cls.__name__}.{field} is not in the protocol"


def test_protocol_lists_every_operation() -> None:
    from activestore.testing import Simulation

    with Simulation(seed=1, peers=1) as sim:
        (peer,) = sim.peers.values()
        operations = set(peer.loop.request_handler.__self__.operations)  # type: ignore[attr-defined]
    section = PROTOCOL.split("## 6.")[1].split("## 7.")[0]
    listed = set(
        re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| `.*?\|", section, re.M)))
    )

    assert listed == operations


def test_error_codes_equal_the_classes() -> None:
    table = tomllib.loads((SCHEMAS / "errors.toml").read_text())

    assert set(table) == set(errors.BY_CODE)
    for code, cls in errors.BY_CODE.items():
        assert table[code]["class"] == cls.__name__
        assert tuple(table[code]["fields"]) == cls.FIELDS
        assert table[code]["fault"]
        assert table[code]["text"]
