"""The process that looks at published code: import it, read the interfaces, say them.

`python -m activestore.objects.describe DAEMON_PID CPU_SECONDS` reads [kind, name,
digest, archive] in msgpack from standard input and writes [error code, content]:
interfaces, or the error's fields.

Rules of this file: it runs a stranger's import once and ends; it ends with the daemon
that asked, whatever the import does.
"""

from __future__ import annotations

import os
import resource
import sys

from activestore.errors import ActiveStoreError, InvalidRequestError
from activestore.objects import lifeline, registry
from activestore.wire import packing, values


def limit_work(cpu_s: int) -> None:
    """Make this process end after so many seconds of work."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or hard > cpu_s:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, hard))


def main() -> None:
    """Describe one package."""
    limit_work(int(sys.argv[2]))
    if not lifeline.tie_to(int(sys.argv[1])):
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
