"""The group of all commands, and the boundary that no error passes.

Rules of this file: names and order of commands; what ends the program without a
command's own handling becomes one line and an exit code here.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from activestore.cli import admin, code, objects, offline, start, topology
from activestore.cli.output import EXIT_CODES, EXIT_INTERRUPTED, ended_by, say
from activestore.version import VERSION

PROGRAM = "activestore-node"


@click.group(
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


for _command in (
    start.start,
    topology.up,
    topology.down,
    admin.status,
    admin.peers,
    objects.objects,
    objects.show_command,
    objects.call,
    objects.create,
    objects.move,
    objects.delete,
    code.publish,
    code.classes,
    admin.drain,
    admin.stop,
    admin.backup,
    offline.restore,
    offline.doctor,
):
    group.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Raises:
        SystemExit: a command ended by itself, with its exit code.
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
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the boundary
        # Outside of every command: help for a reader who has gone, for one.
        return ended_by(error, as_json=False, is_debugging=False)
    return ended if isinstance(ended, int) else 0
