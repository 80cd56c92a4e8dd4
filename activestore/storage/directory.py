"""The data directory: who it belongs to, which format it has, and who uses it now.

    FORMAT     {"format": 1, "peer_id": hex, "incarnation": n}    LOCK    pid of the user
    data/      the LMDB environment      blobs/  large files      tmp/    unfinished files

Rules of this file: nothing is written before the lock is held; what cannot be used is
said with the path and what to do.

Source: design section 6.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from activestore.errors import ConfigurationError, DirectoryLockedError
from activestore.ids import PEER_ID_BYTES, PeerId, new_peer_id
from activestore.storage.blobs import sync_directory

FORMAT = 1
FORMAT_FILE = "FORMAT"
LOCK_FILE = "LOCK"
DATA, BLOBS, TEMPORARY = "data", "blobs", "tmp"


class DataDirectory:
    """A locked data directory of this format."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the directory if needed, lock it, and read or make its identity.

        Raises:
            ConfigurationError: it cannot be made or written, or is of another format.
            DirectoryLockedError: another process uses it.
        """
        self.path = Path(path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(
                self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise ConfigurationError(
                "data_dir", f"{self.path} cannot be used: {error.strerror}"
            ) from None
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
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, str(os.getpid()).encode(), 0)

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
            raise ConfigurationError(
                "data_dir", f"{self.path} cannot be written: {error.strerror}"
            ) from None
        return peer_id, incarnation + 1

    def close(self) -> None:
        """Release the lock."""
        os.ftruncate(self._lock_fd, 0)
        os.close(self._lock_fd)


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
    if version != FORMAT:
        raise ConfigurationError(
            "data_dir",
            f"{path} has format {version}, this program reads format {FORMAT}",
        )
    if len(peer_id) != PEER_ID_BYTES:
        raise ConfigurationError("data_dir", f"{path / FORMAT_FILE} names no peer id")
    return PeerId(peer_id), incarnation


def write_format(path: Path, peer_id: PeerId, incarnation: int) -> None:
    """Write the identity so that a crash leaves the old one or the new one."""
    text = json.dumps(
        {"format": FORMAT, "peer_id": peer_id.hex(), "incarnation": incarnation}
    )
    temporary = path / f"{FORMAT_FILE}.new"
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path / FORMAT_FILE)
    sync_directory(path)
