"""The data directory: who it belongs to, which format it has, and who uses it now.

    FORMAT     {"format": 2, "peer_id": hex, "incarnation": n}    LOCK    pid of the user
    data/      the LMDB environment      blobs/  large files      tmp/    unfinished files

Format 2 has a table of facts about the cluster that format 1 lacks. A start makes it; a
program that knows only format 1 must not open it then: it would take a copy that is not
the object for the object.

A start on a full disk must work, or nobody could delete anything: the next FORMAT is
written into a file that has its block already.

Rules of this file: nothing is written before the lock is held; what cannot be used is
said with the path and what to do.

Source: design section 6.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from activestore.errors import (
    ConfigurationError,
    DirectoryLockedError,
    StorageFullError,
)
from activestore.ids import PEER_ID_BYTES, PeerId, new_peer_id
from activestore.storage.blobs import NO_SPACE, sync_directory

FORMAT = 2
FORMATS_READ = (1, FORMAT)
FORMAT_FILE = "FORMAT"
LOCK_FILE = "LOCK"
# Both files keep their length, so that writing them again needs no new block.
FORMAT_BYTES, PID_BYTES = 256, 16
DATA, BLOBS, TEMPORARY = "data", "blobs", "tmp"


class DataDirectory:
    """A locked data directory, of this format from now on."""

    def __init__(
        self, path: str | os.PathLike[str], *, must_exist: bool = False
    ) -> None:
        """Create the directory if needed, lock it, and read or make its identity.

        With `must_exist` nothing is made: a path that is no data directory is refused.

        Raises:
            ConfigurationError: it cannot be made or written, is of another format, or
                must exist and does not.
            DirectoryLockedError: another process uses it.
            StorageFullError: the disk has no room for the few bytes of a start.
        """
        self.path = Path(path)
        if must_exist:
            read_format(self.path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(
                self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise self._unusable("used", error) from None
        try:
            self._lock()
            self.peer_id, self.incarnation = self._identify()
        except BaseException:
            os.close(self._lock_fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(self._lock_fd, 32, 0).decode(errors="replace").strip()
            pid = int(text) if text.isdigit() else 0
            raise DirectoryLockedError(str(self.path), pid) from None
        try:
            # Written over, not anew: the block is there, also on a full disk.
            os.pwrite(self._lock_fd, str(os.getpid()).encode().ljust(PID_BYTES), 0)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise self._unusable("written", error) from None

    def _unusable(
        self, what: str, error: OSError
    ) -> ConfigurationError | StorageFullError:
        if error.errno in NO_SPACE:
            return full_disk(self.path)
        return ConfigurationError(
            "data_dir", f"{self.path} cannot be {what}: {error.strerror}"
        )

    def _identify(self) -> tuple[PeerId, int]:
        path = self.path / FORMAT_FILE
        if path.exists():
            about = read_format(self.path)
            peer_id, incarnation = about
        else:
            if (self.path / DATA).exists():
                raise ConfigurationError(
                    "data_dir",
                    f"{self.path} holds data but no {FORMAT_FILE}; restore it from a backup",
                )
            peer_id, incarnation = new_peer_id(), 0
        try:
            write_format(self.path, peer_id, incarnation + 1)
        except OSError as error:
            raise self._unusable("written", error) from None
        return peer_id, incarnation + 1

    def close(self) -> None:
        """Release the lock."""
        try:
            os.pwrite(self._lock_fd, b" " * PID_BYTES, 0)
        except OSError:
            pass  # Who used it last is only told, and the lock goes all the same.
        os.close(self._lock_fd)


def full_disk(path: Path) -> StorageFullError:
    """Return the error of a start that finds no room, with what to do."""
    about = os.statvfs(path if path.exists() else path.parent)
    free = about.f_bavail * about.f_frsize
    return StorageFullError(
        0, 0, f"the disk of {path} has {free:,} bytes left, and a start needs a few "
        "MiB; free some room there and start again",
    )  # fmt: skip


def read_format(path: Path) -> tuple[PeerId, int]:
    """Return peer id and incarnation of a data directory or a backup.

    Raises:
        ConfigurationError: it is none, is damaged, or of another format.
    """
    try:
        about = json.loads((path / FORMAT_FILE).read_text())
        version = int(about["format"])
        peer_id = bytes.fromhex(about["peer_id"])
        incarnation = int(about["incarnation"])
    except FileNotFoundError:
        raise ConfigurationError(
            "data_dir", f"{path} is no data directory: it has no {FORMAT_FILE}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            "data_dir", f"{path / FORMAT_FILE} cannot be read: {error}"
        ) from None
    if version not in FORMATS_READ:
        known = " and ".join(map(str, FORMATS_READ))
        raise ConfigurationError(
            "data_dir", f"{path} has format {version}, this program reads {known}"
        )
    if len(peer_id) != PEER_ID_BYTES:
        raise ConfigurationError("data_dir", f"{path / FORMAT_FILE} names no peer id")
    return PeerId(peer_id), incarnation


def write_format(path: Path, peer_id: PeerId, incarnation: int) -> None:
    """Write the identity so that a crash leaves the old one or the new one.

    A spare file stays behind for the next time, if there is room for it.
    """
    text = json.dumps(
        {"format": FORMAT, "peer_id": peer_id.hex(), "incarnation": incarnation}
    )
    spare = path / f"{FORMAT_FILE}.new"
    _overwrite(spare, text)
    spare.rename(path / FORMAT_FILE)
    try:
        _overwrite(spare, "")
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
    sync_directory(path)


def _overwrite(path: Path, text: str) -> None:
    """Write text and blanks over what a file holds, making it where it is not there."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, text.encode().ljust(FORMAT_BYTES), 0)
        os.ftruncate(fd, FORMAT_BYTES)
        os.fsync(fd)
    finally:
        os.close(fd)
