"""Commands on copies, against a peer of the tests: it answers as the protocol says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from activestore.cli import copies as copies_module
from activestore.errors import NoQuorumError, ObjectNotFoundError
from activestore.wire import values
from activestore.wire.limits import PROTOCOL_VERSION
from activestore.wire.messages import Create, Persist, Request
from activestore.wire.state import NamedState, ObjectState, decode_states, encode_states
from tests.client.fake_peer import FakePeer
from tests.client.sessions import OBJECT, PEER

pytestmark = pytest.mark.net

REF = OBJECT.hex()
STATE = ObjectState("model.Counter", b"r" * 16, 1, {"value": b"\x05"}, b"", (), ())


def member(name: str, role: str, state: str = "alive", **more: Any) -> dict[str, Any]:
    peer_id = PEER if name == "edge-1" else name.encode()
    return {"peer_id": peer_id, "peer": name, "role": role, "state": state, **more}


GROUP = {
    "members": [
        member("edge-1", "primary", number=9, lag=0),
        member("edge-2", "replica", number=7, lag=2),
        member("edge-3", "replica", "dead", number=None, lag=None),
    ],
    "epoch": 4, "number": 9, "version": 7, "wanted": 3, "wants_witness": False,
    "config_version": 5, "lineage": 0, "is_quarantined": False, "is_joint": False,
}  # fmt: skip
SHOWN = {
    "object_id": OBJECT, "alias": "hits", "class_name": "model.Counter", "peer": "edge-1",
    "epoch": 4, "version": 7, "bytes": 20, "created_s": 1.0, "changed_s": 2.0,
    "durability": "commit", "fields": {}, "graph_fields": ["model"],
}  # fmt: skip
STATUS = {
    "peer_id": PEER, "name": "edge-1", "state": "serving", "uptime_s": 5.0,
    "storage": {"used_bytes": 1, "budget_bytes": 100}, "executors": [],
}  # fmt: skip
REPLICATION = {
    "led": 5, "followed": 2, "witnessed": 1, "under": 1, "quarantined": 1,
    "objects": [
        {"object_id": OBJECT, "alias": "hits", "class_name": "model.Counter",
         "problem": "under", "copies": 2, "wanted": 3, "wants_witness": False,
         "has_witness": False, "missing": ["edge-3"], "reason": ""},
        {"object_id": b"q" * 16, "alias": "", "class_name": "model.Counter",
         "problem": "quarantined", "copies": 1, "wanted": 2, "wants_witness": False,
         "has_witness": False, "missing": [], "reason": "forced at edge-2"},
    ],
}  # fmt: skip


@pytest.fixture
def fake() -> Iterator[FakePeer]:
    fake = FakePeer()
    fake.version = PROTOCOL_VERSION
    body, _ = encode_states([NamedState(OBJECT, "hits", STATE)])
    fake.answers = {
        "group": GROUP, "replicate": GROUP, "force": GROUP, "show": SHOWN, "peers": [],
        "status": STATUS, "replication": REPLICATION,
        "interface": {"interface": {"class_name": "model.Counter", "fields": {},
                                    "methods": {}}, "revision": b"r" * 16},
        "export": {"states": body, "buffers": [], "class_name": "model.Counter"},
    }  # fmt: skip
    yield fake
    fake.close()


@pytest.fixture
def run(fake: FakePeer, cli: Callable[..., Any]) -> Callable[..., Any]:
    """Return what runs a command against the fake peer."""
    return lambda *words: cli(*words, endpoint=fake.endpoint)


def asked(fake: FakePeer, operation: str) -> Any:
    """Return the parameters of the only Request of this kind."""
    (request,) = fake.wait_for(Request, operation=operation)
    return values.decode(request.body, request.buffers)


# -- replicate -------------------------------------------------------------------------


def test_replicate_prints_who_has_the_object_then(fake: FakePeer, run: Any) -> None:
    text = run("replicate", REF, "3", "--peer", "edge-2", "--leaving", "edge-9")

    assert text.code == 0
    rows = [row.split("\t") for row in text.out.splitlines()]
    assert [[row[0], *row[2:]] for row in rows] == [
        ["edge-1", "primary", "alive", "9", "0"],
        ["edge-2", "replica", "alive", "7", "2"],
        ["edge-3", "replica", "dead", "-", "-"],
    ]
    assert asked(fake, "replicate") == {
        "object_id": OBJECT, "replicas": 3, "witness": None, "peers": ["edge-2"],
        "leaving": ["edge-9"],
    }  # fmt: skip


def test_replicate_says_which_named_peers_have_a_copy_already(run: Any) -> None:
    said = run("replicate", REF, "3", "--peer", "edge-2", "--peer", "cloud")
    plain = run("replicate", REF, "3")

    assert said.err == "edge-2 had a copy already\n"
    assert plain.err == ""


def test_replicate_prints_json(run: Any) -> None:
    document = run("replicate", REF, "2", "--witness", "--json").json

    assert (document["primary"], document["copies"]) == ("edge-1", 3)
    assert document["members"][1] == {
        "peer_id": b"edge-2".hex(), "peer": "edge-2", "role": "replica",
        "state": "alive", "number": 7, "lag": 2, "reason": "",
    }  # fmt: skip
    assert document["is_whole"] is False


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["replicate", REF, "0"], 2, "1<=x<=7"),
        (["replicate", REF, "8"], 2, "1<=x<=7"),
        (["replicate", REF, "3", "--witness"], 1, "goes with replicas=2"),
        (
            ["replicate", REF, "3", "--peer", "a", "--leaving", "a"],
            1,
            "in peers and in",
        ),
        (["create", "model.Counter", "--replicas", "9"], 2, "1<=x<=7"),
        (["create", "model.Counter", "--witness"], 1, "goes with replicas=2"),
    ],
)
def test_copies_that_cannot_be_are_told_before_anything_is_asked(
    fake: FakePeer, run: Any, words: list[str], code: int, said: str
) -> None:
    outcome = run(*words)

    assert outcome.code == code
    assert said in outcome.err
    assert not [m for m in fake.seen if type(m) in (Request, Create)]


def test_create_asks_for_copies(fake: FakePeer, run: Any) -> None:
    outcome = run("create", "model.Counter", "--replicas", "2", "--witness")

    assert outcome.code == 0
    assert fake.wait_for(Create)[0].extra == {"replicas": 2, "witness": True}


# -- show ------------------------------------------------------------------------------


def test_show_tells_who_has_copies_and_how_far_each_is(run: Any) -> None:
    rows = dict(row.split("\t") for row in run("show", REF).out.splitlines())
    document = run("show", REF, "--json").json

    assert rows["copies"] == "2 of 3, NOT WHOLE"
    assert rows["group"] == "version 5, epoch 4, number 9, lineage 0"
    assert rows["at edge-1"] == "primary, alive, number 9"
    assert rows["at edge-2"] == "replica, alive, number 7, 2 behind"
    assert rows["at edge-3"] == "replica, dead, number unknown"
    assert rows["durability"] == "commit"
    assert document["group"]["members"][2]["state"] == "dead"
    assert document["version"] == 7


def test_show_names_a_copy_that_keeps_no_change(fake: FakePeer, run: Any) -> None:
    full = member("edge-2", "replica", number=7, lag=2, reason="its disk is full")
    fake.answers["group"] = {
        **GROUP,
        "members": [GROUP["members"][0], full],
        "wanted": 2,
    }  # type: ignore[index]

    rows = dict(row.split("\t") for row in run("show", REF).out.splitlines())

    assert rows["copies"] == "1 of 2, NOT WHOLE"
    assert rows["at edge-2"] == "replica, alive, number 7, 2 behind: its disk is full"


def test_show_of_an_object_that_nobody_leads_still_tells_who_has_it(
    fake: FakePeer, run: Any
) -> None:
    """That is when an operator looks."""
    fake.answers["show"] = NoQuorumError(f"object {REF}", "", 1, 2)

    text, document = run("show", REF), run("show", REF, "--json")

    assert (text.code, document.code) == (1, 1)
    assert "at edge-3\treplica, dead, number unknown" in text.out
    assert "1 of its voters answer, 2 must" in text.err
    assert document.json["error"]["code"] == "no_quorum"
    assert document.json["group"]["wanted"] == 3


def test_show_of_one_copy_says_nothing_of_groups(fake: FakePeer, run: Any) -> None:
    fake.answers["group"] = {"members": GROUP["members"][:1], "wanted": 1}  # type: ignore[index]

    assert "copies" not in run("show", REF).out


# -- force -----------------------------------------------------------------------------


def test_force_without_anybody_to_ask_needs_yes(fake: FakePeer, run: Any) -> None:
    outcome = run("force", REF)

    assert outcome.code == 2
    assert "give --yes" in outcome.err
    assert "The copy at the connected peer becomes the object: number 9" in outcome.err
    assert "Members that take no part: edge-3 (replica, dead)." in outcome.err
    assert "A majority answers, so this will be refused" in outcome.err
    assert not [m for m in fake.seen if getattr(m, "operation", "") == "force"]


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ([member("edge-2", "replica", reason="its disk is full")],
         "edge-2 (replica, its disk is full)"),
        ([member("edge-2", "replica", "dead"), member("edge-3", "learner")],
         "edge-2 (replica, dead)"),
    ],
    ids=["full", "learner"],
)  # fmt: skip
def test_force_of_a_group_that_cannot_go_on_is_not_said_to_be_refused(
    fake: FakePeer, run: Any, others: list[dict[str, Any]], told: str
) -> None:
    """Who keeps no change is of no majority, nor is who has no vote yet."""
    fake.answers["group"] = {
        **GROUP, "members": [GROUP["members"][0], *others], "wanted": 2,  # type: ignore[index]
    }  # fmt: skip

    outcome = run("force", REF)

    assert f"Members that take no part: {told}." in outcome.err
    assert "will be refused" not in outcome.err


def test_force_where_only_the_leader_knows_who_is_full_is_said_to_be_refused(
    fake: FakePeer, run: Any
) -> None:
    """So the connected peer, which follows, counts that one to the majority."""
    full = member("edge-1", "replica", reason="its disk is full")
    fake.answers["group"] = {
        **GROUP, "members": [member("edge-2", "primary"), full], "wanted": 2,
    }  # fmt: skip

    outcome = run("force", REF)

    told = "Members that take no part: edge-1 (replica, its disk is full). A majority"
    assert told in outcome.err


@pytest.mark.parametrize(("answer", "code"), [(True, 0), (False, 130)])
def test_force_goes_on_where_somebody_says_yes(
    fake: FakePeer, run: Any, monkeypatch: pytest.MonkeyPatch, answer: bool, code: int
) -> None:
    def confirm(_text: str, *, abort: bool, err: bool) -> None:
        assert abort
        assert err
        if not answer:
            raise copies_module.click.Abort

    monkeypatch.setattr(copies_module, "is_terminal", lambda _: True)
    monkeypatch.setattr(copies_module.click, "confirm", confirm)

    assert run("force", REF).code == code
    forced = [m for m in fake.seen if getattr(m, "operation", "") == "force"]
    assert len(forced) == int(answer)


def test_force_with_yes_asks_nothing(fake: FakePeer, run: Any) -> None:
    outcome = run("force", REF, "--yes", "--json")

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.json["epoch"] == 4
    assert asked(fake, "force") == {
        "object_id": OBJECT, "peer_id": PEER, "unless_majority": True,
    }  # fmt: skip


def test_force_where_a_majority_answers_needs_to_be_told_so(
    fake: FakePeer, run: Any
) -> None:
    told = run("force", REF)
    plain = run("force", REF, "--even-though-majority-answers")
    outcome = run("force", REF, "--even-though-majority-answers", "--yes")

    assert "refused without --even-though-majority-answers" in told.err
    assert "refused without" not in plain.err
    assert outcome.code == 0
    assert asked(fake, "force") == {"object_id": OBJECT, "peer_id": PEER}


def test_force_where_all_answer_says_what_to_do_instead(
    fake: FakePeer, run: Any
) -> None:
    fake.answers["group"] = {**GROUP, "members": GROUP["members"][:2]}  # type: ignore[index]

    assert "All members answer" in run("force", REF).err


def test_force_can_be_asked_for_where_nobody_tells_of_the_group(
    fake: FakePeer, run: Any
) -> None:
    """It is for when nobody leads; who leads is who is asked for the group."""
    fake.answers["group"] = NoQuorumError(f"object {REF}", "", 1, 2)

    refused, forced = run("force", REF), run("force", REF, "--yes")

    assert (refused.code, forced.code) == (2, 0)
    assert "becomes the object: edge-1." in refused.err
    assert "nobody answers that" in refused.err


def test_force_of_a_quarantined_copy_says_that_it_will_be_refused(
    fake: FakePeer, run: Any
) -> None:
    fake.answers["group"] = {**GROUP, "is_quarantined": True}

    assert "edge-1's is quarantined, so this will be refused" in run("force", REF).err


def test_discard_is_asked_for_twice(fake: FakePeer, run: Any) -> None:
    fake.answers["discard"] = None
    fake.answers["group"] = {**GROUP, "is_quarantined": True}

    refused, done = run("discard", REF), run("discard", REF, "--yes")

    assert (refused.code, done.code) == (2, 0)
    assert f"edge-1 holds is lost, unless `export {REF} FILE`" in refused.err
    assert "give --yes" in refused.err
    assert "at edge-1; where its group lacks one" in done.out
    assert asked(fake, "discard") == {"object_id": OBJECT, "peer_id": PEER}


def test_discard_where_nothing_is_quarantined_says_that_it_will_be_refused(
    run: Any,
) -> None:
    assert "No quarantined copy is at edge-1" in run("discard", REF).err


# -- export, import --------------------------------------------------------------------


def test_exported_file_is_imported_as_a_new_object(
    fake: FakePeer, run: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "copy")

    fake.answers["export"] = {
        **fake.answers["export"], "peer": "edge-2", "is_quarantined": True,  # type: ignore[dict-item]
    }  # fmt: skip
    exported = run("export", REF, path)
    imported = run("import", path, "--alias", "again", "--replicas", "3")

    assert (exported.code, imported.code) == (0, 0)
    assert exported.out.startswith("the quarantined copy at edge-2: ")
    (persist,) = fake.wait_for(Persist)
    (named,) = decode_states(persist.body, persist.buffers)
    assert named.object_id.hex() == imported.out.strip() != REF
    assert (named.alias, persist.extra) == ("again", {"replicas": 3})


def test_export_writes_over_nothing(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    path.write_text("mine")

    outcome = run("export", REF, str(path))

    assert outcome.code == 1
    assert path.read_text() == "mine"
    assert f"error: {path}: it is there already: name another" in outcome.err


def test_export_that_fails_leaves_no_file(
    fake: FakePeer, run: Any, tmp_path: Path
) -> None:
    fake.answers["export"] = ObjectNotFoundError(OBJECT)
    path = tmp_path / "copy"

    outcome = run("export", REF, str(path))

    assert outcome.code == 1
    assert not path.exists()


def test_import_of_another_file_says_so(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"PK\x03\x04")

    outcome = run("import", str(path))

    assert outcome.code == 1
    assert "it is no export" in outcome.err


# -- doctor, status --------------------------------------------------------------------


def test_doctor_names_objects_without_all_copies_and_what_to_do(run: Any) -> None:
    text = run("doctor")
    document = run("doctor", "--json").json

    rows = {row.split("\t")[1]: row.split("\t") for row in text.out.splitlines()}
    assert text.code == 1
    assert rows["replicas"][2] == (
        "5 led, 2 followed, 1 witnessed, 1 WITHOUT ALL COPIES, 1 QUARANTINED"
    )
    mark, _, found, todo = rows["object hits"]
    assert (mark, found) == ("!!", "2 of 3 copies; edge-3: no answer")
    assert todo == "start edge-3, or `replicate hits 3` makes other copies now"
    quarantined = rows[f"object {(b'q' * 16).hex()}"]
    assert quarantined[2] == "quarantined: forced at edge-2"
    assert "`export" in quarantined[3]
    assert document["is_well"] is False


def test_doctor_asks_the_other_peers_too(fake: FakePeer, run: Any) -> None:
    """Who leads an object knows that a copy lacks, and that may be any peer."""
    other = FakePeer()
    other.peer_id, other.version = b"edge-2", PROTOCOL_VERSION
    mine, quarantined = REPLICATION["objects"]  # type: ignore[misc]
    theirs = {**mine, "object_id": b"t" * 16, "alias": "theirs"}  # type: ignore[dict-item]
    other.answers["replication"] = {
        **REPLICATION, "objects": [mine, theirs, quarantined],
    }  # fmt: skip
    fake.answers["peers"] = [
        {"peer": "edge-1", "is_me": True, "state": "alive", "endpoint": fake.endpoint},
        {
            "peer": "edge-2",
            "is_me": False,
            "state": "alive",
            "endpoint": other.endpoint,
        },
        {
            "peer": "edge-3",
            "is_me": False,
            "state": "dead",
            "endpoint": "tcp://[::1]:9",
        },
    ]

    outcome = run("doctor")
    other.close()
    silent = run("doctor")

    names = [row.split("\t")[1] for row in outcome.out.splitlines()]
    assert names.count("object hits") == 1
    assert names.count("object theirs") == 1
    assert "quarantined at edge-2: forced at edge-2" in outcome.out
    assert "1 alive and not asked: edge-2" in silent.out


def test_doctor_says_when_there_are_more_than_it_lists(
    fake: FakePeer, run: Any
) -> None:
    fake.answers["replication"] = {**REPLICATION, "under": 250}

    assert "more objects\t249 beyond these" in run("doctor").out


def test_doctor_of_a_peer_where_all_is_well(fake: FakePeer, run: Any) -> None:
    fake.answers["replication"] = {
        "led": 5, "followed": 2, "witnessed": 0, "under": 0, "quarantined": 0,
        "objects": [],
    }  # fmt: skip

    outcome = run("doctor")

    assert outcome.code == 0
    assert "ok\treplicas\t5 led, 2 followed" in outcome.out


def test_peer_that_cannot_tell_of_copies_is_no_trouble(
    fake: FakePeer, run: Any
) -> None:
    fake.version = 1

    doctor, shown = run("doctor"), run("show", REF)

    assert (doctor.code, shown.code) == (0, 0)
    assert "replicas" not in doctor.out
    assert "copies" not in shown.out


def test_missing_witness_is_named() -> None:
    row = {**REPLICATION["objects"][0], "wants_witness": True, "missing": [],  # type: ignore[index]
           "copies": 2, "wanted": 2, "reason": "no third peer"}  # fmt: skip

    assert copies_module.problem_texts(row) == (
        "2 of 2 copies, no witness; no third peer",
        "`replicate hits 2` makes other copies now",
    )


def test_copy_that_is_missing_beside_a_witness_is_told_once() -> None:
    why = "there is no other peer that may take one"
    row = {**REPLICATION["objects"][0], "wants_witness": True, "has_witness": True,  # type: ignore[index]
           "copies": 1, "wanted": 2, "missing": [],
           "reason": f"1 of 2 copies and a witness: {why}"}  # fmt: skip

    assert copies_module.problem_texts(row)[0] == f"1 of 2 copies and a witness; {why}"


def test_object_without_a_majority_is_not_advised_to_make_copies() -> None:
    """One of two is no majority: only the other one, or an operator's word, helps."""
    row = {
        "object_id": b"\x01" * 16, "alias": "two", "problem": "under", "wanted": 2,
        "copies": 1, "missing": ["peer-2"],
    }  # fmt: skip

    advice = copies_module.problem_texts(row)[1]

    assert "start peer-2" in advice
    assert "`force two`" in advice
    assert "replicate" not in advice


