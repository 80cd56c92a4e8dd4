"""Where a class comes from: the module to name it by, its file, a digest of its code.

A class of a script is `__main__.Counter` to Python, and so are those of all other
scripts. To the store it is named after the script, `alice.Counter` for alice.py: under
this name the same file can be imported later. Only a REPL and a notebook have no name
but `__main__`.

Rules of this file: it reads what is loaded, no file; it imports nothing that a thin
client would have to pay for before a class is looked at.

Source: design section 4, publishing.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

MAIN_NAMES = ("__main__", "__mp_main__")
_OWN = "activestore"
DIGEST_BYTES = 12

# Decided once per class: later the script may have dropped the name.
_modules: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def module_of(cls: type) -> str:
    """Return the module that a class is published under."""
    if cls.__module__ not in MAIN_NAMES:
        return cls.__module__
    known = _modules.get(cls)
    if known is None:
        known = _modules[cls] = _script_of(cls)
    return known


def _script_of(cls: type) -> str:
    """Return the name of the script that defines `cls`, "__main__" where none does."""
    main = sys.modules.get(cls.__module__)
    # A class that came by value says __main__ too, and means another process's.
    if main is None or not hasattr(main, cls.__qualname__.partition(".")[0]):
        return "__main__"
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name not in MAIN_NAMES:  # python -m package.module
        return "__main__" if spec.name.startswith(_OWN) else str(spec.name)
    path = (getattr(main, "__file__", None) or "").replace("\\", "/")
    if path.startswith("<"):  # <stdin>: a REPL fed by a pipe.
        return "__main__"
    directory, _, file = path.rpartition("/")
    stem = file.rpartition(".")[0] or file
    if stem == "__main__":  # python directory/
        stem = directory.rpartition("/")[2]
    name = "".join(c if c.isalnum() else "_" for c in stem)
    if not name:
        return "__main__"
    return name if name.isidentifier() else f"_{name}"


def file_of(cls: type) -> str:
    """Return the file that a class was written in, "" where that cannot be told."""
    for function in _functions_of(cls):
        name = function.__code__.co_filename
        if not name.startswith("<"):
            return name
    return ""


def code_digest(cls: type) -> str:
    """Return a digest of the code of a class, with the kind of Python it is for.

    It covers the methods of the class and of its bases, and the functions and constants
    of their modules that they use; not what they import. Comments, names of files and
    numbers of lines do not matter.
    """
    import hashlib

    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    seen: set[int] = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in (_OWN, "builtins", "typing", "abc"):
            continue
        for name in sorted(vars(base)):
            value = vars(base)[name]
            if name.startswith("_activestore"):
                continue
            for text in _texts_of(value, seen, is_constant=not name.startswith("__")):
                hasher.update(f"{name}={text}\n".encode("utf-8", "replace"))
    return f"{python_kind()}:{hasher.hexdigest()}"


def python_kind() -> str:
    """Return what code digests depend on beside the code."""
    return f"{sys.implementation.cache_tag}-O{sys.flags.optimize}"


def is_plainly_loaded(cls: type) -> bool:
    """Return whether the code of a class is as Python compiles it.

    Import hooks, such as that of pytest for asserts, make other code of the same text.
    """
    module = sys.modules.get(cls.__module__)
    loader = getattr(module, "__loader__", None)
    kind = loader if isinstance(loader, type) else type(loader)
    return kind.__module__.startswith("_frozen_importlib")


def _functions_of(cls: type) -> Iterator[types.FunctionType]:
    for value in list(vars(cls).values()):
        yield from _functions_in(value)


def _functions_in(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions of a method, property, and what decorators wrapped."""
    if isinstance(value, types.FunctionType):
        yield value
        parts = [getattr(value, "__wrapped__", None)]
    elif isinstance(value, (staticmethod, classmethod)):
        parts = [value.__func__]
    elif isinstance(value, property):
        parts = [value.fget, value.fset]
    else:
        is_cached = type(value).__name__ == "cached_property"
        parts = [value.func] if is_cached else []
    for part in parts:
        yield from _functions_in(part)


def _texts_of(value: Any, seen: set[int], *, is_constant: bool) -> Iterator[str]:
    """Yield texts that are the same for the same code."""
    for function in _functions_in(value):
        if id(function) in seen:
            continue
        seen.add(id(function))
        yield _code_text(function.__code__)
        keywords = sorted((function.__kwdefaults__ or {}).items())
        for default in (*(function.__defaults__ or ()), *keywords):
            yield repr(default) if _is_atom(default) else "?"
        for name in _names_of(function.__code__):
            if name.startswith("__"):  # Where it was loaded, not what it says.
                continue
            used = function.__globals__.get(name)
            if isinstance(used, types.FunctionType):
                if used.__globals__ is function.__globals__:
                    yield from _texts_of(used, seen, is_constant=False)
            elif _is_atom(used):
                yield f"{name}={used!r}"
    if is_constant and _is_atom(value):
        yield repr(value)


def _is_atom(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_atom, value))
    return type(value) in (int, float, complex, str, bytes, bool, type(None))


def _code_text(code: types.CodeType) -> str:
    constants = [
        _code_text(constant)
        if isinstance(constant, types.CodeType)
        else repr(sorted(map(repr, constant)))
        if isinstance(constant, frozenset)
        else repr(constant)
        for constant in code.co_consts
    ]
    return repr((code.co_code, code.co_names, code.co_varnames, constants))


def _names_of(code: types.CodeType) -> list[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(_names_of(constant))
    return sorted(found)
