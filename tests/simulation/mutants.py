"""Rules broken on purpose, one at a time: the histories must notice each.

Rules of this file: it changes the code of the test's own process and nothing else. Each
mutant breaks one rule in one place. The first history that kills it, in the order of
`make test`, is recorded in docs/explanation/consistency-mutants.md, which
`PYTHONPATH=. python -m tests.simulation.mutants` writes anew.

Source: reliability.md 3.4, 3.6.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from activestore.core import acceptor, groups, leading
from activestore.core.acceptor import Acceptor
from activestore.core.leaders import Leaders
from activestore.core.leading import Lead
from activestore.core.register import Heard
from activestore.core.registers import Registers
from activestore.core.replication import Replication
from activestore.core.replication_desk import Wake
from activestore.core.takeover import TakeOvers
from activestore.wire.replicas import Config, Drop, Point, Prepare, Promise, Reason
from tests.simulation.register_histories import CASES, history_of, run


class Mutant(NamedTuple):
    """A broken rule."""

    rule: str
    name: str
    what: str
    apply: Callable[[pytest.MonkeyPatch], None]


def _promise_before_disk(patch: pytest.MonkeyPatch) -> None:
    order = Acceptor.order

    def order_later(self: Acceptor, *args: Any, **options: Any) -> None:
        sender, message = options.get("asked") or (None, None)
        if isinstance(message, Prepare):
            self._promise(sender, message, args[1])
        order(self, *args, **options)

    patch.setattr(Acceptor, "order", order_later)


def _promise_anything(patch: pytest.MonkeyPatch) -> None:
    judge = acceptor.judge_prepare

    def judge_all(*args: Any) -> Reason | None:
        reason = judge(*args)
        return None if reason is Reason.PROMISED else reason

    patch.setattr(acceptor, "judge_prepare", judge_all)


def _accept_anything(patch: pytest.MonkeyPatch) -> None:
    judge = acceptor.judge_accept

    def judge_all(*args: Any) -> Reason | None:
        reason = judge(*args)
        return None if reason is Reason.PROMISED else reason

    patch.setattr(acceptor, "judge_accept", judge_all)


def _follow_on_anything(patch: pytest.MonkeyPatch) -> None:
    judge, take = acceptor.judge_accept, Acceptor._take

    def judge_all(*args: Any) -> Reason | None:
        reason = judge(*args)
        return None if reason is Reason.BASE else reason

    def take_all(self: Acceptor, sender: Any, message: Any, register: Any) -> None:
        if register is not None and message.base is not None:
            message = message._replace(base=register.point)
        take(self, sender, message, register)

    patch.setattr(acceptor, "judge_accept", judge_all)
    patch.setattr(Acceptor, "_take", take_all)


def _lead_at_once(patch: pytest.MonkeyPatch) -> None:
    def recommit_not(
        self: Leaders, object_id: Any, register: Any, base: Any, at: Any
    ) -> None:
        lead = self._new(object_id, register)
        lead.know_members(at)
        lead.floor = register.point
        lead.acked = lead.committed = register.number
        for member in lead.members.values():
            member.acked = member.sent = register.number
        self._be_led(lead)

    patch.setattr(Leaders, "recommit", recommit_not)


def _lead_with_own_state(patch: pytest.MonkeyPatch) -> None:
    on_promise = TakeOvers.on_promise

    def on_older(self: TakeOvers, sender: Any, message: Promise) -> None:
        search = self._searches.get(message.object_id)
        if search is not None and search.promises:
            mine = search.promises[self._desk.me]
            config, accepted = mine.config, mine.accepted
            message = message._replace(accepted=accepted, config=config)
        on_promise(self, sender, message)

    patch.setattr(TakeOvers, "on_promise", on_older)


def _show_what_is_on_disk(patch: pytest.MonkeyPatch) -> None:
    restore = Registers.restore

    def all_is_committed(
        self: Registers, object_id: Any, register: Any, heard: Any
    ) -> None:
        at_s = 0.0 if heard is None else heard.at_s
        known = Heard(register.epoch, register.number, at_s)
        restore(self, object_id, register, known)

    patch.setattr(Registers, "restore", all_is_committed)


def _number_again(patch: pytest.MonkeyPatch) -> None:
    on_wake = Leaders.on_wake

    def withdraw(self: Leaders, what: Wake, object_id: Any) -> None:
        lead = self.leads.get(object_id)
        if what is not Wake.QUORUM_WAIT or lead is None or not lead.is_settled:
            on_wake(self, what, object_id)
        elif lead.is_in_doubt():
            while lead.entries and lead.entries[-1].number > lead.committed:
                lead._keep(-lead.entries.pop().size)
            lead.rounds.clear()
            lead.number = lead.acked = lead.committed
            lead.floor = Point(lead.ballot.counter, lead.acked)

    patch.setattr(Leaders, "on_wake", withdraw)
    patch.setattr(Leaders, "check", lambda _: None)


def _answer_early(patch: pytest.MonkeyPatch) -> None:
    def one_is_enough(config: Config, reached: Callable[[Any], int]) -> int:
        return max(map(reached, config.voters))

    patch.setattr(leading, "reach", one_is_enough)


def _read_unconfirmed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replication, "confirm", lambda *_: None)


def _change_many_at_once(patch: pytest.MonkeyPatch) -> None:
    # All who go are one victim here.
    def all_at_once(plan: Any, config: Config, me: Any, _rank: Any) -> list[Any]:
        rest = [m for m in config.members if m == me or m not in plan.leaving]
        rest = sorted(rest, key=lambda member: member != me)[: plan.wanted]
        return [] if len(rest) == len(config.members) else [tuple(rest)]

    def without(plan: Any, config: Config, rest: Any) -> Config:
        new = groups.changed(plan, config, rest, config.witness)
        return new._replace(before=())

    patch.setattr(groups, "victims", all_at_once)
    patch.setattr(groups, "without", without)


def _drop_uncommitted(patch: pytest.MonkeyPatch) -> None:
    propose = Leaders._propose

    def and_drop(self: Leaders, lead: Lead, config: Config) -> None:
        propose(self, lead, config)
        told = config._replace(before=())
        for peer_id in config.before:
            if peer_id not in config.voters:
                self._desk.send(peer_id, Drop(lead.object_id, lead.ballot, told))

    patch.setattr(Leaders, "_propose", and_drop)


def _vote_with_restored_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replication, "distrust", lambda _: None)


def _forget_at_majority(patch: pytest.MonkeyPatch) -> None:
    def at_majority(self: Leaders, lead: Lead) -> None:
        if lead.object_id in self._deleted:
            self._forget(lead)

    patch.setattr(Leaders, "_forget_if_all", at_majority)


MUTANTS = (
    Mutant(
        "R1", "promise_before_disk", "promises before the promise is on disk",
        _promise_before_disk,
    ),
    Mutant(
        "R1", "promise_anything", "promises an epoch that is not newer",
        _promise_anything,
    ),
    Mutant(
        "R2", "accept_anything", "accepts a state of an older epoch than promised",
        _accept_anything,
    ),
    Mutant(
        "R2", "follow_on_anything", "applies a delta to another state than its base",
        _follow_on_anything,
    ),
    Mutant(
        "R3", "lead_at_once", "leads with a state that it does not have accepted again",
        _lead_at_once,
    ),
    Mutant(
        "R3", "lead_with_own_state", "takes its own state, not the newest promised",
        _lead_with_own_state,
    ),
    Mutant(
        "R3", "show_what_is_on_disk", "shows after a start what may be taken back",
        _show_what_is_on_disk,
    ),
    Mutant(
        "R4", "number_again", "gives the number of a write in doubt to the next one",
        _number_again,
    ),
    Mutant(
        "R5", "answer_early", "answers a write that only one disk has",
        _answer_early,
    ),
    Mutant(
        "R6", "read_unconfirmed", "answers a read without asking the voters",
        _read_unconfirmed,
    ),
    Mutant(
        "R8", "change_many_at_once", "removes members together, by the new majority",
        _change_many_at_once,
    ),
    Mutant(
        "R8", "drop_uncommitted", "has copies dropped by a config not committed yet",
        _drop_uncommitted,
    ),
    Mutant(
        "R9", "vote_with_restored_disk", "votes and leads with an older disk put back",
        _vote_with_restored_disk,
    ),
    Mutant(
        "R10", "forget_at_majority", "forgets a delete that not all have accepted",
        _forget_at_majority,
    ),
)  # fmt: skip


# -- the record ------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "consistency-mutants.md"
# As many histories as the soak plays are tried before a mutant counts as alive.
HISTORIES_MAX = 100_000
HEADER = "| rule | mutant | what it does | killed by | case | seed | history |"


class Kill(NamedTuple):
    """A history that notices a mutant; `number`: in the order of `make test`."""

    by: str
    case: str
    seed: int
    number: int


def reason_of(error: AssertionError) -> str:
    """Return what does not hold: the invariant's name."""
    text = str(error)
    if "wait for ever" in text:
        return "no progress"
    return text.split(":", maxsplit=1)[0] if ":" in text else "check()"


