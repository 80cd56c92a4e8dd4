"""What commands print: results, tables, errors, and the exit codes that go with them.

Rules of this file: results on standard output, everything else on standard error; no
traceback reaches a user who did not ask for it; what an object is called or holds
cannot break a row, colour a terminal or stop a command.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from activestore import remote
from activestore.errors import (
    ActiveStoreError,
    ConfigurationError,
    DirectoryLockedError,
    UnavailableError,
)
from activestore.wire.kept import Ref

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_CONFIGURATION = range(5)
# As sysexits.h has it; the other two as shells report a death by SIGINT and SIGPIPE.
EXIT_UNEXPECTED, EXIT_INTERRUPTED, EXIT_OUTPUT_CLOSED = 70, 130, 141

# docs/reference/cli.md is made from this.
EXIT_CODES = {
    EXIT_DONE: "done",
    EXIT_FAILED: "the operation failed: the text says why",
    EXIT_USAGE: "wrong usage, or `activestore[node]` is not installed",
    EXIT_UNREACHABLE: "the peer cannot be reached, or was lost: the text says which "
    "address was tried",
    EXIT_CONFIGURATION: "the configuration forbids it, a directory cannot be used, or "
    "the peer could not start",
    EXIT_UNEXPECTED: "an error that nobody foresaw, which is a bug: "
    "`activestore-node --debug COMMAND ...` shows where",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_OUTPUT_CLOSED: "whoever read the output closed it",
}


class UnreachableError(UnavailableError):
    """No peer answers at the endpoint of a command."""


class OutputError(Exception):
    """Standard output takes no more; `is_closed` where its reader has gone."""

    def __init__(self, reason: str, *, is_closed: bool) -> None:
        super().__init__(reason)
        self.is_closed = is_closed


# -- printing --------------------------------------------------------------------------


def echo(text: str) -> None:
    """Print a line of results.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        try:
            click.echo(text)
        except UnicodeEncodeError:
            encoding = getattr(sys.stdout, "encoding", None) or "ascii"
            click.echo(text.encode(encoding, "backslashreplace").decode(encoding))
    except BrokenPipeError:
        raise OutputError("its reader has gone", is_closed=True) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(reason, is_closed=False) from None


def say(text: str) -> None:
    """Print a line that is no result; where nobody can read it, that is no failure."""
    try:
        click.echo(text.encode("utf-8", "backslashreplace").decode(), err=True)
    except (OSError, ValueError):
        pass


def is_terminal(stream: Any) -> bool:
    """Return whether people look at a stream; a closed one is None."""
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:
        return False


def plain(value: Any) -> Any:
    """Return a value as JSON can say it: bytes as hex, arrays as lists, refs as ids."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # JSON has no such numbers, and its readers stumble over Python's.
        return value if math.isfinite(value) else str(value)
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
        return plain(value.tolist())
    return str(value)


def show(value: Any, *, as_json: bool) -> None:
    """Print one result."""
    if as_json:
        echo(json.dumps(plain(value)))
    elif isinstance(value, (Mapping, list, tuple)):
        echo(json.dumps(plain(value), indent=2))
    else:
        echo(str(plain(value)))


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: drawn on a terminal, tab-separated elsewhere."""
    if not is_terminal(sys.stdout):
        for row in rows:
            echo("\t".join(escaped(str(cell)) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*headers)
    for row in rows:
        # Not as markup: an alias may be "[red]".
        drawn.add_row(*(Text(escaped(str(cell))) for cell in row))
    Console().print(drawn)


def escaped(text: str) -> str:
    r"""Return a text as one cell of a row: what does not print as \n, \x1b, \ as \\."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        sign
        if sign.isprintable() and sign != "\\"
        else sign.encode("unicode_escape").decode()
        for sign in text
    )


def size_text(count: float) -> str:
    """Return a number of bytes for people: "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


# -- errors ----------------------------------------------------------------------------


def ended_by(error: BaseException, *, as_json: bool, is_debugging: bool) -> int:
    """Say what ended a command; return its exit code."""
    if is_debugging:
        say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, KeyboardInterrupt):
        say("interrupted")
        return EXIT_INTERRUPTED
    if isinstance(error, OutputError):
        if error.is_closed:
            return EXIT_OUTPUT_CLOSED  # Whoever read the output has enough.
        say(f"error: cannot write the output: {error}")
        return EXIT_FAILED
    if isinstance(error, ActiveStoreError):
        _tell(error.code, str(error), error.fields, as_json=as_json)
        if isinstance(error, UnreachableError):
            return EXIT_UNREACHABLE
        if isinstance(error, (ConfigurationError, DirectoryLockedError)):
            return EXIT_CONFIGURATION
        return EXIT_FAILED
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, OSError):
        _tell("system", text, {}, as_json=as_json)
        return EXIT_FAILED
    where = "" if is_debugging else "; `activestore-node --debug ...` shows where"
    _tell("unexpected", f"unexpected {text}{where}", {}, as_json=as_json)
    return EXIT_UNEXPECTED


def _tell(code: str, message: str, fields: Mapping[str, Any], *, as_json: bool) -> None:
    if not as_json:
        say(f"error: {message}")
        return
    about = {"code": code, "message": message, "fields": plain(fields)}
    try:
        echo(json.dumps({"error": about}))
    except OutputError:
        say(f"error: {message}")
