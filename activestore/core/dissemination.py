"""What is still to be told, and how often each was: the queue behind gossip; pure.

News of a peer (or object) replaces older news of it. What was told least often goes
first, and of that the latest; told often enough, it is dropped. A message costs what it
takes out, not what is waiting.

Source: SWIM section 4.1; hashicorp/memberlist queue.go.
"""

from __future__ import annotations

# The smallest row: below that much room nothing more fits.
ROW_BYTES_MIN = 16
# Rows that did not fit, before a message is taken for full.
MISSES_MAX = 8


class Dissemination:
    """Rows by key, in levels of how often they were sent."""

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self._levels: list[dict[bytes, bytes]] = [{}]
        self._level_of: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    def put(self, key: bytes, row: bytes) -> None:
        """Tell this of `key`, instead of what was to be told of it before.

        Where too many wait, the one that was told most often, and longest ago, goes.
        """
        self.drop(key)
        if len(self._level_of) >= self._rows_max:
            highest = next(level for level in reversed(self._levels) if level)
            del self._level_of[next(iter(highest))]
            del highest[next(iter(highest))]
        self._levels[0][key] = row
        self._level_of[key] = 0

    def drop(self, key: bytes) -> None:
        """Tell nothing more of `key`."""
        level = self._level_of.pop(key, None)
        if level is not None:
            del self._levels[level][key]

    def clear(self) -> None:
        """Tell nothing more."""
        self._levels = [{}]
        self._level_of.clear()

    def take(self, bytes_max: int, sends_max: int, copies: int = 1) -> list[bytes]:
        """Return the rows of one message, which is sent to `copies` peers.

        Args:
            bytes_max: How many bytes the rows may have together.
            sends_max: Rows sent as often are done with.
            copies: How often each is sent now.
        """
        if not self._level_of:
            return []
        taken: list[tuple[int, bytes]] = []
        rows: list[bytes] = []
        room, misses = bytes_max, 0
        for number, level in enumerate(self._levels):
            for key in reversed(level):
                row = level[key]
                if len(row) > room:
                    misses += 1
                    if misses > MISSES_MAX:
                        break
                    continue
                room -= len(row)
                rows.append(row)
                taken.append((number, key))
                if room < ROW_BYTES_MIN:
                    break
            if room < ROW_BYTES_MIN or misses > MISSES_MAX:
                break
        for number, key in taken:
            self._sent(key, number, number + copies, sends_max)
        return rows

    def _sent(self, key: bytes, number: int, sends: int, sends_max: int) -> None:
        row = self._levels[number].pop(key)
        if sends >= sends_max:
            del self._level_of[key]
            return
        while len(self._levels) <= sends:
            self._levels.append({})
        self._levels[sends][key] = row
        self._level_of[key] = sends

    def check(self) -> None:
        """Make sure that every key is where it is said to be."""
        assert len(self._level_of) == sum(map(len, self._levels))
        assert all(key in self._levels[n] for key, n in self._level_of.items())
        assert len(self._level_of) <= self._rows_max
