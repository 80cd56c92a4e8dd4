"""The daemon: build everything from a configuration, serve, stop in order.

    lock the directory -> open the store -> bind -> start executors -> ready
    SIGTERM -> refuse new calls -> let running ones end -> commit -> close

Rules of this file: construction and life only.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from activestore.core import events
from activestore.core.executors import PoolConfig
from activestore.core.invocation import InvocationConfig, InvocationCore
from activestore.core.mailboxes import MailboxConfig
from activestore.core.peers import fitted
from activestore.ids import PeerId
from activestore.peer import machine
from activestore.peer.classes import Classes
from activestore.peer.clock import monotonic_s, wall_s
from activestore.peer.config import MIB, PeerConfig, check_listen
from activestore.peer.discovery import Announcement, Discovery
from activestore.peer.knocking import Knocker
from activestore.peer.links import LINKS_MAX
from activestore.peer.loop import PeerLoop
from activestore.peer.processes import ExecutorProcesses, ProcessSettings
from activestore.peer.starts import count_start
from activestore.peer.status import Status
from activestore.peer.storage_thread import StorageThreads
from activestore.peer.table import LoopSettings, Parts
from activestore.peer.transport import RouterTransport
from activestore.peer.wiring import wire
from activestore.storage.lmdb_engine import LmdbEngine
from activestore.wire.gossip import PeerRecord
from activestore.wire.limits import PROTOCOL_VERSION

_log = logging.getLogger(__name__)

# How long running calls may go on after SIGTERM, in seconds; a second signal ends it.
DRAIN_S = 10.0
# How often large files that nothing references are removed, in seconds.
COLLECT_S = 600.0
INCARNATION_BYTES = 16
# Tells one start of a peer from another in its record.
START_BYTES = 8


class Daemon:
    """One peer, from its configuration to its end."""

    def __init__(self, config: PeerConfig, *, version: str) -> None:
        """Open the store, bind the socket and prepare the rest.

        Raises:
            ConfigurationError: an address, a directory or a setting cannot be used.
            DirectoryLockedError: another daemon uses the data directory.
            StorageFullError: the disk has no room for a new data directory.
            CorruptRecordError: the data directory is damaged as a whole.
        """
        check_listen(config)
        self.config = config
        self._engine = LmdbEngine.open(
            config.data_dir,
            disk_budget_bytes=config.disk_budget_mb * MIB,
            wall_clock=wall_s,
        )
        try:
            self._transport = RouterTransport(config.listen)
        except BaseException:
            self._engine.close()
            raise
        self.endpoint = config.advertise or self._transport.endpoint
        # Addresses that discovery found and the loop has not dialled yet. Where there are
        # more than links, the oldest fall out.
        self._found: deque[str] = deque(maxlen=LINKS_MAX)
        try:
            self._discovery = self._make_discovery()
        except BaseException:
            self._transport.close()
            self._engine.close()
            raise
        self._storage = StorageThreads(self._engine)
        self._processes = ExecutorProcesses(
            _process_settings_of(config, self._engine.peer_id), self._engine.code
        )
        self._knocker = Knocker(self._wake)
        self._core = _core_of(config)
        settings = _settings_of(config, self._engine, self.endpoint)
        self._loop = PeerLoop(
            Parts(
                settings,
                self._core,
                self._transport,
                self._storage,
                self._processes,
                Classes(machine.resources()),
                monotonic_s,
                wall_s,
                _note,
                random.SystemRandom().random,
                self._knocker.knock,
                machine.Machine(Path(config.data_dir)),
            )
        )
        status = Status(
            config, self._loop, self._transport, self._processes, version,
            self._discovery,
        )  # fmt: skip
        damaged = self._engine.damaged_classes()
        for error in damaged.values():
            _log.error("class left out error=%s", error)
        wire(
            self._loop, self._engine, status=status.gather, stop=self.stop,
            damaged=damaged,
        )  # fmt: skip
        self._stop_due_s = 0.0
        self._stops_asked = self._stops_heard = 0
        self._collect_due_s = monotonic_s() + COLLECT_S

    def _make_discovery(self) -> Discovery | None:
        """Return what finds other peers, None where nobody asked for it.

        Raises:
            ConfigurationError: it lacks a module, or the address cannot be announced.
        """
        if not self.config.discover:
            return None
        me = Announcement(
            self._engine.peer_id,
            self.config.name,
            self.config.cluster,
            self.endpoint,
            PROTOCOL_VERSION,
        )
        return Discovery(me, self._on_found)

    def _on_found(self, endpoint: str) -> None:
        # In discovery's thread: it leaves word, and the loop dials between two turns.
        self._found.append(endpoint)
        self._wake()

    def _wake(self) -> None:
        # Of any thread: have the loop take a turn.
        if not self._storage.is_closing:
            self._storage.wake()

    @property
    def peer_id(self) -> bytes:
        """The id that the data directory keeps."""
        return self._engine.peer_id

    def stop(self) -> None:
        """Drain and stop; asked again, stop at once."""
        if self._stop_due_s:
            self._stop_due_s = monotonic_s()
            return
        self._stop_due_s = monotonic_s() + DRAIN_S
        self._loop.step(events.DrainStarted())
        self._loop.cluster.leave()
        _log.info("draining calls=%d", len(self._core.calls))

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until stopped; return the exit status.

        `ready` is called once an executor takes calls.
        """
        # The loop must get the interpreter back soon from the storage threads.
        sys.setswitchinterval(0.0005)
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        self._ready: Callable[[], None] | None = ready
        if self._discovery is not None:
            self._discovery.start()
        try:
            self._loop.run(self._is_over)
        finally:
            # A signal that comes while it closes must not cut short what is written.
            self._close()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._loop.failure:
            _log.error("stopped because storage failed reason=%s", self._loop.failure)
            return 1
        return 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # It runs between any two lines of a turn, in the middle of a step of the core
        # too: so it only leaves word, and the loop stops between two turns.
        self._stops_asked += 1
        self._storage.wake()

    def _is_over(self) -> bool:
        """Do what is due between turns; return whether to end."""
        if self._ready is not None and any(self._core.pool.ready()):
            self._ready()
            self._ready = None
        while self._stops_heard < self._stops_asked:
            self._stops_heard += 1
            self.stop()
        while self._found:
            self._loop.cluster.found(self._found.popleft())
        self._knocker.turn()
        now_s = monotonic_s()
        if self._stop_due_s and (self._core.owes_nothing or now_s >= self._stop_due_s):
            return True
        if now_s >= self._collect_due_s:
            self._collect_due_s = now_s + COLLECT_S
            self._storage.write(lambda engine: engine.collect_garbage(), _log_failure)
        return self._loop.is_stopping

    def _close(self) -> None:
        if self._discovery is not None:
            self._discovery.close()
        self._processes.close()
        self._storage.close()
        self._transport.close()
        _log.info("stopped name=%s", self.config.name)


