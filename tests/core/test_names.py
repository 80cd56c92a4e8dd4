"""Names: races, partitions that heal, lapses and new keepers, in virtual time.

The world is a few peers with a `Names` core each, their rows and objects in dicts, and a
network that loses, delays and cuts. Every seed gives the same history.
"""

from __future__ import annotations

import heapq
import random
from typing import Any

import pytest

from activestore.core import names
from activestore.core.keepers import Keepers
from activestore.core.names import (
    CLAIM_S,
    TELL_MAX,
    TENTATIVE_S,
    Claim,
    Free,
    Names,
    judge,
)
from activestore.core.peers import PeerRecord
from activestore.errors import AliasExistsError, NoQuorumError
from activestore.ids import ObjectId, PeerId

ASK_S = 2.0
A, B, C = (PeerId(letter * 6) for letter in (b"a", b"b", b"c"))


def claim_of(number: int, claimed_s: float, *, confirmed: bool = True) -> Claim:
    return Claim(ObjectId(bytes(15) + bytes([number])), A, claimed_s, confirmed)


def record_of(peer_id: PeerId) -> PeerRecord:
    return PeerRecord(peer_id, 1, peer_id.decode(), (), "", "lan", 1, {})


class Peer:
    """One peer: its core, what it keeps on disk, and the objects that it holds."""

    def __init__(self, world: World, peer_id: PeerId) -> None:
        self.world = world
        self.peer_id = peer_id
        self.rows: dict[str, Claim] = {}
        self.objects: dict[str, Claim] = {}
        self.renamed: list[str] = []
        self.live = frozenset(world.ids)
        self.is_up = True
        self.core = self.new_core()

    def new_core(self) -> Names:
        return Names(self.peer_id, self.keepers_of, bytes.decode, self.world.rng.random)

    def keepers_of(self, alias: str) -> list[PeerId]:
        return Keepers(map(record_of, sorted(self.live))).of(alias)

    def step(self, event: names.Event) -> None:
        for effect in self.core.step(event, self.world.now_s):
            getattr(self, f"do_{type(effect).__name__}")(effect)
        self.core.check()

    # -- as a keeper -------------------------------------------------------------------

    def keep(self, items: Any) -> dict[str, Claim]:
        """Do what peer/keeping.py does on a disk."""
        votes = {}
        for alias, item in items:
            known = self.rows.get(alias)
            own = self.objects.get(alias)
            if own is not None and known != own:
                known = judge(known, own, self.world.now_s).kept
            if type(item) is Free:
                if known is not None and known.object_id == item.object_id:
                    self.rows.pop(alias, None)
                    known = None
            else:
                verdict = judge(known, item, self.world.now_s)
                known = verdict.kept
                if known.object_id == item.object_id:
                    self.rows[alias] = known
                if verdict.lost is not None:
                    self.world.peer(verdict.lost.holder).lose(
                        alias, verdict.lost, known
                    )
            if known is not None:
                votes[alias] = known
            else:
                votes.pop(alias, None)
        return votes

    # -- effects -----------------------------------------------------------------------

    def do_AskVotes(self, effect: names.AskVotes) -> None:
        aliases = [alias for alias, _ in effect.claims]
        self.world.ask(
            self, effect.peer_id, effect.claims,
            lambda votes: self.step(
                names.Voted(effect.token, effect.peer_id, aliases, votes)
            ),
        )  # fmt: skip

    def do_Tell(self, effect: names.Tell) -> None:
        self.world.ask(
            self, effect.peer_id, effect.items,
            lambda votes: self.step(names.Told(effect.peer_id, votes)),
        )  # fmt: skip

    def do_CheckHolder(self, effect: names.CheckHolder) -> None:
        holder = self.world.peer(effect.claim.holder)
        held = holder.objects.get(effect.alias)
        is_gone = (
            self.world.are_joined(self, holder)
            and (held is None or held.object_id != effect.claim.object_id)
            and effect.alias not in holder.making
        )
        checked = names.Checked(effect.token, effect.alias, effect.claim, is_gone)
        self.world.later(0.01, lambda: self.step(checked))

    @property
    def making(self) -> set[str]:
        return {
            alias
            for (peer_id, _), (alias, _) in self.world.made.items()
            if peer_id == self.peer_id
        }

    def do_Grant(self, effect: names.Grant) -> None:
        self.world.granted(self, effect.token)

    def do_Deny(self, effect: names.Deny) -> None:
        self.world.outcomes[effect.token] = effect.error

    def do_Lost(self, effect: names.Lost) -> None:
        self.lose(effect.alias, effect.claim, effect.winner)

    def lose(self, alias: str, claim: Claim, winner: Claim) -> None:
        """Do what peer/disputes.py does: see the winner, then rename our object."""
        self.world.later(0.01, lambda: self.look(alias, claim, winner))

    def look(self, alias: str, claim: Claim, winner: Claim) -> None:
        mine = self.objects.get(alias)
        holder = self.world.peer(winner.holder)
        if mine is None or mine.object_id != claim.object_id or not self.is_up:
            return
        if holder is not self and not self.world.are_joined(self, holder):
            self.world.later(5.0, lambda: self.look(alias, claim, winner))
            return
        theirs = holder.objects.get(alias)
        if theirs is None or mine.age < theirs.age or theirs is mine:
            self.step(names.NameFreed(alias, winner.object_id))
            told = [(one, alias, mine) for one in self.keepers_of(alias)]
            self.step(names.NamesHeld(told))
            return
        del self.objects[alias]
        renamed = f"{alias}~{self.peer_id.decode()[0]}"
        while renamed in self.objects:
            renamed += "+"
        self.objects[renamed] = mine
        self.renamed.append(renamed)
        told = [(one, renamed, mine) for one in self.keepers_of(renamed)]
        self.step(names.NamesHeld(told))

    # -- membership --------------------------------------------------------------------

    def see(self, live: frozenset[PeerId]) -> None:
        """Believe that those live, and tell new keepers, as peer/announcing.py does."""
        before, self.live = Keepers(map(record_of, sorted(self.live))), live
        now = Keepers(map(record_of, sorted(live)))
        self.step(names.PeersChanged(live))
        known = {**self.rows, **self.objects}
        told = [
            (one, alias, claim)
            for alias, claim in sorted(known.items())
            if claim.is_confirmed
            for one in now.of(alias)
            if one != self.peer_id and one not in before.of(alias)
        ]
        if told:
            self.step(names.NamesHeld(told))


