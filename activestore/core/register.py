"""The register of one object at one peer: what is promised, what is accepted.

Rules of this file: pure data and the acceptor's rules; every change of a register is on
disk before anybody is told of it.

Source: reliability.md 3.2, 3.4 R1 and R2.
"""

from __future__ import annotations

from typing import NamedTuple

from activestore.wire.replicas import Ballot, Config, Point


class Register(NamedTuple):
    """What one peer has on disk of the register of one object.

    `promised`: no older epoch is taken. `epoch`, `number`: of the state that is kept, or,
    at a witness, that was accepted. `is_deleted`: that state is that it is deleted.
    `is_voter`: False for a copy that is to become a member. `changed_s`: when, wall clock.
    """

    promised: Ballot
    epoch: Ballot
    number: int
    config: Config
    is_deleted: bool = False
    is_voter: bool = True
    is_quarantined: bool = False
    changed_s: float = 0.0

    @property
    def point(self) -> Point:
        """Which state is kept."""
        return Point(self.epoch.counter, self.number)
