"""Commands on the copies of an object: replicate, force, export, discard, import.

Rules of this file: what gives up changes that were acknowledged is asked for twice; a
file is written whole or not at all, and never over another.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from activestore.cli.options import REF, TEXT, WORK_S, Target, peer_options
from activestore.cli.output import echo, is_terminal, say, show, size_text, table
from activestore.cli.waiting import Step, spinner, watched
from activestore.client import exporting, groups
from activestore.client.client import Store
from activestore.client.groups import ALIVE, KEEPERS, LEARNER, PRIMARY, WITNESS, Group
from activestore.errors import (
    InvalidRequestError,
    RemoteProtocolError,
    UnavailableError,
)
from activestore.ids import ObjectId
from activestore.wire.copies import REPLICAS_MAX, REPLICAS_MIN

# Other peers that `doctor` asks, one after the other, and how long it waits for each.
ASKED_MAX = 100
ASK_PEER_S = 2.0
REPLICAS = click.IntRange(REPLICAS_MIN, REPLICAS_MAX)
DESPITE = "--even-though-majority-answers"
# Unless the order is forced, the text of `force` in full.
FORCE_TEXT = """\
The copy at the connected peer becomes the object: {copy}.
{missing}
What was acknowledged by others and is not in this copy is given up. A copy that comes
back later is quarantined at its peer: `export` takes it out, nothing merges it."""


def group_table(group: Group) -> None:
    """Print who has an object."""
    table(
        ("peer", "id", "role", "state", "number", "lag"),
        (
            (
                one.peer, one.peer_id.hex(), one.role, one.state,
                _known(one.number), _known(one.lag),
            )
            for one in group.members
        ),
    )  # fmt: skip


def _known(number: int | None) -> str:
    return "-" if number is None else str(number)


def group_map(group: Group) -> dict[str, Any]:
    """Return a group as JSON shows it."""
    members = [one._asdict() for one in group.members]
    return {
        **group._asdict(), "members": members, "primary": group.primary,
        "copies": group.copies, "is_whole": group.is_whole,
    }  # fmt: skip


def group_of(store: Store, object_id: Any) -> Group | None:
    """Return who has an object; None where the peer cannot tell."""
    try:
        return store.group(object_id)
    except (RemoteProtocolError, UnavailableError):
        return None  # Of an earlier version; or it asks one that does not answer.


@click.command()
@click.argument("ref", type=REF)
@click.argument("count", metavar="N", type=REPLICAS)
@click.option(
    "--witness/--no-witness",
    default=None,
    help="With 2: a third peer that has a vote and no state, or none. As it is if left "
    "out.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=TEXT,
    help="Name or id of a peer that shall have one of the N copies; may be given again. "
    "Where there are N without it, one that is not named goes, the primary's last.",
)
@click.option(
    "--leaving",
    multiple=True,
    type=TEXT,
    help="Name or id of a peer that shall be none any more; may be given again.",
)
@peer_options(work_s=WORK_S)
def replicate(
    target: Target,
    ref: str,
    count: int,
    witness: bool | None,
    peers: tuple[str, ...],
    leaving: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Have N peers keep an object, an alias or an id, while it is called.

    More copies are made, or some are given up; the same N again makes new ones now for
    those that were lost. It returns when the copies are there.
    """
    had: list[str] = []

    def work(store: Store) -> Group:
        is_asked = bool(peers) and not {*peers} & {*leaving}
        before = group_of(store, ref) if is_asked else None
        had.extend(
            one.peer
            for one in (() if before is None else before.members)
            if one.role in KEEPERS and {one.peer, one.peer_id.hex()} & {*peers}
        )
        return store.replicate(
            ref, count, witness=witness, peers=peers, leaving=leaving
        )

    def progress(store: Store) -> Step | None:
        return min(store.group(ref).copies, count), count

    group = watched(
        target, "replicate", work, progress=progress, quiet=as_json, unit="copies"
    )
    for name in had:
        say(f"{name} had a copy already")
    if as_json:
        show(group_map(group), as_json=True)
    else:
        group_table(group)


@click.command()
@click.argument("ref", type=REF)
@click.option("--yes", is_flag=True, help="Do not ask; the text is not shown either.")
@click.option(
    DESPITE,
    "is_despite",
    is_flag=True,
    help="Also where most of the group answers and can go on without this.",
)
@peer_options(work_s=WORK_S)
def force(
    target: Target, ref: str, *, yes: bool, is_despite: bool, as_json: bool
) -> None:
    """Make the connected peer's copy the object, when the others are lost for good.

    For two copies of which one died, or a majority that will not come back: a new
    lineage begins with what is here. What others had acknowledged beyond it is given
    up; when they come back their copies are quarantined, can be taken out by `export`,
    and are never merged.

    Where a majority of the group answers nothing is lost, and it is refused.
    """
    with target.connected() as store:
        peer = store.status()  # First: where it is cut off, another tells what REF is.
        object_id, _ = store.identify(ref)
        if not yes:
            group = group_of(store, object_id)
            _ask(group, peer, is_despite=is_despite, as_json=as_json)
        with spinner("force", quiet=as_json):
            guard = {} if is_despite else {"unless_majority": True}
            told = _ask_this(store, "force", object_id, peer, **guard)
    group = groups.group_of(told, "force")
    if as_json:
        show(group_map(group), as_json=True)
    else:
        group_table(group)


