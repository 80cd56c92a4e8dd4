"""Exit codes, and what is said where nothing can be done: each as the reference has it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activestore.cli import options, output
from activestore.cli.output import EXIT_CODES

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"
# Discard; nobody listens there.
NOBODY = "tcp://127.0.0.1:9"


def test_reference_has_the_exit_codes_of_the_code() -> None:
    page = REFERENCE.read_text(encoding="utf-8")

    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE))

    assert {int(number): text for number, text in rows.items()} == EXIT_CODES


def test_every_exit_code_is_documented() -> None:
    named = [value for name, value in vars(output).items() if name.startswith("EXIT_")]

    assert {value for value in named if isinstance(value, int)} == set(EXIT_CODES)


def test_help_names_the_exit_codes(cli: Callable[..., Any]) -> None:
    outcome = cli("--help")

    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    assert all(f"{number} {EXIT_CODES[number]}" in text for number in EXIT_CODES)


# Nobody there.


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["status"], ["publish", "json"], ["call", "x", "y"], ["backup", "nowhere"]],
    ids=" ".join,
)
def test_where_no_peer_is_the_address_and_the_remedy_are_named(
    cli: Callable[..., Any], words: list[str]
) -> None:
    outcome = cli(*words, "--connect-timeout", "0.1", endpoint=NOBODY)

    assert outcome.code == 3
    assert outcome.err == (
        f"error: {NOBODY}: no peer answered within 0.1 s; start one with "
        f"`activestore-node start --listen {NOBODY}`\n"
    )


@pytest.mark.net
def test_no_peer_is_to_be_started_where_something_listens_and_says_nothing(
    cli: Callable[..., Any],
) -> None:
    """So it is of a peer that was stopped by a signal."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        outcome = cli("status", "--connect-timeout", "0.1", endpoint=endpoint)

    assert outcome.code == 3
    assert "within 0.1 s; something listens there: it hangs" in outcome.err
    assert "start one" not in outcome.err


@pytest.mark.net
@pytest.mark.slow
def test_no_peer_is_to_be_started_for_an_address_of_another_machine(
    cli: Callable[..., Any],
) -> None:
    # Kept for documentation, RFC 5737: no machine has it.
    outcome = cli("status", "--connect-timeout", "0.1", endpoint="tcp://192.0.2.1:7400")

    assert outcome.code == 3
    assert outcome.err == (
        "error: tcp://192.0.2.1:7400: no peer answered within 0.1 s; is the peer running "
        "and reachable?\n"
    )


@pytest.mark.net
def test_where_no_peer_is_json_says_so_too(cli: Callable[..., Any]) -> None:
    outcome = cli("peers", "--json", "--timeout", "0.1", endpoint=NOBODY)

    assert outcome.code == 3
    assert outcome.json["error"]["code"] == "unavailable"
    assert outcome.json["error"]["fields"]["where"] == NOBODY


def test_word_that_is_no_address_is_a_wrong_setting(cli: Callable[..., Any]) -> None:
    outcome = cli("status", endpoint="nonsense")

    assert outcome.code == 4
    assert "expected one like tcp://" in outcome.err


# What nobody foresaw.


@pytest.fixture
def _bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("somewhere deep")

    monkeypatch.setattr(options.Target, "connected", broken)


@pytest.mark.usefixtures("_bug")
@pytest.mark.parametrize("words", [["status"], ["call", "x", "y"], ["publish", "z"]])
def test_unforeseen_error_is_one_line_with_type_and_remedy(
    cli: Callable[..., Any], words: list[str]
) -> None:
    outcome = cli(*words)

    assert outcome.code == 70
    assert outcome.err == (
        "error: unexpected ZeroDivisionError: somewhere deep; "
        "`activestore-node --debug ...` shows where\n"
    )


@pytest.mark.usefixtures("_bug")
def test_debug_shows_the_traceback_and_keeps_the_code(cli: Callable[..., Any]) -> None:
    outcome = cli("--debug", "status")

    assert outcome.code == 70
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.endswith("error: unexpected ZeroDivisionError: somewhere deep\n")


@pytest.mark.usefixtures("_bug")
def test_unforeseen_error_is_a_document_with_json(cli: Callable[..., Any]) -> None:
    error = cli("status", "--json").json["error"]

    assert error["code"] == "unexpected"
    assert "ZeroDivisionError" in error["message"]


def test_file_that_cannot_be_read_is_told(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: object) -> None:
        raise PermissionError(13, "Permission denied", "x.py")

    monkeypatch.setattr(options.Target, "connected", denied)

    outcome = cli("status")

    assert outcome.code == 1
    assert outcome.err == (
        "error: PermissionError: [Errno 13] Permission denied: 'x.py'\n"
    )


# Interrupts, and outputs that end.


@pytest.mark.net
@pytest.mark.slow
def test_interrupt_ends_a_command_with_130(
    peer: Any, command: list[str], environment: Callable[..., dict[str, str]]
) -> None:
    made = peer.run("create", "gadgets.Gauge").out.strip()
    words = ["call", made, "rest", "20", "--endpoint", peer.endpoint]
    process = subprocess.Popen(
        [*command, *words], stderr=subprocess.PIPE, text=True, env=environment()
    )
    while not peer.run("show", made, "--json").json["running"]:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)

    assert process.returncode == 130
    assert err == "interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("loaded", ["activestore.cli.output", "activestore.cli.admin"])
def test_interrupt_while_it_loads_leaves_no_traceback(loaded: str) -> None:
    """Loading takes a third of a second, and people change their minds."""
    source = f"""
import sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == {loaded!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from activestore.cli.main import main
main(["status"])
"""
    ended = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.parametrize("words", [["objects"], ["call", "g", "ramp", "3"], ["--help"]])
def test_closed_output_leaves_no_traceback(
    peer: Any,
    command: list[str],
    environment: Callable[..., dict[str, str]],
    words: list[str],
) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    ended = subprocess.run(
        [*command, *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(ACTIVESTORE_ENDPOINT=peer.endpoint),
        check=False,
    )
    os.close(writer)

    # Help is printed by click, which ends with 1.
    assert ended.returncode == (1 if words == ["--help"] else 141)
    assert ended.stderr == ""


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["status", "--json"], ["--help"]])
def test_full_output_is_told_without_a_traceback(
    peer: Any,
    command: list[str],
    environment: Callable[..., dict[str, str]],
    words: list[str],
) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*command, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(ACTIVESTORE_ENDPOINT=peer.endpoint),
            check=False,
        )

    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert ended.stderr.count("\n") == 1


# A thin installation.

# What `activestore[node]` adds to pyzmq and msgpack; None in sys.modules is "not there".
LACKS = """
import sys
for name in {lacking!r}:
    sys.modules[name] = None
from activestore.cli.main import main
main({words!r})
"""
NODE_ONLY = ["click", "rich", "lmdb", "cloudpickle", "psutil", "numpy", "xxhash"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lacking", "named", "words"),
    [(NODE_ONLY, "click", ["--help"]), (["lmdb"], "lmdb", ["start"])],
)
def test_thin_installation_is_told_what_to_install(
    lacking: list[str], named: str, words: list[str]
) -> None:
    source = LACKS.format(lacking=lacking, words=words)

    ended = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        f"error: the command line needs the module {named!r}, which this thin "
        "installation lacks: pip install 'activestore[node]'\n"
    )
