"""The loop: it joins the core with network, storage and executors, and owns all of them.

One thread. Each turn takes what is there from every port, steps the core, carries
effects out in order, and writes once per receiver. While calls come close together it
looks again for a while before it blocks, for waking an idle core costs more than a
call.

Rules of this file: it knows ports, not sockets; every decision about a call is the
core's; what a client asks of the peer itself is `requests`'.

Source: design section 3.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from activestore.core import effects, events
from activestore.core.location import Location
from activestore.core.membership import Membership, MembershipConfig
from activestore.core.replication import Replication
from activestore.core.searches import Allowance, Searches
from activestore.core.troubles import TroubleKind
from activestore.errors import (
    UnavailableError,
)
from activestore.ids import ObjectId, PeerId, SessionId
from activestore.objects import orders
from activestore.objects.spinning import Spin
from activestore.peer import ports, starts
from activestore.peer.cluster import Cluster
from activestore.peer.collecting import Collecting
from activestore.peer.fetching import Fetching
from activestore.peer.forgetting import Forgetting
from activestore.peer.incoming import Incoming
from activestore.peer.links import LOOK_S, Links
from activestore.peer.moving import Moving
from activestore.peer.naming import Naming
from activestore.peer.newest import Newest
from activestore.peer.outgoing import Outgoing
from activestore.peer.places import Places
from activestore.peer.reading import Reading
from activestore.peer.relays import Relays
from activestore.peer.replicating import Replicating
from activestore.peer.reporting import Reporting
from activestore.peer.scrubbing import Scrubbing
from activestore.peer.searching import Searching
from activestore.peer.table import Parts, Session
from activestore.peer.waiting import DescriptorWaiter, Waiter
from activestore.wire.gossip import PeerRecord
from activestore.wire.limits import PROTOCOL_VERSION
from activestore.wire.messages import (
    Bye,
    Call,
    Cancel,
    Create,
    Credit,
    Delete,
    Persist,
    Request,
)
from activestore.wire.state import FileBuffer

# Messages taken per turn: their answers leave together, others wait that long.
MESSAGES_PER_TURN = 64
# Turns without work before the memory of executors is looked at again, in seconds.
MEASURE_S = 0.5
# Blocking is bounded, so that a lost wake-up costs this much and not for ever.
BLOCK_S_MAX = 0.5
# Of a start's number, in the chains of calls that come back to it.
MARK_BYTES = 8
# With a receiver that takes no more, how soon it is tried again.
RETRY_S = 0.005


class PeerLoop(Incoming, Outgoing):
    """Everything a peer does, in one thread."""

    def __init__(self, parts: Parts, waiter: Waiter | None = None) -> None:
        """Join the parts; `waiter`: what it waits on, by default real descriptors."""
        super().__init__(parts)
        transport, storage, executors = self.transport, self.storage, self.executors
        self._spin = Spin(self.settings.spin_s, self.clock)
        self._waiter = waiter if waiter is not None else DescriptorWaiter()
        self._waiter.watch(transport.wake_fd())
        self._waiter.watch(storage.wake_fd())
        executors.watch(self._waiter.watch, self._waiter.unwatch)
        self._messages: dict[type, Callable[[Session, Any], None]] = {
            Call: self._on_call,
            Create: self._on_create,
            Delete: self._on_delete,
            Persist: self._on_persist,
            Request: self._on_request,
            Cancel: self._on_cancel,
            Credit: self._on_credit,
            Bye: self._on_bye,
        }
        self._effects = {
            effects.Dispatch: executors.dispatch,
            effects.Answer: self._do_answer,
            effects.Commit: self._do_commit,
            effects.CommitStates: self._do_commit_states,
            effects.HurryCommits: lambda _: self.hurry_commits(),
            effects.LoadObject: self._do_load,
            effects.LookUpReply: self._do_look_up,
            effects.LookUpFences: self._do_look_up_fences,
            effects.Activate: self._do_activate,
            effects.ReleaseLoaded: lambda e: _close_files(e.loaded),
            effects.Refuse: self._do_refuse,
            effects.SendItem: self._do_send_item,
            effects.SendBeat: self._do_send_beat,
            effects.DropCopy: lambda e: executors.control(
                e.executor, (orders.DROP, e.copy_id)
            ),
            effects.RecallCalls: lambda e: executors.control(
                e.executor, (orders.RECALL, e.slot)
            ),
            effects.PingExecutor: lambda e: executors.control(
                e.executor, (orders.PING,)
            ),
            effects.InterruptCall: self._do_interrupt,
            effects.SendAway: self._do_send_away,
            effects.AskOn: self._do_ask_on,
            effects.StopAway: self._do_stop_away,
            effects.GrantAway: self._do_grant_away,
            effects.ObjectQuiet: lambda e: self.moving.quiet(e),  # noqa: PLW0108 - made later
            effects.SendOn: lambda e: self.moving.send_on(e),  # noqa: PLW0108 - as above
            effects.GrantCredit: lambda e: executors.to_slot(
                e.executor, e.slot, (orders.CREDIT, e.call_id, e.items), None
            ),
            effects.SpawnExecutor: lambda e: executors.spawn(e.executor),
            effects.KillExecutor: lambda e: executors.kill(e.executor, e.why),
            effects.RetireExecutor: lambda e: executors.retire(e.executor),
            effects.Note: lambda e: self.note(e.level, e.text),
        }

        self._join_parts()

    def _join_parts(self) -> None:
        """Build what knows of other peers."""
        settings = self.settings
        record = settings.record or PeerRecord(
            settings.peer_id, 1, settings.peer_name, (settings.endpoint,), "", "lan",
            PROTOCOL_VERSION, {},
        )  # fmt: skip
        about_us = {
            "peer_id": settings.peer_id, "cluster": settings.cluster,
        }  # fmt: skip
        session_id = SessionId(settings.incarnation)
        mark = settings.incarnation[:MARK_BYTES]
        self.core.config = self.core.config._replace(
            mark=mark, wall_offset_s=self.wall_clock() - self.clock()
        )
        self.location = Location(PeerId(settings.peer_id))
        self.links = Links(self, session_id=session_id, about_us=about_us)
        membership = Membership(record, MembershipConfig(), self.random)
        self.cluster = Cluster(
            self, self.links, membership, self.location, settings.seeds
        )
        self.relays = Relays(self, self.links, self.cluster)
        allowance = Allowance(settings.searches_per_s, self.clock())
        searches = Searches(allowance)
        self.searching = Searching(self, self.cluster, self.relays, searches)
        self.relays.search = self.searching.begin
        self.cluster.on_gone = self.relays.lose_peer
        self.cluster.on_heard = self.relays.heard
        self.cluster.on_seen.append(self.relays.peer_seen)
        self.relays.on_restarted = self._end_start
        self.places = Places(self, self.cluster, self.relays)
        self.moving = Moving(self, self.cluster, self.relays, self.places)
        self.fetching = Fetching(self, self.cluster, self.relays)
        self._join_groups()
        self.collecting = Collecting(self, self.cluster, self.relays)
        self.newest = Newest(self, self.cluster, self.relays, self.fetching)
        self.naming = Naming(self, self.cluster, self.relays)
        self.naming.disputes.write = self.replicating.write
        self.cluster.on_changed = self.naming.peers_changed
        self.moving.on_held = self.replicating.on_led = self.naming.held
        self.replicating.is_moving = lambda one: self.moving.target_of(one) is not None
        self.scrubbing = Scrubbing(self)
        self.forgetting = Forgetting(self)
        self.scrubbing.on_damage = self.replicating.mending.state_lost
        self.reporting = None
        if self.machine is not None:
            self.reporting = Reporting(self, self.cluster, self.machine)
            self.classes.on_required = self.reporting.required

    def _join_groups(self) -> None:
        """Build what knows of replica groups."""
        settings = self.settings
        self.replicating = Replicating(
            self, self.cluster, self.relays, self.places, self.fetching,
            Replication(
                PeerId(settings.peer_id), None, self.random, self.places.epoch_alone
            ),
        )  # fmt: skip
        self.reading = Reading(
            PeerId(settings.peer_id), self.replicating.core, self.clock, self.wall_clock
        )
        self.cluster.on_seen.append(self.replicating.peer_seen)
        self.relays.replicas_wanted = self.replicating.want
        self.cluster.on_link = self.replicating.link_ready
        self.links.known_of = self.cluster.known_of
        self.links.on_known = self._hear_known
        self.core.begin_round = self.replicating.begin_round
        self.core.why_each = self.replicating.why_each

    def _hear_known(self, known: int, mark: object) -> None:
        """Take what another peer remembers of this one: its disk may be an older one."""
        record = self.settings.record
        if record is None:
            return
        why = starts.why_distrusted(
            record.incarnation, record.meta.get("start"), known, mark
        )
        if why:
            if starts.is_counted(record.incarnation):
                self.storage.write(starts.mark, lambda *_: None)
            self.distrust(why)

    def distrust(self, why: str) -> None:
        """Have no copy here vote: what was promised may be forgotten (R9)."""
        me = f"peer {self.settings.peer_name} {self.settings.peer_id.hex()}"
        self.trouble(TroubleKind.DISK, me, why)
        self.replicating.distrust()

    # -- turning -----------------------------------------------------------------------

    def run(self, until: Callable[[], bool]) -> None:
        """Turn until `until()`; it is asked once per turn."""
        self.start()
        while not until():
            self.turn()

    def start(self) -> None:
        """Order the first executors; before the first turn."""
        self.carry_out(self.core.start(self.clock()))
        self.cluster.start()

    def turn(self) -> None:
        """Take what is there, decide, write; wait only if there was nothing."""
        worked = self._take_network()
        if worked:
            self.executors.flush()  # Calls go first: nothing else is as urgent.
        for fd in self._waiter.wait(self._wait_s(worked=worked)):
            worked |= self._take_executor(fd)
        if worked:
            self._flush_network()
        self._now_s = now_s = self.clock()
        worked |= self._take_storage()
        deadline_s = self.core.deadline_s()
        if deadline_s is not None and now_s >= deadline_s:
            self.step(events.TimerFired())
        if now_s >= self._measure_due_s:
            self._measure(now_s)
        self.cluster.turn(now_s)
        self.naming.turn(now_s)
        self.replicating.turn(now_s)
        if now_s >= self._look_due_s:
            self._look(now_s)
        self.executors.flush()
        self._flush_network()
        if worked:
            # Only an executor is worth looking for at once. To look again while a commit
            # runs would take the interpreter, and perhaps the core, from the writer.
            self._busy_until_s = 0.0
            if self.core.calls:
                self._busy_until_s = self._spin.until_s(now_s, self._last_work_s)
            self._last_work_s = now_s
        elif now_s < self._busy_until_s and not self._spin.offer_core():
            self._busy_until_s = 0.0

    def _look(self, now_s: float) -> None:
        """Look at all links and requests a few times a second, between at who is due."""
        if now_s < self._look_all_s:
            self._look_due_s = self._look_all_s
            self.relays.look_at_due(now_s)
            return
        self._look_due_s = self._look_all_s = now_s + LOOK_S
        self.links.look(now_s, self.relays.awaited())
        self.relays.look(now_s)
        self.moving.look(now_s)

    def _measure(self, now_s: float) -> None:
        """Look at the executors' memory."""
        self._measure_due_s = now_s + MEASURE_S
        for event in self.executors.measure():
            self.step(event)
        self._end_silent_sessions()
        self.overfull += self.lanes.stalled(now_s)
        self.newest.look(now_s)
        self.collecting.look()
        self.scrubbing.look(now_s)
        self.replicating.dating.look()
        self.forgetting.look(now_s)
        if self.repairing is not None:
            self.repairing.look(now_s)
        if self.reporting is not None:
            self.reporting.look(now_s)

    def _flush_network(self) -> None:
        for route in self.transport.flush():
            self._lose_route(route)
        if self.overfull:
            overfull, self.overfull = self.overfull, []
            for route in overfull:
                self.transport.disconnect(route)
                self._lose_route(route)

    def _wait_s(self, *, worked: bool) -> float:
        """Return how long this turn may block."""
        if worked or self.clock() < self._busy_until_s or self.transport.has_input():
            return 0.0
        if self.executors.has_unsent or self.transport.has_backlog:
            return RETRY_S
        deadline_s = self.core.deadline_s()
        due_s = min(
            self._measure_due_s, self.cluster.next_s(), self.naming.next_s(),
            self.replicating.next_s(),
        )  # fmt: skip
        if self.links.by_route or self.relays.has_deadlines or not self.moving.is_idle:
            due_s = min(due_s, self._look_due_s)
        if deadline_s is not None and deadline_s < due_s:
            due_s = deadline_s
        return min(max(due_s - self.clock(), 0.0), BLOCK_S_MAX)

    # -- from the network --------------------------------------------------------------

    def _take_network(self) -> bool:
        received = self.transport.receive(MESSAGES_PER_TURN)
        if not received:
            return False
        self._now_s = self.clock()
        for route, frames in received:
            self._take_frames(route, frames)
        return True

    # -- from executors and storage ----------------------------------------------------

    def _take_executor(self, fd: int) -> bool:
        news = self.executors.receive(fd)
        if not news:
            return False
        self._now_s = self.clock()
        for event in news:
            if type(event) is ports.NestedRequest:
                self._take_nested(event)
            else:
                self.step(event)
        return True

    def _take_storage(self) -> bool:
        done = self.storage.finished()
        for news in done:
            if type(news) is ports.CommitsDone:
                for token, error in news.results:
                    if self.replicating.stored(token, error):
                        continue
                    if error is None:
                        self.step(events.Committed(token))
                    else:
                        self.step(events.CommitRefused(token, error))
            elif type(news) is ports.Loaded:
                self._on_loaded(news)
            elif type(news) is ports.Called:
                news.then(news.value, news.error)
            else:
                self.failure = news.reason
                self.is_stopping = True
                self.note("error", f"storage failed, stopping reason={news.reason}")
        return bool(done)

    def _on_loaded(self, news: ports.Loaded) -> None:
        object_id = ObjectId(news.object_id)
        if news.head is None or news.state is None:
            error = news.error or UnavailableError("storage", "nothing was read")
            error = self.replicating.mending.met(error)
            if news.is_copy:
                self.step(events.CopyUnproven(object_id, news.is_reader))
                return
            self.step(events.ObjectMissing(object_id, news.is_reader, error))
            return
        if news.is_copy and not self.reading.is_proven(object_id, news.register):
            _close_files(news)
            self.step(events.CopyUnproven(object_id, news.is_reader))
            return
        lacking = self.classes.missing_for(news.head.class_name)
        if lacking is not None:
            _close_files(news)
            self.step(events.ObjectMissing(object_id, news.is_reader, lacking))
            return
        self.step(
            events.ObjectLoaded(
                object_id, news.is_reader, news.head.class_name, news.head.version,
                news.head.state_bytes, news,
            )
        )  # fmt: skip

    # -- effects -----------------------------------------------------------------------


def _close_files(loaded: ports.Loaded) -> None:
    """Let go of the files of a state that nobody will have."""
    for buffer in loaded.state.buffers if loaded.state is not None else ():
        if isinstance(buffer, FileBuffer):
            os.close(buffer.fd)
