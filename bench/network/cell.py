r"""One cell of the network table: a line of one kind, and what is measured over it.

    desk ---- edge          a client and a peer that has the objects
       \____ gate ____|     another peer, which forwards where it is told to

Every line between hosts is of the cell's kind, so a forwarded call pays for two.

Rules of this file: seconds are measured by the agent on the host, bytes are counted by
the switch, both ways, with all headers from Ethernet up; nothing is calculated that can
be measured.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "network"))

import hosts

MB = 1_000_000
SIZES = {"grid-1": 1 * MB, "grid-8": 8 * MB}
SMALL = "grid-1"
# What would take longer over a line is not measured: 8 MB at 1 Mbit/s are 64 s.
FETCH_S_MAX = 20.0
CONNECTS = 3
FETCHES = 3
# A long one is measured once: there, chance is a small part.
FETCH_ONCE_S = 5.0
NULL_S, NULL_COUNT_MIN, NULL_COUNT_MAX = 3.0, 15, 300
NULL_BLOCKS = 3
# Ethernet, IP and UDP around the bytes of a datagram.
DATAGRAM_HEADERS_BYTES = 42
SMALL_DATAGRAM_BYTES = 20
ECHOES = 9
# And a round trip later nothing is under way: delayed ACKs wait 40 ms.
QUIET_S = 0.15
ANSWER_S_MAX = 120.0


class Line(NamedTuple):
    """A kind of line. The delay is that of both ways together."""

    rtt_ms: float
    mbit_per_s: float

    def least_s(self, size_bytes: int) -> float:
        """Return the time that so many bytes take at least, in seconds."""
        return self.rtt_ms / 1000 + size_bytes * 8 / self.mbit_per_s / 1e6


class Count(NamedTuple):
    """What a switch counted: bytes and frames from the client, and to it."""

    bytes_out: int
    bytes_back: int
    frames_out: int
    frames_back: int


class FailedError(Exception):
    """What was asked for did not work over such a line; its text is the store's."""


