"""Who may use an alias: claims, votes, and what happens when two sides both said yes.

An alias is kept by its home, the peer that rendezvous hashing gives it, and two buddies.
Whoever makes an object with an alias asks them first, and needs most of them:

    wanted -> home asked -> buddies asked -> granted -> (object committed) -> confirmed
                 |               |              '--(it was not committed)--> freed
                 '- held by another object: refused, unless that object is gone

A vote is tentative and lapses by itself; a confirmed claim stays until it is freed. The
home is asked before its buddies, so that of two that want one name at the same time the
home's choice wins, instead of each having half of the votes.

After a partition both sides may have confirmed a name. Where two confirmed claims meet,
the older one keeps the name, and the other object is told to take another (`Lost`).

Rules of this file: pure; the peer that holds an object is the authority for its alias,
and all that is kept here can be told again. Every effect may be carried out twice.

Source: design section 7; reliability.md 2.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from activestore.errors import ActiveStoreError, AliasExistsError, NoQuorumError
from activestore.ids import ObjectId, PeerId

# How long a claim is tried before its object's creation is refused, in seconds: a keeper
# that is stopped, not dead, is given up by membership within 4 to 24 s.
CLAIM_S = 8.0
# After a split vote, and while another's tentative claim may lapse or be confirmed.
RETRY_S = 0.1
# A vote for an object that nobody heard of again is worth nothing after this.
TENTATIVE_S = 30.0
# How often a claim whose object is still being made is renewed.
REFRESH_S = 10.0
# Names told to a peer at once, and how long it is then left alone: 2,560 names a second,
# 0.4 MB/s, leave a 10 Mbit/s link mostly free.
TELL_MAX = 256
TELL_PAUSE_S = 0.1
# A peer that did not answer is told again after this.
TELL_AGAIN_S = 2.0
# Names that wait to be told, for all peers: 30 MB. A sweep waits while there are more.
WAITING_MAX = 65_536
# How often an object that holds a wanted name is looked for, in one claim.
CHECKS_MAX = 3


class Claim(NamedTuple):
    """An object's claim of an alias, as a keeper of the alias has it.

    `claimed_s`: wall clock of the claimant; the object's creation has the same.
    `lapses_s`: wall clock of the keeper; without meaning where it is confirmed.
    """

    object_id: ObjectId
    holder: PeerId
    claimed_s: float
    is_confirmed: bool
    lapses_s: float = 0.0

    @property
    def age(self) -> tuple[float, bytes]:
        """What tells which of two claims is the older one: the smaller."""
        return self.claimed_s, self.object_id


class Verdict(NamedTuple):
    """What a keeper has after a claim was asked or told.

    `lost`: the confirmed claim of another object that had to give way.
    """

    kept: Claim
    lost: Claim | None = None


def judge(known: Claim | None, asked: Claim, wall_s: float) -> Verdict:
    """Decide, as a keeper, between what is known of an alias and a new claim."""
    fresh = asked._replace(lapses_s=0.0 if asked.is_confirmed else wall_s + TENTATIVE_S)
    if known is None or is_over(known, wall_s):
        return Verdict(fresh)
    if known.object_id == asked.object_id:
        if known.is_confirmed and not asked.is_confirmed:
            return Verdict(known)
        return Verdict(fresh)
    if not asked.is_confirmed:
        return Verdict(known)
    if not known.is_confirmed:
        # It was promised, but this object has it: the other will hear of it, if it is
        # ever made, when it is confirmed.
        return Verdict(fresh)
    if asked.age < known.age:
        return Verdict(fresh, known)
    return Verdict(known)


def is_over(claim: Claim, wall_s: float) -> bool:
    """Whether a claim has lapsed."""
    return not claim.is_confirmed and claim.lapses_s <= wall_s


def majority(keepers_count: int) -> int:
    """Return how many keepers must agree."""
    return keepers_count // 2 + 1


# -- events --------------------------------------------------------------------------------


class ClaimWanted(NamedTuple):
    """Objects are to be made under aliases; `token` names the request."""

    token: object
    wants: Mapping[str, ObjectId]
    wall_s: float


class Voted(NamedTuple):
    """A keeper said what it has of the aliases it was asked; None: it did not answer."""

    token: object
    peer_id: PeerId
    aliases: Sequence[str]
    votes: Mapping[str, Claim] | None


class Checked(NamedTuple):
    """The object that holds a name was looked for: `is_gone` where it holds it no more."""

    token: object
    alias: str
    claim: Claim
    is_gone: bool


class MakingEnded(NamedTuple):
    """The request under which names were claimed has ended; `is_kept`: with a commit."""

    token: object
    is_kept: bool


class NamesHeld(NamedTuple):
    """Claims that this peer knows of are to be told to those peers."""

    claims: Sequence[tuple[PeerId, str, Claim]]


class NameFreed(NamedTuple):
    """An object of this peer has lost its alias, or is deleted."""

    alias: str
    object_id: ObjectId


class Told(NamedTuple):
    """A peer was told claims and says what it has now; None: it did not answer."""

    peer_id: PeerId
    votes: Mapping[str, Claim] | None


class PeersChanged(NamedTuple):
    """Others are live now, this peer among them."""

    live: frozenset[PeerId]


class TimerFired(NamedTuple):
    """The deadline has come."""


Event = (
    ClaimWanted | Voted | Checked | MakingEnded | NamesHeld | NameFreed | Told
    | PeersChanged | TimerFired
)  # fmt: skip


# -- effects -------------------------------------------------------------------------------


class AskVotes(NamedTuple):
    """Ask a keeper, perhaps this peer, for tentative claims; answered by Voted."""

    token: object
    peer_id: PeerId
    claims: Sequence[tuple[str, Claim]]


class CheckHolder(NamedTuple):
    """Find out whether the object of a claim still has the name; answered by Checked."""

    token: object
    alias: str
    claim: Claim


class Grant(NamedTuple):
    """All names are claimed: the objects may be made. MakingEnded must follow."""

    token: object


class Deny(NamedTuple):
    """The objects cannot be made under these names."""

    token: object
    error: ActiveStoreError


class Free(NamedTuple):
    """In the place of a claim: the object does not have the name."""

    object_id: ObjectId


class Tell(NamedTuple):
    """Tell a peer, perhaps this one, claims and freed names; answered by Told."""

    peer_id: PeerId
    items: Sequence[tuple[str, Claim | Free]]


class Lost(NamedTuple):
    """A claim that we told of has lost its alias to an older one."""

    alias: str
    claim: Claim
    winner: Claim


Effect = AskVotes | CheckHolder | Grant | Deny | Tell | Lost


# -- the core ------------------------------------------------------------------------------


# What a peer is to be told of an alias and an object, in order.
_Items = dict[tuple[str, ObjectId], Claim | Free]


class _Bid:
    """One alias of one claim."""

    __slots__ = (
        "alias", "asked", "checks_count", "granted", "is_checking", "keepers",
        "object_id", "refusal", "retry_s", "silent", "voted",
    )  # fmt: skip

    def __init__(self, alias: str, object_id: ObjectId) -> None:
        self.alias = alias
        self.object_id = object_id
        self.checks_count = 0
        self.is_checking = False
        self.asked: set[PeerId] = set()  # in any round: where it is to be freed
        self.retry_s = 0.0
        self.keepers: Sequence[PeerId] = ()
        self.granted: set[PeerId] = set()
        self.voted: set[PeerId] = set()
        self.silent: set[PeerId] = set()
        self.refusal: Claim | None = None

    def begin_round(self, keepers: Sequence[PeerId]) -> None:
        self.keepers = keepers
        self.granted.clear()
        self.voted.clear()
        self.silent.clear()
        self.refusal = None
        self.retry_s = 0.0

    @property
    def is_won(self) -> bool:
        return len(self.granted) >= majority(len(self.keepers))


class _Ballot:
    """One request that claims names."""

    __slots__ = ("asks", "bids", "claimed_s", "due_s", "is_granted", "token")

    def __init__(self, event: ClaimWanted, now_s: float) -> None:
        self.token = event.token
        self.claimed_s = event.wall_s
        self.bids = {alias: _Bid(alias, who) for alias, who in event.wants.items()}
        self.due_s = now_s + CLAIM_S  # once granted: when to renew
        self.is_granted = False
        # Who was asked for which alias and has not answered.
        self.asks: set[tuple[PeerId, str]] = set()


class Names:
    """What one peer claims, and what it has to tell other peers of names."""

    def __init__(
        self,
        me: PeerId,
        keepers_of: Callable[[str], Sequence[PeerId]],
        name_of: Callable[[PeerId], str],
        rng: Callable[[], float],
    ) -> None:
        """Begin with no claim.

        Args:
            me: This peer.
            keepers_of: The live keepers of an alias, its home first.
            name_of: How a peer is called in texts.
            rng: 0 to 1, for the wait after a split vote.
        """
        self.me = me
        self._keepers_of = keepers_of
        self._name_of = name_of
        self._rng = rng
        self._ballots: dict[object, _Ballot] = {}
        self._waiting: dict[PeerId, _Items] = {}
        self._on_way: dict[PeerId, _Items] = {}
        self._pause_s: dict[PeerId, float] = {}
        self._effects: list[Effect] = []
        self._handlers: dict[type, Callable[..., None]] = {
            ClaimWanted: self._on_claim_wanted,
            Voted: self._on_voted,
            Checked: self._on_checked,
            MakingEnded: self._on_making_ended,
            NamesHeld: self._on_names_held,
            NameFreed: self._on_name_freed,
            Told: self._on_told,
            PeersChanged: self._on_peers_changed,
            TimerFired: self._on_timer,
        }

    @property
    def is_watching_peers(self) -> bool:
        """Whether PeersChanged would change anything: something is asked of others."""
        return bool(self._waiting or self._ballots)

    def step(self, event: Event, now_s: float) -> list[Effect]:
        """Take what happened; return what is to be done, in order."""
        self._handlers[type(event)](event, now_s)
        self._send(now_s)
        done, self._effects = self._effects, []
        return done

    def deadline_s(self) -> float | None:
        """Return when a TimerFired is wanted, None where nothing is under way."""
        times = [ballot.due_s for ballot in self._ballots.values()]
        for ballot in self._ballots.values():
            times += [bid.retry_s for bid in ballot.bids.values() if bid.retry_s]
        times += [
            self._pause_s.get(peer_id, 0.0)
            for peer_id in self._waiting
            if peer_id not in self._on_way
        ]
        return min(times, default=None)

    @property
    def waiting_count(self) -> int:
        """How many claims have not been told yet to a keeper that is to know them."""
        return sum(map(len, (*self._waiting.values(), *self._on_way.values())))

    # -- claiming ----------------------------------------------------------------------

    def _on_claim_wanted(self, event: ClaimWanted, now_s: float) -> None:
        if event.token in self._ballots:
            return
        ballot = self._ballots[event.token] = _Ballot(event, now_s)
        for bid in ballot.bids.values():
            bid.begin_round(list(self._keepers_of(bid.alias)))
        self._advance(ballot, ballot.bids.values(), now_s)

    def _advance(self, ballot: _Ballot, bids: Iterable[_Bid], now_s: float) -> None:
        """Ask on, for those bids, and see whether the ballot is decided."""
        wanted: dict[PeerId, list[tuple[str, Claim]]] = {}
        for bid in list(bids):
            for peer_id in self._next_of(ballot, bid, now_s):
                claim = Claim(bid.object_id, self.me, ballot.claimed_s, False)
                wanted.setdefault(peer_id, []).append((bid.alias, claim))
                ballot.asks.add((peer_id, bid.alias))
                bid.asked.add(peer_id)
            if ballot.token not in self._ballots:
                return  # It was denied.
        for peer_id, claims in wanted.items():
            self._effects.append(AskVotes(ballot.token, peer_id, claims))
        if all(bid.is_won for bid in ballot.bids.values()):
            ballot.is_granted = True
            ballot.due_s = now_s + REFRESH_S
            self._effects.append(Grant(ballot.token))

    def _next_of(self, ballot: _Ballot, bid: _Bid, now_s: float) -> Sequence[PeerId]:
        """Return whom to ask now for a bid; refuse it, or wait, where that is nobody."""
        if bid.is_won or bid.is_checking or bid.retry_s:
            return ()
        refusal = bid.refusal
        if refusal is not None and refusal.is_confirmed:
            if bid.checks_count >= CHECKS_MAX:
                self._deny(ballot, AliasExistsError(bid.alias, refusal.object_id))
                return ()
            bid.checks_count += 1
            bid.is_checking = True
            self._effects.append(CheckHolder(ballot.token, bid.alias, refusal))
            return ()
        if any((peer_id, bid.alias) in ballot.asks for peer_id in bid.keepers):
            return ()
        if refusal is None:
            unasked = [one for one in bid.keepers if one not in bid.voted]
            if unasked and bid.keepers and unasked[0] == bid.keepers[0]:
                return unasked[:1]
            if unasked:
                return unasked
        bid.retry_s = now_s + RETRY_S * (0.5 + self._rng())
        return ()

    def _on_voted(self, event: Voted, now_s: float) -> None:
        ballot = self._ballots.get(event.token)
        if ballot is None:
            self._free_late(event)
            return
        touched = []
        for alias in event.aliases:
            bid = ballot.bids.get(alias)
            if bid is None or (event.peer_id, alias) not in ballot.asks:
                continue
            ballot.asks.discard((event.peer_id, alias))
            touched.append(bid)
            bid.voted.add(event.peer_id)
            vote = None if event.votes is None else event.votes.get(alias)
            if vote is None:
                bid.silent.add(event.peer_id)
            elif vote.object_id == bid.object_id:
                if event.peer_id in bid.keepers:
                    bid.granted.add(event.peer_id)
            elif bid.refusal is None or vote.is_confirmed:
                bid.refusal = vote
        if not ballot.is_granted:
            self._advance(ballot, touched, now_s)

    def _free_late(self, event: Voted) -> None:
        """A vote came for a claim that was given up meanwhile: it is not wanted."""
        # Only a release that names the object takes it away, and it was sent to all that
        # were asked; behind this vote it arrives again.
        for alias, vote in (event.votes or {}).items():
            if vote.holder == self.me and not vote.is_confirmed:
                self._tell(event.peer_id, alias, Free(vote.object_id))

    def _on_checked(self, event: Checked, now_s: float) -> None:
        ballot = self._ballots.get(event.token)
        bid = None if ballot is None else ballot.bids.get(event.alias)
        if ballot is None or bid is None or not bid.is_checking:
            return
        bid.is_checking = False
        if not event.is_gone:
            self._deny(ballot, AliasExistsError(bid.alias, event.claim.object_id))
            return
        for peer_id in bid.keepers:
            self._tell(peer_id, bid.alias, Free(event.claim.object_id))
        bid.retry_s = now_s + RETRY_S * (0.5 + self._rng())

    def _give_up(self, ballot: _Ballot) -> None:
        """Refuse a ballot whose time is over, with the reason that its bids show."""
        lost = [bid for bid in ballot.bids.values() if not bid.is_won]
        for bid in lost:
            if bid.refusal is not None:
                self._deny(ballot, AliasExistsError(bid.alias, bid.refusal.object_id))
                return
        bid = lost[0]
        missing = [one for one in bid.keepers if one not in bid.granted]
        self._deny(
            ballot,
            NoQuorumError(
                f"alias {bid.alias!r}",
                f"{len(bid.granted)} of {len(bid.keepers)} peers that keep it answered, "
                f"{majority(len(bid.keepers))} are needed; missing: "
                f"{', '.join(map(self._name_of, missing))}",
            ),
        )

    def _deny(self, ballot: _Ballot, error: ActiveStoreError) -> None:
        del self._ballots[ballot.token]
        self._free_all(ballot)
        self._effects.append(Deny(ballot.token, error))

    def _free_all(self, ballot: _Ballot) -> None:
        for bid in ballot.bids.values():
            for peer_id in bid.asked:
                self._tell(peer_id, bid.alias, Free(bid.object_id))

    def _on_making_ended(self, event: MakingEnded, now_s: float) -> None:
        ballot = self._ballots.pop(event.token, None)
        if ballot is None:
            return
        if not event.is_kept:
            self._free_all(ballot)
            return
        for bid in ballot.bids.values():
            claim = Claim(bid.object_id, self.me, ballot.claimed_s, True)
            for peer_id in self._keepers_of(bid.alias):
                self._tell(peer_id, bid.alias, claim)

    # -- telling -----------------------------------------------------------------------

    def _on_names_held(self, event: NamesHeld, now_s: float) -> None:
        for peer_id, alias, claim in event.claims:
            self._tell(peer_id, alias, claim)

    def _on_name_freed(self, event: NameFreed, now_s: float) -> None:
        for peer_id in self._keepers_of(event.alias):
            self._tell(peer_id, event.alias, Free(event.object_id))

    def _tell(self, peer_id: PeerId, alias: str, item: Claim | Free) -> None:
        """Queue what a peer is to be told; the newest of one object counts.

        That another object has freed the name is told before that this one has it.
        """
        waiting = self._waiting.setdefault(peer_id, {})
        waiting.pop((alias, item.object_id), None)
        waiting[alias, item.object_id] = item

    def _send(self, now_s: float) -> None:
        for peer_id in list(self._waiting):
            waiting = self._waiting[peer_id]
            if peer_id in self._on_way or self._pause_s.get(peer_id, 0.0) > now_s:
                continue
            if not waiting:
                del self._waiting[peer_id]
                self._pause_s.pop(peer_id, None)
                continue
            keys = list(itertools.islice(waiting, TELL_MAX))
            items = {key: waiting.pop(key) for key in keys}
            self._on_way[peer_id] = items
            told = [(alias, item) for (alias, _), item in items.items()]
            self._effects.append(Tell(peer_id, told))

    def _on_told(self, event: Told, now_s: float) -> None:
        items = self._on_way.pop(event.peer_id, {})
        if event.votes is None:
            self._waiting[event.peer_id] = items | self._waiting.get(event.peer_id, {})
            self._pause_s[event.peer_id] = now_s + TELL_AGAIN_S
            return
        if len(items) == TELL_MAX:
            self._pause_s[event.peer_id] = now_s + TELL_PAUSE_S
        for (alias, _), item in items.items():
            vote = event.votes.get(alias)
            if (
                type(item) is not Claim
                or vote is None
                or vote.object_id == item.object_id
            ):
                continue
            if item.is_confirmed and vote.is_confirmed:
                self._effects.append(Lost(alias, item, vote))

    # -- peers and time ----------------------------------------------------------------

    def _on_peers_changed(self, event: PeersChanged, now_s: float) -> None:
        for peer_id in self._waiting.keys() - event.live:
            # The keepers are others now, and are told by whoever holds the objects.
            del self._waiting[peer_id]
            self._pause_s.pop(peer_id, None)
        for ballot in [one for one in self._ballots.values() if one.is_granted]:
            self._renew(ballot, now_s)

    def _renew(self, ballot: _Ballot, now_s: float) -> None:
        """Have the keepers of now keep a vote for an object that is still being made."""
        ballot.due_s = now_s + REFRESH_S
        for bid in ballot.bids.values():
            claim = Claim(bid.object_id, self.me, ballot.claimed_s, False)
            for peer_id in self._keepers_of(bid.alias):
                bid.asked.add(peer_id)
                self._tell(peer_id, bid.alias, claim)

    def _on_timer(self, event: TimerFired, now_s: float) -> None:
        for ballot in list(self._ballots.values()):
            if now_s >= ballot.due_s:
                if ballot.is_granted:
                    self._renew(ballot, now_s)
                else:
                    self._give_up(ballot)
                continue
            due = [b for b in ballot.bids.values() if 0.0 < b.retry_s <= now_s]
            for bid in due:
                bid.begin_round(list(self._keepers_of(bid.alias)))
            if due:
                self._advance(ballot, due, now_s)

    def check(self) -> None:
        """Assert every invariant; for tests."""
        for ballot in self._ballots.values():
            for bid in ballot.bids.values():
                assert bid.granted <= set(bid.keepers), bid.alias
                assert not (ballot.is_granted and not bid.is_won), bid.alias
        for items in self._on_way.values():
            assert 0 < len(items) <= TELL_MAX
