"""Make the reference pages that are tables of the code: settings, errors, commands.

`python docs/generate_reference.py` rewrites them; tests/architecture/test_docs.py fails
where a page and the code differ.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import click

from activestore import errors
from activestore.cli.group import all_commands
from activestore.cli.output import EXIT_CODES
from activestore.peer.config import KINDS, SETTINGS, PeerConfig
from activestore.peer.config_sources import ENV_PREFIX

REFERENCE = Path(__file__).parent / "reference"

_NOTE = (
    "<!-- Made by docs/generate_reference.py from the code; change it there, then run "
    "the script. -->\n"
)

_CONFIGURATION_INTRODUCTION = f"""\
A setting is looked for as a flag of `activestore-node start`, where it has one
(`--executors 2`), then as an environment variable (`{ENV_PREFIX}EXECUTORS=2`), then in
`peer.toml` (`executors = 2`); the first one found counts. A list is comma-separated in
a variable. The file is the one of `--config`, else of `{ENV_PREFIX}CONFIG`. An unknown
key, a wrong type or a value outside its range stops the start with an error that names
it. `insecure` counts in the file only.
"""

_ERRORS_INTRODUCTION = """\
All are in `activestore.errors` and derive from `ActiveStoreError`. The code is what
travels and stays; the fields are attributes and, in this order, the arguments of the
constructor. Catch a base class to catch all below it.
"""

_KINDS_SHOWN = {
    "tuple[str, ...]": "list of texts",
    "str": "text",
    "bool": "true, false",
}


def configuration_page() -> str:
    """Return the page of all settings."""
    lines = [
        "# Settings of a peer",
        "",
        _NOTE,
        _CONFIGURATION_INTRODUCTION,
        "| setting | default | range | unit |",
        "|---|---|---|---|",
    ]
    lines += [_setting_row(name) for name in SETTINGS]
    lines += ["", "## Why each is there", ""]
    for name, about in SETTINGS.items():
        lines += [f"**`{name}`**: {about.reason}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _setting_row(name: str) -> str:
    about = SETTINGS[name]
    kind = KINDS[name]
    default = PeerConfig.__dataclass_fields__[name].default
    if about.automatic is not None:
        shown = about.automatic
    elif kind == "tuple[str, ...]":
        shown = "none"
    elif kind == "bool":
        shown = f"`{str(default).lower()}`"
    else:
        shown = f"`{default}`" if default != "" else "empty"
    if about.choices:
        within = ", ".join(f"`{choice}`" for choice in about.choices)
    elif about.low is not None and about.high is not None:
        within = f"{about.low:,.16g} to {about.high:,.16g}"
    else:
        within = _KINDS_SHOWN.get(kind, kind)
    return f"| `{name}` | {shown} | {within} | {about.unit} |"


def errors_page() -> str:
    """Return the page of all errors."""
    lines = [
        "# Errors",
        "",
        _NOTE,
        _ERRORS_INTRODUCTION,
        "| code | class | base | fields |",
        "|---|---|---|---|",
    ]
    for code, cls in errors.BY_CODE.items():
        fields = ", ".join(f"`{field}`" for field in cls.FIELDS)
        bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__)
        lines.append(f"| `{code}` | `{cls.__name__}` | {bases} | {fields} |")
    lines += ["", "## What each says, and what to do", ""]
    for code, cls in errors.BY_CODE.items():
        text = inspect.getdoc(cls) or ""
        lines += [f"**`{cls.__name__}`** (`{code}`): {text}", ""]
    return "\n".join(lines).rstrip() + "\n"


_CLI_INTRODUCTION = """\
Results go to standard output, everything else to standard error. On a terminal tables are
drawn, elsewhere they are tab-separated without a heading, and in a cell `\\n`, `\\t`,
`\\x1b`, `\\\\` stand for what would break the row. `--json` prints one JSON document, an
error too: `{"error": {"code": ..., "message": ..., "fields": {...}}}`; only wrong usage is
told as text, and a generator method gives a document per line. Bytes are shown as
hexadecimal digits, arrays as lists, refs as `{"object_id": ...}`, numbers that JSON lacks
as `"nan"`, `"inf"`, `"-inf"`.

A command finds its peer within `--connect-timeout`, then waits as long as `--timeout`
allows. What takes long shows a bar on standard error where that is a terminal, without
`--json`. An argument of `call` and `create` is JSON or else text; `-5` is a number, and
after `--` everything is an argument.

| exit code | meaning |
|---|---|
"""


def commands_page() -> str:
    """Return the page of all commands."""
    codes = [f"| {number} | {text} |" for number, text in EXIT_CODES.items()]
    lines = ["# Commands", "", _NOTE, _CLI_INTRODUCTION + "\n".join(codes), ""]
    for name, command in all_commands().items():
        context = click.Context(command, info_name=f"activestore-node {name}")
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## `activestore-node {name}`", ""]
        lines += [f"`activestore-node {name} {usage}`", ""]
        lines += [inspect.cleandoc(command.help or ""), ""]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                names = ", ".join(f"`{option}`" for option in parameter.opts)
                lines.append(f"- {names}: {parameter.help}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


PAGES = {
    REFERENCE / "cli.md": commands_page,
    REFERENCE / "configuration.md": configuration_page,
    REFERENCE / "errors.md": errors_page,
}


def main() -> None:
    """Rewrite every page."""
    for path, make in PAGES.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