class Agent:
    """The agent on a host, as this process sees it."""

    def __init__(self, host: hosts.Host) -> None:
        self._process = host.start(
            [sys.executable, str(HERE / "agent.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hosts.json_line(self._process)

    def ask(self, command: str, **parameters: Any) -> Any:
        """Have a command done and return its answer.

        Raises:
            FailedError: the store raised an error.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **parameters}) + "\n")
        self._process.stdin.flush()
        answer = hosts.json_line(self._process, ANSWER_S_MAX)
        if type(answer) is dict and "failed" in answer:
            raise FailedError(answer["failed"])
        return answer

    def close(self) -> None:
        """End it; its connection says goodbye."""
        self.ask("close")
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=ANSWER_S_MAX)


class Bench:
    """Hosts, peers and objects, made once on a fast network, for all cells."""

    def __init__(self, network: hosts.Network, *, has_gate: bool = True) -> None:
        self.network = network
        self._desk = network.host("desk")
        self._edge = network.host("edge").peer()
        self._gate = None
        if has_gate:
            self._gate = network.host("gate").peer(join=[self._edge.endpoint])
        self._server = Agent(network.host("edge"))
        self._server.ask("serve", address=network.host("edge").address)
        with self._agent() as maker:
            maker.ask("connect", endpoint=self._edge.endpoint)
            maker.ask("make", size_bytes=SIZES, source=str(HERE / "grid.py"))

    @contextmanager
    def _agent(self) -> Iterator[Agent]:
        agent = Agent(self._desk)
        yield agent
        agent.close()

    def lay(self, line: Line) -> None:
        """Make all lines of that kind."""
        self.network.every(delay_s=line.rtt_ms / 2000, bits_per_s=line.mbit_per_s * 1e6)
        self._rtt_s = line.rtt_ms / 1000

    def _seen(self) -> Count:
        """Return what has gone in all, after what is under way has had its time."""
        self.network.wait_s(QUIET_S + self._rtt_s)
        # Between the client and either peer.
        ways = [
            (self.network.traffic("desk", name), self.network.traffic(name, "desk"))
            for name in ("edge", "gate")
            if name in self.network.hosts
        ]
        return Count(
            sum(out.bytes for out, _ in ways), sum(back.bytes for _, back in ways),
            sum(out.frames for out, _ in ways), sum(back.frames for _, back in ways),
        )  # fmt: skip

    def _counted(self, function: Callable[[], Any]) -> tuple[Any, Count]:
        """Return what a function returns, and the traffic that it caused."""
        before = self._seen()
        value = function()
        after = self._seen()
        return value, Count(*(b - a for a, b in zip(before, after, strict=True)))

    # -- what is measured --------------------------------------------------------------

    def cell(self, line: Line, *, connects: int = CONNECTS) -> dict[str, Any]:
        """Measure everything over one kind of line; `connects` as in `first`."""
        self.lay(line)
        with self._agent() as agent:
            rtt_s = self._echo(agent, SMALL_DATAGRAM_BYTES)
            agent.ask("connect", endpoint=self._edge.endpoint)
            agent.ask("get", alias=SMALL)
            null = self._null(agent, line)
        data = {alias: self._data(line, alias) for alias in SIZES}
        return {
            **line._asdict(), "rtt_s": rtt_s, "null": null, "data": data,
            "thin": self.first(connects=connects),
            "class": self.first(is_with_class=True, connects=connects),
        }  # fmt: skip

    def forwarded(self, line: Line) -> dict[str, Any]:
        """Measure calls that another peer forwards."""
        assert self._gate is not None
        self.lay(line)
        with self._agent() as agent:
            rtt_s = self._echo(agent, SMALL_DATAGRAM_BYTES)
            agent.ask("connect", endpoint=self._gate.endpoint)
            agent.ask("get", alias=SMALL)
            null = self._null(agent, line, is_direct=False)
        data = self._data(line, SMALL, is_direct=False)
        return {**line._asdict(), "rtt_s": rtt_s, "null": null, "data": {SMALL: data}}

    def _echo(self, agent: Agent, there: int, back: int = 0, count: int = 0) -> float:
        address = self.network.host("edge").address
        sizes = [there, back or there]
        times = agent.ask("echoes", address=address, sizes=sizes, count=count or ECHOES)
        return statistics.median(times)

    def first(
        self, *, is_with_class: bool = False, connects: int = CONNECTS
    ) -> dict[str, Any]:
        """Return seconds and traffic of each step to a first result; medians.

        Args:
            is_with_class: Whether the client has the object's class.
            connects: How often it is done, each time by a new process.
        """
        endpoint = self._edge.endpoint
        runs = []
        for _ in range(connects):
            with self._agent() as agent:
                tcp_s, zmtp_s = agent.ask("handshake", endpoint=endpoint)
                (connect_s, get_s, call_s), seen = self._counted(
                    lambda agent=agent: agent.ask(
                        "first", endpoint=endpoint, alias=SMALL,
                        is_with_class=is_with_class,
                    )
                )  # fmt: skip
            runs.append((
                {
                    "tcp": tcp_s, "zmtp": zmtp_s - tcp_s, "hello": connect_s - zmtp_s,
                    "connect": connect_s, "get": get_s, "call": call_s,
                    "first": connect_s + get_s + call_s,
                },
                seen,
            ))  # fmt: skip
        return {
            "seconds": {
                step: statistics.median(seconds[step] for seconds, _ in runs)
                for step in runs[0][0]
            },
            "best_s": min(seconds["first"] for seconds, _ in runs),
            "traffic": min(seen for _, seen in runs)._asdict(),
        }

    def _null(
        self, agent: Agent, line: Line, *, is_direct: bool = True
    ) -> dict[str, Any]:
        trips = 1 if is_direct else 2
        count = int(NULL_S / (trips * max(line.rtt_ms, 1.0) / 1000))
        count = min(max(count, NULL_COUNT_MIN), NULL_COUNT_MAX)
        agent.ask("calls", count=NULL_COUNT_MIN, is_direct=is_direct)
        # In turn with the bare line, so that a machine whose speed drifts says the same.
        block = count // NULL_BLOCKS
        calls, bare, own, seen = [], [], [], Count(0, 0, 0, 0)
        for _ in range(NULL_BLOCKS):
            times, more = self._counted(
                lambda: agent.ask("calls", count=block, is_direct=is_direct)
            )
            seen = Count(*map(sum, zip(seen, more, strict=True)))
            # The same bytes without us: what is left is ours.
            bytes_ways = (more.bytes_out // block, more.bytes_back // block)
            there, back = (size - DATAGRAM_HEADERS_BYTES for size in bytes_ways)
            calls += times
            bare.append(trips * self._echo(agent, there, back, block))
            own.append(statistics.median(times) - bare[-1])
        return {
            "count": len(calls), "p50_s": statistics.median(calls),
            "bare_s": statistics.median(bare), "overhead_s": statistics.median(own),
            "bytes_out": seen.bytes_out // len(calls),
            "bytes_back": seen.bytes_back // len(calls),
        }  # fmt: skip

    def _data(
        self, line: Line, alias: str, *, is_direct: bool = True
    ) -> dict[str, Any] | None:
        """Measure a mean computed there against all numbers fetched."""
        size = SIZES[alias]
        if line.least_s(size) > FETCH_S_MAX:
            return None
        rounds = 1 if line.least_s(size) > FETCH_ONCE_S else FETCHES
        address = self.network.host("edge").address
        peer = self._edge if is_direct else self._gate
        assert peer is not None
        offloaded, fetched, plain = [], [], []
        failed = ""
        with self._agent() as agent:
            agent.ask("connect", endpoint=peer.endpoint)
            agent.ask("get", alias=alias)
            agent.ask("compute", is_direct=is_direct)  # Loads the object.
            for _ in range(rounds):
                plain.append(agent.ask("plain", address=address, size=size))
                offloaded.append(
                    self._counted(lambda: agent.ask("compute", is_direct=is_direct))
                )
            try:
                while len(fetched) < rounds:
                    fetched.append(
                        self._counted(lambda: agent.ask("fetch", is_direct=is_direct))
                    )
            except FailedError as error:
                failed = str(error)
        means = {value for (_, value), _ in offloaded + fetched}
        assert len(means) == 1, f"both compute the same, not {means}"
        return {
            "bytes": size,
            "offloaded": _middle(offloaded),
            "fetched": None if failed else _middle(fetched),
            "failed": failed,
            "plain_s": statistics.median(plain),
        }

    def ceiling_mbit_per_s(self, size: int = 16 * MB) -> float:
        """Return what a bare connection gets through with no bound and no delay."""
        self.network.every()
        self._rtt_s = 0.0
        address = self.network.host("edge").address
        with self._agent() as agent:
            times = [agent.ask("plain", address=address, size=size) for _ in range(3)]
        return size * 8 / min(times) / 1e6


def _middle(runs: list[tuple[list[float], Count]]) -> dict[str, Any]:
    """Return the run of the median time."""
    (took_s, _), seen = sorted(runs)[len(runs) // 2]
    return {"s": took_s, **seen._asdict()}
