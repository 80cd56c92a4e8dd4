"""What every driver shares: the rows, how each is measured, and a session that runs them.

A driver is a file with one `Rival`: it starts the server, connects a client, and does each
thing once; this file does it often and takes the time. `python NAME_rival.py DIRECTORY` is
one session: it starts the server and prints one line of JSON per row, at once, so that a
session that is cut short keeps what it has. Only the standard library is imported here,
and numpy where a row needs an array: it runs in the environment of every rival.

Rules of this file: a session runs in a process namespace of its own (run.py makes it), so
that what is in /proc is the harness or the server, and all ends with the session.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import re
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

IN_FLIGHT = 100
CLIENTS = 4
ROUNDS = 3
ROUND_S = 0.7
WARM_UP_S = 0.3
FOUR_CLIENTS_S = 2.0
ARRAY_ITEMS = 1_000_000
LARGE_MB = 100
SMALL_OBJECTS = 1000
SMALL_OBJECTS_S = 3.0
FRESH_PROCESSES = 5
IDLE_S = 1.0

IMPORT = """
import time
start = time.perf_counter()
{statement}
spent = time.perf_counter() - start
# Not ru_maxrss: that of the parent is inherited through fork.
status = open("/proc/self/status").read()
print(spent * 1000, int(status.split("VmHWM:")[1].split()[0]) / 1000)
"""


class Row(NamedTuple):
    """One line of the table. `less`: whether less is better."""

    unit: str
    less: bool
    about: str


ROWS = {
    "null": Row("us", True, "null readonly call, p50"),
    "pipelined": Row("calls/s", False, "null calls, 100 in flight"),
    "pipelined_4": Row("calls/s", False, "4 client processes, 100 in flight each"),
    "durable": Row("us", True, "durable mutating call, p50"),
    "persist_small": Row("objects/s", False, "small objects made to stay"),
    "array_out": Row("MB/s", False, "8 MB float64 argument, sum back"),
    "array_back": Row("MB/s", False, "8 MB float64 result"),
    "persist_large": Row("MB/s", False, "100 MB array made to stay"),
    "client_rss": Row("MB", True, "client: memory after import"),
    "client_import": Row("ms", True, "client: import time"),
    "client_size": Row("MB", True, "client: its packages on disk, without numpy"),
    "server_rss": Row("MB", True, "idle server: memory of its processes"),
    "start": Row("s", True, "start to ready"),
}


class LacksError(Exception):
    """A system does not offer what a row asks for; the text is what the table says."""


class Rival:
    """One system. What it cannot do stays as it is here: the row then says why."""

    package = ""  # its distribution
    statement = ""  # what a client imports
    notes: Mapping[str, str] = MappingProxyType({})  # row: what stands in its place

    def version(self) -> str:
        """Return the version of what is measured."""
        return importlib.metadata.version(self.package)

    def size_mb(self) -> float:
        """Return what a client's packages take on disk."""
        return size_mb(self.package)

    def start(self, directory: Path) -> str:
        """Start the server; return its address when it serves."""
        command = [sys.executable, inspect.getfile(type(self)), "serve", str(directory)]
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return line_of(server, "address ").split(" ", 1)[1]

    def serve(self, directory: Path) -> None:
        """Be the server: call `announce` when serving, go on until killed."""
        raise NotImplementedError

    def prepare(self, address: str) -> None:
        """Put what is called in its place, where `serve` has not."""

    def connect(self, address: str) -> None:
        """Be a client of the server, ready to call."""
        raise NotImplementedError

    def null(self) -> Any:
        """Call a method that does nothing."""
        raise LacksError("runs no methods")

    def submit(self) -> Any:
        """Begin the same call."""
        raise LacksError("nothing in flight")

    def finish(self, call: Any) -> None:
        """Wait for a call that was begun."""
        raise NotImplementedError

    def pipelined(self, seconds: float) -> float:
        """Return null calls per second with `IN_FLIGHT` of them begun."""
        flying: deque[Any] = deque()
        done = 0
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < seconds:
            flying.append(self.submit())
            if len(flying) >= IN_FLIGHT:
                self.finish(flying.popleft())
                done += 1
        while flying:
            self.finish(flying.popleft())
            done += 1
        return done / (time.perf_counter() - start_s)

    def durable(self) -> Any:
        """Change a value; on return it is on the server's disk."""
        raise LacksError("not durable")

    def total(self, array: Any) -> float:
        """Send an array; return its sum as the server computed it."""
        raise LacksError("runs no methods")

    def make(self, count: int) -> Any:
        """Have the server make an array of ones; return it."""
        raise LacksError("runs no methods")

    def persist_small(self, count: int) -> int:
        """Make small objects that stay; return how many were made."""
        raise LacksError("keeps no objects")

    def persist_large(self, array: Any) -> None:
        """Make an array stay."""
        raise LacksError("keeps no objects")


