"""What commands take: the options of all that talk to a peer, kinds of arguments.

Rules of this file: what is wrong with a word is said before anything is asked of a
peer; a number with a minus is a value, whatever else begins with one is an option.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from activestore.cli.output import UnreachableError, ended_by
from activestore.errors import UnavailableError

if TYPE_CHECKING:
    from activestore.client.client import Store

DEFAULT_ENDPOINT = "tcp://127.0.0.1:7400"
# To find a peer takes milliseconds, or it is not there.
CONNECT_S = 5.0
# As connect() has it: a running method is heard of every other second.
SILENCE_S = 30.0
# Work that the peer is silent about while it lasts; that it lives is asked beside it.
WORK_S = 3600.0
SECONDS_MIN = 0.01

_NEGATIVE = re.compile(r"-(\.?\d[\d.eE+-]*|Infinity)")


class Target(NamedTuple):
    """The peer that a command talks to, and how long it waits for it."""

    endpoint: str
    connect_s: float
    timeout_s: float

    def connected(self) -> Store:
        """Connect, or say which address was tried and what to start.

        Raises:
            UnreachableError: nobody answered in time.
        """
        # A daemon is started by this command line too, and needs no client.
        from activestore.client.client import Store
        from activestore.client.connection import Connection

        connection = Connection(self.endpoint, self.timeout_s, "cli")
        try:
            connection.shake_hands(min(self.connect_s, self.timeout_s))
        except UnavailableError as error:
            connection.close()
            raise UnreachableError(self.endpoint, error.reason) from None
        except BaseException:
            connection.close()
            raise
        return Store(connection)


class Seconds(click.FloatRange):
    """A time in seconds, above 0 and finite."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=SECONDS_MIN)

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Refuse what is no time; `nan` is within every range."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


class Words(click.ParamType):  # type: ignore[type-arg]  # generic in new versions
    """A text that can travel: the command line may hold bytes that are no UTF-8."""

    name = "text"

    def __init__(self, *, expected: str = "") -> None:
        """`expected` says what may not be left empty."""
        self._expected = expected

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Refuse what is no text."""
        text = str(value)
        if not text and self._expected:
            self.fail(f"is empty, expected {self._expected}.", param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.fail(f"is not UTF-8 at character {error.start}.", param, ctx)
        return text


TEXT = Words()
REF = Words(expected="an alias or an id; `activestore-node objects` lists them")
METHOD = Words(expected="a method or a field; `activestore-node show` lists fields")
SECONDS = Seconds()


class ValuesCommand(click.Command):
    """A command whose arguments are values, among which may be negative numbers."""

    # Else click takes "-5" for an option; what is really unknown is refused below.
    ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse unknown options, let numbers pass; after "--" all is an argument."""
        options = {
            name: option
            for option in self.get_params(ctx)
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts)
        }
        words = iter(args)
        for word in words:
            if word == "--":
                break
            if not word.startswith("-") or word == "-" or _NEGATIVE.fullmatch(word):
                continue
            name, _, value = word.partition("=")
            option = options.get(name)
            if option is None:
                near = difflib.get_close_matches(name, options)
                raise click.NoSuchOption(name, possibilities=near, ctx=ctx)
            if not option.is_flag and not value:
                next(words, None)
        return super().parse_args(ctx, args)


def value_of(text: str) -> Any:
    """Return the value that an argument is: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn whatever ends a command into one line and an exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the boundary
            root = click.get_current_context().find_root()
            code = ended_by(
                error,
                as_json=bool(kwargs.get("as_json")),
                is_debugging=bool(root.params.get("debug")),
            )
            sys.exit(code)

    return run


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)


def peer_options(
    *, work_s: float | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options of every command that talks to a peer, and its error handling.

    The command gets them as `target`. `work_s` is how long it may take by default where
    the peer works in silence.
    """
    timeout_help = (
        "Seconds without an answer; a running method is waited for."
        if work_s is None
        else "Seconds that the work may take; a peer that dies is noticed sooner."
    )
    options = (
        click.option(
            "--endpoint",
            envvar="ACTIVESTORE_ENDPOINT",
            default=DEFAULT_ENDPOINT,
            show_default=True,
            help="Address of any peer; also $ACTIVESTORE_ENDPOINT.",
        ),
        click.option(
            "--connect-timeout",
            "connect_s",
            type=SECONDS,
            default=CONNECT_S,
            show_default=True,
            help="Seconds to find the peer, at most those of --timeout.",
        ),
        click.option(
            "--timeout",
            "timeout_s",
            type=SECONDS,
            default=SILENCE_S if work_s is None else work_s,
            show_default=True,
            help=timeout_help,
        ),
        json_option,
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(
            *args: Any, endpoint: str, connect_s: float, timeout_s: float, **kwargs: Any
        ) -> None:
            target = Target(endpoint, connect_s, timeout_s)
            try:
                function(*args, target=target, **kwargs)
            except UnavailableError as error:
                if error.where == endpoint:  # Silence after it had answered.
                    raise UnreachableError(endpoint, error.reason) from None
                raise

        wrapped = guarded(run)
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate
