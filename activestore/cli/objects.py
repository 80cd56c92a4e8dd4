"""Commands on objects: list, show, call, create, delete.

Rules of this file: an argument that is JSON is that value, any other is text.
"""

from __future__ import annotations

import json
import time
from typing import Any

import click

from activestore import remote
from activestore.cli.output import (
    connected,
    peer_options,
    plain,
    show,
    size_text,
    table,
)
from activestore.errors import ActiveStoreError

# Fields up to this size are read and shown.
SHOWN_BYTES_MAX = 4096


@click.command()
@click.option("--alias-prefix", default="", help="Only objects whose alias begins so.")
@peer_options
def objects(
    endpoint: str, timeout_s: float, alias_prefix: str, *, as_json: bool
) -> None:
    """List what is stored."""
    with connected(endpoint, timeout_s) as store:
        rows = store.objects(alias_prefix)
        if as_json:
            show(list(rows), as_json=True)
            return
        table(
            ("alias", "class", "id", "size", "version"),
            (
                (
                    row["alias"],
                    row["class_name"],
                    row["object_id"].hex(),
                    size_text(row["bytes"]),
                    row["version"],
                )
                for row in rows
            ),
        )


@click.command("show")
@click.argument("ref")
@peer_options
def show_command(endpoint: str, timeout_s: float, ref: str, *, as_json: bool) -> None:
    """Show one object: REF is an alias or an id of 32 digits."""
    with connected(endpoint, timeout_s) as store:
        obj = store.get(ref)
        about: dict[str, Any] = store.request("show", object_id=remote.id_of(obj))
        fields = {}
        for name, size in about.pop("fields").items():
            fields[name] = {"bytes": size["bytes"]}
            if size["bytes"] <= SHOWN_BYTES_MAX:
                fields[name]["value"] = plain(getattr(obj, name))
        for name in about.pop("graph_fields"):
            fields[name] = {"in_graph": True}
        if as_json:
            show({**about, "fields": fields}, as_json=True)
            return
        for name in ("created_s", "changed_s"):
            stamp = time.localtime(about[name])
            about[name.replace("_s", "")] = time.strftime("%Y-%m-%d %H:%M:%S", stamp)
            del about[name]
        about["size"] = size_text(about.pop("bytes"))
        rows = [(name, plain(value)) for name, value in about.items()]
        rows += [
            (f"field {name}", entry.get("value", "(pickled)" if "in_graph" in entry else
             size_text(entry["bytes"])))
            for name, entry in fields.items()
        ]  # fmt: skip
        table(("what", "value"), rows)


@click.command()
@click.argument("ref")
@click.argument("method")
@click.argument("arguments", nargs=-1)
@click.option("--deadline", "deadline_s", type=float, help="Seconds the call may take.")
@peer_options
def call(
    endpoint: str,
    timeout_s: float,
    ref: str,
    method: str,
    arguments: tuple[str, ...],
    deadline_s: float | None,
    *,
    as_json: bool,
) -> None:
    """Run METHOD of the object REF; each further argument is JSON, or else text.

    A generator method prints a line per item.
    """
    with connected(endpoint, timeout_s) as store:
        obj = store.get(ref)
        bound = getattr(obj, method, None)
        args = [_argument(text) for text in arguments]
        if not isinstance(bound, remote.RemoteMethod):
            # A field, or nothing: the peer says which.
            object_id = remote.id_of(obj)
            assert object_id is not None
            result = store.invoke(
                object_id, method, tuple(args), {}, remote.DEFAULT_OPTIONS
            )
        else:
            if deadline_s is not None:
                bound = bound.options(timeout_s=deadline_s)
            result = bound(*args)
        if hasattr(result, "__next__"):
            for item in result:
                click.echo(json.dumps(plain(item)))
            return
        show(result, as_json=as_json)


@click.command()
@click.argument("class_name", metavar="CLASS")
@click.argument("arguments", nargs=-1)
@click.option("--alias", default="", help="A name for the object.")
@click.option("--peer", default="", help="Name of the peer that shall keep it.")
@peer_options
def create(
    endpoint: str,
    timeout_s: float,
    class_name: str,
    arguments: tuple[str, ...],
    alias: str,
    peer: str,
    *,
    as_json: bool,
) -> None:
    """Make an object of the published CLASS ("module.Class")."""
    with connected(endpoint, timeout_s) as store:
        args = [_argument(text) for text in arguments]
        made = store.create(class_name, *args, alias=alias, peer=peer)
        object_id = remote.id_of(made)
        assert object_id is not None
        if as_json:
            show({"object_id": object_id, "alias": alias}, as_json=True)
        else:
            click.echo(object_id.hex())


@click.command()
@click.argument("refs", nargs=-1, required=True)
@peer_options
def delete(
    endpoint: str, timeout_s: float, refs: tuple[str, ...], *, as_json: bool
) -> None:
    """Delete objects, each an alias or an id."""
    done: list[str] = []
    with connected(endpoint, timeout_s) as store:
        try:
            for ref in refs:
                store.delete(ref)
                done.append(ref)
        except ActiveStoreError:
            if done:
                click.echo(f"deleted before the error: {', '.join(done)}", err=True)
            raise
    if as_json:
        show({"deleted": done}, as_json=True)
    else:
        click.echo(f"deleted {len(done)} object{'s' if len(done) != 1 else ''}")


def _argument(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
