"""The tree stays tidy: sizes, names, headers, links. After tigerbeetle's tidy.zig."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
BANNED_NAMES = frozenset({"utils.py", "common.py", "helpers.py", "manager.py"})
SOURCE_FOLDERS = ("activestore", "bench", "docs", "examples", "nodes", "tests")

# Put together here, so that this file does not hold what it looks for.
UNFINISHED = re.compile(
    r"\b(XX" + r"X|FIX" + r"ME)\b|\bTO" + r"DO\b(?!\(#\d+\))|\bTo be wri" + r"tten\b"
)
FOREIGN_PATH = re.compile(
    r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|tm" + r"p/w|opt/py" + r"pi)(?:/|\b)"
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def files(*suffixes: str, folders: tuple[str, ...] = SOURCE_FOLDERS) -> list[Path]:
    """Return the files of the tree with these suffixes, without generated ones."""
    found = [path for path in ROOT.iterdir() if path.suffix in suffixes]
    for folder in folders:
        for suffix in suffixes:
            found += (ROOT / folder).rglob(f"*{suffix}")
    return sorted(
        path
        for path in found
        if not any(
            part.startswith(".") or part in ("__pycache__", "out")
            for part in path.relative_to(ROOT).parts
        )
    )


def shown(path: Path) -> str:
    """Return the path as the report names it."""
    return path.relative_to(ROOT).as_posix()


SOURCES = files(".py")
PACKAGE = [path for path in SOURCES if path.is_relative_to(ROOT / "activestore")]
TEXTS = files(".py", ".md", ".toml", ".txt", ".service", ".cddl")
TEXTS += [ROOT / "Makefile", ROOT / ".ci" / "run"]


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_functions_and_modules_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    too_long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]

    assert too_long == [], f"over {FUNCTION_LINES_MAX} lines"
    assert text.count("\n") <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_module_says_what_lives_in_it(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    header = ast.get_docstring(tree)

    assert path.name not in BANNED_NAMES, "a name that says nothing"
    assert header, "no header docstring"
    assert re.match(r"[^\n]+[.:]$", header, re.MULTILINE), "no whole first sentence"
    if path.name != "__init__.py":
        assert len(tree.body) > 1, "an empty module"


@pytest.mark.parametrize("path", PACKAGE, ids=shown)
def test_package_prints_nothing_outside_the_command_line(path: Path) -> None:
    if path.is_relative_to(ROOT / "activestore" / "cli"):
        pytest.skip("a command line prints")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"


@pytest.mark.parametrize("path", TEXTS, ids=shown)
def test_text_holds_nothing_unfinished_and_no_path_of_one_machine(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert not UNFINISHED.search(line), f"line {number}: {line.strip()}"
        assert not FOREIGN_PATH.search(line), f"line {number}: {line.strip()}"


@pytest.mark.parametrize("path", files(".md"), ids=shown)
def test_links_of_a_page_resolve(path: Path) -> None:
    text = CODE_BLOCK.sub("", path.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), f"{target} does not exist"
        if anchor and page.suffix == ".md":
            assert anchor in anchors_of(page), f"{target}: no such heading"


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the usual renderers make them."""
    text = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?) *#*$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def test_tree_has_what_people_look_for_first() -> None:
    expected = ["README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"]

    assert [name for name in expected if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("# TO" + "DO: later", True),
        ("# TO" + "DO(#12): when peers join", False),
        ("# FIX" + "ME", True),
        ("a methodology of TODOs", False),
    ],
)
def test_unfinished_is_what_has_no_issue(line: str, is_found: bool) -> None:
    assert bool(UNFINISHED.search(line)) == is_found