class World:
    """Time, chance, and a network that can be cut."""

    def __init__(self, seed: int = 1, count: int = 3, *, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now_s = 1000.0
        self.agenda: list[tuple[float, int, Any]] = []
        self.order = 0
        self.ids = [PeerId(bytes([97 + number]) * 6) for number in range(count)]
        self.cut: set[frozenset[PeerId]] = set()
        self.outcomes: dict[object, Any] = {}
        self.make_s = 0.05
        self.fails: set[object] = set()
        self.made: dict[tuple[PeerId, object], tuple[str, ObjectId]] = {}
        self.claimed_s: dict[object, float] = {}
        self.peers = [Peer(self, peer_id) for peer_id in self.ids]
        self.tokens = 0

    def peer(self, peer_id: PeerId) -> Peer:
        return self.peers[self.ids.index(peer_id)]

    def later(self, delay_s: float, action: Any) -> None:
        self.order += 1
        heapq.heappush(self.agenda, (self.now_s + delay_s, self.order, action))

    def run(self, for_s: float) -> None:
        """Let time pass."""
        end_s = self.now_s + for_s
        while True:
            timers = [
                (peer.core.deadline_s(), number)
                for number, peer in enumerate(self.peers)
                if peer.is_up and peer.core.deadline_s() is not None
            ]
            timer_s, number = min(timers, default=(float("inf"), 0))
            next_s = self.agenda[0][0] if self.agenda else float("inf")
            if min(timer_s, next_s) > end_s:
                self.now_s = end_s
                return
            if timer_s < next_s:
                self.now_s = max(self.now_s, timer_s)
                self.peers[number].step(names.TimerFired())
            else:
                self.now_s, _, action = heapq.heappop(self.agenda)
                action()

    def are_joined(self, one: Peer, other: Peer) -> bool:
        return other.is_up and frozenset((one.peer_id, other.peer_id)) not in self.cut

    def ask(self, asker: Peer, peer_id: PeerId, items: Any, then: Any) -> None:
        """Carry a question there and its answer back, or neither; then at ASK_S None."""
        target = self.peer(peer_id)
        done: list[bool] = []

        def answer(votes: Any) -> None:
            if not done and asker.is_up:
                done.append(True)
                then(votes)

        def arrive() -> None:
            if not self.are_joined(asker, target):
                return
            votes = target.keep(items)
            if target is not asker and self.rng.random() < self.loss:
                return
            self.later(self.rng.uniform(0.0002, 0.02), lambda: answer(votes))

        self.later(ASK_S, lambda: answer(None))
        if target is asker or self.rng.random() >= self.loss:
            self.later(self.rng.uniform(0.0002, 0.02), arrive)

    # -- objects -----------------------------------------------------------------------

    def create(self, peer: Peer, alias: str) -> object:
        self.tokens += 1
        token = ("create", self.tokens)
        object_id = ObjectId(peer.peer_id + self.tokens.to_bytes(10, "big"))
        self.made[peer.peer_id, token] = (alias, object_id)
        self.claimed_s[token] = self.now_s
        peer.step(names.ClaimWanted(token, {alias: object_id}, self.now_s))
        return token

    def granted(self, peer: Peer, token: object) -> None:
        alias, object_id = self.made[peer.peer_id, token]
        claimed_s = self.claimed_s[token]

        def end() -> None:
            is_kept = token not in self.fails
            del self.made[peer.peer_id, token]
            if is_kept:
                assert alias not in peer.objects
                peer.objects[alias] = Claim(object_id, peer.peer_id, claimed_s, True)
            self.outcomes[token] = "made" if is_kept else "failed"
            peer.step(names.MakingEnded(token, is_kept))

        self.later(self.make_s, end)

    def delete(self, peer: Peer, alias: str) -> None:
        gone = peer.objects.pop(alias)
        peer.step(names.NameFreed(alias, gone.object_id))

    def part(self, *sides: list[Peer]) -> None:
        """Cut the network into sides, each of which believes the others dead."""
        self.cut = {
            frozenset((one.peer_id, other.peer_id))
            for side in sides
            for one in side
            for other in self.peers
            if other not in side
        }
        for side in sides:
            live = frozenset(one.peer_id for one in side)
            for peer in side:
                peer.see(live)

    def heal(self) -> None:
        self.cut.clear()
        for peer in self.peers:
            peer.see(frozenset(self.ids))

    def holders(self, alias: str) -> list[Peer]:
        return [peer for peer in self.peers if alias in peer.objects]


# -- judging -------------------------------------------------------------------------------


def test_vote_is_given_to_the_first_that_asks():
    first, second = (
        claim_of(1, 5.0, confirmed=False),
        claim_of(2, 1.0, confirmed=False),
    )
    known = judge(None, first, 100.0).kept

    verdict = judge(known, second, 101.0)

    assert known.lapses_s == 100.0 + TENTATIVE_S
    assert verdict.kept == known


def test_vote_that_was_never_confirmed_lapses():
    known = judge(None, claim_of(1, 5.0, confirmed=False), 100.0).kept

    verdict = judge(known, claim_of(2, 6.0, confirmed=False), known.lapses_s)

    assert verdict.kept.object_id == claim_of(2, 0.0).object_id


def test_confirmed_claim_is_not_weakened_by_a_retry_of_its_own():
    known = claim_of(1, 5.0)

    assert judge(known, claim_of(1, 9.0, confirmed=False), 100.0).kept == known


@pytest.mark.parametrize("first", [1, 2])
def test_of_two_confirmed_claims_the_older_is_kept_in_either_order(first):
    claims = {1: claim_of(1, 5.0), 2: claim_of(2, 6.0)}
    other = 3 - first

    verdict = judge(claims[first], claims[other], 100.0)

    assert verdict.kept == claims[1]
    assert verdict.lost == (claims[2] if first == 2 else None)


# -- claiming ------------------------------------------------------------------------------


def test_name_is_kept_by_all_its_keepers_once_the_object_is_made():
    world = World()
    token = world.create(world.peers[0], "n")

    world.run(2.0)

    free = Free(ObjectId(bytes(16)))  # Of another object: it only asks.
    assert world.outcomes[token] == "made"
    assert all(peer.keep([("n", free)])["n"].is_confirmed for peer in world.peers)


def test_name_that_is_taken_is_refused_at_every_peer():
    world = World()
    world.create(world.peers[0], "n")
    world.run(2.0)

    tokens = [world.create(peer, "n") for peer in world.peers]
    world.run(10.0)

    for token in tokens:
        error = world.outcomes[token]
        assert isinstance(error, AliasExistsError)
        assert error.object_id == world.peers[0].objects["n"].object_id


def test_creation_that_fails_frees_the_name():
    world = World()
    world.fails.add(world.create(world.peers[0], "n"))
    world.run(2.0)

    assert all("n" not in peer.rows for peer in world.peers)
    token = world.create(world.peers[1], "n")
    world.run(2.0)
    assert world.outcomes[token] == "made"


def test_claim_of_a_peer_that_died_lapses():
    world = World()
    world.make_s = 1000.0
    world.create(world.peers[0], "n")
    world.run(1.0)
    world.peers[0].is_up = False
    for peer in world.peers[1:]:
        peer.see(frozenset(world.ids[1:]))
    world.make_s = 0.05

    early = world.create(world.peers[1], "n")
    world.run(CLAIM_S + 1)
    assert isinstance(world.outcomes[early], AliasExistsError)
    world.run(TENTATIVE_S)
    late = world.create(world.peers[1], "n")
    world.run(2.0)
    assert world.outcomes[late] == "made"


def test_object_that_takes_long_to_make_keeps_its_name_meanwhile():
    world = World()
    world.make_s = 5 * TENTATIVE_S
    token = world.create(world.peers[0], "n")
    world.run(4 * TENTATIVE_S)

    other = world.create(world.peers[1], "n")
    world.run(2 * TENTATIVE_S)

    assert isinstance(world.outcomes[other], AliasExistsError)
    assert world.outcomes[token] == "made"


def test_name_whose_release_was_lost_is_free_once_its_object_is_looked_for():
    world = World()
    world.create(world.peers[0], "n")
    world.run(2.0)
    del world.peers[0].objects["n"]  # And nobody was told.

    token = world.create(world.peers[1], "n")
    world.run(5.0)

    assert world.outcomes[token] == "made"
    assert len(world.holders("n")) == 1


def test_claim_needs_most_keepers_and_says_who_is_missing():
    world = World()
    world.peers[1].is_up = world.peers[2].is_up = False

    token = world.create(world.peers[0], "n")
    world.run(CLAIM_S + 1)

    error = world.outcomes[token]
    assert isinstance(error, NoQuorumError)
    assert "bbbbbb" in error.reason
    assert "cccccc" in error.reason
    assert not world.holders("n")


def test_name_deleted_and_made_again_elsewhere_is_not_taken_for_the_old_one():
    world = World(loss=0.2)
    for round_number in range(20):
        maker = world.peers[round_number % 3]
        token = world.create(maker, "n")
        world.run(20.0)
        assert world.outcomes[token] == "made", round_number
        world.delete(maker, "n")
    world.run(20.0)

    assert not any(peer.renamed for peer in world.peers)


@pytest.mark.parametrize("seed", range(60))
def test_of_those_that_want_a_name_at_once_only_one_gets_it(seed):
    """Where nothing is lost one does; where much is, all may be refused for silence."""
    world = World(seed, count=2 + seed % 5, loss=0.1 * (seed % 3))
    tokens = []
    for peer in world.peers:
        delay_s = world.rng.uniform(0, 0.03)
        world.later(delay_s, lambda peer=peer: tokens.append(world.create(peer, "n")))

    world.run(60.0)

    made = [token for token in tokens if world.outcomes[token] == "made"]
    assert len(made) == 1 or (world.loss and not made)
    assert len(world.holders("n")) == len(made)
    assert not any(peer.renamed for peer in world.peers)


# -- partitions and keepers ----------------------------------------------------------------


def test_name_given_on_both_sides_stays_with_the_older_claim():
    world = World(count=5)
    one, two = world.peers[:2], world.peers[2:]
    world.part(one, two)
    older = world.create(two[0], "n")
    world.run(3.0)
    younger = world.create(one[0], "n")
    world.run(3.0)
    assert world.outcomes[older] == world.outcomes[younger] == "made"

    world.heal()
    world.run(10.0)

    assert world.holders("n") == [two[0]]
    assert one[0].renamed == ["n~a"]
    assert sum(len(peer.objects) for peer in world.peers) == 2
    for peer in world.peers:
        for alias in ("n", "n~a"):
            if peer.peer_id in peer.keepers_of(alias):
                holder = world.holders(alias)[0]
                kept = peer.keep([(alias, Free(ObjectId(bytes(16))))])[alias]
                assert kept.object_id == holder.objects[alias].object_id


@pytest.mark.parametrize("seed", range(40))
def test_no_object_and_no_name_is_lost_over_partitions(seed):
    world = World(seed, count=3 + seed % 5, loss=0.05)
    made = 0
    for _ in range(4):
        peers = world.rng.sample(world.peers, len(world.peers))
        at = world.rng.randrange(1, len(peers))
        world.part(peers[:at], peers[at:])
        tokens = [
            world.create(world.rng.choice(world.peers), f"n{world.rng.randrange(4)}")
            for _ in range(6)
        ]
        world.run(15.0)
        made += sum(world.outcomes[token] == "made" for token in tokens)
        world.heal()
        world.run(30.0)

    held = [alias for peer in world.peers for alias in peer.objects]
    assert len(held) == made
    assert len(set(held)) == made, "a name is held twice"


def test_new_keepers_are_told_of_names_whose_holder_is_dead():
    world = World(count=6)
    holder = world.peers[0]
    for number in range(20):
        world.create(holder, f"n{number}")
    world.run(5.0)
    holder.is_up = False
    live = frozenset(world.ids[1:])
    for peer in world.peers[1:]:
        peer.see(live)
    world.run(5.0)

    for number in range(20):
        alias = f"n{number}"
        for keeper in world.peers[1].keepers_of(alias):
            assert world.peer(keeper).rows[alias].is_confirmed, alias


def test_names_are_told_in_batches_with_pauses():
    world = World()
    peer = world.peers[0]
    claims = [
        (B, f"n{number}", Claim(ObjectId(number.to_bytes(16, "big")), A, 1.0, True))
        for number in range(10 * TELL_MAX)
    ]
    peer.step(names.NamesHeld(claims))
    world.run(0.5)
    assert 0 < len(world.peers[1].rows) <= 6 * TELL_MAX

    world.run(3.0)

    assert len(world.peers[1].rows) == len(claims)
    assert peer.core.deadline_s() is None
