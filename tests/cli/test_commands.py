"""Every command against a real peer: text, JSON, wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activestore.cli import admin
from activestore.client.client import Store

pytestmark = pytest.mark.net


@pytest.fixture
def gauge(peer: Any) -> Any:
    """Return the id of a gauge of the test's own, value 1."""
    made = peer.run("create", "gadgets.Gauge", "1")
    assert made.code == 0, made
    object_id = made.out.strip()
    yield object_id
    peer.run("delete", object_id)


# What each command prints.


def test_status_says_who_the_peer_is_and_how(peer: Any) -> None:
    text = peer.run("status")
    about = peer.run("status", "--json").json

    assert text.code == 0
    assert f"peer\tone ({peer.ready['peer']})" in text.out
    keys = {"name", "peer_id", "endpoint", "state", "version", "uptime_s", "pid"}
    keys |= {"daemon", "executors", "storage", "calls", "classes", "flash"}
    assert keys <= set(about)
    assert about["name"] == "one"
    assert about["pid"] == peer.ready["pid"]


def test_peers_lists_the_peer_itself(peer: Any) -> None:
    text = peer.run("peers")
    rows = peer.run("peers", "--json").json

    cells = text.out.rstrip("\n").split("\t")
    assert cells[:5] == ["one", peer.ready["peer"], "alive", "", peer.endpoint]
    assert len(rows) == 1
    about = rows[0]
    assert (about["peer"], about["peer_id"]) == ("one", peer.ready["peer"])
    assert (about["endpoint"], about["state"]) == (peer.endpoint, "alive")
    assert about["is_me"]
    assert about["meta"]["cores"] > 0
    load = about["load"]
    told = [str(about["cores"]), f"{load['busy_slots']}/{load['slots']}"]
    assert cells[5:7] == told


def test_objects_lists_what_is_stored(peer: Any) -> None:
    text = peer.run("objects", "--alias-prefix", "g")
    rows = peer.run("objects", "--alias-prefix", "g", "--json").json
    none = peer.run("objects", "--alias-prefix", "nobody", "--json")

    alias, class_name, object_id, _, version, at = text.out.rstrip("\n").split("\t")
    here = peer.run("objects", "--alias-prefix", "g", "--here", "--json").json
    assert at == rows[0]["peer"]
    assert here == rows
    assert (alias, class_name) == ("g", "gadgets.Gauge")
    assert {"alias", "class_name", "object_id", "bytes", "version"} <= set(rows[0])
    assert (rows[0]["object_id"], str(rows[0]["version"])) == (object_id, version)
    assert none.json == []


def test_show_tells_fields_and_their_values(peer: Any) -> None:
    text = peer.run("show", "g")
    about = peer.run("show", "g", "--json").json

    assert "field label\tfive" in text.out
    assert about["fields"]["value"]["value"] == 5
    assert {"object_id", "alias", "class_name", "version", "fields"} <= set(about)


def test_show_finds_by_id(peer: Any, gauge: str) -> None:
    assert peer.run("show", gauge, "--json").json["object_id"] == gauge


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["same", '{"a": [1, null]}'], '{\n  "a": [\n    1,\n    null\n  ]\n}\n'),
        (["same", "some text"], "some text\n"),
        (["same", '"5"'], "5\n"),
        (["same", "true"], "True\n"),
        (["same", "ä"], "ä\n"),
        (["ramp", "3"], "0\n1\n2\n"),
        (["rest", "0.01", "--deadline", "5"], "rested\n"),
    ],
)
def test_call_prints_the_result(peer: Any, arguments: list[str], printed: str) -> None:
    outcome = peer.run("call", "g", *arguments)

    assert (outcome.code, outcome.out, outcome.err) == (0, printed, "")


def test_call_prints_json(peer: Any) -> None:
    outcome = peer.run("call", "g", "odd", "--json")

    assert outcome.json == {"nan": "nan", "bytes": "01ff", "set": [3], "7": [1, 2]}
    json.loads(outcome.out, parse_constant=pytest.fail)


def test_call_of_a_generator_prints_a_document_per_line(peer: Any) -> None:
    lines = peer.run("call", "g", "ramp", "2", "--json").out.splitlines()

    assert list(map(json.loads, lines)) == [0, 1]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["-5"], -4),
        (["-1.5e1"], -14),
        (["1", "-2", "-3"], -3),
        (["--", "-5"], -4),
    ],
)
def test_call_takes_negative_numbers(
    peer: Any, gauge: str, words: list[str], value: float
) -> None:
    assert peer.run("call", gauge, "add", *words).json == value


def test_create_takes_negative_numbers(peer: Any) -> None:
    made = peer.run("create", "gadgets.Gauge", "-7", "--json").json
    value = peer.run("call", made["object_id"], "value", "--json").json
    peer.run("delete", made["object_id"])

    assert value == -7


