"""What is wrong around this peer, for its operator: a short list that forgets; pure.

A trouble is of a kind, and about something: an address, a peer, a name. Told again it is
the same one, with the latest reason. It ends when whoever told it says so, or when it was
not told for TOLD_AGAIN_S.

Rules of this file: bounded, whoever tells and however often; texts that came from others
are made one short line here.

Source: reliability.md 6; docs/how-to/cluster.md lists the kinds.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

# Troubles of one kind; of more the one that was told longest ago is dropped. A person
# reads no more, and all kinds together stay below 200 kB.
KIND_MAX = 64
# A trouble that nobody told again for so long is over, in seconds: longer than any pause
# between two attempts to join.
TOLD_AGAIN_S = 600.0
# One that is told all the time comes into the log again after this time, in seconds.
LOG_AGAIN_S = 3600.0
# Texts of others; what is about a trouble is a name, an address or an id.
ABOUT_CHARS_MAX = 280
REASON_CHARS_MAX = 500
# Clocks: from this difference on it is told, in seconds. Of two objects that were given one
# name on both sides of a partition the wall clock decides; a clock that is kept by NTP is
# far better.
CLOCK_OFF_S = 5.0


class TroubleKind(enum.Enum):
    """Of what kind a trouble is; the value is its name in `status`."""

    JOIN = "join"  # an address that cannot be joined
    NAME = "name"  # several live peers have one name
    CLOCK = "clock"  # a peer's wall clock differs from ours
    STRANGER = "stranger"  # somebody wanted to join and was turned away
    GARBAGE = "garbage"  # somebody sends what means nothing
    OUTSIDER = "outsider"  # a peer spoke for a group of copies that it is not in
    IDENTITY = "identity"  # another process uses this peer's id
    DISK = "disk"  # others remember a later start than this disk does
    FULL = "full"  # more peers than this one keeps


# What to do, where the reason does not say it.
ADVICE = {
    TroubleKind.JOIN: "it is tried again by itself; if nobody is to be there, correct `join`",
    TroubleKind.NAME: "start all but one with another --name; until then use their ids",
    TroubleKind.CLOCK: "compare `date` on both machines, and let NTP set the wrong one",
    TroubleKind.STRANGER: "mend what the reason names, or stop it if it does not belong here",
    TroubleKind.GARBAGE: "see what runs there: another program, another version, or damage",
    TroubleKind.OUTSIDER: "it changed nothing; right after a group was replaced it ends by "
    "itself, else see what that peer has on its disk",
    TroubleKind.IDENTITY: "stop one of the two, and give it a data directory of its own",
    TroubleKind.DISK: "what others have copies of is safe; give it a new data directory",
    TroubleKind.FULL: "divide the cluster; or a peer tells of peers that are none: find it",
}


# Kinds whose reasons are what somebody else sent.
REASONS_OF_OTHERS = frozenset({TroubleKind.GARBAGE, TroubleKind.OUTSIDER})

TITLES = {
    TroubleKind.JOIN: "cannot join",
    TroubleKind.NAME: "several peers have one name",
    TroubleKind.CLOCK: "clocks differ",
    TroubleKind.STRANGER: "turned away",
    TroubleKind.GARBAGE: "garbage",
    TroubleKind.OUTSIDER: "not of the group",
    TroubleKind.IDENTITY: "somebody else has this peer's id",
    TroubleKind.DISK: "this disk is not the newest",
    TroubleKind.FULL: "too many peers",
}


class Trouble:
    """One trouble, since it was first told."""

    __slots__ = ("about", "first_s", "kind", "last_s", "logged_s", "reason", "times")

    def __init__(self, kind: TroubleKind, about: str, now_s: float) -> None:
        self.kind = kind
        self.about = about
        self.reason = ""
        self.first_s = self.last_s = now_s
        self.logged_s = float("-inf")
        self.times = 0


class Troubles:
    """All troubles of one peer."""

    def __init__(self) -> None:
        self._of: dict[TroubleKind, OrderedDict[str, Trouble]] = {
            kind: OrderedDict() for kind in TroubleKind
        }

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def tell(self, kind: TroubleKind, about: str, reason: str, now_s: float) -> str:
        """Note a trouble; return a line for the log, "" where the log has it already.

        Where the reason changes it is news, but not where its sender chooses that.
        """
        about, reason = line(about, ABOUT_CHARS_MAX), line(reason, REASON_CHARS_MAX)
        known = self._of[kind]
        trouble = known.pop(about, None)
        if trouble is None:
            trouble = Trouble(kind, about, now_s)
            if len(known) >= KIND_MAX:
                known.popitem(last=False)
        known[about] = trouble  # behind all that were told before
        is_news = trouble.reason != reason and kind not in REASONS_OF_OTHERS
        trouble.reason = reason
        trouble.last_s = now_s
        trouble.times += 1
        if not is_news and now_s - trouble.logged_s < LOG_AGAIN_S:
            return ""
        trouble.logged_s = now_s
        return f"{TITLES[kind]} about={about!r} reason={reason!r}: {ADVICE[kind]}"

    def end(self, kind: TroubleKind, about: str) -> bool:
        """Forget a trouble; return whether there was one."""
        return self._of[kind].pop(line(about, ABOUT_CHARS_MAX), None) is not None

    def settle(
        self, kind: TroubleKind, reasons: Mapping[str, str], now_s: float
    ) -> None:
        """Make these all the troubles of a kind; the log has them already."""
        about = {line(one, ABOUT_CHARS_MAX) for one in reasons}
        for gone in self._of[kind].keys() - about:
            del self._of[kind][gone]
        for one, why in reasons.items():
            self.tell(kind, one, why, now_s)

    def reasons(self, kind: TroubleKind) -> dict[str, str]:
        """Return what each trouble of a kind is about, and its reason."""
        return {about: one.reason for about, one in self._of[kind].items()}

    def has(self, kind: TroubleKind, about: str) -> bool:
        """Whether there is such a trouble."""
        return line(about, ABOUT_CHARS_MAX) in self._of[kind]

    def tidy(self, now_s: float) -> None:
        """Forget what was not told for long."""
        for known in self._of.values():
            while known:
                oldest = next(iter(known.values()))
                if now_s - oldest.last_s < TOLD_AGAIN_S:
                    break
                del known[oldest.about]

    def rows(self, now_s: float) -> list[dict[str, Any]]:
        """Return all of them for `status`: kind by kind, the latest first."""
        self.tidy(now_s)
        return [
            {
                "kind": one.kind.value, "title": TITLES[one.kind], "about": one.about,
                "reason": one.reason, "advice": ADVICE[one.kind], "times": one.times,
                "first_ago_s": now_s - one.first_s, "last_ago_s": now_s - one.last_s,
            }
            for known in self._of.values()
            for one in reversed(known.values())
        ]  # fmt: skip

    def check(self) -> None:
        """Make sure that everything is within its bounds and in order."""
        for kind, known in self._of.items():
            assert len(known) <= KIND_MAX
            last_s = float("-inf")
            for about, one in known.items():
                assert (one.kind, one.about) == (kind, about)
                assert len(about) <= ABOUT_CHARS_MAX
                assert len(one.reason) <= REASON_CHARS_MAX
                assert last_s <= one.last_s
                last_s = one.last_s


def line(text: str, chars_max: int) -> str:
    """Return a text of anybody as one line that a terminal shows and obeys not."""
    if len(text) <= chars_max and text.isprintable():
        return text
    plain = "".join(sign if sign.isprintable() else " " for sign in text[:chars_max])
    return plain if len(text) <= chars_max else f"{plain[: chars_max - 3]}..."


def clock_off_s(asked_s: float, answered_s: float, theirs_s: float) -> float:
    """Return how far another's wall clock is ahead of ours at least, in seconds.

    Args:
        asked_s: Our wall clock when it was asked.
        answered_s: Our wall clock when the answer came. Theirs was read in between, so
            however slow the way was, it cannot be taken for a difference.
        theirs_s: Their wall clock.
    """
    if theirs_s < asked_s:
        return theirs_s - asked_s
    return max(0.0, theirs_s - answered_s)


def clock_reason(name: str, off_s: float) -> str:
    """Return what is told of a clock, "" where the difference is none."""
    if abs(off_s) < CLOCK_OFF_S:
        return ""
    where = "ahead of" if off_s > 0 else "behind"
    return (
        f"the clock of {name} differs by {abs(off_s):,.0f} s: it is {where} this peer's; "
        "which of two objects keeps a name that both were given may be decided wrongly"
    )
