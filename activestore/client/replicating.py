"""The store's methods on groups of peers: replicate, group, force, export, bring back.

Rules of this file: the peer does the work; what is wrong with an argument is said before
anything is asked of it. What the answers are made of is in `groups` and `exporting`,
imported when first needed.

Source: design section 8; schemas/protocol.md section 6.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from activestore import ids
from activestore.client.links import STALENESS
from activestore.client.session import Session
from activestore.client.sightings import Sightings
from activestore.client.versions import too_old
from activestore.errors import InvalidRequestError
from activestore.ids import ObjectId
from activestore.remote import CallOptions
from activestore.wire import messages
from activestore.wire.copies import check_copies, extra_of
from activestore.wire.limits import REPLICAS_SINCE

if TYPE_CHECKING:
    from activestore.client.groups import Group
    from activestore.placing import Placing


def asked_copies(
    replicas: Any, witness: Any, where: str, session: Session
) -> dict[str, Any]:
    """Return the keys of `extra` that ask for copies, checked.

    Raises:
        InvalidRequestError: there cannot be as many.
        RemoteProtocolError: the connected peer is too old to keep more than one.
    """
    check_copies(replicas, witness, where)
    peer = session.peer
    if peer is not None and peer.version < REPLICAS_SINCE:
        if replicas in {None, 1} and not witness:
            return {}  # One copy is what it makes.
        raise too_old(f"replicas={replicas}", REPLICAS_SINCE, peer, session.endpoint)
    return extra_of(replicas, witness)


def call_extra(
    sightings: Sightings,
    object_id: ObjectId,
    options: CallOptions,
    extra: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Return `extra` of a call with what its options ask for."""
    asked = dict(extra or {})
    if not options.direct:
        asked["direct"] = False
    if options.with_info:
        asked["info"] = True
    if options.staleness_s is not None:
        asked[STALENESS] = max(1, int(options.staleness_s * 1000))
        seen = sightings.of(object_id)
        if seen is not None:
            asked["seen"] = list(seen)
    return asked or None


def _names(value: Any, name: str) -> list[str]:
    """Return the names of peers in an argument.

    Raises:
        InvalidRequestError: it is a text, or holds something else than texts.
    """
    if isinstance(value, (list, tuple, set, frozenset)) and all(
        isinstance(one, str) and one for one in value
    ):
        return list(value)
    raise InvalidRequestError(
        f"{name} is {str(value)[:60]!r}, expected several names or ids of peers, such "
        'as ("edge-1", "edge-2")',
        "replicate",
    )