def test_word_with_a_minus_after_two_of_them_is_a_text(peer: Any) -> None:
    assert peer.run("call", "g", "same", "--", "--json").out == "--json\n"


@pytest.mark.parametrize("word", ["--jsn", "-x", "-5h", "--timeot=3"])
def test_unknown_option_is_no_argument(peer: Any, word: str) -> None:
    outcome = peer.run("call", "g", "same", word)

    assert outcome.code == 2
    assert "No such option" in outcome.err


def test_option_that_is_spelled_wrong_is_told_the_right_one(peer: Any) -> None:
    assert "--timeout" in peer.run("call", "g", "same", "--timeot", "3").err


def test_call_of_a_field_prints_it(peer: Any) -> None:
    text = peer.run("call", "g", "label")
    document = peer.run("call", "g", "value", "--json")

    assert (text.code, text.out) == (0, "five\n")
    assert document.json == 5


def test_call_of_a_field_with_arguments_says_how_to_read_it(peer: Any) -> None:
    outcome = peer.run("call", "g", "value", "3")

    assert outcome.code == 1
    assert outcome.err == (
        "error: value: is a field, not a method: without arguments `call` prints it\n"
    )


def test_create_names_and_delete_forgets(peer: Any) -> None:
    made = peer.run("create", "gadgets.Gauge", "--alias", "new", "--peer", "one")
    by_json = peer.run("create", "gadgets.Gauge", "--alias", "new2", "--json").json
    gone = peer.run("delete", "new")
    gone_json = peer.run("delete", "new2", "--json").json

    assert len(made.out.strip()) == len(by_json["object_id"]) == 32
    assert by_json["alias"] == "new2"
    assert gone.out == "deleted 1 object\n"
    assert gone_json == {"deleted": ["new2"]}
    assert peer.run("show", "new").code == 1


def test_delete_says_what_it_did_before_an_error(peer: Any, gauge: str) -> None:
    outcome = peer.run("delete", gauge, "nobody")

    assert outcome.code == 1
    assert f"deleted before the error: {gauge}" in outcome.err


def test_publish_says_the_classes(peer: Any, gadgets: str) -> None:
    assert peer.run("publish", gadgets).out == "gadgets.Gauge\n"
    assert peer.run("publish", gadgets, "--json").json == {"classes": ["gadgets.Gauge"]}


def test_publish_finds_a_package_of_the_present_directory(
    peer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "kit"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from activestore import ActiveObject\n\n\nclass Kit(ActiveObject):\n    n: int\n"
    )
    monkeypatch.chdir(tmp_path)

    outcome = peer.run("publish", "kit")

    assert (outcome.code, outcome.out) == (0, "kit.Kit\n"), outcome.err


def test_classes_lists_what_is_published(peer: Any) -> None:
    text = peer.run("classes")
    rows = peer.run("classes", "--json").json

    assert text.out.startswith("gadgets.Gauge\t")
    assert {"class_name", "revision", "published_s"} <= set(rows[0])


def test_backup_is_restored_and_found_well(
    peer: Any, cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = peer.run("backup", "first")  # Relative to here, not to the peer.
    document = peer.run("backup", str(tmp_path / "second"), "--json").json
    restored = cli("restore", "first", "third")
    restored_json = cli("restore", "second", "fourth", "--json").json
    checked = cli("doctor", "--data-dir", "third")
    checked_json = cli("doctor", "--data-dir", "fourth", "--json").json

    assert text.out.endswith(f"copied to {tmp_path / 'first'}\n")
    assert document["directory"] == str(tmp_path / "second")
    assert document["bytes"] == restored_json["bytes"] > 0
    assert restored_json["data_dir"] == "fourth"
    assert "activestore-node start --data-dir third" in restored.out
    assert checked.code == 0
    assert checked.out.startswith("ok\trecords and files\t")
    assert checked_json["is_well"] is True
    assert {"level", "what", "found", "do"} == set(checked_json["findings"][0])


def test_doctor_asks_a_running_peer(peer: Any) -> None:
    text = peer.run("doctor")
    document = peer.run("doctor", "--json").json

    assert text.code == 0
    assert text.out.startswith("ok\tpeer\tone serving")
    assert document["is_well"] is True


def test_exported_object_is_imported_as_another_one(
    peer: Any, gauge: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "gauge")
    peer.run("call", gauge, "add", "4")

    exported = peer.run("export", gauge, path)
    imported = peer.run("import", path)
    copy = imported.out.strip()
    values = [peer.run("call", one, "value").out for one in (gauge, copy)]
    changed = peer.run("call", copy, "add", "1").out
    peer.run("delete", copy)

    assert (exported.code, imported.code) == (0, 0)
    assert copy != gauge
    assert values == ["5\n", "5\n"]
    assert (changed, peer.run("call", gauge, "value").out) == ("6\n", "5\n")


def test_object_that_is_there_already_is_not_said_to_be_moved(
    peer: Any, gauge: str
) -> None:
    text = peer.run("move", gauge, "one")
    document = peer.run("move", gauge, "one", "--json").json

    assert (text.code, text.out) == (0, "nothing moved: it is at one already\n")
    assert document == {"moved": [], "peer": "one"}


@pytest.mark.parametrize("operation", ["stop", "drain"])
def test_interrupt_says_that_the_peer_goes_on_with_it(
    peer: Any, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "request", interrupted)
    monkeypatch.setattr(Store, "status", lambda _: {"peer_id": b"", "pid": 1})

    outcome = peer.run(operation)

    assert outcome.code == 130
    assert outcome.err.startswith(f"the {operation} goes on; `status` shows how far")


def test_drain_says_how_many_groups_have_a_copy_fewer(
    peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"moved": 3, "fewer": 2}
    monkeypatch.setattr(Store, "request", lambda *_, **__: told)
    monkeypatch.setattr(Store, "status", lambda _: {"peer_id": b"", "pid": 1})
    monkeypatch.setattr(admin, "_wait_until_gone", lambda *_: None)

    said, as_json = peer.run("drain").out, peer.run("drain", "--json").json

    assert "3 objects moved off it first; 2 of them now have a copy fewer than" in said
    assert (as_json["moved"], as_json["fewer"]) == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["stop", "drain"])
