"""Who leads next: asking, preparing, fetching, and accepting the newest state again.

    ASKING --nobody leads--> WAITING --my turn--> PREPARING --majority--> (FETCHING)
       ^                        ^ another is at it      | refused               |
       '------------------------+-----------------------'                      v
                                                     accepted again --> led (leaders)

Rules of this file: nobody leads without preparing, a restarted leader neither. Objects
that somebody wants come first, the rest at a bounded pace. Where too few voters are in
reach nothing is tried until one comes back.

Source: reliability.md R3 and R12; CASPaxos (arXiv:1802.07000); decision 11.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from activestore.core.acceptor import Acceptor
from activestore.core.followings import Followings, Phase, Search
from activestore.core.peers import rendezvous
from activestore.core.register import (
    Register,
    electorate,
    has_quorum,
    missing_votes,
    newest_of,
)
from activestore.core.replication_desk import Desk, Wake, shown_votes
from activestore.core.replication_effects import NoQuorum
from activestore.ids import ObjectId, PeerId
from activestore.wire.replicas import (
    Ask,
    Ballot,
    Config,
    Fetch,
    Nack,
    Point,
    Prepare,
    Promise,
    Reason,
    State,
    Told,
)

# The pace of the background is kept in steps of this.
PUMP_S = 0.01
# Whoever was promised an epoch gets this long to lead.
OTHERS_TURN_S = 1.0
# A copy that may not lead asks who does, this often at most.
ASK_AGAIN_S = 10.0


class TakeOvers(Followings):
    """All searches for leaders of one peer."""

    def __init__(
        self,
        desk: Desk,
        acceptor: Acceptor,
        recommit: Callable[[ObjectId, Register, Point, set[PeerId]], None],
    ) -> None:
        super().__init__(desk, acceptor)
        self._recommit = recommit
        self._searches: dict[ObjectId, Search] = {}
        self._stuck: dict[ObjectId, None] = {}
        self._queue: OrderedDict[ObjectId, None] = OrderedDict()
        self._background: set[ObjectId] = set()
        self._is_pumping = False

    def on_gone(self, object_id: ObjectId) -> None:
        """Forget an object that is not here any more."""
        self._unlead(object_id)
        self._end(object_id)
        self._queue.pop(object_id, None)

    def _end(self, object_id: ObjectId) -> None:
        self._searches.pop(object_id, None)
        self._stuck.pop(object_id, None)
        self._background.discard(object_id)

    # Who leads

    def on_led_by(self, object_id: ObjectId, leader: Ballot) -> None:
        """Follow a leader; searches end, and whoever waits for one is told."""
        known = self.leaders.get(object_id)
        if known is not None and known.counter > leader.counter:
            return
        is_searched = object_id in self._searches
        self._end(object_id)
        if known != leader:
            self._lead(object_id, leader)
        elif is_searched and leader.leader != self._desk.me:
            self._tell_followed(object_id, leader)

    # Beginning

    def queue(self, object_id: ObjectId) -> None:
        """Find a leader when there is time for it."""
        if object_id not in self._searches:
            self._queue[object_id] = None
            self._arm_pump()

    def _arm_pump(self) -> None:
        if not self._is_pumping and self._queue:
            self._is_pumping = True
            self._desk.wake(PUMP_S, Wake.PUMP)

    def pump(self) -> None:
        """Begin with the next objects of the background."""
        self._is_pumping = False
        config = self._desk.config
        count = max(1, round(config.background_per_s * PUMP_S))
        while self._queue and count and len(self._background) < config.background_max:
            # Not by `next(iter())`, which steps over all that were taken before.
            object_id, _ = self._queue.popitem(last=False)
            count -= 1
            known = self.leaders.get(object_id)
            is_led = known is not None and known.leader == self._desk.me
            if object_id not in self._searches and not is_led:
                self._background.add(object_id)
                self._begin(object_id, Search(is_background=True))
        self._arm_pump()

    def touch(self, object_id: ObjectId) -> None:
        """Somebody wants the object: find its leader, or be it, or say why not."""
        if self._acceptor.latest(object_id) is None:
            return
        search = self._searches.get(object_id)
        wait_s = self._desk.config.quorum_wait_s
        if search is not None and search.wanted_until_s is not None:
            return
        is_new = search is None
        if search is None:
            self._queue.pop(object_id, None)
            search = Search(is_background=False)
        self._background.discard(object_id)
        search.is_background = False
        search.wanted_until_s = self._desk.wake(wait_s, Wake.NO_QUORUM, object_id)
        if is_new:
            self._begin(object_id, search)
        elif search.phase is Phase.STUCK:
            self._set_turn(object_id, search, 0.0)

    def succeed(self, object_id: ObjectId) -> None:
        """Lead an object whose leader asked this peer to: prepare at once."""
        self._end(object_id)
        self._queue.pop(object_id, None)
        search = self._searches[object_id] = Search(is_background=False)
        self._prepare(object_id, search)

    def look_later(self, object_id: ObjectId, in_s: float) -> None:
        """Look after a while whether anybody leads, and forget what was begun."""
        search = self._searches.get(object_id)
        if search is None:
            search = self._searches[object_id] = Search(is_background=True)
        search.promises = {}
        self._background.discard(object_id)
        self._arm_pump()
        self._set_turn(object_id, search, in_s)
        search.phase = Phase.LOOKING

    def on_leaving(self, object_id: ObjectId) -> None:
        """Look whether somebody leads, a while after the leader has left its group."""
        if self._may_lead(object_id) is not None:
            self.look_later(object_id, OTHERS_TURN_S * (0.5 + self._desk.random()))

    def on_asked(self, object_id: ObjectId, sender: PeerId) -> None:
        """Another wants to know who leads: so should this peer. Who asks does not lead."""
        known = self.leaders.get(object_id)
        if known is not None and known.leader == sender:
            self.lose_leader(object_id)
        is_known = object_id in self.leaders or object_id in self._searches
        if not is_known and self._may_lead(object_id) is not None:
            self.queue(object_id)

    def on_lost(self, object_id: ObjectId, *, has_successor: bool) -> None:
        """This peer leads no more, or could not get its state accepted."""
        self.lose_leader(object_id)
        search = self._searches.get(object_id)
        if search is not None and search.phase is Phase.ACCEPTING:
            self._back_off(object_id, search)
            return
        chance = 0.5 + self._desk.random()
        wait_s = OTHERS_TURN_S if has_successor else self._desk.config.backoff_s
        self.look_later(object_id, wait_s * chance)

    def _begin(self, object_id: ObjectId, search: Search) -> None:
        self._searches[object_id] = search
        known = self.leaders.get(object_id)
        if known is not None and not self._desk.is_reachable(known.leader):
            self.lose_leader(object_id)
            self._wait_for_turn(object_id, search)
        else:
            self._ask(object_id, search)

    def _set_due(self, object_id: ObjectId, search: Search, in_s: float) -> None:
        search.due_s = self._desk.wake(in_s, Wake.TAKE_OVER, object_id)

    def _set_turn(self, object_id: ObjectId, search: Search, in_s: float) -> None:
        search.phase = Phase.WAITING
        self._stuck.pop(object_id, None)
        self._set_due(object_id, search, in_s)

    # Asking

    def _ask(self, object_id: ObjectId, search: Search) -> None:
        register = self._acceptor.latest(object_id)
        if register is None:
            self.on_gone(object_id)
            return
        known = self.leaders.get(object_id)
        peers = electorate(register.config) if known is None else (known.leader,)
        search.phase = Phase.ASKING
        search.asked = self._desk.reachable(peers) - {self._desk.me}
        for peer_id in sorted(search.asked):
            self._desk.send(peer_id, Ask(object_id))
        if search.asked:
            self._set_due(object_id, search, self._desk.config.ask_s)
        else:
            self._wait_for_turn(object_id, search)

    def drop_all(self) -> None:
        """Search for nothing any more."""
        for object_id in list(self._searches):
            self._end(object_id)
        self._queue.clear()

    def on_told(self, sender: PeerId, message: Told, *, is_found: bool = False) -> None:
        """Take an answer to Ask; `is_found`: who answers was found by the object's place."""
        object_id, config = message.object_id, message.config
        if config is not None:
            if not is_found and not self._acceptor.believes(sender, message):
                return
            self._acceptor.hear_config(sender, message)
        if message.is_led and config is not None:
            self._acceptor.learn_config(sender, object_id, message.promised, config)
            register = self._acceptor.latest(object_id)
            if register is None or register.config.lineage != config.lineage:
                return
            led, promised = message.promised, register.promised
            if led.counter >= register.epoch.counter:
                self.on_led_by(object_id, led)
            if led.counter < promised.counter:  # It would hear so at its next write.
                nack = Nack(object_id, led, 0, Reason.PROMISED, promised)
                self._desk.send(sender, nack)
            return
        search = self._searches.get(object_id)
        if search is None or search.phase is not Phase.ASKING:
            return
        search.asked.discard(sender)
        known = self.leaders.get(object_id)
        if known is not None and known.leader == sender:
            self.lose_leader(object_id)
        if not search.asked:
            self._wait_for_turn(object_id, search)

    # Waiting for the turn

    def _may_lead(self, object_id: ObjectId) -> Register | None:
        register = self._acceptor.latest(object_id)
        if register is None or register.is_quarantined or not register.is_voter:
            return None
        if self._desk.is_distrusted:
            return None
        is_able = register.has_state and self._desk.me in electorate(register.config)
        return register if is_able else None

    def _wait_for_turn(self, object_id: ObjectId, search: Search) -> None:
        register = self._may_lead(object_id)
        if register is None:
            self._ask_later(object_id, search)
            return
        members = self._desk.reachable(register.config.members) | {self._desk.me}
        ranked = rendezvous(object_id, sorted(members), len(members))
        config = self._desk.config
        delay_s = ranked.index(self._desk.me) * config.rank_step_s
        delay_s += self._desk.random() * config.rank_jitter_s
        if len(electorate(register.config)) == 1:
            delay_s = 0.0
        self._set_turn(object_id, search, delay_s)

    def _ask_later(self, object_id: ObjectId, search: Search) -> None:
        """This copy may not lead: ask again later who does."""
        search.attempt += 1
        register = self._acceptor.latest(object_id)
        if register is None or register.is_quarantined or self._desk.is_distrusted:
            self._drop_search(object_id, search)
            return
        later_s = min(self._desk.config.ask_s * 2**search.attempt, ASK_AGAIN_S)
        if search.is_background:
            later_s = ASK_AGAIN_S
        self._background.discard(object_id)
        self._set_turn(object_id, search, later_s * (0.5 + self._desk.random()))
        search.phase = Phase.ASKING

    def _drop_search(self, object_id: ObjectId, search: Search) -> None:
        if search.wanted_until_s is None:
            self._end(object_id)
        else:
            self._stick(object_id, search)

    def on_due(self, object_id: ObjectId) -> None:
        """Take the next step of a search, if its time has come."""
        search = self._searches.get(object_id)
        if search is None or self._desk.now_s < search.due_s - 1e-9:
            return
        if search.phase is Phase.ASKING:
            self._on_unanswered(object_id, search)
        elif search.phase is Phase.LOOKING:
            self._begin(object_id, search)
        elif search.phase is Phase.WAITING:
            self._prepare_if_any(object_id, search)
        elif search.phase in (Phase.PREPARING, Phase.FETCHING):
            self._on_late(object_id, search)

    def _on_unanswered(self, object_id: ObjectId, search: Search) -> None:
        if self._may_lead(object_id) is None:
            self._ask(object_id, search)
            if search.phase is Phase.ASKING:
                search.attempt = max(search.attempt, 1)
                self._ask_later(object_id, search)
            return
        self.lose_leader(object_id)
        self._wait_for_turn(object_id, search)

    def _prepare_if_any(self, object_id: ObjectId, search: Search) -> None:
        register = self._may_lead(object_id)
        if register is None:
            self._ask(object_id, search)
            return
        reachable = self._desk.reachable(electorate(register.config))
        reachable.add(self._desk.me)
        if has_quorum(register.config, reachable):
            self._prepare(object_id, search)
        else:
            self._stick(object_id, search)

    def _stick(self, object_id: ObjectId, search: Search) -> None:
        """Try nothing before a voter comes back; whoever waits is told at once."""
        search.phase = Phase.STUCK
        self._background.discard(object_id)
        self._stuck[object_id] = None
        self._arm_pump()
        if search.wanted_until_s is not None:
            self._say_no_quorum(object_id, search, "")

    def on_peer_back(self, peer_id: PeerId) -> None:
        """Try again what is stuck: a voter may have come back."""
        self.ask_about_unreadable(peer_id)
        stuck, self._stuck = self._stuck, {}
        for object_id in stuck:
            search = self._searches[object_id]
            if search.wanted_until_s is None:
                del self._searches[object_id]
                self._queue[object_id] = None
            else:
                self._begin(object_id, search)
        self._arm_pump()

    def on_peer_lost(self, peer_id: PeerId) -> None:
        """Take over what a peer led that does not answer, when there is time for it."""
        for object_id in self._led_by.get(peer_id, {}):
            if object_id not in self._searches:
                self._queue[object_id] = None
        self._arm_pump()

    # Nobody can lead

    def on_waited(self, object_id: ObjectId) -> None:
        """Tell whoever touched an object that it waits in vain."""
        search = self._searches.get(object_id)
        if search is None or search.wanted_until_s is None:
            return
        if self._desk.now_s >= search.wanted_until_s - 1e-9:
            self._say_no_quorum(object_id, search, "")

    def _say_no_quorum(self, object_id: ObjectId, search: Search, text: str) -> None:
        search.wanted_until_s, search.is_background = None, True
        register = self._acceptor.latest(object_id)
        if register is None:
            return
        voters = electorate(register.config)
        reachable = self._desk.reachable(voters) | {self._desk.me}
        present, needed = missing_votes(register.config, reachable)
        if register.is_quarantined:
            text = "this copy is of an old lineage: the group was forced elsewhere"
        elif not text:
            votes = shown_votes(present, len(voters), needed)
            text = self._shown_missing(object_id) or votes
        self._desk.emit(NoQuorum(object_id, present, needed, text))

    # Preparing

    def _prepare(self, object_id: ObjectId, search: Search) -> None:
        register = self._may_lead(object_id)
        if register is None or self._acceptor.is_busy(object_id):
            self._set_turn(object_id, search, self._desk.config.backoff_s)
            return
        counter = max(register.promised.counter, search.seen) + 1
        ballot = search.ballot = Ballot(counter, self._desk.me)
        search.phase = Phase.PREPARING
        search.refusals = set()
        self._acceptor.pledge(object_id, ballot)
        mine = Promise(
            object_id, ballot, register.point, register.config, register.is_deleted,
            register.has_state,
        )  # fmt: skip
        search.promises = {self._desk.me: mine}
        search.asked = {self._desk.me}
        self._set_due(object_id, search, self._desk.config.prepare_s)
        self._prepare_at(object_id, search, register.config)
        self._go_on(object_id, search)

    def _prepare_at(self, object_id: ObjectId, search: Search, config: Config) -> None:
        message = Prepare(object_id, search.ballot, config)
        for peer_id in electorate(config):
            if peer_id not in search.asked:
                search.asked.add(peer_id)
                self._desk.send(peer_id, message)

    def on_promise(self, sender: PeerId, message: Promise) -> None:
        """Take a promise; with enough of them the newest state is known."""
        search = self._searches.get(message.object_id)
        if search is None or search.phase is not Phase.PREPARING:
            return
        is_new = sender in search.asked and sender not in search.promises
        if message.epoch == search.ballot and is_new:
            self._acceptor.hear_config(sender, message)
            search.promises[sender] = message
            self._go_on(message.object_id, search)

    def _go_on(self, object_id: ObjectId, search: Search) -> None:
        """Go on if a majority of the newest config known has promised.

        The newest state among the promises tells which config that is: one that was
        committed meanwhile is found, since its majority and ours have a voter in common.
        """
        promises = search.promises
        best = newest_of(promises)
        self._prepare_at(object_id, search, best.config)
        if not has_quorum(best.config, promises.keys()):
            return
        if self._desk.me not in electorate(best.config):
            self._on_stranger(object_id, search, best.config)
            return
        if not best.has_state and not best.is_deleted:
            self._on_stateless(object_id, search, best)
            return
        search.best = best
        mine = promises[self._desk.me]
        if mine.accepted == best.accepted or best.is_deleted:
            self._accept(object_id, search, best.config, None, is_whole=False)
            return
        search.phase = Phase.FETCHING
        self._set_due(object_id, search, self._desk.config.fetch_s)
        for peer_id, promise in promises.items():
            if promise.accepted == best.accepted and promise.has_state:
                message = Fetch(object_id, search.ballot, best.accepted)
                self._desk.send(peer_id, message)
                return

    def _on_stateless(self, object_id: ObjectId, search: Search, best: Promise) -> None:
        """Only a witness knows the newest state: whoever has it must come. Decision 11."""
        answered = search.promises.keys() | search.refusals
        voters = electorate(best.config)
        if self._desk.reachable(voters) <= answered:
            self.missing[object_id] = best.accepted.number
            if search.wanted_until_s:
                self._say_no_quorum(object_id, search, "")

    def on_state(self, sender: PeerId, message: State) -> None:
        """Take the state that was asked for, and accept it under the new epoch."""
        search = self._searches.get(message.object_id)
        if search is None or search.phase is not Phase.FETCHING:
            return
        best = search.best
        if message.epoch != search.ballot or best is None:
            return
        if sender not in search.promises:
            return
        if message.at != best.accepted:
            return  # Its holder went on under another epoch: the end of this one.
        self._accept(
            message.object_id, search, best.config, message.change, is_whole=True
        )

    def _accept(
        self,
        object_id: ObjectId,
        search: Search,
        config: Config,
        change: Any,
        *,
        is_whole: bool,
    ) -> None:
        best, register = search.best, self._acceptor.latest(object_id)
        assert best is not None
        if register is None or register.promised != search.ballot:
            self._back_off(object_id, search)
            return
        is_held = is_whole or best.is_deleted or register.has_state
        if self._acceptor.is_busy(object_id) or not is_held:
            # Its own state was found damaged since it asked: another has it.
            self._back_off(object_id, search)
            return
        search.phase = Phase.ACCEPTING
        search.base = best.accepted
        new = Register(
            promised=search.ballot,
            epoch=search.ballot,
            number=best.accepted.number,
            config=config,
            is_deleted=best.is_deleted,
        )
        base = None if is_whole else best.accepted
        then = partial(self._on_accepted_here, object_id, new)
        self._acceptor.order(object_id, new, base=base, change=change, then=then)

    def _on_accepted_here(
        self, object_id: ObjectId, register: Register, problem: str
    ) -> None:
        """Have the others accept the state that is accepted here, or look again."""
        search = self._searches.get(object_id)
        if search is None or search.phase is not Phase.ACCEPTING:
            return
        if search.ballot != register.epoch:
            return
        if problem:
            self._back_off(object_id, search)
            return
        at = {
            peer_id
            for peer_id, promise in search.promises.items()
            if promise.accepted == search.base
        }
        self._recommit(object_id, register, search.base, at)

    # Refusals

    def on_nack(self, sender: PeerId, message: Nack) -> None:
        """Take that a voter did not promise."""
        object_id = message.object_id
        search = self._searches.get(object_id)
        if search is None or message.epoch != search.ballot or message.number:
            return
        is_asked = search.phase in (Phase.PREPARING, Phase.FETCHING)
        if not is_asked or sender not in search.asked:
            return
        search.refusals.add(sender)
        if message.reason is Reason.PROMISED:
            search.seen = max(search.seen, message.promised.counter)
            self._back_off(object_id, search)
        elif message.reason is Reason.STRANGER and message.config is not None:
            self._on_stranger(object_id, search, message.config)
        elif search.phase is Phase.FETCHING:
            self._back_off(object_id, search)
        else:
            self._go_on(object_id, search)

    def _on_stranger(self, object_id: ObjectId, search: Search, config: Config) -> None:
        """This peer is out, as one hears: ask who leads those that are in."""
        for peer_id in electorate(config):
            if peer_id != self._desk.me:
                self._desk.send(peer_id, Ask(object_id))
        self._back_off(object_id, search)
        search.phase = Phase.LOOKING

    def _on_late(self, object_id: ObjectId, search: Search) -> None:
        if search.phase is Phase.FETCHING and search.best is not None:
            # Its holder died meanwhile: whoever else has it promised too, or will.
            search.phase = Phase.PREPARING
        self._back_off(object_id, search)

    def _back_off(self, object_id: ObjectId, search: Search) -> None:
        """Try again later, by chance not when the others do."""
        config = self._desk.config
        longest_s = min(config.backoff_s * 2**search.attempt, config.backoff_s_max)
        search.attempt = min(search.attempt + 1, 10)
        search.promises = {}
        self._background.discard(object_id)
        self._arm_pump()
        self._set_turn(object_id, search, longest_s * (0.5 + self._desk.random()))

    def on_overtaken(self, object_id: ObjectId, epoch: Ballot) -> None:
        """Let another try; look later whether it leads."""
        self.look_later(object_id, OTHERS_TURN_S * (1 + self._desk.random()))
        self._searches[object_id].seen = epoch.counter

    def check(self) -> None:
        """Make sure that everything is where it belongs."""
        for object_id, search in self._searches.items():
            assert (search.phase is Phase.STUCK) == (object_id in self._stuck)
        assert self._stuck.keys() <= self._searches.keys()
        assert self._background <= self._searches.keys()
        for object_id, ballot in self.leaders.items():
            assert object_id in self._led_by[ballot.leader]
