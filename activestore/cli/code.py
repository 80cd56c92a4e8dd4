"""Commands on code: publish, classes.

Rules of this file: what is published is code that the peer will run; it is named, never
guessed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from activestore.cli.options import TEXT, WORK_S, Target, peer_options
from activestore.cli.output import echo, show, table
from activestore.cli.waiting import spinner, watched


@click.command()
@click.argument("what", metavar="MODULE_OR_FILE", type=TEXT)
@click.option(
    "--data-files",
    multiple=True,
    type=TEXT,
    help='Other files to ship, e.g. "data/*.json".',
)
@peer_options(work_s=WORK_S)
def publish(
    target: Target, what: str, data_files: tuple[str, ...], *, as_json: bool
) -> None:
    """Publish the classes of a module, a .py file or a package directory."""
    # Said by its path, `pk` is found although the program's directory comes first.
    code = Path(what).absolute() if os.path.exists(what) else what
    names = watched(
        target,
        "publish",
        lambda store: store.publish(code, data_files=data_files),
        quiet=as_json,
    )
    if as_json:
        show({"classes": names}, as_json=True)
    else:
        for name in names:
            echo(name)


@click.command()
@peer_options()
def classes(target: Target, *, as_json: bool) -> None:
    """List the published classes."""
    with spinner("classes", quiet=as_json), target.connected() as store:
        rows = store.request("classes")
    if as_json:
        show(rows, as_json=True)
        return
    table(
        ("class", "revision", "published"),
        (
            (
                row["class_name"],
                row["revision"].hex()[:12],
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["published_s"])),
            )
            for row in rows
        ),
    )
