"""`start`: run a peer in the foreground.

Rules of this file: flags over variables over file over defaults is `config`'s business; a
peer that cannot start says why in one line.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import click

from activestore.cli.output import guarded
from activestore.peer.config import PeerConfig, load_config
from activestore.peer.daemon import Daemon
from activestore.version import VERSION


@click.command()
@click.option("--name", help="What people call the peer; the host's name by default.")
@click.option(
    "--listen", help="Address to serve at, e.g. tcp://127.0.0.1:7400; port 0: any."
)
@click.option("--advertise", help="Address that others are told, where it differs.")
@click.option(
    "--join", multiple=True, help="Address of a peer to join; may be repeated."
)
@click.option("--data-dir", type=click.Path(), help="Where its objects live.")
@click.option(
    "--config", "path", type=click.Path(), help="A peer.toml, e.g. of nodes/."
)
@click.option("--executors", type=int, help="Processes that run methods.")
@click.option("--log-level", help="debug, info, warning or error.")
@click.option("--json", "as_json", is_flag=True, help="Print the ready line as JSON.")
@guarded
def start(path: str | None, *, as_json: bool, **flags: Any) -> None:
    """Run a peer until SIGTERM or Ctrl-C, which let running calls end first."""
    flags["join"] = list(flags["join"]) or None
    config = load_config(path, dict(os.environ), flags)
    logging.basicConfig(
        stream=sys.stderr,
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    daemon = Daemon(config, version=VERSION)
    sys.exit(daemon.run(lambda: _say_ready(daemon, config, as_json=as_json)))


def _say_ready(daemon: Daemon, config: PeerConfig, *, as_json: bool) -> None:
    if as_json:
        event = {
            "event": "ready",
            "name": config.name,
            "peer": daemon.peer_id.hex(),
            "endpoint": daemon.endpoint,
            "pid": os.getpid(),
        }
        click.echo(json.dumps(event))
    else:
        click.echo(
            f"peer {config.name} ({daemon.peer_id.hex()}) serves at {daemon.endpoint}, "
            f"pid {os.getpid()}, data in {config.data_dir}"
        )
    sys.stdout.flush()
