"""A process that the daemon started ends with the daemon, whatever its code does.

A method that never lets the interpreter go would not notice a closed channel; the
system's own signal reaches it.

Source: prctl(2), PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
# How often it looks for its daemon where the system does not say that one died.
_LOOK_S = 1.0


def tie_to(daemon_pid: int) -> bool:
    """Make this process end with its daemon; False: the daemon is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_look, args=(daemon_pid,), daemon=True).start()
    return os.getppid() == daemon_pid


def _look(daemon_pid: int) -> None:
    while os.getppid() == daemon_pid:
        time.sleep(_LOOK_S)
    os._exit(1)
