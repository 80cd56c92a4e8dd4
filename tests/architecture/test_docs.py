"""The reference covers everything: commands, settings, errors. After datasette's."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from activestore import errors
from activestore.peer.config import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


def generator() -> ModuleType:
    """Return the script that makes the generated pages."""
    path = ROOT / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands() -> dict[str, click.Command]:
    """Return every command of `activestore-node` by its words."""
    module = importlib.import_module("activestore.cli.main")
    groups = {id(v): v for v in vars(module).values() if isinstance(v, click.Group)}
    assert len(groups) == 1, "activestore.cli.main shows one click group"
    found: dict[str, click.Command] = {}
    pending: list[tuple[str, click.Command]] = [("activestore-node", *groups.values())]
    while pending:
        words, command = pending.pop()
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found_one = command.get_command(context, name)
                assert found_one is not None
                pending.append((f"{words} {name}", found_one))
        else:
            found[words] = command
    return found


@pytest.mark.parametrize("name", ["configuration.md", "errors.md", "cli.md"])
def test_generated_page_equals_the_code(name: str, rewrite: bool) -> None:
    path = REFERENCE / name
    pages = generator().PAGES
    expected = pages[path]()
    if rewrite:
        path.write_text(expected, encoding="utf-8")

    written = path.read_text(encoding="utf-8")

    assert written == expected, "run: python docs/generate_reference.py"


def test_every_setting_is_in_the_reference() -> None:
    page = (REFERENCE / "configuration.md").read_text(encoding="utf-8")

    assert [name for name in SETTINGS if f"| `{name}` |" not in page] == []
    assert [name for name in SETTINGS if f"**`{name}`**" not in page] == []


def test_every_error_is_in_the_reference() -> None:
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")

    assert [code for code in errors.BY_CODE if f"| `{code}` |" not in page] == []


def test_every_error_class_has_a_code_of_its_own() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ActiveStoreError)
    ]

    assert set(errors.BY_CODE.values()) == set(classes)


def test_every_command_and_option_has_help() -> None:
    found = commands()
    assert found
    for words, command in found.items():
        assert command.help, f"{words} has no help"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{words} {parameter.opts[0]} has no help"


def test_every_command_is_in_the_reference() -> None:
    pages = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(REFERENCE.glob("*.md"))
    )
    headings = re.findall(r"^#+ .*$", pages, re.MULTILINE)

    missing = [
        words
        for words in commands()
        if not any(re.search(rf"{re.escape(words)}\b", line) for line in headings)
    ]

    assert missing == []


def test_every_option_of_a_command_is_in_the_reference() -> None:
    pages = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(REFERENCE.glob("*.md"))
    )
    missing = {
        option
        for command in commands().values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--") and option not in pages
    }

    assert missing == set()


def test_start_has_the_flags_that_the_design_promises() -> None:
    """`insecure` is not among them: it counts in the file only."""
    start = commands()["activestore-node start"]
    flags = {option for parameter in start.params for option in parameter.opts}
    promised = ["--name", "--listen", "--advertise", "--join", "--data-dir"]
    promised += ["--config", "--executors", "--json"]

    assert [flag for flag in promised if flag not in flags] == []
    assert "--insecure" not in flags


def test_every_promise_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "explanation" / "promises.md").read_text()
    names = re.findall(r"(test_\w+\.py)(?:::(\w+))?", page)
    assert len(names) > 10
    for file, test in names:
        found = list((ROOT / "tests").rglob(file))
        assert found, f"{file} is not there"
        if test:
            text = found[0].read_text()
            assert re.search(rf"(def|class) {test}\b", text), f"{file} has no {test}"


def test_every_line_of_consistency_names_tests_that_exist() -> None:
    """As `path::name`; the table's rows have one at least for each number of copies."""
    page = (ROOT / "docs" / "explanation" / "consistency.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page))
    missing = [
        f"{path}::{name}"
        for path, name in sorted(named)
        if not (ROOT / path).is_file()
        or not re.search(rf"def {name}\b", (ROOT / path).read_text())
    ]

    assert missing == []
    assert len(named) >= 20
    # Nobody writes a name in another form, which would not be looked for.
    assert page.count("::test_") == len(re.findall(r"`tests/[\w/]+\.py::\w+`", page))


def test_every_test_of_guarantees_holds_a_line_of_consistency() -> None:
    page = (ROOT / "docs" / "explanation" / "consistency.md").read_text()
    path = ROOT / "tests" / "simulation" / "test_guarantees.py"
    tests = re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)

    assert [name for name in tests if f"::{name}`" not in page] == []