def _ask_this(
    store: Store, operation: str, object_id: ObjectId, peer: dict[str, Any], **more: Any
) -> Any:
    """Ask the peer that the operator was shown; if it dies meanwhile, no other one."""
    about = {"object_id": object_id, "peer_id": peer["peer_id"], **more}
    return store.request(operation, **about)


def _ask(
    group: Group | None, status: dict[str, Any], *, is_despite: bool, as_json: bool
) -> None:
    """Say what `force` means, and go on only where somebody says yes.

    Raises:
        Abort: nobody did.
        UsageError: nobody can be asked.
    """
    copy, missing = status["name"], "Who else has it, nobody answers that."
    if group is not None:
        here = next((m for m in group.members if m.peer_id == status["peer_id"]), None)
        copy += " has none, so this will be refused"
        if group.is_quarantined:
            copy = f"{status['name']}'s is quarantined, so this will be refused"
        elif here is not None and here.role != WITNESS:
            copy = f"number {_known(here.number)} at {here.peer}"
        voters = [m for m in group.members if m.role != LEARNER]
        lost = [m for m in voters if m.state != ALIVE or m.reason]
        names = ", ".join(f"{m.peer} ({m.role}, {m.reason or m.state})" for m in lost)
        missing = f"Members that take no part: {names}."
        if not lost:
            missing = "All members answer: `replicate` again before you do this."
        # Only who leads knows who keeps no change.
        is_led_here = here is not None and here.role == PRIMARY
        silent = lost if is_led_here else [m for m in lost if m.state != ALIVE]
        if not is_despite and 2 * len(silent) < len(voters):
            missing += (
                f" A majority answers, so this will be refused without {DESPITE}."
            )
    say(FORCE_TEXT.format(copy=copy, missing=missing))
    if as_json or not is_terminal(sys.stdin):
        raise click.UsageError("nobody can be asked here: give --yes to go on")
    click.confirm("Go on?", abort=True, err=True)


@click.command()
@click.argument("ref", type=REF)
@click.argument("file", type=click.Path(dir_okay=False))
@peer_options(work_s=WORK_S)
def export(target: Target, ref: str, file: str, *, as_json: bool) -> None:
    """Write the connected peer's copy of an object to FILE, also a quarantined one.

    `import` makes a new object of it. FILE must not be there yet.
    """
    try:
        out = open(file, "xb")  # noqa: SIM115 - closed below, and removed on an error
    except FileExistsError:
        reason = "it is there already: name another file, or remove that one first"
        raise InvalidRequestError(reason, file) from None
    except OSError as error:
        reason = f"it cannot be written: {error.strerror}"
        raise InvalidRequestError(reason, file) from None
    with out:
        try:
            with spinner("export", quiet=as_json), target.connected() as store:
                data = store.export(ref)
            about = exporting.unpacked(data).about
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file)
            raise
    if as_json:
        show({"file": file, "bytes": len(data), **about}, as_json=True)
    else:
        which = "the quarantined copy" if about.get("is_quarantined") else "the copy"
        where = about.get("peer", target.endpoint)
        echo(f"{which} at {where}: {size_text(len(data))} written to {file}")