def test_export_to_where_nothing_can_be_written_says_so(run: Any) -> None:
    outcome = run("export", REF, "/nonexistent/x")

    assert outcome.code == 1
    assert "/nonexistent/x: it cannot be written: No such file or dir" in outcome.err


def test_peer_whose_disk_was_lost_is_not_to_be_started() -> None:
    row = {
        "object_id": b"\x01" * 16, "alias": "big", "problem": "under", "wanted": 3,
        "copies": 2, "missing": ["n-1 with the id aa"], "lost": ["n-1 with the id aa"],
    }  # fmt: skip

    assert copies_module.problem_texts(row)[1] == (
        "`replicate big 3` makes other copies now"
    )


def test_copy_that_is_refused_is_not_advised_to_be_made_by_what_was_refused() -> None:
    row = {
        "object_id": b"\x01" * 16, "alias": "big", "problem": "under", "wanted": 3,
        "copies": 2, "missing": [], "is_refused": True,
        "reason": "2 of 3 copies: cloud: its disk is full, or failed",
    }  # fmt: skip

    found, advice = copies_module.problem_texts(row)

    assert found == "2 of 3 copies; cloud: its disk is full, or failed"
    assert "disk_budget_mb" in advice
    assert advice.endswith("or want no more: `replicate big 2`")
    assert "`replicate big 3`" not in advice
