"""Buffers in frames: cut on one side, joined or left parted on the other."""

from __future__ import annotations

import pytest

from activestore.errors import RemoteProtocolError
from activestore.wire import codec
from activestore.wire.limits import FRAME_BYTES_MAX
from activestore.wire.messages import Buffer, PartedBuffer, Reply, whole

CONTENT = bytes(range(256)) * (FRAME_BYTES_MAX // 256) + b"the end"


def frames_of(*buffers: Buffer | PartedBuffer) -> list[Buffer]:
    return codec.encode_frames(Reply(1, None, b"\xc0", buffers))


def test_a_large_buffer_is_cut_and_joined() -> None:
    frames = frames_of(b"small", CONTENT, b"")
    sizes = [memoryview(frame).nbytes for frame in frames[1:]]
    assert sizes == [5, FRAME_BYTES_MAX, 7]
    (message,) = codec.decode_frames(frames, codec.joined)
    assert [bytes(whole(one)) for one in message.buffers] == [b"small", CONTENT, b""]


def test_a_parted_buffer_is_forwarded_as_it_came() -> None:
    frames = frames_of(CONTENT)
    (message,) = codec.decode_frames(frames)
    (buffer,) = message.buffers
    assert isinstance(buffer, PartedBuffer)
    assert buffer.nbytes == len(CONTENT)
    assert frames_of(buffer) == frames
    assert whole(buffer) == CONTENT


def test_a_buffer_in_frames_of_other_sizes_is_refused() -> None:
    first, *rest = frames_of(CONTENT)
    assert len(rest) == 2
    moved = [CONTENT[: FRAME_BYTES_MAX - 1], CONTENT[FRAME_BYTES_MAX - 1 :]]
    with pytest.raises(RemoteProtocolError, match="expected 2 of 16777216"):
        codec.decode_frames([first, *moved])


@pytest.mark.parametrize("buffers", [[b""], [b"", b""], [b"", b"x", b""]])
def test_empty_buffers_arrive(buffers: list[bytes]) -> None:
    """An array of a state may have no elements; it broke the connection for ever."""
    sent = Reply(1, None, b"body", buffers)

    (found,) = codec.decode_frames(codec.encode_frames(sent))

    assert [bytes(whole(one)) for one in found.buffers] == buffers


@pytest.mark.parametrize("listed", [[0, 1], [False], ["0"], {"a": 0}, "text"])
def test_list_of_sizes_without_its_frames_is_refused(listed: object) -> None:
    frame = codec.encode(Reply(1, {"buffers": listed}, b"body"))

    with pytest.raises(RemoteProtocolError):
        codec.decode_frames([frame])
