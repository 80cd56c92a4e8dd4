"""Cells, numbers and texts that would break what reads or shows them."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from activestore.cli import admin
from activestore.cli.output import echo, escaped, plain, show, size_text, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two words, ä 漢", "two words, ä 漢"),
        ("a\nb", "a\\nb"),
        ("a\tb\r", "a\\tb\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\\nb", "a\\\\nb"),
        ("\u2028\ud800", "\\u2028\\ud800"),
    ],
)
def test_cell_holds_no_sign_that_breaks_its_row(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_row_with_a_line_break_is_one_line() -> None:
    """A store of an earlier version may hold such an alias."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        table(("alias", "class"), [("a\tb\nc", "C"), ("d", "D")])

    assert out.getvalue() == "a\\tb\\nc\tC\nd\tD\n"


@pytest.mark.net
def test_alias_with_odd_signs_is_escaped_in_text_and_exact_in_json(peer: Any) -> None:
    alias = "h\\n\u00a0x"
    peer.run("create", "gadgets.Gauge", "--alias", alias)
    rows = peer.run("objects", "--alias-prefix", "h").out.splitlines()
    exact = peer.run("objects", "--alias-prefix", "h", "--json").json
    gone = peer.run("delete", alias)

    assert [row.split("\t")[0] for row in rows] == ["h\\\\n\\xa0x"]
    assert exact[0]["alias"] == alias
    assert gone.code == 0


def test_alias_like_markup_is_drawn_as_it_is(
    terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", terminal)

    table(("alias",), [("[red]hot[/red]",), ("[/]",)])

    assert "[red]hot[/red]" in terminal.getvalue()
    assert "[/]" in terminal.getvalue()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_number_that_json_lacks_is_a_text(value: float) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        show([value], as_json=True)

    assert json.loads(out.getvalue()) == [str(value)]


def test_array_with_such_a_number_is_json_too() -> None:
    numpy = pytest.importorskip("numpy")

    assert plain(numpy.array([[1.0, float("nan")]])) == [[1.0, "nan"]]


def test_text_that_the_output_cannot_encode_is_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="latin-1"))

    echo("ü 漢 \ud800")

    assert raw.getvalue() == b"\xfc \\u6f22 \\ud800\n"


def test_output_that_was_closed_before_the_start_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout", None)

    echo("nobody hears")
    table(("what",), [("nobody sees",)])


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 41, "2.0 TiB")],
)
def test_size_has_a_unit_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.net
def test_field_that_a_class_has_lost_hides_no_other(
    peer: Any, cli: Callable[..., Any], tmp_path: Any
) -> None:
    """The object keeps the field until it is next written; `show` must bear both."""
    path = tmp_path / "shrinking.py"
    source = (
        "from activestore import ActiveObject\n\n\nclass Shrinking(ActiveObject):\n"
        "    kept: int\n{field}\n    def __init__(self) -> None:\n"
        "        self.kept = 1\n{value}"
    )
    path.write_text(
        source.format(field="    lost: int\n", value="        self.lost = 2\n")
    )
    peer.run("publish", str(path))
    object_id = peer.run("create", "shrinking.Shrinking").out.strip()
    path.write_text(source.format(field="", value=""))
    assert peer.run("publish", str(path)).code == 0

    text = peer.run("show", object_id)
    fields = peer.run("show", object_id, "--json").json["fields"]
    peer.run("delete", object_id)

    assert text.code == 0, text.err
    assert "field kept\t1" in text.out
    assert "field lost\t" in text.out
    assert "not readable: " in text.out
    assert fields["kept"]["value"] == 1
    assert "lost" in fields["lost"]["error"]


REST = {"is_running": False, "progress": 0.0, "last_s": 0.0, "last_bytes": 0,
        "damaged": [], "repaired_count": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({}, "not yet"),
        ({"is_running": True, "progress": 0.256}, "running, 26%"),
        ({"last_s": 1e9, "last_bytes": 3 << 20}, r"3\.0 MiB at 2001-09-0\d \d\d:\d\d"),
        (
            {"damaged": [{}, {}], "repaired_count": 3},
            "not yet; DAMAGED: 2, see `status --json`; repaired: 3",
        ),
    ],
)
def test_status_says_how_the_disk_was_checked_last(
    told: dict[str, Any], shown: str
) -> None:
    assert re.fullmatch(shown, admin._scrub_text({**REST, **told}))
