"""What peers do around their cores, broken on purpose: histories or tests must notice.

The rules of replication are decided in the core and kept in the shell too: what is
written before what is said, what goes with a state, whose copy may answer. Each mutant
breaks one of these in one place, in the test's own process only. The first history of
`replica_histories` that kills it, or the one test that does where chance meets it too
seldom, is recorded in the second table of docs/explanation/consistency-mutants.md, which
`PYTHONPATH=. python -m tests.simulation.shell_mutants [name]` writes anew. As a plugin of
pytest this module applies the mutant that $ACTIVESTORE_MUTANT names.

Source: reliability.md 3.2, 3.4; decision 11.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from activestore.core import replication_events as happened
from activestore.core.fences import Fence, Fences
from activestore.peer import mending, repairing, shipping, starts
from activestore.peer.copying import Copying
from activestore.peer.mending import Mending
from activestore.peer.outgoing import Outgoing
from activestore.peer.reading import Reading
from activestore.peer.replicating import Replicating
from activestore.storage import reading as stored
from activestore.storage import records
from tests.simulation.mutants import PAGE, Mutant
from tests.simulation.replica_histories import HISTORIES


def _answer_before_commit(patch: pytest.MonkeyPatch) -> None:
    order, stored_ = Replicating.order, Replicating.stored

    def order_and_tell(self: Replicating, token: int, *args: Any) -> None:
        order(self, token, *args)
        if stored_(self, token, None):
            self.__dict__.setdefault("told", set()).add(token)

    def stored_later(self: Replicating, token: int, error: Any) -> bool:
        told = self.__dict__.setdefault("told", set())
        if token in told:
            told.remove(token)
            return True
        return stored_(self, token, error)

    patch.setattr(Replicating, "order", order_and_tell)
    patch.setattr(Replicating, "stored", stored_later)


def _answer_without_others(patch: pytest.MonkeyPatch) -> None:
    end = Replicating._end

    def end_alone(self: Replicating, order: Any) -> None:
        if order.is_on_disk:
            order.open.clear()
        end(self, order)

    patch.setattr(Replicating, "_end", end_alone)


def _tell_before_disk(patch: pytest.MonkeyPatch) -> None:
    add = Copying.add

    def tell_and_add(self: Copying, effect: Any) -> None:
        self._tell(happened.Stored(effect.token, "", ""))
        add(self, effect)  # Nobody knows its token any more when it is on disk.

    patch.setattr(Copying, "add", tell_and_add)


def _register_behind_state(patch: pytest.MonkeyPatch) -> None:
    numbered = Replicating._numbered

    def without_row(self: Replicating, change: Any, writes: Any) -> Any:
        found = numbered(self, change, writes)
        rows = tuple(row for row in found.rows if row.kind != "register")
        return _replaced(found, rows=rows)

    patch.setattr(Replicating, "_numbered", without_row)


def _replaced(change: Any, **fields: Any) -> Any:
    return shipping.dataclasses.replace(change, **fields)


def _step_without_answer(patch: pytest.MonkeyPatch) -> None:
    with_row = shipping._change_with_row

    def without(copy: Any, at: Any) -> Any:
        return _replaced(with_row(copy, at), reply=None)

    patch.setattr(shipping, "_change_with_row", without)


def _whole_without_answers(patch: pytest.MonkeyPatch) -> None:
    read = shipping.read_whole

    def without(*args: Any) -> Any:
        found = read(*args)
        return found and (found[0], _replaced(found[1], replies=()))

    patch.setattr(shipping, "read_whole", without)


def _step_on_anything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shipping, "_follows", lambda *_: True)


def _leave_the_state(patch: pytest.MonkeyPatch) -> None:
    def remove(engine: Any, object_id: Any, rows: Any = ()) -> None:
        row = shipping.register_row(object_id, None)
        engine.commit((shipping.Change(object_id, is_copy=True, rows=(row, *rows)),))

    patch.setattr(shipping, "remove_copy", remove)


def _read_unconfirmed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replicating, "begin_round", lambda *_: None)


def _write_when_deposed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replicating, "_is_overtaken", lambda *_: False)


def _read_in_doubt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reading, "is_proven", lambda *_: True)


def _read_quarantined(patch: pytest.MonkeyPatch) -> None:
    may_serve, is_proven = Reading.may_serve, Reading.is_proven

    def is_history(self: Reading, object_id: Any) -> bool:
        register = self._core.register_of(object_id)
        return register is not None and register.is_quarantined and register.has_state

    patch.setattr(
        Reading, "may_serve",
        lambda self, message: is_history(self, message.object_id)
        or may_serve(self, message),
    )  # fmt: skip
    patch.setattr(
        Reading, "is_proven",
        lambda self, object_id, row: is_history(self, object_id)
        or is_proven(self, object_id, row),
    )  # fmt: skip


def _forget_quarantine(patch: pytest.MonkeyPatch) -> None:
    read = shipping.registers_of

    def forgotten(engine: Any) -> Any:
        for object_id, known, *rest in read(engine):
            yield object_id, known and known._replace(is_quarantined=False), *rest

    patch.setattr(shipping, "registers_of", forgotten)


def _trust_any_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(starts, "why_distrusted", lambda *_: "")


def _forget_distrust(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(starts, "is_marked", lambda _: False)


def _forget_starts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(starts.OtherStarts, "restore", lambda *_: None)


def _vote_without_register(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replicating, "_distrust", lambda *_: None)


def _mend_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mending, "state_lost", lambda *_: True)


def _mend_over_good(patch: pytest.MonkeyPatch) -> None:
    def mend(engine: Any, object_id: Any, register: Any) -> None:
        rows = (shipping.register_row(object_id, register),)
        engine.commit((shipping.Change(object_id, is_copy=True, rows=rows),))

    patch.setattr(mending.shipping, "mend_register", mend)
    patch.setattr(Replicating, "is_writing", lambda *_: False)


def _send_damaged(patch: pytest.MonkeyPatch) -> None:
    read = shipping.read_whole

    def unseal(value: Any, *_: Any) -> bytes:
        return bytes(value[: -records.CHECKSUM_BYTES])

    def read_any(*args: Any, **_: Any) -> Any:
        with pytest.MonkeyPatch.context() as unchecked:
            for module in (records, stored):
                unchecked.setattr(module, "unseal", unseal)
            return read(*args, is_sent=False)

    patch.setattr(shipping, "read_whole", read_any)


def _take_what_came_late(patch: pytest.MonkeyPatch) -> None:
    admits = Fences.admits

    def admits_all(self: Fences, fence: Fence) -> bool:
        admits(self, fence)
        return True

    patch.setattr(Fences, "admits", admits_all)


def _forget_fences(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outgoing, "_fences", lambda *_: ())


def _repair_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(repairing.Repairing, "_mend", lambda *_: None)


MUTANTS = (
    Mutant(
        "commit", "answer_before_commit", "answers a write that its disk has not",
        _answer_before_commit,
    ),
    Mutant(
        "commit", "answer_without_others", "answers a write that no other disk has",
        _answer_without_others,
    ),
    Mutant(
        "commit", "tell_before_disk", "says promised or accepted before it is on disk",
        _tell_before_disk,
    ),
    Mutant(
        "commit", "register_behind_state", "writes a state without its register",
        _register_behind_state,
    ),
    Mutant(
        "commit", "write_when_deposed", "writes what came after its lead was over",
        _write_when_deposed,
    ),
    Mutant(
        "answers", "step_without_answer", "keeps the steps of a copy without answers",
        _step_without_answer,
    ),
    Mutant(
        "answers", "whole_without_answers", "sends a whole state without its answers",
        _whole_without_answers,
    ),
    Mutant(
        "copies", "step_on_anything", "writes a step on another state than its base",
        _step_on_anything,
    ),
    Mutant(
        "copies", "leave_the_state", "drops the register of a copy and not the state",
        _leave_the_state,
    ),
    Mutant(
        "reads", "read_unconfirmed", "answers a read without asking the others",
        _read_unconfirmed,
    ),
    Mutant(
        "reads", "read_in_doubt", "shows an older read what may not be committed",
        _read_in_doubt,
    ),
    Mutant(
        "quarantine", "read_quarantined", "answers older reads from a quarantined copy",
        _read_quarantined,
    ),
    Mutant(
        "quarantine", "forget_quarantine", "forgets at a restart what is quarantined",
        _forget_quarantine,
    ),
    Mutant(
        "disks", "trust_any_disk", "votes with a disk that went back",
        _trust_any_disk,
    ),
    Mutant(
        "disks", "forget_distrust", "forgets at a restart that its disk went back",
        _forget_distrust,
    ),
    Mutant(
        "disks", "forget_starts", "forgets at a restart the last starts of others",
        _forget_starts,
    ),
    Mutant(
        "disks", "vote_without_register", "takes what has a damaged register for its own",
        _vote_without_register,
    ),
    Mutant(
        "damage", "mend_nothing", "lets what is damaged be damaged",
        _mend_nothing,
    ),
    Mutant(
        "damage", "mend_over_good", "writes a register over a newer one that is good",
        _mend_over_good,
    ),
    Mutant(
        "damage", "send_damaged", "sends a damaged state to mend others with",
        _send_damaged,
    ),
    Mutant(
        "fences", "take_what_came_late", "takes calls of leaders whose successors called",
        _take_what_came_late,
    ),
    Mutant(
        "fences", "forget_fences", "keeps in memory alone under which epochs it was called",
        _forget_fences,
    ),
    Mutant(
        "repair", "repair_nothing", "leaves groups without the copies that they lack",
        _repair_nothing,
    ),
)  # fmt: skip


# -- the record ------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
# So many are tried before a mutant counts as alive.
SEEDS_MAX = 100
HEADER = (
    "| what | mutant of the shell | what it does | killed by | kind | case | seed |"
)
# What an error says, and what that means; the first that fits.
REASONS = (
    ("is behind", "disk behind"),
    ("two adds returned", "doubled"),
    ("is there twice", "doubled"),
    ("is nowhere", "lost"),
    ("is in none of", "lost"),
    (" counts ", "lost or doubled"),
    ("add returned", "lost or doubled"),
    (": read ", "older read"),
    ("is mixed with", "mixed runs"),
    ("is quarantined", "quarantine"),
    ("is led by", "no one leader"),
    ("damaged", "damaged"),
    ("copies of", "copies missing"),
    ("is no more", "copies missing"),
    (" has ", "unequal copies"),
    ("register at", "unequal copies"),
    ("keeps", "left over"),
)


# The kind of what is no history but a test, whose name is the case.
TEST = "test"
MUTANT_VARIABLE = "ACTIVESTORE_MUTANT"
TEST_S_MAX = 120.0


class Kill(NamedTuple):
    """A history that notices a mutant, or a test."""

    by: str
    kind: str
    case: str
    seed: int


def pytest_configure() -> None:
    """Break what the environment names, for all tests of this process."""
    for mutant in MUTANTS:
        if mutant.name == os.environ.get(MUTANT_VARIABLE):
            mutant.apply(pytest.MonkeyPatch())


def is_failing(test: str, mutant: str) -> bool:
    """Return whether a test fails in a process of its own; `mutant`: "" for none."""
    command = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        __spec__.name,
        test,
    ]
    done = subprocess.run(
        [sys.executable, *command], check=False, capture_output=True, text=True,
        timeout=TEST_S_MAX, cwd=ROOT, env={**os.environ, MUTANT_VARIABLE: mutant},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return bool(done.returncode)


def reason_of(error: BaseException) -> str:
    """Return what does not hold."""
    if not isinstance(error, AssertionError):
        return type(error).__name__
    text = str(error)
    return next((reason for part, reason in REASONS if part in text), "check()")


def killed(mutant: Mutant, kind: str, case: str, seed: int) -> str:
    """Return what notices a mutant in a history, "" where nothing does."""
    if kind == TEST:
        return "fails" if is_failing(case, mutant.name) else ""
    with pytest.MonkeyPatch.context() as patch:
        mutant.apply(patch)
        try:
            HISTORIES[kind].play(case, seed)
        except Exception as error:
            return reason_of(error)
    return ""


def first_kill(mutant: Mutant, kind: str, case: str) -> Kill:
    """Play histories of a kind and case until one notices the mutant."""
    for seed in range(SEEDS_MAX):
        by = killed(mutant, kind, case, seed)
        if by:
            return Kill(by, kind, case, seed)
    raise LookupError(f"{mutant.name} lives after {SEEDS_MAX} seeds of {kind} {case}")


def row_of(mutant: Mutant, kill: Kill) -> str:
    """Return the line of the page about a mutant."""
    cells = (mutant.rule, f"`{mutant.name}`", mutant.what, *map(str, kill))
    return f"| {' | '.join(cells)} |"


def recorded(mutant: Mutant) -> Kill:
    """Return what the page says about a mutant."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition(HEADER)
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and cells[1] == f"`{mutant.name}`":
            return Kill(*cells[3:6], int(cells[6]))
    raise LookupError(f"{PAGE.name} does not tell of {mutant.name}")


def main(names: list[str]) -> None:
    """Find first kills anew, of all or of those named, in the cases that the page says."""
    rows = []
    for mutant in MUTANTS:
        kill = recorded(mutant)
        if not names or mutant.name in names:
            kill = first_kill(mutant, kill.kind, kill.case)
        rows.append(row_of(mutant, kill))
        print(rows[-1], flush=True)
    before, _, after = PAGE.read_text(encoding="utf-8").partition(HEADER)
    rest = after.split("\n\n", 1)[1]
    table = "\n".join([HEADER, "|---|---|---|---|---|---|---|", *rows])
    PAGE.write_text(f"{before}{table}\n\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
