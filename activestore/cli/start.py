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

from activestore.cli.options import guarded
from activestore.cli.output import echo
from activestore.errors import (
    ActiveStoreError,
    ConfigurationError,
    CorruptRecordError,
    StorageFullError,
)
from activestore.peer.config import PeerConfig
from activestore.peer.config_sources import load_config
from activestore.peer.daemon import Daemon
from activestore.version import VERSION

_log = logging.getLogger(__name__)


@click.command()
@click.option("--name", help="What people call the peer; the host's name by default.")
@click.option(
    "--listen", help="Address to serve at, e.g. tcp://127.0.0.1:7400; port 0: any."
)
@click.option("--advertise", help="Address that others are told, where it differs.")
@click.option(
    "--join",
    multiple=True,
    help="Address of a peer to join; may be repeated. One that answers is enough.",
)
@click.option(
    "--discover",
    is_flag=True,
    default=None,
    help="Find peers of the same cluster on the local network by mDNS, and be found.",
)
@click.option("--cluster", help="Name of its cluster; others are refused.")
@click.option("--zone", help="Where it stands, in a word.")
@click.option("--profile", help="How patiently it watches others: lan, wan or edge.")
@click.option("--data-dir", type=click.Path(), help="Where its objects live.")
@click.option(
    "--config", "path", type=click.Path(), help="A peer.toml, e.g. of nodes/."
)
@click.option("--executors", type=int, help="Processes that run methods, 1 to 256.")
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
    daemon = _opened(config)
    try:
        code = daemon.run(lambda: _say_ready(daemon, config, as_json=as_json))
    except ActiveStoreError:
        raise
    except Exception:
        # Whoever runs a daemon reads its log, and needs to see where it broke.
        _log.critical("stopped by an error that nobody foresaw", exc_info=True)
        raise
    sys.exit(code)


def _opened(config: PeerConfig) -> Daemon:
    """Return the daemon on its data directory, or say what is wrong with that."""
    try:
        return Daemon(config, version=VERSION)
    except (CorruptRecordError, StorageFullError) as error:
        raise ConfigurationError("data_dir", str(error)) from error
    except OSError as error:
        reason = f"{config.data_dir} cannot be used: {error.strerror or error}"
        raise ConfigurationError("data_dir", reason) from error


def _say_ready(daemon: Daemon, config: PeerConfig, *, as_json: bool) -> None:
    if as_json:
        event = {
            "event": "ready",
            "name": config.name,
            "peer": daemon.peer_id.hex(),
            "endpoint": daemon.endpoint,
            "pid": os.getpid(),
        }
        echo(json.dumps(event))
    else:
        echo(
            f"peer {config.name} ({daemon.peer_id.hex()}) serves at {daemon.endpoint}, "
            f"pid {os.getpid()}, data in {config.data_dir}"
        )
