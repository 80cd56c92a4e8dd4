"""Who has a say in what becomes of an object: the peers of its group, as known here.

    known        a voter of the config in the register here, who leads or was promised to,
                 or a voter of a newer config of which one who is known has told
    introduced   by the message itself: its config is newer, and has both of us as voters

A config that changed while this peer was away may have none of those that it knows. Who is
introduced is believed all the same, or a group whose only survivors do not know each
other could never go on. So this keeps out who is confused; it is no proof against members
that lie. So is who tells that the group was forced, and names this peer as one of it.

Rules of this file: it changes no register. Who has no say is told what was expected.

Source: reliability.md 3.4 R8; decision 11.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from activestore.core.register import Register, electorate
from activestore.core.registers import Registers
from activestore.core.replication_desk import Desk, shown_config
from activestore.core.replication_effects import Refused
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    Accept,
    Ask,
    Ballot,
    Config,
    Confirm,
    Drop,
    Fetch,
    Forget,
    Nack,
    Prepare,
    Promise,
    Reason,
    Told,
)


class Standing(Registers, ABC):
    """The registers of one peer, and whose word counts for them."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._me = desk.me
        # Newer configs than that of the register, of which one who is known has told.
        self._told: dict[ObjectId, Config] = {}

    @abstractmethod
    def meet_lineage(self, object_id: ObjectId, lineage: int) -> None:
        """Take note of a lineage; see `acceptor`."""

    def _is_known(self, peer: PeerId, object_id: ObjectId, register: Register) -> bool:
        if peer in electorate(register.config):
            return True
        if peer in (register.promised.leader, register.epoch.leader):
            return True
        told = self._told.get(object_id)
        is_told = told is not None and _is_newer(told, register.config)
        return told is not None and is_told and peer in electorate(told)

    def hear_config(self, sender: PeerId, message: Promise | Nack | Told) -> None:
        """Take what one of the group says of the group: its word makes others known."""
        object_id, config = message.object_id, message.config
        register = self.latest(object_id)
        if register is None or config is None:
            return
        if not self._is_known(sender, object_id, register):
            return
        known = self._told.get(object_id, register.config)
        if _is_newer(config, register.config) and config.version > known.version:
            self._told[object_id] = config

    def hear_lineage(self, sender: PeerId, message: Promise | Nack) -> None:
        """Take what one of the group says of its lineage."""
        object_id, config = message.object_id, message.config
        register = self.latest(object_id)
        if register is None or config is None:
            return
        if self._is_known(sender, object_id, register):
            self.meet_lineage(object_id, config.lineage)

    def hear_answer(self, message: Told) -> None:
        """Take what one says that was told to drop its copy: its lineage may be later."""
        if message.is_led and message.config is not None:
            self.meet_lineage(message.object_id, message.config.lineage)

    def believes(self, sender: PeerId, message: Drop | Forget | Told) -> bool:
        """Return whether the sender has a say in the object; else that is told."""
        register = self.latest(message.object_id)
        if register is None or self._is_known(sender, message.object_id, register):
            return True  # Where nothing is here it could harm nothing.
        if isinstance(message, Drop) and self._is_forced(sender, message, register):
            return True
        self._refuse(sender, message, register)
        return False

    def _is_forced(self, sender: PeerId, message: Drop, register: Register) -> bool:
        """Return whether a group with this peer was forced; it may not know by whom.

        Its config may be older than that of who was forced, or be of another force.
        """
        config = message.config
        is_other = config.lineage not in (0, register.config.lineage)
        return is_other and sender in config.voters and self._me in config.before

    def _may_ask(self, sender: PeerId, message: Prepare, register: Register) -> bool:
        """Return whether a candidate is a voter, or brings a newer config.

        It must have this peer too: else the sender needs nothing from here.
        """
        if sender in electorate(register.config):
            return True
        voters = electorate(message.config)
        is_group = sender in voters and self._me in voters
        return is_group and _is_newer(message.config, register.config)

    def _may_teach(self, sender: PeerId, message: Accept, register: Register) -> bool:
        """Return whether a leader is known, or brings a config that is not older.

        Two configs of one version may be here and there, of which one is not committed:
        whoever leads has found out which.
        """
        if self._is_known(sender, message.object_id, register):
            return True
        config, known = message.config, register.config
        voters = electorate(config)
        is_group = sender in voters and (self._me in voters or message.is_learner)
        is_same = (config.lineage, config.version) == (known.lineage, known.version)
        return is_group and (is_same or _is_newer(config, known))

    def _refuse(
        self,
        sender: PeerId,
        message: Prepare | Accept | Drop | Forget | Told,
        register: Register,
    ) -> None:
        """Take nothing from one that is not of the group, and say what was expected."""
        object_id, config, reason = message.object_id, register.config, Reason.STRANGER
        why = (
            f"expected one of the group, as known here: {shown_config(config)} by config "
            f"{config.version}; or a newer config with the sender and this peer"
        )
        is_late = False
        if isinstance(message, Prepare | Accept):
            is_late = message.config.version <= config.version
            if message.config.lineage != config.lineage:
                reason = Reason.LINEAGE
        if not is_late:  # Else it was of the group, and was away when it was replaced.
            kind = type(message).__name__
            self._desk.emit(Refused(sender, object_id, kind, why))
        if not isinstance(message, Told):  # Answers are not answered.
            self._nack(sender, message, reason, register, why)
        if isinstance(message, Drop):
            # It may lead a group that has left this peer out: who is known can tell.
            for voter in electorate(config):
                if voter != self._me:
                    self._desk.send(voter, Ask(object_id))

    def _nack(
        self,
        sender: PeerId,
        message: Prepare | Accept | Confirm | Fetch | Drop | Forget,
        reason: Reason,
        register: Register | None,
        text: str = "",
    ) -> None:
        number = message.number if isinstance(message, Accept) else 0
        promised = Ballot() if register is None else register.promised
        config = None if register is None else register.config
        object_id = message.object_id
        nack = Nack(object_id, message.epoch, number, reason, promised, config, text)
        self._desk.send(sender, nack)


def _is_newer(config: Config, than: Config) -> bool:
    """Return whether a config came after another one; those of two lineages do not."""
    return config.lineage == than.lineage and config.version > than.version
