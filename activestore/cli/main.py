"""The entry point: the group of all commands.

Rules of this file: names and order of commands only.
"""

from __future__ import annotations

import click

from activestore.cli import admin, code, objects, offline, start
from activestore.version import VERSION


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run and use activestore peers. A command talks to the peer at --endpoint.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 no peer, 4 configuration, "
    "130 interrupted.",
)
@click.version_option(VERSION, prog_name="activestore-node")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """Run and use activestore peers."""
    del debug  # Read from the context by `output.guarded`.


for _command in (
    start.start,
    admin.status,
    admin.peers,
    objects.objects,
    objects.show_command,
    objects.call,
    objects.create,
    objects.delete,
    code.publish,
    code.classes,
    admin.drain,
    admin.stop,
    admin.backup,
    offline.restore,
    offline.doctor,
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
