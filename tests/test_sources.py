"""The names of classes of scripts, and digests of their code."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from activestore import sources

COUNTER = """
SCALE = 2
def scaled(n): return n * SCALE
class Counter:
    step = 1
    def add(self, n=1): return scaled(n) in {"a", "b"}
    @property
    def half(self): return self.step / 2
    @classmethod
    def make(cls): return cls()
    class Inner: pass
"""


def main_of(monkeypatch: pytest.MonkeyPatch, text: str = COUNTER, **about: Any) -> Any:
    """Return a module that is `__main__` for the test."""
    module = types.ModuleType("__main__")
    vars(module).update(about)
    exec(compile(text, about.get("__file__") or "<text>", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/home/a/alice.py", "alice"),
        ("alice.py", "alice"),
        ("C:\\code\\alice.py", "alice"),
        ("/home/a/my-script.v2.py", "my_script_v2"),
        ("/home/a/2nd.py", "_2nd"),
        ("/usr/local/bin/tool", "tool"),
        ("/home/a/app/__main__.py", "app"),
        ("<stdin>", "__main__"),
        ("", "__main__"),
        (None, "__main__"),
    ],
)
def test_class_of_a_script_is_named_after_its_file(monkeypatch, file, name):
    main = main_of(monkeypatch, __file__=file)

    assert sources.module_of(main.Counter) == name
    assert sources.module_of(main.Counter.Inner) == name


def test_class_of_a_module_run_as_the_script_has_the_name_of_the_module(monkeypatch):
    spec = types.SimpleNamespace(name="package.tool")

    main = main_of(monkeypatch, __file__="/x/package/tool.py", __spec__=spec)

    assert sources.module_of(main.Counter) == "package.tool"


def test_class_that_came_by_value_keeps_the_name_it_came_with(monkeypatch):
    elsewhere = main_of(monkeypatch, __file__="/x/elsewhere.py").Counter
    main_of(monkeypatch, "", __file__="/x/here.py")

    assert sources.module_of(elsewhere) == "__main__"
    assert sources.module_of(dict) == "builtins"


def test_name_stays_when_the_script_drops_its_own(monkeypatch):
    main = main_of(monkeypatch, __file__="/x/alice.py")
    counter = main.Counter
    assert sources.module_of(counter) == "alice"

    del main.Counter

    assert sources.module_of(counter) == "alice"


def digest(monkeypatch: pytest.MonkeyPatch, text: str, file: str = "/x/a.py") -> str:
    return sources.code_digest(main_of(monkeypatch, text, __file__=file).Counter)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2", "SCALE = 3"),
        ("n * SCALE", "n + SCALE"),
        ("step = 1", "step = 2"),
        ("n=1", "n=2"),
        ("self.step / 2", "self.step / 3"),
        ("return cls()", "return None"),
        ("def add", "def sub"),
    ],
)
def test_digest_tells_changed_code(monkeypatch, old, new):
    assert old in COUNTER

    changed = digest(monkeypatch, COUNTER.replace(old, new))

    assert changed != digest(monkeypatch, COUNTER)
    assert changed.startswith(sources.python_kind() + ":")


def test_digest_is_the_same_for_the_same_code_elsewhere(monkeypatch):
    text = "# A comment.\n\n" + COUNTER + "\nOTHER = 5\n"

    assert digest(monkeypatch, text, "/y/b.py") == digest(monkeypatch, COUNTER)


def test_file_of_a_class_is_that_of_its_code(monkeypatch):
    assert (
        sources.file_of(main_of(monkeypatch, __file__="/x/a.py").Counter) == "/x/a.py"
    )
    assert sources.file_of(main_of(monkeypatch, __file__=None).Counter) == ""