class Replicating(ABC):
    """What a client that can ask and identify can do about copies."""

    @abstractmethod
    def identify(self, name: Any) -> tuple[ObjectId, str]:
        """Return id and class name of what names an object."""

    @abstractmethod
    def request(self, operation: str, /, **parameters: Any) -> Any:
        """Ask the peer itself."""

    @abstractmethod
    def _home(self) -> ids.PeerId:
        """Return the id of the connected peer."""

    def _ask_here(self, operation: str, obj: Any, **more: Any) -> tuple[ObjectId, Any]:
        """Ask the connected peer about its own copy, and no other one that goes on for it.

        Returns:
            Which object it is, and the answer.
        """
        peer_id = self._home()
        object_id, _ = self.identify(obj)
        about = {"object_id": object_id, "peer_id": peer_id, **more}
        told = self.request(operation, **about)
        return object_id, told

    def _group_of(self, told: Any, where: str) -> Group:
        groups = importlib.import_module("activestore.client.groups")
        found: Group = groups.group_of(told, where)
        return found

    def replicate(
        self,
        obj: Any,
        replicas: int | None = None,
        *,
        witness: bool | None = None,
        peers: Sequence[str] = (),
        leaving: Sequence[str] = (),
    ) -> Group:
        """Have an object kept by so many peers; on return the copies are there.

        Calls go on meanwhile, and none is lost. The same count again mends a group that
        has lost members, at once and not after ten minutes.

        Args:
            obj: What: a stand-in, an alias or an id.
            replicas: How many peers shall have its state, 1 to 7; None for as many as
                are wanted now.
            witness: With two: whether a third peer has a vote, so that one of the two
                can go on alone. None for as it is.
            peers: Names or ids of peers that shall be among them. Where there are as
                many copies without these, others go, the primary's last. One that is
                named beyond the copies, where a witness is wanted and lacks, is that.
            leaving: Of peers that shall have none any more.

        Raises:
            InvalidRequestError: there cannot be as many.
            NoQuorumError: too few of the present members answer to change the group.
            UnavailableError: there are not enough peers, or one that is named is not
                known; the group stays as it was, or between the two.
            RequirementError: a peer that is named lacks what the class needs.
        """
        check_copies(replicas, witness, "replicate")
        named, left = _names(peers, "peers"), _names(leaving, "leaving")
        both = sorted(set(named) & set(left))
        if both:
            raise InvalidRequestError(
                f"{', '.join(both)}: named in peers and in leaving", "replicate"
            )
        object_id, _ = self.identify(obj)
        told = self.request(
            "replicate", object_id=object_id, replicas=replicas, witness=witness,
            peers=named, leaving=left,
        )  # fmt: skip
        return self._group_of(told, "replicate")

    def group(self, obj: Any) -> Group:
        """Return who has an object: its members, their roles, and how far each is.

        Raises:
            ObjectNotFoundError: it does not exist.
        """
        object_id, _ = self.identify(obj)
        return self._group_of(self.request("group", object_id=object_id), "group")

    def force(self, obj: Any, *, even_though_majority_answers: bool = False) -> Group:
        """Make the connected peer's copy the object, though the others do not answer.

        For an operator who knows that the others are lost: what they had acknowledged
        and this copy has not is given up. A copy that comes back later is quarantined
        there: it can be exported, and is never merged.

        Args:
            obj: What: a stand-in, an alias or an id.
            even_though_majority_answers: Also where most of the group answers, and can
                go on without this.

        Raises:
            InvalidRequestError: the connected peer has no copy, or one without a state,
                or a quarantined one; a majority of the group answers; or another peer
                was asked as it was lost meanwhile.
        """
        guard = {} if even_though_majority_answers else {"unless_majority": True}
        return self._group_of(self._ask_here("force", obj, **guard)[1], "force")

    def discard(self, obj: Any) -> None:
        """Remove the connected peer's quarantined copy of an object, for good.

        Raises:
            InvalidRequestError: it has none; one that may still count is not removed.
        """
        self._ask_here("discard", obj)

    def export(self, obj: Any) -> bytes:
        """Return the connected peer's copy of an object, also a quarantined one.

        The bytes are a file for `bring_back`: a checksum, the state, and what it was.

        Raises:
            ObjectNotFoundError: the connected peer has no copy.
        """
        exporting = importlib.import_module("activestore.client.exporting")
        object_id, told = self._ask_here("export", obj)
        data: bytes = exporting.packed(told, object_id)
        return data


class BringingBack(Replicating):
    """What a Store can do about copies: also make new objects of exported ones."""

    _connection: Any
    _placing: Placing

    def _home(self) -> ids.PeerId:
        found: ids.PeerId = self._connection.connected_peer()
        return found

    @abstractmethod
    def _send(self, make: Any, where: str, timeout_s: float = 0.0) -> Any:
        """Send a request that has a number, and wait for its answer."""

    def bring_back(
        self,
        data: bytes,
        *,
        alias: str = "",
        peer: str = "",
        replicas: int | None = None,
        witness: bool | None = None,
    ) -> ObjectId:
        """Make a new object of what `export` returned; returns its id.

        The object that it was taken from stays as it is. Refs in its state go on naming
        what they named.

        Raises:
            InvalidRequestError: it is no export, or damaged.
            ClassNotFoundError: no peer has the class's code any more.
            AliasExistsError: the alias names another object.
        """
        exporting = importlib.import_module("activestore.client.exporting")
        asked = asked_copies(replicas, witness, "import", self._connection.session)
        if alias != "":
            ids.check_alias(alias)
        exported = exporting.unpacked(data)

        def make(home: ids.PeerId) -> ObjectId:
            object_id = ids.new_object_id(home)
            body, buffers = exporting.states_of(exported, object_id, alias)
            extra = {**(self._placing.about_code(home) or {}), **asked} or None
            self._send(
                lambda sequence, first_unacked: messages.Persist(
                    sequence, 0, first_unacked, extra, body, buffers
                ),
                "import",
            )
            return object_id

        return self._placing.place(peer, make)
