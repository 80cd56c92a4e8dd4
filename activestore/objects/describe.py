"""The process that looks at published code: import it, read the interfaces, say them.

`python -m activestore.objects.describe DAEMON_PID CPU_SECONDS` reads [kind, name,
digest, archive] in msgpack from standard input and writes [error code, content]:
interfaces, or the error's fields.

Rules of this file: it runs a stranger's import once and ends; it ends with the daemon
that asked, whatever the import does.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time

from activestore.errors import ActiveStoreError, InvalidRequestError
from activestore.objects import registry
from activestore.wire import packing, values

PR_SET_PDEATHSIG = 1
# How often it looks for its daemon where the system does not say that one died.
LOOK_S = 1.0


def end_with(daemon_pid: int, *, cpu_s: int) -> bool:
    """Make this process end with its daemon, and after so much work; False: it is gone."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or hard > cpu_s:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, hard))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_look, args=(daemon_pid,), daemon=True).start()
    return os.getppid() == daemon_pid


def _look(daemon_pid: int) -> None:
    while os.getppid() == daemon_pid:
        time.sleep(LOOK_S)
    os._exit(1)


def main() -> None:
    """Describe one package."""
    if not end_with(int(sys.argv[1]), cpu_s=int(sys.argv[2])):
        return
    kind, name, digest, archive = packing.unpack(sys.stdin.buffer.read())
    answer_fd = os.dup(1)
    os.dup2(2, 1)  # What the import prints is for the log, not for the answer.
    code = ""
    try:
        classes = registry.PackageLoader().load(kind, name, digest, archive)
        content, _ = values.encode([dict(one) for one in registry.describe(classes)])
    except ActiveStoreError as error:
        code = error.code
        content = values.encode_error(error)
    except Exception as error:  # noqa: BLE001 - the module's own import raised
        told = InvalidRequestError(
            f"importing it raised {type(error).__name__}: {error}", name
        )
        code = told.code
        content = values.encode_error(told)
    with os.fdopen(answer_fd, "wb") as answer:
        answer.write(packing.pack([code, content]))
        answer.flush()
    os._exit(0)  # Threads that the import started must not keep the process.


if __name__ == "__main__":
    main()
