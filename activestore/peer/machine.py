"""What this machine has: cores, memory, disk, a name. Read once, at start.

Rules of this file: it asks the operating system and decides nothing; limits of a
container count as the machine's own, so that a peer in a 1 GB container does not plan
with the 64 GB of its host. No psutil: the standard library answers all of it, and an
idle peer stays small.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from activestore.objects.requirements import installed_versions

# Where a container finds its own memory limit: cgroup v2, then v1.
_MEMORY_LIMIT_FILES = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_DEVICES = Path("/dev")
_CPU_LIMIT_FILE = Path("/sys/fs/cgroup/cpu.max")

# Of a host's name in a record, which is small.
HOST_CHARS_MAX = 24

# Files that are counted when the size of an old store is taken. More than these only
# make the budget smaller than it could be.
_FILES_COUNTED_MAX = 200_000


def cores_count() -> int:
    """Return how many cores this process may use: affinity and limits count."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _cpu_limit() or cores))


def _cpu_limit() -> int:
    """Return the container's limit in whole cores, at least 1; 0 for no limit."""
    try:
        quota, period = _CPU_LIMIT_FILE.read_text(encoding="ascii").split()
        return 0 if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return 0


def memory_bytes() -> int:
    """Return the memory that this process may use: of the machine or its container."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _MEMORY_LIMIT_FILES:
        try:
            limit = int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):  # No such file, or "max".
            continue
        if limit > 0:
            total = min(total, limit)
    return total


def gpus_count() -> int:
    """Return how many accelerators the system shows as devices."""
    return sum(1 for path in _DEVICES.glob("nvidia[0-9]*")) + sum(
        1 for path in (_DEVICES / "dri").glob("renderD*") if _is_amd(path)
    )


def accelerators() -> tuple[str, ...]:
    """Return the kinds of accelerators that the system shows, by their runtime."""
    found = []
    if any(_DEVICES.glob("nvidia[0-9]*")):
        found.append("cuda")
    if any(_is_amd(path) for path in (_DEVICES / "dri").glob("renderD*")):
        found.append("rocm")
    return tuple(found)


def _is_amd(device: Path) -> bool:
    vendor = Path("/sys/class/drm") / device.name / "device" / "vendor"
    try:
        return vendor.read_text(encoding="ascii").strip() == "0x1002"
    except OSError:
        return False


def resources() -> dict[str, float]:
    """Return what a class may ask for in its `resources`: `cpus`, `memory_mb`, `gpu`."""
    return {
        "cpus": float(cores_count()),
        "memory_mb": memory_bytes() / 1e6,
        "gpu": float(gpus_count()),
    }


def disk_available_bytes(directory: Path) -> int:
    """Return the bytes that a store in `directory` may have: free ones and its own.

    Its own count as available, else the budget would shrink at every restart.
    """
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return shutil.disk_usage(existing).free + _tree_bytes(directory)


def _tree_bytes(directory: Path) -> int:
    total = counted = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            counted += 1
            if counted > _FILES_COUNTED_MAX:
                return total
            try:
                # Blocks, not length: an LMDB file is sparse.
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:  # Deleted meanwhile.
                continue
    return total


class Machine:
    """The machine of one peer, as it asks for it while it runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._cores = cores_count()

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        """Return the versions of those of these distributions that are here."""
        return installed_versions(names)

    def load(self) -> tuple[int, int]:
        """Return the load of a core in hundredths, and the MB that are free on the disk."""
        try:
            per_core = round(100 * os.getloadavg()[0] / self._cores)
        except OSError:
            per_core = 0
        try:
            free = shutil.disk_usage(self._directory).free
        except OSError:
            free = 0
        return per_core, free // 1_000_000


def host_name() -> str:
    """Return the first label of the host's name, as a peer's name can be written."""
    label = socket.gethostname().split(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9_-]", "-", label).strip("-")[:64] or "peer"


def told_host() -> str:
    """Return what a record says of the host, to be compared: a long name's hash."""
    name = host_name()
    if len(name) <= HOST_CHARS_MAX:
        return name
    return hashlib.blake2b(name.encode(), digest_size=HOST_CHARS_MAX // 2).hexdigest()


def data_home(env: Mapping[str, str]) -> Path:
    """Return the folder for data of this user's programs.

    Source: XDG Base Directory Specification 0.8, `$XDG_DATA_HOME`.
    """
    chosen = env.get("XDG_DATA_HOME", "")
    if os.path.isabs(chosen):  # The specification: ignore relative paths.
        return Path(chosen)
    home = env.get("HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home()) / ".local" / "share"
