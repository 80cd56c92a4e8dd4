"""What clients ask about replica groups, and the copies of what they make.

    replicate   grow, shrink or replace the group of an object
    group       who is in it, and how far each is
    force       this copy is the object from now on: an operator's order

An object that is made with replicas is made here first; its answer waits until the
copies are there.

Rules of this file: parameters are checked here; who shall have a copy is `spreading`'s,
how it gets one the core's.

Source: design section 8; schemas/protocol.md section 6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from activestore.core import effects, events
from activestore.core import replication_events as happened
from activestore.core.calls import Client
from activestore.core.peers import PeerRecord, load_of
from activestore.core.refusals import UNREACHABLE
from activestore.core.register import Register, electorate, has_quorum
from activestore.core.spreading import spread
from activestore.errors import (
    ClassNotFoundError,
    InvalidRequestError,
    NoQuorumError,
    ObjectNotFoundError,
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId
from activestore.peer import seats, shipping
from activestore.peer.loop import PeerLoop
from activestore.peer.repairing import Repairing
from activestore.peer.requests import Origin, Requests, check_meant, object_id_of
from activestore.peer.suiting import suits
from activestore.peer.table import Growing
from activestore.storage.engine import Engine, Head
from activestore.wire.copies import WITNESSED, check_copies
from activestore.wire.limits import REPLICAS_SINCE
from activestore.wire.replicas import NOBODY, Config

MIB = 1 << 20
# How the core names a peer in texts.
ID_SHOWN = re.compile(r"\b[0-9a-f]{8}\b")
# Peers without room that are named.
FULL_TOLD_MAX = 3


class Grouping:
    """The operations on groups of one peer."""

    def __init__(self, loop: PeerLoop, requests: Requests) -> None:
        self._loop = loop
        self._requests = requests
        self._replicating = loop.replicating
        for name in ("replicate", "group", "force", "contents", "replication"):
            requests.add(name, getattr(self, f"_do_{name}"))
        loop.grow = self._grow
        loop.replicating.share_children = self._share_children
        self.repairing = Repairing(loop, self.set_group)
        loop.repairing = self.repairing

    # -- what is made with replicas ----------------------------------------------------

    def _grow(self, growing: Growing, answer: effects.Answer) -> None:
        """Answer a request once what it made has its copies."""
        origin = answer.origin
        if type(origin) is Client:
            self._loop.step(events.ErrandBegan(origin))
        left = set(growing.object_ids)
        failed: list[str] = []

        def then(object_id: ObjectId, why: str) -> None:
            left.discard(object_id)
            if why:
                failed.append(why)
            if left:
                return
            if failed:
                error = NoQuorumError(
                    f"object {growing.object_ids[0].hex()}",
                    f"it is kept here, and gets its copies when there are peers: {failed[0]}",
                )
                self._loop.carry_out([effects.Refuse(origin, error)])
            else:
                self._loop.carry_out([answer])
            if type(origin) is Client:
                self._loop.step(events.ErrandEnded(origin))

        for object_id in growing.object_ids:
            self.set_group(
                object_id, growing.wanted, growing.wants_witness, (), (),
                lambda why, one=object_id: then(one, why),
            )  # fmt: skip

    def _share_children(
        self,
        children: Sequence[ObjectId],
        parent: ObjectId | None,
        then: Callable[[], None],
    ) -> None:
        """Have what a method made get copies where its object has them, or by default."""
        settings, core = self._loop.settings, self._replicating.core
        register = None if parent is None else core.register_of(parent)
        wanted, witness = settings.replicas, settings.witness
        others: list[PeerId] = []
        if register is not None:
            config = register.config
            wanted, witness = config.wanted, config.wants_witness
            others = [one for one in config.voters if one != settings.peer_id]
        left = set(children)

        def shared(child: ObjectId, why: str) -> None:
            left.discard(child)
            if why:
                self._loop.note(
                    "warning", f"no copies yet object={child.hex()} reason={why}"
                )
            if not left:
                then()

        for child in children:
            self.set_group(
                child, wanted, witness, others, (),
                lambda why, child=child: shared(child, why),
            )  # fmt: skip

    def set_group(
        self,
        object_id: ObjectId,
        wanted: int,
        wants_witness: bool,
        peers: Sequence[PeerId],
        leaving: Sequence[PeerId],
        then: Any,
    ) -> None:
        """Have the group of an object that is led here be this; `then(why not)`.

        `wanted`: AS_BEFORE for what is wanted of it when its turn comes, witness too;
        FEWER where nobody is to come for those that leave.
        """

        def shared(error: Any) -> None:
            if error is not None:
                then(str(error))
                return
            if peers:
                begin(tuple(peers))
                return
            goal = wanted, wants_witness
            register = self._replicating.core.register_of(object_id)
            if wanted <= happened.AS_BEFORE and register is not None:
                goal = register.config.wanted, register.config.wants_witness
            count = sum(goal) + len(leaving)
            self._candidates(object_id, count, goal[1], leaving, begin)

        def begin(candidates: tuple[PeerId, ...], without_room: str = "") -> None:
            self._replicating.regroup(
                lambda request: happened.GroupWanted(
                    request,
                    object_id,
                    wanted,
                    wants_witness,
                    candidates,
                    tuple(leaving),
                ),
                lambda why: then(self._with_names(why) + without_room if why else ""),
            )

        too_old = [one for one in peers if self._is_too_old(one)]
        if too_old:
            names = ", ".join(map(self._loop.cluster.name_of, too_old))
            then(
                f"{names}: a copy needs version {REPLICAS_SINCE} of the protocol, which "
                "is not spoken there: install a newer activestore there"
            )
            return
        is_plain = self._replicating.core.register_of(object_id) is None
        if is_plain and wanted <= 1 and not wants_witness:
            then("")
            return
        self._replicating.share(object_id, shared)

    def _with_names(self, why: str) -> str:
        """Return a text of the core, which knows ids only, with the names of peers."""
        cluster = self._loop.cluster
        known = map(PeerId, cluster.membership.members) if why else ()
        names = {one.hex()[:8]: cluster.name_of(one) for one in known}
        return ID_SHOWN.sub(lambda found: names.get(found[0], found[0]), why)

    def _is_too_old(self, peer_id: PeerId) -> bool:
        record = self._loop.cluster.membership.record_of(peer_id)
        return record is not None and record.protocol < REPLICAS_SINCE

    def _candidates(
        self,
        object_id: ObjectId,
        count: int,
        wants_witness: bool,
        leaving: Sequence[PeerId],
        then: Callable[[tuple[PeerId, ...], str], None],
    ) -> None:
        """Find who may take a copy, the best first, and tell who has no room for one."""
        me = self._loop.settings.peer_id

        def found(head: Any, _error: BaseException | None) -> None:
            live = self._loop.cluster.membership.live()
            register = self._replicating.core.register_of(object_id)
            voters = set(register.config.voters) if register is not None else {me}
            records = [
                record for record in live
                if record.peer_id not in voters and record.peer_id not in leaving
                and record.protocol >= REPLICAS_SINCE
            ]  # fmt: skip
            stay = voters.difference(leaving)
            have = [record for record in live if record.peer_id in stay]
            room_mb = 0 if head is None else -(-head.state_bytes // MIB)
            fit = spread(
                records, have, count, key=object_id, meets=self._needs_of(head),
                room_mb=room_mb,
            )  # fmt: skip
            # A witness needs no room, and nothing of what the class needs.
            rest = [one for one in records if wants_witness and one.peer_id not in fit]
            full = _without_room(records, room_mb)
            then(fit + spread(rest, have, count - len(fit), key=object_id), full)

        self._loop.storage.read(lambda engine: engine.head(object_id), found)

    def _needs_of(self, head: Head | None) -> Callable[[PeerRecord], bool | None]:
        """Return what tells whether a peer has what the class of an object needs."""
        needs: Mapping[str, Any] = {}
        if head is not None:
            try:
                needs = self._loop.classes.interface_of(head.class_name)
            except ClassNotFoundError:
                pass  # Whoever is chosen finds out when it fetches the class.
        requires, resources = needs.get("requires", ()), needs.get("resources", {})
        return lambda record: suits(record, requires, resources)

    # -- requests ----------------------------------------------------------------------

    def _do_replicate(self, origin: Origin, parameters: dict[str, Any]) -> None:
        object_id = object_id_of(parameters)
        if self._requests.is_elsewhere(origin, "replicate", object_id, parameters):
            return
        register = self._replicating.core.register_of(object_id)
        config = None if register is None else register.config
        goal = self._goal_of(config, parameters)
        asked = _asked_of(config, goal, parameters)
        peers = [self._peer(name) for name in _names(parameters, "peers")]
        names = _names(parameters, "leaving")
        leaving = [self._leaving_peer(name, goal.voters) for name in names]
        if config is not None and not leaving:
            # Who does not answer is not waited for: that is what is asked for.
            leaving = self.repairing.gone(config.voters)
        if peers:
            leader, name_of = self._loop.settings.peer_id, self._loop.cluster.name_of
            leaving += seats.freed(goal, PeerId(leader), peers, leaving, name_of)

        def then(why: str) -> None:
            if why:
                error = NoQuorumError(f"object {object_id.hex()}", why)
                self._requests.refuse(origin, error)
            elif not self._requests.is_elsewhere(
                origin, "replicate", object_id, {**parameters, "leaving": []}
            ):  # Else this peer was to leave: who leads now finds it done.
                self._tell_group(origin, object_id)

        def found(head: Any, error: BaseException | None) -> None:
            if head is None:
                here = (self._loop.settings.peer_id,)
                gone = ObjectNotFoundError(object_id, here)
                if asked[0] == happened.AS_BEFORE:
                    # It takes votes off what is deleted: see `rehousing`.
                    self.set_group(
                        object_id, *asked, (), leaving,
                        lambda _: self._requests.refuse(origin, gone),
                    )  # fmt: skip
                else:
                    self._requests.refuse(origin, gone)
                return
            self._set_named(object_id, *asked, peers, leaving, then)

        self._loop.storage.read(lambda engine: engine.head(object_id), found)

    def _goal_of(self, config: Config | None, parameters: dict[str, Any]) -> Config:
        """Return a group, of a plain object this peer alone, with what is asked of it."""
        wanted = parameters.get("replicas")
        if wanted is None:
            wanted = 1 if config is None else config.wanted
        wants_witness = parameters.get("witness")
        if wants_witness is None:
            # Of two copies only: three and more decide by themselves.
            has_one = config is not None and config.wants_witness
            wants_witness = has_one and wanted == WITNESSED
        check_copies(wanted, wants_witness, "replicate")
        here = config or Config(0, (PeerId(self._loop.settings.peer_id),))
        return here._replace(wanted=wanted, wants_witness=wants_witness)

    def _set_named(
        self, object_id: ObjectId, wanted: int, wants_witness: bool,
        peers: Sequence[PeerId], leaving: Sequence[PeerId], then: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Have those that are named take copies, then others what more are wanted."""

        def named(why: str) -> None:
            register = self._replicating.core.register_of(object_id)
            me = PeerId(self._loop.settings.peer_id)
            voters = [me] if register is None else register.config.voters
            lacking = [one for one in peers if one not in voters]
            if not why or not peers:
                then(why)
            elif lacking:
                names = ", ".join(map(self._loop.cluster.name_of, lacking))
                then(f"no copy can be made at {names}: {why}")
            else:
                self.set_group(object_id, wanted, wants_witness, (), leaving, then)

        self.set_group(object_id, wanted, wants_witness, peers, leaving, named)

    def _leaving_peer(self, name: str, voters: Sequence[PeerId]) -> PeerId:
        """Return the member of a name; one whose disk was lost may share it.

        It may have left meanwhile: peers that go on with such an order ask again by it.
        """
        cluster = self._loop.cluster
        for one in sorted(voters, key=cluster.is_reachable):
            if name in (cluster.name_of(one), one.hex()):
                return one
        return self._peer(name)

    def _peer(self, name: str) -> PeerId:
        membership = self._loop.cluster.membership
        for record in membership.live():
            if name in (record.name, record.peer_id.hex()):
                return PeerId(record.peer_id)
        for peer_id, member in membership.members.items():
            if name in (member.record.name, peer_id.hex()):
                return PeerId(peer_id)
        known = ", ".join(sorted(self._loop.cluster.names()))
        raise UnavailableError(f"peer {name!r}", f"it is not known; known: {known}")

    def _do_group(self, origin: Origin, parameters: dict[str, Any]) -> None:
        object_id = object_id_of(parameters)
        register = self._replicating.core.register_of(object_id)
        # Where nobody who answers leads it, what is known here is all there is.
        is_known = register is not None and (
            register.is_quarantined
            or self._loop.relays.routing.is_leaderless(object_id)
        )
        if is_known or not self._requests.is_elsewhere(
            origin, "group", object_id, parameters
        ):
            self._tell_group(origin, object_id)

    def _do_replication(self, origin: Origin, _parameters: dict[str, Any]) -> None:
        rows = self.repairing.rows()

        def read(engine: Engine) -> list[dict[str, Any]]:
            heads = [engine.head(row["object_id"]) for row in rows]
            return [
                {
                    **row,
                    "alias": "" if head is None else head.alias,
                    "class_name": "" if head is None else head.class_name,
                }
                for row, head in zip(rows, heads, strict=True)
            ]

        counts = self.repairing.counts()
        self._requests.read(origin, read, lambda found: {**counts, "objects": found})

    def _tell_group(self, origin: Origin, object_id: ObjectId) -> None:
        def answer(head: Head | None) -> object:
            if head is None:
                raise ObjectNotFoundError(object_id, (self._loop.settings.peer_id,))
            return self.group_of(object_id, head)

        self._requests.read(origin, lambda engine: engine.head(object_id), answer)

    def group_of(self, object_id: ObjectId, head: Head) -> dict[str, Any]:
        """Return who is in the group of an object, and how far each is."""
        register = self._replicating.core.register_of(object_id)
        me = PeerId(self._loop.settings.peer_id)
        if register is None:
            row = self._member(me, "primary", head.version, head.version)
            return {
                "members": [row], "epoch": head.epoch, "number": 0,
                "version": head.version, "wanted": 1, "wants_witness": False,
                "config_version": 0, "lineage": 0, "is_quarantined": False,
                "is_joint": False,
            }  # fmt: skip
        config = register.config
        acked = self._replicating.core.acked_of(object_id)
        reasons = dict(self._replicating.core.why_each(object_id))
        leader = self._leader_of(object_id)
        rows = []
        for one in dict.fromkeys((*config.voters, *acked)):
            role = "replica"
            if one == leader:
                role = "primary"
            elif one == config.witness:
                role = "witness"
            elif one not in config.members:
                role = "learner"
            number = register.number if one == me else acked.get(one)
            row = self._member(one, role, number, register.number)
            why = reasons.get(one, UNREACHABLE)  # That is told by its state.
            rows.append(row if why == UNREACHABLE else {**row, "reason": why})
        rows.sort(key=lambda row: row["role"] != "primary")
        return {
            "members": rows, "epoch": register.epoch.counter, "number": register.number,
            "version": head.version, "wanted": config.wanted,
            "wants_witness": config.wants_witness, "config_version": config.version,
            "lineage": config.lineage, "is_quarantined": register.is_quarantined,
            "is_joint": bool(config.before),
        }  # fmt: skip

    def _leader_of(self, object_id: ObjectId) -> PeerId:
        """Return who leads an object, NOBODY where nobody who answers does."""
        core = self._replicating.core
        if core.is_led(object_id):
            return PeerId(self._loop.settings.peer_id)
        leader = core.leader_of(object_id)
        if leader is None or self._loop.relays.routing.is_leaderless(object_id):
            return NOBODY
        return leader.leader

    def _member(
        self, peer_id: PeerId, role: str, number: int | None, newest: int
    ) -> dict[str, Any]:
        cluster = self._loop.cluster
        state = cluster.state_of(peer_id)
        told = "unknown" if state is None else state.name.lower()
        is_me = peer_id == self._loop.settings.peer_id
        if not number:
            number = (
                None  # Nothing was heard of it under this leader: they begin with 1.
            )
        return {
            "peer_id": peer_id, "peer": cluster.name_of(peer_id), "role": role,
            "state": "alive" if is_me else told, "number": number,
            "lag": None if number is None else max(0, newest - number),
        }  # fmt: skip

    def _do_contents(self, origin: Origin, parameters: dict[str, Any]) -> None:
        """Tell the leader of an object what the copy here has of its large buffers."""
        self._requests.asker(origin, "contents")
        object_id = object_id_of(parameters)
        self._requests.read(
            origin,
            lambda engine: shipping.contents_of(engine, object_id),
            lambda contents: [list(one) for one in contents],
        )

    def _do_force(self, origin: Origin, parameters: dict[str, Any]) -> None:
        object_id = object_id_of(parameters)
        check_meant(parameters, self._loop.settings.peer_id)
        register = self._replicating.core.register_of(object_id)
        if register is None:
            raise InvalidRequestError(
                "no copy of a replica group is here; ask a peer that `show` lists",
                f"object {object_id.hex()}",
            )

        if parameters.get("unless_majority") is True:
            self._check_lost(object_id, register)

        def then(why: str) -> None:
            if why:
                # None that a client tries again elsewhere: there is another copy.
                where = f"object {object_id.hex()}"
                self._requests.refuse(origin, InvalidRequestError(why, where))
            else:
                self._tell_group(origin, object_id)

        self._replicating.regroup(
            lambda request: happened.ForceOrdered(request, object_id), then
        )

    def _check_lost(self, object_id: ObjectId, register: Register) -> None:
        """Refuse to force a group that can go on by itself.

        Raises:
            InvalidRequestError: a majority answers, as far as this peer knows, and one of
                it has the newest state.
        """
        silent = {peer_id for peer_id, _ in self._replicating.core.why_each(object_id)}
        me, cluster = self._loop.settings.peer_id, self._loop.cluster
        voters = [
            one
            for one in electorate(register.config)
            if one not in silent and (one == me or cluster.is_answering(one))
        ]
        if register.is_quarantined or not has_quorum(register.config, voters):
            return  # Of a copy that is quarantined more is said by the core.
        is_missing = self._replicating.core.missing_number(object_id) is not None
        if is_missing and len(voters) < len(electorate(register.config)):
            return  # A witness answers, and has nothing to go on with.
        names = ", ".join(map(cluster.name_of, voters))
        raise InvalidRequestError(
            f"a majority of its group answers: {names}; nothing is lost, and `replicate` "
            "replaces who is. Where it is stuck all the same, `show` says why: `force` "
            "with --even-though-majority-answers gives up what others had acknowledged",
            f"object {object_id.hex()}",
        )


