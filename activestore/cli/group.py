"""The group of all commands, and the boundary that no error passes.

Rules of this file: names and order of commands; a command's module is loaded when it is
used, as fifty peers that start on one machine pay for what each of them loads; what ends
the program without a command's own handling becomes one line and an exit code here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click

from activestore.cli.output import EXIT_CODES, EXIT_INTERRUPTED, ended_by, say
from activestore.version import VERSION

PROGRAM = "activestore-node"
# Where each command is, in the order of the reference: its module, its name there.
COMMANDS = {
    "start": ("start", "start"),
    "up": ("topology", "up"),
    "down": ("topology", "down"),
    "status": ("admin", "status"),
    "peers": ("admin", "peers"),
    "objects": ("objects", "objects"),
    "show": ("objects", "show_command"),
    "call": ("objects", "call"),
    "create": ("objects", "create"),
    "move": ("objects", "move"),
    "replicate": ("copies", "replicate"),
    "force": ("copies", "force"),
    "export": ("copies", "export"),
    "discard": ("copies", "discard"),
    "import": ("copies", "import_command"),
    "delete": ("objects", "delete"),
    "publish": ("code", "publish"),
    "classes": ("code", "classes"),
    "drain": ("admin", "drain"),
    "stop": ("admin", "stop"),
    "backup": ("admin", "backup"),
    "restore": ("offline", "restore"),
    "doctor": ("offline", "doctor"),
}


class Commands(click.Group):
    """The commands, each loaded with its first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the alphabet, as click's own groups do."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, None where there is none of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        try:
            found = importlib.import_module(f"activestore.cli.{module}")
        except KeyboardInterrupt:
            # click would put an empty line before what is said of it.
            say("interrupted")
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        command = getattr(found, name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run and use activestore peers. A command talks to the peer at --endpoint.",
    epilog="Exit codes: "
    + "; ".join(f"{number} {text}" for number, text in EXIT_CODES.items())
    + ".",
)
@click.version_option(VERSION, prog_name=PROGRAM)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def group(debug: bool) -> None:
    """Run and use activestore peers."""
    del debug  # Read from the context by `options.guarded`.


def all_commands() -> dict[str, click.Command]:
    """Return every command by its name, in the order of the reference."""
    found = {name: group.get_command(click.Context(group), name) for name in COMMANDS}
    return {name: command for name, command in found.items() if command is not None}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Raises:
        SystemExit: a command ended by itself, with its exit code.
        ModuleNotFoundError: the command needs a module that is not installed.
    """
    words = None if arguments is None else list(arguments)
    try:
        ended = group.main(words, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        say("interrupted")
        return EXIT_INTERRUPTED
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, ModuleNotFoundError) and not _is_ours(error.name):
            raise
        # Outside of every command: help for a reader who has gone, for one.
        return ended_by(error, as_json=False, is_debugging=False)
    return ended if isinstance(ended, int) else 0


def _is_ours(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "activestore"