@click.command()
@click.argument("ref", type=REF)
@click.option("--yes", is_flag=True, help="Do not ask.")
@peer_options()
def discard(target: Target, ref: str, *, yes: bool, as_json: bool) -> None:
    """Remove the connected peer's quarantined copy of an object, for good.

    Nothing is exported by it: `export` takes out what the copy holds, before. A copy
    that may still count is refused. Its group can have a copy at this peer again then.
    """
    with target.connected() as store:
        peer = store.status()  # First: where it is cut off, another tells what REF is.
        object_id, _ = store.identify(ref)
        if not yes:
            group = group_of(store, object_id)
            if group is None or group.is_quarantined:
                say(
                    f"What the quarantined copy at {peer['name']} holds is lost, unless "
                    f"`export {object_id.hex()} FILE` has taken it out."
                )
            else:
                say(f"No quarantined copy is at {peer['name']}: this will be refused.")
            if as_json or not is_terminal(sys.stdin):
                raise click.UsageError("nobody can be asked here: give --yes to go on")
            click.confirm("Remove it for good?", abort=True, err=True)
        with spinner("discard", quiet=as_json):
            _ask_this(store, "discard", object_id, peer)
    if as_json:
        show({"discarded": object_id, "peer": peer["name"]}, as_json=True)
    else:
        echo(
            f"discarded the copy of {object_id.hex()} at {peer['name']}; where its group "
            "lacks one it is made within minutes, at once by `replicate`"
        )


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--alias", default="", type=TEXT, help="A name for the object.")
@click.option(
    "--peer", default="", type=TEXT, help="Name of the peer that shall keep it."
)
@click.option("--replicas", type=REPLICAS, help="How many peers shall keep it.")
@click.option(
    "--witness", is_flag=True, help="With --replicas 2: a third peer that has a vote."
)
@peer_options(work_s=WORK_S)
def import_command(
    target: Target,
    file: str,
    alias: str,
    peer: str,
    replicas: int | None,
    *,
    witness: bool,
    as_json: bool,
) -> None:
    """Make a new object of FILE, which `export` wrote.

    The object that it was taken from stays as it is; refs in its state go on naming
    what they named.
    """
    with open(file, "rb") as source:
        data = source.read()
    with spinner("import", quiet=as_json), target.connected() as store:
        object_id = store.bring_back(
            data, alias=alias, peer=peer, replicas=replicas, witness=witness or None
        )
    if as_json:
        show({"object_id": object_id, "alias": alias}, as_json=True)
    else:
        echo(object_id.hex())


# -- for other commands ----------------------------------------------------------------


def replication_of(store: Store) -> dict[str, Any] | None:
    """Return what the peer says of the copies it knows; None where it cannot tell."""
    try:
        found: dict[str, Any] = store.request("replication")
    except RemoteProtocolError:
        return None
    return found


def replication_elsewhere(
    target: Target, peers: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Ask other peers about the copies they know, for only who leads knows what lacks.

    Returns the rows of their objects, each with the name of its peer, and the names of
    peers that could not be asked.
    """
    rows: list[dict[str, Any]] = []
    silent: list[str] = []
    others = [one for one in peers if not one.get("is_me", True)]
    for one in others[:ASKED_MAX]:
        if one.get("state") != ALIVE:
            continue  # Who lacks its copy says so.
        near = target._replace(endpoint=one["endpoint"], connect_s=ASK_PEER_S)
        try:
            with near.connected() as store:
                told = replication_of(store) or {"objects": ()}
        except UnavailableError:
            silent.append(str(one["peer"]))
            continue
        rows += [{**row, "peer": one["peer"]} for row in told["objects"]]
    silent += [str(one["peer"]) for one in others[ASKED_MAX:]]
    return rows, silent


def counts_text(counts: dict[str, Any]) -> str:
    """Return how many objects a peer leads and follows, for people."""
    text = f"{counts['led']} led, {counts['followed']} followed"
    if counts.get("witnessed"):
        text += f", {counts['witnessed']} witnessed"
    if counts.get("under"):
        text += f", {counts['under']} WITHOUT ALL COPIES"
    if counts.get("quarantined"):
        text += f", {counts['quarantined']} QUARANTINED"
    return text


def problem_texts(row: dict[str, Any]) -> tuple[str, str]:
    """Return what is wrong with the copies of an object, and what to do about it."""
    ref = row.get("alias") or row["object_id"].hex()
    if row["problem"] == "quarantined":
        where = f" at {row['peer']}" if row.get("peer") else ""
        return (
            f"quarantined{where}: {row.get('reason') or 'another lineage replaced this copy'}",
            f"at that peer `export {row['object_id'].hex()} FILE` takes it out, `import "
            "FILE` makes a new object of it, `discard` removes it",
        )
    wanted = row["wanted"]
    found = f"{row['copies']} of {wanted} copies"
    if row.get("wants_witness"):
        found += " and a witness" if row.get("has_witness") else ", no witness"
    missing = ", ".join(row.get("missing", ()))
    lost = row.get("lost", ())  # Another peer runs under their names.
    back = ", ".join(one for one in row.get("missing", ()) if one not in lost)
    if row.get("reason"):
        found += f"; {row['reason'].removeprefix(f'{found}: ')}"
    elif missing:
        found += f"; {missing}: no answer"
    left = row["copies"] + bool(row.get("has_witness"))
    if missing and len(row["missing"]) >= left:  # No majority: no copy can be made.
        force = f"`force {ref}`, which gives up what only they had"
        away = f"start {back}, or, " if back else ""
        return found, f"{away}if they are gone for good, {force}"
    if row.get("is_refused"):
        fewer = f"`replicate {ref} {max(1, row['copies'])}`"
        if row.get("wants_witness"):
            fewer += " with --no-witness"
        mend = (
            "make room where there is none (delete objects, raise disk_budget_mb), start "
            f"a peer that can take a copy, or want no more: {fewer}"
        )
        return found, f"start {back}, or {mend}" if back else mend
    now = f"`replicate {ref} {wanted}` makes other copies now"
    return found, f"start {back}, or {now}" if back else now
