"""Commands on code: publish, classes.

Rules of this file: what is published is code that the peer will run; it is named, never
guessed.
"""

from __future__ import annotations

import time

import click

from activestore.cli.output import connected, peer_options, show, table


@click.command()
@click.argument("what", metavar="MODULE_OR_FILE")
@click.option(
    "--data-files", multiple=True, help='Other files to ship, e.g. "data/*.json".'
)
@peer_options
def publish(
    endpoint: str,
    timeout_s: float,
    what: str,
    data_files: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Publish the classes of a module, a .py file or a package directory."""
    with connected(endpoint, timeout_s) as store:
        names = store.publish(what, data_files=data_files)
    if as_json:
        show({"classes": names}, as_json=True)
    else:
        click.echo("\n".join(names))


@click.command()
@peer_options
def classes(endpoint: str, timeout_s: float, *, as_json: bool) -> None:
    """List the published classes."""
    with connected(endpoint, timeout_s) as store:
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
