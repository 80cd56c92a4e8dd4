"""`up` and `down`: a described cluster on this machine, for demos and tests.

Rules of this file: `up` starts what is missing and leaves alone what runs; Ctrl-C leaves
what was started for `down`; what a peer said when it could not start is shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from activestore.cli.blueprint import Topology, load_topology
from activestore.cli.cluster import (
    STATE,
    Entry,
    Start,
    State,
    is_running,
    locked,
    planned_state,
    read_state,
    refuse_foreign,
    stop_all,
    write_settings,
    write_state,
)
from activestore.cli.options import SECONDS, Target, guarded, json_option
from activestore.cli.output import echo, say, show, table
from activestore.cli.waiting import bar
from activestore.errors import ActiveStoreError, ConfigurationError, UnavailableError
from activestore.peer import machine

CLUSTERS = "activestore-clusters"
# A peer takes half a second alone; a loaded machine that starts many takes its time.
START_S = 60.0
# Until all have heard of all; the slowest profile probes each 5 s.
FORM_S = 60.0
# A peer lets running calls end for 10 s, then commits and closes.
GRACE_S = 15.0
LOOK_S = 0.05
ANSWER_S = 5.0


class Took(NamedTuple):
    """Seconds from the start of the first process.

    `ready_s`: until all were ready. `formed_s`: until each saw each.
    """

    ready_s: float
    formed_s: float


@click.command()
@click.argument("topology")
@click.option(
    "--dir",
    "directory",
    type=click.Path(),
    help="Where the peers' data, logs and cluster.json are; by default a directory of "
    "the topology's own below $XDG_DATA_HOME/activestore-clusters.",
)
@click.option(
    "--base-port",
    type=click.IntRange(1, 65_535),
    help="Port of the first peer, the next ones follow; free ones by default.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=SECONDS,
    default=START_S,
    show_default=True,
    help="Seconds that one peer may take to start.",
)
@json_option
@guarded
def up(
    topology: str,
    directory: str | None,
    base_port: int | None,
    timeout_s: float,
    *,
    as_json: bool,
) -> None:
    """Start the cluster that TOPOLOGY describes on this machine, or what is missing.

    TOPOLOGY is a name in nodes/topologies, or the path of such a file.
    """
    plan = load_topology(topology)
    where = _home() / plan.name if directory is None else Path(directory).absolute()
    refuse_foreign(where)
    with locked(where):
        state = planned_state(where, plan, base_port=base_port)
        missing = [e for e in state.peers if not is_running(where, e)]
        started = {entry.name for entry in missing}
        write_state(where, state)
        began_s = time.monotonic()
        try:
            state = _start(where, state, plan, missing, timeout_s, quiet=as_json)
            ready_s = time.monotonic() - began_s
            _form(state.peers, quiet=as_json)
            formed_s = time.monotonic() - began_s
        except KeyboardInterrupt:
            say("what was started runs on; `up` again goes on, `down` stops it")
            raise
    took = Took(ready_s, formed_s)
    _tell(where, state, started, took, as_json=as_json)


def _home() -> Path:
    return machine.data_home(os.environ) / CLUSTERS


def _start(
    where: Path,
    state: State,
    plan: Topology,
    missing: Sequence[Entry],
    timeout_s: float,
    *,
    quiet: bool,
) -> State:
    """Start peers, a few at a time; return the state with all of them ready."""
    planned = {peer.name: peer for peer in plan.peers}
    for entry in missing:
        write_settings(where, state, entry, planned[entry.name])
    waiting = list(missing)
    starting: list[tuple[Start, float]] = []
    # Each loads Python, syncs a new data directory and waits for its executor to load:
    # with two a core the cores have work meanwhile; more would only share them.
    at_once = 2 * machine.cores_count()
    with bar(f"up {plan.name}", quiet=quiet, unit="peers") as move:
        while waiting or starting:
            while waiting and len(starting) < at_once:
                start = Start(where, waiting.pop(0))
                state = state.with_entry(start.entry)
                write_state(where, state)
                starting.append((start, time.monotonic() + timeout_s))
            time.sleep(LOOK_S)
            for start, until_s in list(starting):
                ready = start.look()
                if ready is not None:
                    starting.remove((start, until_s))
                    state = state.with_entry(ready)
                    write_state(where, state)
                elif time.monotonic() > until_s:
                    raise UnavailableError(
                        start.entry.name,
                        f"not ready within {timeout_s:g} s (--timeout); its log is "
                        f"{where / start.entry.name}.log, `down` stops it",
                    )
            move(len(missing) - len(waiting) - len(starting), len(missing))
    return state


def _form(entries: Sequence[Entry], *, quiet: bool) -> None:
    """Wait until every peer sees every other one."""
    ids = {entry.peer: entry.name for entry in entries}
    left = list(entries)
    until_s = time.monotonic() + FORM_S
    with bar("all see all", quiet=quiet, unit="peers") as move:
        while left:
            unseen = {entry.name: _unseen(entry, ids) for entry in left}
            left = [entry for entry in left if unseen[entry.name]]
            move(len(entries) - len(left), len(entries))
            if left and time.monotonic() > until_s:
                one = left[0].name
                raise UnavailableError(
                    "up",
                    f"{one} does not see {', '.join(unseen[one])} after {FORM_S:g} s; "
                    "all run: their logs say why",
                )
            if left:
                time.sleep(LOOK_S)


def _unseen(entry: Entry, ids: dict[str, str]) -> list[str]:
    """Return the names of the peers that one does not see alive."""
    try:
        with Target(entry.endpoint, ANSWER_S, ANSWER_S).connected() as store:
            rows = store.peers()
    except ActiveStoreError:
        return [entry.name]
    if not all("state" in row for row in rows):
        return []  # It keeps no account of others' states, so there is none to wait for.
    alive = {bytes(row["peer_id"]).hex() for row in rows if row["state"] == "alive"}
    return sorted(name for peer, name in ids.items() if peer not in alive)


def _tell(
    where: Path, state: State, started: set[str], took: Took, *, as_json: bool
) -> None:
    if as_json:
        rows = [
            {**entry._asdict(), "started": entry.name in started}
            for entry in state.peers
        ]
        about = {
            "topology": state.topology,
            "cluster": state.cluster,
            "ready_s": round(took.ready_s, 3),
            "formed_s": round(took.formed_s, 3),
        }
        show({**about, "dir": str(where), "peers": rows}, as_json=True)
        return
    rows_shown = [
        (
            entry.name,
            entry.node,
            entry.endpoint,
            entry.pid,
            "started" if entry.name in started else "ran already",
        )
        for entry in state.peers
    ]
    table(("peer", "node", "endpoint", "pid", "now"), rows_shown)
    say(
        f"all ready after {took.ready_s:.1f} s, all saw all after {took.formed_s:.1f} s"
    )
    say(
        f"data and logs in {where}; export ACTIVESTORE_ENDPOINT={state.peers[0].endpoint}"
    )


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(),
    help="The directory that `up` was given; by default all that it chose itself.",
)
@click.option(
    "--grace",
    "grace_s",
    type=SECONDS,
    default=GRACE_S,
    show_default=True,
    help="Seconds after which a peer that still runs is killed.",
)
@json_option
@guarded
def down(directory: str | None, grace_s: float, *, as_json: bool) -> None:
    """Stop the peers that `up` started; their data stay."""
    if directory is not None:
        places = [Path(directory).absolute()]
        if read_state(places[0]) is None:
            reason = f"{places[0]} holds no {STATE}: `up --dir` makes one"
            raise ConfigurationError("--dir", reason)
    else:
        places = sorted(path.parent for path in _home().glob(f"*/{STATE}"))
    rows: list[dict[str, Any]] = []
    for place in places:
        with locked(place):
            rows += _stop(place, grace_s, quiet=as_json)
    if as_json:
        show({"stopped": rows}, as_json=True)
    elif not rows:
        echo("nothing runs" + (f" in {places[0]}" if directory else ""))
    else:
        table(
            ("peer", "pid", "now"),
            [
                (row["name"], row["pid"], "killed" if row["killed"] else "stopped")
                for row in rows
            ],
        )


def _stop(where: Path, grace_s: float, *, quiet: bool) -> list[dict[str, Any]]:
    state = read_state(where)
    if state is None:
        return []
    count = sum(1 for entry in state.peers if is_running(where, entry))
    rows: list[dict[str, Any]] = []
    with bar(f"down {state.topology}", quiet=quiet, unit="peers") as move:
        for entry, is_killed in stop_all(where, state.peers, grace_s=grace_s):
            rows.append({"name": entry.name, "pid": entry.pid, "killed": is_killed})
            move(len(rows), count)
            state = state.with_entry(entry._replace(pid=0, started_s=0.0))
            write_state(where, state)
    return rows
