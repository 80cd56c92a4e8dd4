"""The only place of the daemon that reads clocks."""

from __future__ import annotations

import time

# Monotonic seconds: deadlines, timers, silence. Never compared between machines.
monotonic_s = time.monotonic

# Wall-clock seconds since 1970: what is written to disk for people and for expiry.
wall_s = time.time
