"""What commands share: options, connecting, printing, and errors as exit codes.

    0  done                       3  the peer cannot be reached
    1  the operation failed       4  the configuration forbids it, or the start failed
    2  wrong usage                130  interrupted

Rules of this file: results on standard output, everything else on standard error; no
traceback reaches a user who did not ask for it.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from activestore import remote
from activestore.client.client import Store, connect
from activestore.errors import (
    ActiveStoreError,
    ConfigurationError,
    DirectoryLockedError,
    UnavailableError,
)
from activestore.wire.values import Ref

DEFAULT_ENDPOINT = "tcp://127.0.0.1:7400"
EXIT_FAILED, EXIT_UNREACHABLE, EXIT_CONFIGURATION, EXIT_INTERRUPTED = 1, 3, 4, 130


class UnreachableError(UnavailableError):
    """No peer answered at the endpoint of a command."""


def peer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that talks to a peer, and its error handling."""
    options = (
        click.option(
            "--endpoint",
            envvar="ACTIVESTORE_ENDPOINT",
            default=DEFAULT_ENDPOINT,
            show_default=True,
            help="Address of any peer; also $ACTIVESTORE_ENDPOINT.",
        ),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0.1),
            default=30.0,
            show_default=True,
            help="Seconds without a sign of life from the peer.",
        ),
        json_option,
    )
    wrapped = guarded(function)
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors of the store into one line and an exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except ActiveStoreError as error:
            if click.get_current_context().find_root().params.get("debug"):
                raise
            fail(error, as_json=bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            sys.exit(0)  # Whoever read the output has enough.

    return run


def fail(error: ActiveStoreError, *, as_json: bool) -> None:
    """Print an error and exit with its code."""
    if as_json:
        about = {
            "code": error.code,
            "message": str(error),
            "fields": plain(error.fields),
        }
        click.echo(json.dumps({"error": about}))
    else:
        click.echo(f"error: {error}", err=True)
    if isinstance(error, UnreachableError):
        sys.exit(EXIT_UNREACHABLE)
    if isinstance(error, (ConfigurationError, DirectoryLockedError)):
        sys.exit(EXIT_CONFIGURATION)
    sys.exit(EXIT_FAILED)


def connected(endpoint: str, timeout_s: float) -> Store:
    """Connect, or say which address was tried and what to start."""
    try:
        return connect(endpoint, timeout_s=min(timeout_s, 5.0), name="cli")
    except UnavailableError as error:
        raise UnreachableError(endpoint, error.reason) from None


def plain(value: Any) -> Any:
    """Return a value as JSON can say it: bytes as hex, arrays as lists, refs as ids."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    object_id = remote.id_of(value)
    if object_id is not None:
        return {"object_id": object_id.hex()}
    if isinstance(value, Ref):
        return {"object_id": value.object_id.hex()}
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def show(value: Any, *, as_json: bool) -> None:
    """Print one result."""
    if as_json:
        click.echo(json.dumps(plain(value)))
    elif isinstance(value, (Mapping, list, tuple)):
        click.echo(json.dumps(plain(value), indent=2))
    else:
        click.echo(str(plain(value)))


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: drawn on a terminal, tab-separated elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(str(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*headers)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    Console().print(drawn)


def progress(title: str, steps: Iterable[tuple[int, int]], *, quiet: bool) -> int:
    """Go through (done, total) byte counts with a bar on standard error; return done."""
    done = 0
    if quiet or not sys.stderr.isatty():
        for step in steps:
            done = step[0]
        return done
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress

    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        for done, total in steps:
            bar.update(task, completed=done, total=total)
    return done


def size_text(count: float) -> str:
    """Return a number of bytes for people: "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