def first_kill(mutant: Mutant) -> Kill:
    """Play histories in the order of `make test` until one notices the mutant."""
    for number in range(HISTORIES_MAX):
        case, seed = history_of(number)
        with pytest.MonkeyPatch.context() as patch:
            mutant.apply(patch)
            try:
                run(seed, CASES[case])
            except AssertionError as error:
                return Kill(reason_of(error), case, seed, number + 1)
    raise LookupError(f"{mutant.name} lives after {HISTORIES_MAX} histories")


def row_of(mutant: Mutant, kill: Kill) -> str:
    """Return the line of the page about a mutant."""
    return (
        f"| {mutant.rule} | `{mutant.name}` | {mutant.what} | {kill.by} | "
        f"{kill.case} | {kill.seed} | {kill.number} |"
    )


def recorded(mutant: Mutant) -> Kill:
    """Return what the page says about a mutant."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and cells[1] == f"`{mutant.name}`":
            return Kill(cells[3], cells[4], int(cells[5]), int(cells[6]))
    raise LookupError(f"{PAGE.name} does not tell of {mutant.name}")


def main() -> None:
    """Find the first kills anew and write them into the page."""
    rows = []
    for mutant in MUTANTS:
        rows.append(row_of(mutant, first_kill(mutant)))
        print(rows[-1], flush=True)
    before, _, after = PAGE.read_text(encoding="utf-8").partition(HEADER)
    rest = after.split("\n\n", 1)[1]
    table = "\n".join([HEADER, "|---|---|---|---|---|---|---|", *rows])
    PAGE.write_text(f"{before}{table}\n\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