def _process_settings_of(config: PeerConfig, peer_id: PeerId) -> ProcessSettings:
    return ProcessSettings(
        home=peer_id,
        slots=config.slots,
        spin_us=config.spin_us,
        check_readonly=config.check_readonly,
        memory_bytes_max=config.executor_memory_mb * MIB,
        message_bytes_max=config.message_bytes_max,
        threads=config.executor_threads,
        preload=config.preload,
    )


def _core_of(config: PeerConfig) -> InvocationCore:
    executors = config.executors
    return InvocationCore(
        InvocationConfig(
            grace_s=config.cancel_grace_s,
            beat_s=config.beat_s,
            quarantine_s=config.quarantine_s,
            session_expiry_s=config.session_expiry_s,
        ),
        MailboxConfig(
            mailbox_max=config.mailbox_max, reader_wait_s=config.reader_wait_s
        ),
        PoolConfig(
            executors=executors,
            executors_max=max(executors, config.executors_max),
            slots=config.slots,
            activation_bytes_max=config.activation_memory_mb * MIB // executors,
            memory_bytes_max=config.activation_memory_mb * MIB // executors,
        ),
    )


def _settings_of(config: PeerConfig, engine: LmdbEngine, endpoint: str) -> LoopSettings:
    """Return what the loop needs, of a start that is counted by that."""
    peer_id, incarnation = engine.peer_id, count_start(engine)
    return LoopSettings(
        peer_id=peer_id,
        peer_name=config.name,
        incarnation=os.urandom(INCARNATION_BYTES),
        message_bytes_max=config.message_bytes_max,
        spin_s=config.spin_us / 1e6,
        reply_keep_s=config.reply_keep_s,
        session_expiry_s=config.session_expiry_s,
        cluster=config.cluster,
        endpoint=endpoint,
        seeds=config.join,
        searches_per_s=config.searches_per_s,
        replicas=config.replicas,
        witness=config.witness,
        repair_after_s=config.repair_after_s,
        record=_record_of(config, peer_id, endpoint, incarnation),
        scrub_interval_s=config.scrub_interval_h * 3600,
    )


def _record_of(
    config: PeerConfig, peer_id: PeerId, endpoint: str, incarnation: int
) -> PeerRecord:
    """Return what this peer tells others of itself."""
    meta = {
        "cores": machine.cores_count(),
        "memory_mb": machine.memory_bytes() // MIB,
        "accelerators": list(config.accelerators),
        "stable": config.stable,
        "host": machine.told_host(),
        "power_source": config.power_source,
        "start": os.urandom(START_BYTES),
    }
    record = PeerRecord(
        peer_id, incarnation, config.name, (endpoint,), config.zone,
        config.profile, PROTOCOL_VERSION, meta,
    )  # fmt: skip
    return fitted(record)


def _log_failure(_value: Any, error: BaseException | None) -> None:
    if error is not None:
        _log.warning("housekeeping failed error=%s", error)


def _note(level: str, text: str) -> None:
    _log.log(logging.getLevelName(level.upper()), "%s", text)
