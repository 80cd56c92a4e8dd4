"""The register of one object at one peer: what is promised, what is accepted.

Rules of this file: pure data and the acceptor's rules; every change of a register is on
disk before anybody is told of it.

Source: reliability.md 3.2, 3.4 R1 and R2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from activestore.errors import CorruptRecordError
from activestore.ids import PeerId
from activestore.wire import packing
from activestore.wire.replicas import Ballot, Config, Point


class Register(NamedTuple):
    """What one peer has on disk of the register of one object.

    `promised`: no older epoch is taken. `epoch`, `number`: of the state that is kept, or,
    at a witness, that was accepted. `is_deleted`: that state is that it is deleted.
    `is_voter`: False for a copy that is to become a member. `changed_s`: when, wall clock.
    `is_lost`: the state cannot be read any more; what was promised and accepted holds all
    the same, so it votes as a witness does, and takes no delta, until a whole state came.
    """

    promised: Ballot
    epoch: Ballot
    number: int
    config: Config
    is_deleted: bool = False
    is_voter: bool = True
    is_quarantined: bool = False
    changed_s: float = 0.0
    is_lost: bool = False

    @property
    def point(self) -> Point:
        """Which state is kept."""
        return Point(self.epoch.counter, self.number)


def pack_register(register: Register) -> bytes:
    """Return a register as it lies on disk."""
    return bytes(packing.pack(register))


def unpack_register(value: bytes) -> Register:
    """Return the register of bytes that `pack_register` made, also by a later version.

    Raises:
        CorruptRecordError: they are no register.
    """
    try:
        promised, epoch, number, config, *more = packing.unpack(value, use_list=False)
        flags = tuple(map(bool, more[:3]))
        return Register(
            _ballot(promised),
            _ballot(epoch),
            int(number),
            _config(config),
            *flags,
            *map(float, more[3:4]),
            *map(bool, more[4:5]),
        )
    except packing.UNPACK_ERRORS as error:
        reason = f"it is none: {str(error)[:80]}"
        raise CorruptRecordError(b"", "row register", reason) from None


def _ballot(row: Any) -> Ballot:
    counter, leader, *_later = row
    return Ballot(int(counter), PeerId(bytes(leader)))


def _config(row: Any) -> Config:
    version, members, witness, before, wanted, wants_witness, lineage, *_later = row
    return Config(
        int(version), tuple(map(PeerId, members)), PeerId(witness),
        tuple(map(PeerId, before)), int(wanted), bool(wants_witness), int(lineage),
    )  # fmt: skip
