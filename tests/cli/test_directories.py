"""`doctor`, `restore` and `start` on directories that are empty, damaged, in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activestore.cli import checking, offline
from activestore.storage.lmdb_engine import LmdbEngine

PAGE_BYTES = 4096


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Return a data directory that holds a package."""
    path = tmp_path / "data"
    engine = LmdbEngine.open(path, disk_budget_bytes=1 << 30, wall_clock=time.time)
    engine.put_code(b"p" * 32, b"a" * 200_000, [])
    engine.close()
    return path


def tables_damaged(data_dir: Path) -> None:
    """Overwrite every page but the two that say where the others are."""
    path = data_dir / "data" / "data.mdb"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(2 * PAGE_BYTES)
        file.write(b"\xcd" * (size - 2 * PAGE_BYTES))


def cut_off(data_dir: Path) -> None:
    """Keep the two first pages only, as a copy to a full disk does."""
    os.truncate(data_dir / "data" / "data.mdb", 2 * PAGE_BYTES)


def format_damaged(data_dir: Path) -> None:
    """Overwrite who the directory belongs to."""
    (data_dir / "FORMAT").write_text("{")


def data_missing(data_dir: Path) -> None:
    """Lose the tables and keep the rest."""
    (data_dir / "data" / "data.mdb").unlink()


def package_damaged(data_dir: Path) -> None:
    """Change one byte of the archive."""
    path = data_dir / "data" / "data.mdb"
    content = path.read_bytes()
    assert b"a" * 3000 in content
    path.write_bytes(content.replace(b"a" * 3000, b"a" * 2999 + b"b", 1))


# doctor


