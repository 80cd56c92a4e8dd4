"""`import activestore` is the thin client: zmq, msgpack, and little of the library."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import activestore

# Each costs a thin client milliseconds and megabytes that it has no use for.
HEAVY = frozenset(
    {
        "asyncio",
        "concurrent",
        "concurrent.futures",
        "cProfile",
        "ctypes",
        "dataclasses",
        "email",
        "http",
        "inspect",
        "logging",
        "multiprocessing",
        "pickle",
        "sqlite3",
        "ssl",
        "subprocess",
        "tempfile",
        "unittest",
        "urllib.request",
        "xml",
    }
)

# Prints the modules that `statement` loads beyond zmq and msgpack themselves.
PROBE = """
import json, sys
import zmq, msgpack
before = set(sys.modules)
{statement}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(statement: str) -> list[str]:
    """Return the modules that a fresh process loads for `statement`."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded: list[str] = json.loads(result.stdout)
    return loaded


def statements() -> list[str]:
    """Return what a thin client does without a peer: import, and name what it uses."""
    names = [name for name in activestore.__all__ if name != "aio"]
    uses = "; ".join(f"activestore.{name}" for name in names)
    return ["import activestore", f"import activestore; {uses}"]


@pytest.mark.parametrize("statement", statements(), ids=["import", "every name"])
def test_thin_client_loads_no_other_third_party_package(statement: str) -> None:
    roots = {name.partition(".")[0] for name in loaded_by(statement)}

    foreign = roots - set(sys.stdlib_module_names) - {"activestore"}
    # What the installer of an editable copy adds is not ours.
    foreign = {name for name in foreign if not name.startswith("__editable__")}

    assert foreign == set()


@pytest.mark.parametrize("statement", statements(), ids=["import", "every name"])
def test_thin_client_loads_no_heavy_module(statement: str) -> None:
    assert HEAVY & set(loaded_by(statement)) == set()


@pytest.mark.parametrize("statement", statements(), ids=["import", "every name"])
def test_thin_client_loads_nothing_of_a_peer(statement: str) -> None:
    of_a_peer = ("cli", "core", "objects", "peer", "storage", "client.publish")

    loaded = loaded_by(statement)

    for package in of_a_peer:
        assert [
            name
            for name in loaded
            if name == f"activestore.{package}"
            or name.startswith(f"activestore.{package}.")
        ] == []


def test_facade_shows_exactly_its_public_names() -> None:
    """A name that slips into the facade becomes a promise."""
    visible = {
        name
        for name, value in vars(activestore).items()
        if not name.startswith("_")
        and type(value).__name__ not in ("module", "_Feature")
    }

    assert visible <= set(activestore.__all__)
    assert sorted(activestore.__all__) == sorted(set(activestore.__all__))


def test_every_public_name_can_be_used() -> None:
    for name in activestore.__all__:
        assert getattr(activestore, name) is not None


def test_daemon_loads_nothing_that_pickles() -> None:
    """Only executors load pickles; and each daemon of many pays for what it loads."""
    loaded = loaded_by("import activestore.peer.daemon")

    assert "activestore.core.membership" in loaded
    assert {"cloudpickle", "zipfile", "activestore.objects.pickles"} & {
        *loaded
    } == set()