def announce(address: object) -> None:
    """Say that a server serves, and where."""
    print(f"address {address}", flush=True)


def line_of(process: subprocess.Popen[str], start: str) -> str:
    """Return the next line of a process that begins so; libraries print others."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line.strip()
    raise LacksError(f"a process ended before its line {start!r}")


def seconds_of(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    start_s = time.perf_counter()
    action()
    return time.perf_counter() - start_s


def p50_us(action: Callable[[], object]) -> tuple[float, dict[str, float]]:
    """Return the median of the rounds' p50; beside it that of their p99."""
    middles, ends = [], []
    for spent_s in (WARM_UP_S, *[ROUND_S] * ROUNDS):
        times = []
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < spent_s:
            times.append(seconds_of(action) * 1e6)
        times.sort()
        middles.append(times[len(times) // 2])
        ends.append(times[len(times) * 99 // 100])
    return statistics.median(middles[1:]), {"p99": statistics.median(ends[1:])}


def mb_per_s(action: Callable[[], object], megabytes: float, rounds: int) -> float:
    """Return the rate by the median time, after two to warm up."""
    times = [seconds_of(action) for _ in range(rounds + 2)]
    return megabytes / statistics.median(times[2:])


def pipelined(rival: Rival) -> float:
    """Measure one client."""
    rival.pipelined(WARM_UP_S)
    return statistics.median(rival.pipelined(ROUND_S) for _ in range(ROUNDS))


def pipelined_4(rival: Rival, address: str) -> float:
    """Measure client processes that begin together."""
    rival.pipelined(WARM_UP_S)  # where it cannot, say so before any starts
    command = [sys.executable, inspect.getfile(type(rival)), "client", address]
    clients = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(CLIENTS)
    ]
    try:
        for client in clients:
            line_of(client, "ready")
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        return sum(float(line_of(client, "rate ").split()[1]) for client in clients)
    finally:
        for client in clients:
            client.kill()
            client.wait()


def persist_small(rival: Rival) -> float:
    """Measure objects, some hundreds at a time, for some seconds."""
    rival.persist_small(10)
    rates: list[float] = []
    end_s = time.perf_counter() + SMALL_OBJECTS_S
    while time.perf_counter() < end_s or not rates:
        start_s = time.perf_counter()
        made = rival.persist_small(SMALL_OBJECTS)
        rates.append(made / (time.perf_counter() - start_s))
    return statistics.median(rates)


def array_out(rival: Rival) -> float:
    """Measure an argument of 8 MB."""
    import numpy as np

    array = np.ones(ARRAY_ITEMS)
    if rival.total(array) != ARRAY_ITEMS:
        raise LacksError("the sum is wrong")
    return mb_per_s(lambda: rival.total(array), array.nbytes / 1e6, 9)


def array_back(rival: Rival) -> float:
    """Measure a result of 8 MB."""
    made = rival.make(ARRAY_ITEMS)
    if len(made) != ARRAY_ITEMS or made[-1] != 1.0:
        raise LacksError("the array is wrong")
    return mb_per_s(lambda: rival.make(ARRAY_ITEMS), made.nbytes / 1e6, 9)


def persist_large(rival: Rival) -> float:
    """Measure arrays that cannot be told from noise, each another."""
    import numpy as np

    chance = np.random.default_rng(1)
    rates = []
    for _ in range(ROUNDS):
        array = chance.random(LARGE_MB * 1_000_000 // 8)
        rates.append(LARGE_MB / seconds_of(lambda a=array: rival.persist_large(a)))
    return statistics.median(rates)


def imported(rival: Rival) -> tuple[float, float]:
    """Return milliseconds and MB of a client's import in fresh processes, medians."""
    script = IMPORT.format(statement=rival.statement)
    rows = []
    for _ in range(FRESH_PROCESSES):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        rows.append([float(cell) for cell in done.stdout.split()])
    return statistics.median(r[0] for r in rows), statistics.median(r[1] for r in rows)


def size_mb(package: str) -> float:
    """Return what a distribution and all it requires take on disk, without caches."""
    sizes: dict[str, int] = {}
    waiting = [package]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in sizes or name == "numpy":
            continue
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on other platforms only
        paths = (Path(str(file.locate())) for file in found.files or ())
        sizes[name] = sum(
            path.stat().st_size
            for path in paths
            if path.suffix != ".pyc" and path.is_file()
        )
        waiting += [
            re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            for requirement in found.requires or ()
            if "extra ==" not in requirement
        ]
    return sum(sizes.values()) / 1e6


def server_mb() -> float:
    """Return the resident memory of all processes of the namespace but init and this."""
    total_kb = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        if status.parent.name in {"1", str(Path("/proc/self").resolve().name)}:
            continue
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                total_kb += int(line.split()[1])
    return total_kb / 1000


def reason_of(error: Exception) -> str:
    """Return why something failed, in one line."""
    text = str(error) if isinstance(error, LacksError) else repr(error)
    return " ".join(text.split())[:160]


def report(row: str, measured: Callable[[], Any]) -> None:
    """Print what a row's measurement gave, or why there is nothing."""
    line: dict[str, Any] = {"row": row}
    try:
        value = measured()
        beside: dict[str, float] = {}
        if isinstance(value, tuple):
            value, beside = value
        line.update({"value": value, **beside})
    except LacksError as error:
        line["why"] = reason_of(error)
    except Exception as error:  # noqa: BLE001 - a rival fails as it likes
        line["why"] = f"failed: {reason_of(error)}"
    print(json.dumps(line), flush=True)


def session(rival: Rival, directory: Path) -> None:
    """Measure every row."""
    line = {"version": rival.version(), "notes": dict(rival.notes)}
    print(json.dumps(line), flush=True)
    exec(rival.statement, {})
    start_s = time.perf_counter()
    address = rival.start(directory)
    ready_s = time.perf_counter() - start_s
    report("start", lambda: ready_s)
    time.sleep(IDLE_S)
    report("server_rss", server_mb)
    rival.prepare(address)
    rival.connect(address)
    report("null", lambda: p50_us(rival.null))
    report("pipelined", lambda: pipelined(rival))
    report("pipelined_4", lambda: pipelined_4(rival, address))
    report("durable", lambda: p50_us(rival.durable))
    report("array_out", lambda: array_out(rival))
    report("array_back", lambda: array_back(rival))
    report("persist_small", lambda: persist_small(rival))
    report("persist_large", lambda: persist_large(rival))
    report("client_size", rival.size_mb)
    milliseconds, megabytes = imported(rival)
    report("client_import", lambda: milliseconds)
    report("client_rss", lambda: megabytes)


def client(rival: Rival, address: str) -> None:
    """Be one of several clients."""
    rival.connect(address)
    rival.pipelined(WARM_UP_S)
    print("ready", flush=True)
    sys.stdin.readline()
    print(f"rate {rival.pipelined(FOUR_CLIENTS_S)}", flush=True)


def main(rival: Rival) -> None:
    """Be what the command line says: `serve DIRECTORY`, `client ADDRESS`, `DIRECTORY`."""
    role, rest = sys.argv[1], sys.argv[2:]
    if role == "serve":
        rival.serve(Path(rest[0]))
    elif role == "client":
        client(rival, rest[0])
    else:
        try:
            session(rival, Path(role))
        except Exception as error:  # noqa: BLE001 - a rival fails as it likes
            print(json.dumps({"failed": reason_of(error)}), flush=True)