def test_peer_is_gone_when_stop_and_drain_return(
    make_peer: Callable[..., Any], operation: str
) -> None:
    peer = make_peer()

    outcome = peer.run(operation, "--json")

    moved = {"moved": 0, "fewer": 0} if operation == "drain" else {}
    about = {"stopped": peer.endpoint, "pid": peer.ready["pid"]}
    assert outcome.json == {**about, **moved}
    assert peer.process.wait(timeout=5) == 0


# What is wrong, and how that is said.


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "nobody"], 1, "no object has the alias 'nobody'"),
        (["show", "0" * 32], 1, "not found"),
        (["call", "nobody", "add"], 1, "no object has the alias"),
        (["call", "g", "nope"], 1, "no active method or field 'nope'"),
        (["call", "g", "__class__"], 1, "no active method or field"),
        (["call", "g", "fail"], 1, "ValueError: as asked"),
        (["call", "g", "rest", "0.6", "--deadline", "0.2"], 1, "deadline of 0.2 s"),
        (["call", "", "add"], 2, "is empty, expected an alias or an id"),
        (["call", "g", ""], 2, "is empty"),
        (["show", ""], 2, "is empty"),
        (["delete", ""], 2, "is empty"),
        (["call", "g\udcff", "add"], 2, "not UTF-8"),
        (["call", "g"], 2, "Missing argument 'METHOD'"),
        (["create", "gadgets.Nothing"], 1, "is not published"),
        (["create", "gadgets.Gauge", "--alias", "g"], 1, "already names object"),
        (["create", "gadgets.Gauge", "--peer", "two"], 1, "known peers: one"),
        (["delete", "nobody"], 1, "no object has the alias"),
        (["delete"], 2, "Missing argument"),
        (["publish", "no_such_module_anywhere"], 1, "no_such_module_anywhere"),
        (["status", "--timeout", "0"], 2, "--timeout"),
        (["status", "--timeout", "nan"], 2, "no number of seconds"),
        (["backup", "/proc/nowhere"], 4, "cannot be used"),
        (["nonsense"], 2, "No such command"),
    ],
    ids=lambda value: (
        None if isinstance(value, (int, str)) else " ".join(map(ascii, value))
    ),
)
def test_wrong_input_is_told_in_one_line(
    peer: Any, words: list[str], code: int, said: str
) -> None:
    outcome = peer.run(*words)

    assert outcome.code == code, outcome
    assert said in outcome.err
    assert outcome.out == ""
    # A method's own error brings the traceback of the peer.
    assert ("Traceback" in outcome.err) == ("fail" in words)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["show", "nobody"], "alias_not_found"),
        (["call", "g", "nope"], "no_such_method"),
        (["call", "g", "fail"], "method"),
        (["create", "gadgets.Nothing"], "class_not_found"),
        (["backup", "/proc/nowhere"], "configuration"),
    ],
)
def test_error_is_a_document_with_json(peer: Any, words: list[str], code: str) -> None:
    outcome = peer.run(*words, "--json")

    error = outcome.json["error"]
    assert set(error) == {"code", "message", "fields"}
    assert error["code"] == code
    assert outcome.err == ""
