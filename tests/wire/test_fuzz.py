"""Whatever the bytes: messages and values, or RemoteProtocolError. Never anything else.

`ACTIVESTORE_FUZZ_CASES` sets the number of cases; above the default they are random.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activestore.errors import RemoteProtocolError
from activestore.wire import codec, messages, state, values

DEFAULT_CASES = 20_000
CASES = int(os.environ.get("ACTIVESTORE_FUZZ_CASES", str(DEFAULT_CASES)))
pytestmark = pytest.mark.scaled
VECTORS = Path(__file__).resolve().parents[2] / "schemas" / "vectors"
FRAMES = [
    bytes.fromhex(row["frame"])
    for row in json.loads((VECTORS / "messages.json").read_text())["valid"]
]
VALUES = [
    bytes.fromhex(row["bytes"])
    for row in json.loads((VECTORS / "values.json").read_text())["valid"]
]


def fuzz(share: float) -> settings:
    """Return the settings of a test that has this share of all cases."""
    return settings(
        max_examples=max(1, int(CASES * share)),
        derandomize=CASES <= DEFAULT_CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Return one of the originals with some bytes changed, cut, doubled or put in."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        position = draw(st.integers(0, len(data) - 1))
        what = draw(st.integers(0, 3))
        if what == 0:
            data[position] = draw(st.integers(0, 255))
        elif what == 1:
            del data[position:]
        elif what == 2:
            data[position:position] = draw(st.binary(max_size=8))
        else:
            data += data[position:]
    return bytes(data)


def decode_frames(frames: list[bytes]) -> None:
    try:
        found = codec.decode_frames(frames)
    except RemoteProtocolError:
        return
    for message in found:
        assert type(message) in messages.HEADERS
        assert codec.decode_frames(codec.encode_frames(message)) == [message]


@fuzz(0.2)
@given(st.lists(st.binary(max_size=64), max_size=3))
def test_random_frames(frames: list[bytes]) -> None:
    decode_frames(frames)


@fuzz(0.4)
@given(mutated(FRAMES), st.lists(st.binary(max_size=16), max_size=2))
def test_mutated_frames(frame: bytes, buffers: list[bytes]) -> None:
    decode_frames([frame, *buffers])


@fuzz(0.1)
@given(st.binary(max_size=64))
def test_random_values(data: bytes) -> None:
    try:
        values.decode(data)
    except RemoteProtocolError:
        return


@fuzz(0.25)
@given(mutated(VALUES))
def test_mutated_values(data: bytes) -> None:
    try:
        values.decode(data, [b"x" * 16])
    except RemoteProtocolError:
        return


@fuzz(0.05)
@given(st.binary(max_size=64))
def test_random_states(data: bytes) -> None:
    try:
        state.decode_states(data, [])
    except RemoteProtocolError:
        return
