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
from activestore.cli.output import echo, is_terminal, plain, say, show, size_text, table
from activestore.cli.waiting import spinner
from activestore.client.client import Store
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
def show_command(target: Target, ref: str, *, as_json: bool) -> None:
    """Show one object: REF is an alias or an id of 32 digits."""
    with spinner("show", quiet=as_json), target.connected() as store:
        object_id, _ = store.identify(ref)
        about: dict[str, Any] = store.request("show", object_id=object_id)
        fields = {
            name: _field(store, object_id, name, size["bytes"])
            for name, size in about.pop("fields").items()
        }
        for name in about.pop("graph_fields"):
            fields[name] = {"in_graph": True}
    if as_json:
        show({**about, "fields": fields}, as_json=True)
        return
    for name in ("created_s", "changed_s"):
        stamp = time.localtime(about.pop(name))
        about[name.replace("_s", "")] = time.strftime("%Y-%m-%d %H:%M:%S", stamp)
    about["size"] = size_text(about.pop("bytes"))
    rows = [(name, plain(value)) for name, value in about.items()]
    rows += [(f"field {name}", _field_text(entry)) for name, entry in fields.items()]
    table(("what", "value"), rows)


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
@peer_options()
def create(
    target: Target,
    class_name: str,
    arguments: tuple[str, ...],
    alias: str,
    peer: str,
    *,
    as_json: bool,
) -> None:
    """Make an object of the published CLASS ("module.Class")."""
    args = [value_of(text) for text in arguments]
    with spinner("create", quiet=as_json), target.connected() as store:
        made = store.create(class_name, *args, alias=alias, peer=peer)
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