@pytest.mark.slow
def test_doctor_says_that_an_empty_directory_is_none_and_makes_nothing(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    text = cli("doctor", "--data-dir", str(tmp_path))
    document = cli("doctor", "--data-dir", str(tmp_path), "--json")

    assert text.code == document.code == 4
    assert "is no data directory: it has no FORMAT" in text.err
    assert document.json["error"]["code"] == "configuration"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_doctor_needs_a_directory(
    cli: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("")

    assert cli("doctor", "--data-dir", str(tmp_path / name)).code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (tables_damaged, 1, "data.mdb\tmdb_dbi_open: MDB_CORRUPTED"),
        (cut_off, 1, "data.mdb\tmdb_dbi_open: MDB_CORRUPTED"),
        (package_damaged, 1, "!!\tpackage "),
        (format_damaged, 4, "FORMAT cannot be read"),
        (data_missing, 4, "data/data.mdb is missing"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_doctor_tells_damage(
    cli: Callable[..., Any],
    data_dir: Path,
    damage: Callable[[Path], None],
    code: int,
    said: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(data_dir)

    outcome = cli("doctor", "--data-dir", str(data_dir))

    assert outcome.code == code, outcome
    assert said in (outcome.out if code == 1 else outcome.err)
    assert "Traceback" not in outcome.err
    # The process that checks is silent too.
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_doctor_survives_a_disk_that_kills_whoever_reads_it(
    cli: Callable[..., Any], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suicide = "import os, signal; os.kill(os.getpid(), signal.SIGBUS)"
    monkeypatch.setattr(offline, "CHECK", (sys.executable, "-c", suicide))

    outcome = cli("doctor", "--data-dir", str(data_dir))

    assert outcome.code == 1
    assert outcome.out.startswith("!!\ttables\treading them ended with SIGBUS")


@pytest.mark.slow
def test_doctor_tells_an_error_that_nobody_foresaw(
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Damage may show as any error of what reads it."""

    def broken(_: object) -> None:
        raise ZeroDivisionError("a length of 0")

    monkeypatch.setattr(checking.LmdbEngine, "verify", broken)

    checking.check(str(data_dir))

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == {
        "where": "tables",
        "reason": "ZeroDivisionError: a length of 0",
    }


@pytest.mark.slow
def test_doctor_tells_damage_as_json(cli: Callable[..., Any], data_dir: Path) -> None:
    tables_damaged(data_dir)

    document = cli("doctor", "--data-dir", str(data_dir), "--json").json

    assert document["is_well"] is False
    assert document["findings"][0]["level"] == "wrong"
    assert "restore" in document["findings"][0]["do"]


@pytest.mark.net
@pytest.mark.slow
def test_doctor_leaves_the_directory_of_a_running_peer_alone(
    cli: Callable[..., Any], peer: Any
) -> None:
    outcome = cli("doctor", "--data-dir", peer.data_dir)

    assert outcome.code == 4
    assert f"is in use by process {peer.ready['pid']}" in outcome.err


# restore


def test_restore_of_no_backup_says_so(cli: Callable[..., Any], tmp_path: Path) -> None:
    outcome = cli("restore", str(tmp_path), str(tmp_path / "new"))

    assert outcome.code == 4
    assert "it has no FORMAT" in outcome.err
    assert not (tmp_path / "new").exists()


def test_restore_over_data_is_refused(
    cli: Callable[..., Any], data_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")

    outcome = cli("restore", str(data_dir), str(tmp_path / "used"), "--json")

    assert outcome.code == 4
    assert "is not empty" in outcome.json["error"]["message"]
    assert (tmp_path / "used" / "file").read_text() == "mine"


# start


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--executors", "0"], "executors: is 0 from --executors, expected 1 to 256"),
        (["--executors", "257"], "expected 1 to 256"),
        (["--name", "a/b"], "letters, digits"),
        (["--listen", "nonsense"], "listen"),
        (["--listen", "tcp://0.0.0.0:0"], "no keys"),
        (["--config", "nothing.toml"], "cannot be read"),
        (["--log-level", "loud"], "expected one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_start_refuses_a_wrong_setting(
    cli: Callable[..., Any], tmp_path: Path, flags: list[str], said: str
) -> None:
    outcome = cli("start", "--data-dir", str(tmp_path / "new"), *flags)

    assert outcome.code == 4
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (tables_damaged, "data.mdb is damaged on disk"),
        (cut_off, "data.mdb is damaged on disk"),
        (format_damaged, "FORMAT cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_start_on_damaged_data_says_so_in_one_line(
    cli: Callable[..., Any], data_dir: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(data_dir)

    outcome = cli("start", "--data-dir", str(data_dir), "--listen", "tcp://127.0.0.1:0")

    assert outcome.code == 4
    assert said in outcome.err
    assert outcome.err.count("\n") == 1


def test_start_where_nothing_can_be_written_says_so(cli: Callable[..., Any]) -> None:
    outcome = cli("start", "--data-dir", "/proc/nowhere")

    assert outcome.code == 4
    assert "/proc/nowhere cannot be used" in outcome.err


@pytest.mark.net
def test_start_on_the_directory_of_another_peer_names_it(
    cli: Callable[..., Any], peer: Any
) -> None:
    outcome = cli("start", "--data-dir", peer.data_dir, "--listen", "tcp://127.0.0.1:0")

    assert outcome.code == 4
    assert f"is in use by process {peer.ready['pid']}" in outcome.err


@pytest.mark.net
def test_start_at_an_address_in_use_says_so(
    cli: Callable[..., Any], peer: Any, tmp_path: Path
) -> None:
    outcome = cli("start", "--data-dir", str(tmp_path / "x"), "--listen", peer.endpoint)

    assert outcome.code == 4
    assert peer.endpoint in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.net
@pytest.mark.slow
def test_start_says_in_one_line_that_it_serves(
    command: list[str], environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    words = ["start", "--listen", "tcp://127.0.0.1:0", "--executors", "1"]
    words += ["--data-dir", str(tmp_path / "data"), "--name", "solo"]
    process = subprocess.Popen(
        [*command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.terminate()
    rest = process.stdout.read()
    process.stdout.close()

    assert line.startswith("peer solo (")
    assert f"pid {process.pid}, data in {tmp_path / 'data'}\n" in line
    assert (process.wait(timeout=20), rest) == (0, "")
