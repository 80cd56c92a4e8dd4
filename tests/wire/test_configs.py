"""A config that names nobody, or somebody twice, is refused when it is read."""

from __future__ import annotations

import pytest

from activestore.errors import RemoteProtocolError
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    VOTERS_MAX,
    Ballot,
    Config,
    Drop,
    decode_entries,
    encode_entries,
)

A, B, NONE = PeerId(b"a" * 6), PeerId(b"b" * 6), PeerId(b"")
MANY = tuple(PeerId(bytes([n]) * 6) for n in range(VOTERS_MAX))


def read(config: Config) -> None:
    drop = Drop(ObjectId(b"o" * 16), Ballot(1, A), config)
    assert decode_entries(*encode_entries([drop])) == [drop]


@pytest.mark.parametrize(
    "config",
    [
        Config(1, ()),
        Config(1, (), witness=A),
        Config(1, (A, NONE)),
        Config(1, (A, A)),
        Config(1, (A,), witness=A),
        Config(1, (A,), before=(B, B)),
        Config(1, (A,), before=(NONE,)),
        Config(1, MANY, witness=A),
    ],
)
def test_config_that_cannot_be_is_refused(config: Config) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        read(config)


def test_largest_config_is_read() -> None:
    read(Config(1, MANY[1:], witness=MANY[0], before=MANY))
