"""Commands on objects: list, show, call, create, move, delete.

Rules of this file: an argument that is JSON is that value, any other is text; what
cannot be read of one field hides nothing of the others.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import click

from activestore import remote
from activestore.cli.copies import REPLICAS, group_map, group_of
from activestore.cli.options import (
    METHOD,
    REF,
    SECONDS,
    TEXT,
    Target,
    ValuesCommand,
    peer_options,
    value_of,
)
from activestore.cli.output import (
    EXIT_DONE,
    EXIT_FAILED,
    echo,
    is_terminal,
    plain,
    say,
    show,
    size_text,
    table,
)
from activestore.cli.waiting import spinner
from activestore.client.client import Store
from activestore.client.groups import Group
from activestore.errors import (
    ActiveStoreError,
    InvalidRequestError,
    UnavailableError,
)
from activestore.ids import ObjectId

# Fields up to this size are read and shown.
SHOWN_BYTES_MAX = 4096


@click.command()
@click.option(
    "--alias-prefix",
    default="",
    type=TEXT,
    help="Only objects whose alias begins so.",
)
@click.option("--here", is_flag=True, help="Only objects at the connected peer.")
@peer_options()
def objects(target: Target, alias_prefix: str, *, here: bool, as_json: bool) -> None:
    """List what is stored, in the whole cluster."""
    title = "objects"
    missing: list[str] = []
    with spinner(title, quiet=as_json) as end_spinner, target.connected() as store:
        rows: Iterable[dict[str, Any]] = store.objects(
            alias_prefix, here=here, unreachable=missing
        )
        if as_json or is_terminal(sys.stdout):
            rows = list(rows)  # A table is drawn as wide as its widest row.
        end_spinner()
        if as_json:
            show(rows, as_json=True)
        else:
            table(
                ("alias", "class", "id", "size", "version", "peer"),
                (
                    (
                        row["alias"],
                        row["class_name"],
                        row["object_id"].hex(),
                        size_text(row["bytes"]),
                        row["version"],
                        row.get("peer", ""),
                    )
                    for row in rows
                ),
            )
    if missing:
        names = ", ".join(sorted(set(missing)))
        say(f"not listed, for they cannot be reached: {names}")


@click.command("show")
@click.argument("ref", type=REF)
@peer_options()
@click.pass_context
def show_command(
    context: click.Context, target: Target, ref: str, *, as_json: bool
) -> None:
    """Show one object, REF an alias or an id of 32 digits, and who has copies of it.

    Where nobody leads it, who has copies is shown all the same, before the error.
    """
    lost: UnavailableError | None = None
    fields: dict[str, Any] = {}
    with spinner("show", quiet=as_json), target.connected() as store:
        object_id, _ = store.identify(ref)
        group = group_of(store, object_id)
        try:
            about: dict[str, Any] = store.request("show", object_id=object_id)
            for name, size in about.pop("fields").items():
                fields[name] = _field(store, object_id, name, size["bytes"])
            for name in about.pop("graph_fields"):
                fields[name] = {"in_graph": True}
        except UnavailableError as error:
            if group is None:
                raise
            lost, about, fields = error, {"object_id": bytes(object_id)}, {}
    if as_json:
        told: dict[str, Any] = {} if group is None else {"group": group_map(group)}
        if lost is not None:
            told["error"] = {"code": lost.code, "message": str(lost)}
        show({**about, "fields": fields, **told}, as_json=True)
        context.exit(EXIT_DONE if lost is None else EXIT_FAILED)
    else:
        rows = [*_about_rows(about), *_group_rows(group)]
        rows += [
            (f"field {name}", _field_text(entry)) for name, entry in fields.items()
        ]
        table(("what", "value"), rows)
    if lost is not None:
        raise lost


def _about_rows(about: dict[str, Any]) -> list[tuple[str, Any]]:
    for name in ("created_s", "changed_s"):
        if name in about:
            stamp = time.localtime(about.pop(name))
            about[name.replace("_s", "")] = time.strftime("%Y-%m-%d %H:%M:%S", stamp)
    if "bytes" in about:
        about["size"] = size_text(about.pop("bytes"))
    return [(name, plain(value)) for name, value in about.items()]


def _group_rows(group: Group | None) -> list[tuple[str, Any]]:
    """Return what a table shows of who has an object; nothing of one copy alone."""
    if group is None or (len(group.members) < 2 and group.wanted < 2):
        return []
    wanted = f"{group.wanted} and a witness" if group.wants_witness else group.wanted
    state = "" if group.is_whole else ", NOT WHOLE"
    state += ", QUARANTINED HERE" if group.is_quarantined else ""
    state += ", changing" if group.is_joint else ""
    rows: list[tuple[str, Any]] = [
        ("copies", f"{group.copies_living} of {wanted}{state}"),
        ("group", f"version {group.config_version}, epoch {group.epoch}, "
                  f"number {group.number}, lineage {group.lineage}"),
    ]  # fmt: skip
    for one in group.members:
        number = "number unknown" if one.number is None else f"number {one.number}"
        lag = f", {one.lag} behind" if one.lag else ""
        why = f": {one.reason}" if one.reason else ""
        rows.append((f"at {one.peer}", f"{one.role}, {one.state}, {number}{lag}{why}"))
    return rows


def _field(store: Store, object_id: ObjectId, name: str, size: int) -> dict[str, Any]:
    about: dict[str, Any] = {"bytes": size}
    if size <= SHOWN_BYTES_MAX:
        try:
            about["value"] = plain(store.get_field(object_id, name))
        except UnavailableError:
            raise
        except ActiveStoreError as error:
            # Stored by an earlier revision of the class, or of a class that fails.
            about["error"] = str(error)
    return about


def _field_text(about: dict[str, Any]) -> Any:
    if "in_graph" in about:
        return "(pickled)"
    if "error" in about:
        return f"{size_text(about['bytes'])}, not readable: {about['error']}"
    return about.get("value", size_text(about["bytes"]))


@click.command(cls=ValuesCommand)
@click.argument("ref", type=REF)
@click.argument("method", type=METHOD)
@click.argument("arguments", nargs=-1, type=TEXT)
@click.option(
    "--deadline", "deadline_s", type=SECONDS, help="Seconds the call may take."
)
@peer_options()
def call(
    target: Target,
    ref: str,
    method: str,
    arguments: tuple[str, ...],
    deadline_s: float | None,
    *,
    as_json: bool,
) -> None:
    """Run METHOD of the object REF; each further argument is JSON, or else text.

    A generator method prints a line of JSON per item. A field as METHOD, without
    arguments, prints its value.
    """
    args = tuple(map(value_of, arguments))
    options = remote.CallOptions(deadline_s)
    with spinner("call", quiet=as_json) as end_spinner, target.connected() as store:
        obj = store.get(ref)
        object_id = remote.id_of(obj)
        assert object_id is not None
        known = getattr(type(obj), method, None)
        if isinstance(known, remote.RemoteField):
            if args:
                raise InvalidRequestError(
                    "is a field, not a method: without arguments `call` prints it",
                    method,
                )
            result = store.get_field(object_id, method)
        elif isinstance(known, remote.MethodSpec) and known.is_stream:
            for item in store.stream(object_id, method, args, {}, options):
                end_spinner()
                echo(json.dumps(plain(item)))
            return
        else:
            result = store.invoke(object_id, method, args, {}, options)
        end_spinner()
        show(result, as_json=as_json)


@click.command(cls=ValuesCommand)
@click.argument("class_name", metavar="CLASS", type=TEXT)
@click.argument("arguments", nargs=-1, type=TEXT)
@click.option("--alias", default="", type=TEXT, help="A name for the object.")
@click.option(
    "--peer", default="", type=TEXT, help="Name of the peer that shall keep it."
)
@click.option(
    "--replicas", type=REPLICAS, help="How many peers shall keep it; 1 unless the "
    "peer's profile says more.",
)  # fmt: skip
@click.option(
    "--witness", is_flag=True, help="With --replicas 2: a third peer that has a vote."
)
@peer_options()
def create(
    target: Target, class_name: str, arguments: tuple[str, ...], alias: str, peer: str,
    replicas: int | None, *, witness: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make an object of the published CLASS ("module.Class")."""
    args = [value_of(text) for text in arguments]
    with spinner("create", quiet=as_json), target.connected() as store:
        made = store.create(
            class_name, *args, alias=alias, peer=peer, replicas=replicas,
            witness=witness or None,
        )  # fmt: skip
        object_id = remote.id_of(made)
    assert object_id is not None
    if as_json:
        show({"object_id": object_id, "alias": alias}, as_json=True)
    else:
        echo(object_id.hex())


