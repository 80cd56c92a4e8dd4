"""What a peer says of itself: for `status`, and later for placement.

Rules of this file: it reads, it never changes; every number has its unit in its name.
"""

from __future__ import annotations

import os
import platform
from typing import Any

import psutil

from activestore.core.calls import ExecutorState
from activestore.core.troubles import TroubleKind
from activestore.peer.clock import monotonic_s
from activestore.peer.config import PeerConfig
from activestore.peer.discovery import Discovery
from activestore.peer.loop import PeerLoop
from activestore.peer.processes import ExecutorProcesses
from activestore.peer.transport import RouterTransport
from activestore.wire.limits import PROTOCOL_VERSION

# Methods listed in a status, those with most total time first.
METHODS_MAX = 100


class Status:
    """Gathers one status map at a time."""

    def __init__(
        self,
        config: PeerConfig,
        loop: PeerLoop,
        transport: RouterTransport,
        processes: ExecutorProcesses,
        version: str,
        discovery: Discovery | None = None,
    ) -> None:
        self._discovery = discovery
        self._config = config
        self._loop = loop
        self._transport = transport
        self._processes = processes
        self._version = version
        self._started_s = monotonic_s()
        self._process = psutil.Process()
        self._process.cpu_percent()

    def gather(self) -> dict[str, Any]:
        """Return the status of this moment; all values can travel."""
        loop, core = self._loop, self._loop.core
        return {
            "name": self._config.name,
            "peer_id": loop.settings.peer_id,
            "incarnation": loop.settings.incarnation,
            "endpoint": self._config.advertise or self._transport.endpoint,
            "version": self._version,
            "protocol_version": PROTOCOL_VERSION,
            "python": platform.python_version(),
            "pid": os.getpid(),
            "data_dir": self._config.data_dir,
            "uptime_s": monotonic_s() - self._started_s,
            "state": loop.state,
            "cluster": self._config.cluster,
            "discovery": self._about_discovery(),
            "cannot_join": loop.troubles.reasons(TroubleKind.JOIN),
            "troubles": loop.cluster.troubles(),
            "names": {
                "renamed": loop.naming.disputes.rows(),
                "untold": loop.naming.core.waiting_count,
            },
            "replication": loop.repairing.counts() if loop.repairing else {},
            "cores": os.cpu_count() or 1,
            "power_source": self._config.power_source,
            "daemon": {
                "memory_bytes": self._process.memory_info().rss,
                "cpu_percent": self._process.cpu_percent(),
            },
            "executors": self._executors(),
            "sessions": sum(1 for one in loop.sessions.values() if not one.is_peer),
            "active_objects": sum(len(e.copies) for e in core.pool.executors.values()),
            "calls": {
                "total": loop.calls_count,
                "running": sum(
                    1 for call in core.calls.values() if call.slot is not None
                ),
                "waiting": sum(1 for call in core.calls.values() if call.slot is None),
            },
            "traffic": {
                "bytes_in": self._transport.bytes_in,
                "bytes_out": self._transport.bytes_out,
            },
            "classes": list(loop.classes.names()),
            "methods": self._methods(),
            "scrub": loop.scrubbing.status(),
            "backups": {path: list(pair) for path, pair in loop.backups.items()},
        }

    def _about_discovery(self) -> dict[str, Any]:
        if self._discovery is None:
            return {"is_on": False, "trouble": ""}
        return {"is_on": True, "trouble": self._discovery.trouble}

    def _executors(self) -> list[dict[str, Any]]:
        pids = self._processes.pids()
        return [
            {
                "executor": executor.executor_id,
                "pid": pids.get(executor.executor_id, 0),
                "state": ExecutorState(executor.state).name.lower(),
                "is_silent": executor.is_silent,
                "slots": len(executor.slots),
                "busy_slots": executor.busy_slots,
                "copies": len(executor.copies),
                "state_bytes": executor.state_bytes,
                "memory_bytes": executor.memory_bytes,
            }
            for executor in self._loop.core.pool.executors.values()
        ]

    def _methods(self) -> list[dict[str, Any]]:
        rows = [
            {
                "class_name": info.class_name,
                "method": method,
                "runs": times.runs_count,
                "mean_us": times.mean_s * 1e6,
                "total_s": times.total_s,
            }
            for info in self._loop.core.boxes.classes.values()
            for method, times in info.times.items()
            if times.runs_count
        ]
        rows.sort(key=lambda row: -float(str(row["total_s"])))
        return rows[:METHODS_MAX]