def _without_room(records: Sequence[PeerRecord], room_mb: int) -> str:
    """Return which peers have no room for a copy, to be put behind a text."""
    full = [
        f"{record.name} ({load.disk_free_mb} MB free)"
        for record in records
        if (load := load_of(record)) is not None and load.disk_free_mb < room_mb
    ]
    more = f" and {len(full) - FULL_TOLD_MAX} more" if len(full) > FULL_TOLD_MAX else ""
    told = ", ".join(full[:FULL_TOLD_MAX])
    return f"; too little room for {room_mb} MB at {told}{more}" if full else ""


def _asked_of(
    config: Config | None, goal: Config, parameters: dict[str, Any]
) -> tuple[int, bool]:
    """Return which copies are asked for, as before where only who has them is."""
    counts = parameters.get("replicas"), parameters.get("witness")
    if config is not None and counts == (None, None):
        is_fewer = parameters.get("is_fewer", False)
        return happened.FEWER if is_fewer else happened.AS_BEFORE, False
    return goal.wanted, goal.wants_witness


def _names(parameters: dict[str, Any], key: str) -> Sequence[str]:
    names = parameters.get(key) or ()
    if type(names) not in (list, tuple) or any(type(one) is not str for one in names):
        raise InvalidRequestError(f"{key} must be a list of names", key)
    return names