@click.command()
@click.argument("ref", type=REF)
@click.argument("peer", type=TEXT)
@click.option(
    "--recursive", is_flag=True, help="Also the objects that it reaches by its fields."
)
@peer_options()
def move(
    target: Target, ref: str, peer: str, *, recursive: bool, as_json: bool
) -> None:
    """Bring an object, an alias or an id, to another PEER, while it is called."""
    with spinner("move", quiet=as_json), target.connected() as store:
        moved = store.move(ref, peer, recursive=recursive)
    if as_json:
        show({"moved": moved, "peer": peer}, as_json=True)
    elif not moved:
        echo(f"nothing moved: it is at {peer} already")
    else:
        echo(f"moved {len(moved)} object{'s' if len(moved) != 1 else ''} to {peer}")


@click.command()
@click.argument("refs", nargs=-1, required=True, type=REF)
@peer_options()
def delete(target: Target, refs: tuple[str, ...], *, as_json: bool) -> None:
    """Delete objects, each an alias or an id."""
    done: list[str] = []
    with spinner("delete", quiet=as_json), target.connected() as store:
        try:
            for ref in refs:
                store.delete(ref)
                done.append(ref)
        except ActiveStoreError:
            if done:
                say(f"deleted before the error: {', '.join(done)}")
            raise
    if as_json:
        show({"deleted": done}, as_json=True)
    else:
        echo(f"deleted {len(done)} object{'s' if len(done) != 1 else ''}")
