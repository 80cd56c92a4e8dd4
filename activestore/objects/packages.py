"""Published code as one archive: packing it where it was written.

An archive is a zip, stored without compression, with fixed times and sorted names, so
that the same code always has the same digest. `MANIFEST` says kind and name. Two kinds:

- *source*: the files of one top-level module or package, found without importing it.
- *value*: one class and the classes it needs, by cloudpickle, for what no import can
  find: scripts, notebooks, classes made inside functions. A script (`python app.py`) is
  `__main__` to Python, and importing it would run it; its classes travel by value as
  "app.App", the name that the file has where it is imported.

Rules of this file: it reads files and never writes one; what it packs it does not run.

Source: design section 4, publishing.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import io
import os
import sys
import types
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

from activestore.errors import InvalidRequestError, TooLargeError, UnsupportedValueError
from activestore.model import ActiveObject, class_name_of, copied_defaults
from activestore.objects import pickles, rebuild
from activestore.objects.archives import digest_of_archive
from activestore.sources import MAIN_NAMES, module_of

# One package, its data files included. Models and data sets belong into objects.
PACKAGE_BYTES_MAX = 16 * 1024 * 1024

SOURCE, VALUE = "source", "value"
MANIFEST = "MANIFEST"
VALUE_FILE = "value.pickle"

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # The earliest that a zip can say.


class Package(NamedTuple):
    """Code as it is published.

    `kind`: "source" or "value". `name`: the top-level module or package, "__main__" for
    what was written in a notebook. `digest`: BLAKE2b of the archive, 16 bytes.
    """

    kind: str
    name: str
    digest: bytes
    archive: bytes


def pack_source(
    what: str | types.ModuleType | Path | type, *, data_files: Sequence[str] = ()
) -> Package:
    """Pack the top-level module or package that `what` is, or is in.

    Args:
        what: A module's name, a module, a class, a .py file or a package's directory.
        data_files: Patterns, such as "data/*.json", of other files to ship, relative to
            the package's directory, or to that of the module. A `*` matches slashes
            too. A text is one pattern.

    Raises:
        InvalidRequestError: it cannot be found, or is not Python source, or has a name
            that must not be published, or a pattern matches nothing.
        TooLargeError: it is over PACKAGE_BYTES_MAX.
    """
    patterns = [data_files] if isinstance(data_files, str) else list(data_files)
    name, roots = _locate(what)
    refuse_reserved(name)
    files: dict[str, bytes] = {}
    size = 0
    for member, path in _members(name, roots, patterns):
        size += path.stat().st_size
        if size > PACKAGE_BYTES_MAX:
            raise TooLargeError(f"package {name}", size, PACKAGE_BYTES_MAX)
        files.setdefault(member, path.read_bytes())
    if not files:
        raise InvalidRequestError("no Python source there", name)
    inside = [member.removeprefix(f"{name}/") for member in files]
    for pattern in patterns:
        if not fnmatch.filter(inside, pattern):
            raise InvalidRequestError(
                f"no file matches the pattern {pattern!r}, relative to "
                f"{roots[0] if roots[0].is_dir() else roots[0].parent}",
                "data_files",
            )
    return _package(SOURCE, name, name, files)


def pack_value(cls: type) -> Package:
    """Pack a class by value, and what it uses that can only travel by value too.

    From then on states may name these classes.

    Raises:
        UnsupportedValueError: the class holds what cannot travel, such as a lock in a
            global that a method uses.
        TooLargeError: it is over PACKAGE_BYTES_MAX.
    """
    found: dict[type, None] = {cls: None}
    _dump_value(cls, found)
    for known in found:
        # Cached on the class, and hence in the pickle: always or never.
        if issubclass(known, ActiveObject):
            copied_defaults(known)
    order = sorted(found, key=lambda known: (module_of(known), known.__qualname__))
    pickled = _dump_value({"class": cls, "classes": order}, found)
    if len(pickled) > PACKAGE_BYTES_MAX:
        raise TooLargeError(
            f"class {cls.__qualname__}", len(pickled), PACKAGE_BYTES_MAX
        )
    rebuild.remember_named(order)
    name = module_of(cls).partition(".")[0]
    return _package(VALUE, name, class_name_of(cls), {VALUE_FILE: pickled})


def is_by_value(cls: type) -> bool:
    """Return whether a class can only travel by value."""
    if cls.__module__ in MAIN_NAMES or "<locals>" in cls.__qualname__:
        return True
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not cls


def refuse_reserved(name: str) -> None:
    """Raise InvalidRequestError for names that published code must not take."""
    if name in sys.stdlib_module_names or name == "activestore":
        raise InvalidRequestError(
            "a module of this name would hide Python's or activestore's own; rename it",
            name,
        )
    if not name.isidentifier():
        raise InvalidRequestError("not a name that can be imported", name)


# -- source
# ------------------------------------------------------------------------------


def _locate(what: str | types.ModuleType | Path | type) -> tuple[str, list[Path]]:
    """Return the top-level name, and its file or its directories."""
    if isinstance(what, Path):
        return _locate_path(what)
    if isinstance(what, str):
        looks_like_path = what.endswith(".py") or os.sep in what
        return _locate_path(Path(what)) if looks_like_path else _locate_module(what)
    if isinstance(what, types.ModuleType):
        return _locate_module(what.__name__)
    if not isinstance(what, type):
        raise InvalidRequestError(
            "expected a class, a module, a module's name, a .py file or a package's "
            f"directory, got {type(what).__name__}",
            "publish",
        )
    return _locate_module(what.__module__)


def _locate_path(path: Path) -> tuple[str, list[Path]]:
    path = path.absolute()
    if not path.exists():
        raise InvalidRequestError("no such file or directory", str(path))
    if path.is_file() and path.suffix != ".py":
        raise InvalidRequestError(
            "expected a .py file or a package's directory", str(path)
        )
    if path.name == "__init__.py":
        path = path.parent
    while (path.parent / "__init__.py").exists():
        path = path.parent
    return path.stem if path.is_file() else path.name, [path]


def _locate_module(name: str) -> tuple[str, list[Path]]:
    top = name.partition(".")[0]
    if top in MAIN_NAMES:
        raise InvalidRequestError(
            "code of the script or notebook travels by value", name
        )
    refuse_reserved(top)
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # It was put into sys.modules by hand.
        spec = None
    if spec is None:
        # The script of a virtual environment does not look into its own directory.
        for path in (Path(top), Path(f"{top}.py")):
            if path.exists():
                return _locate_path(path)
        raise InvalidRequestError(
            "no such module on sys.path, and no such file or directory here", name
        )
    if spec.submodule_search_locations:
        return top, [Path(location) for location in spec.submodule_search_locations]
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise InvalidRequestError(
            "not Python source; list it in `requires` instead", name
        )
    return top, [Path(spec.origin)]


def _members(
    name: str, roots: Sequence[Path], data_files: Sequence[str]
) -> Iterator[tuple[str, Path]]:
    """Yield the path inside the archive and the file, for each file to ship."""
    for root in roots:
        if root.is_file():
            yield f"{name}.py", root
            if data_files:
                for inside, path in _walk(root.parent):
                    if _matches(inside, data_files) and path != root:
                        yield inside, path
            continue
        for inside, path in _walk(root):
            if path.suffix == ".py" or _matches(inside, data_files):
                yield f"{name}/{inside}", path


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    for directory, below, names in os.walk(root):
        below[:] = sorted(
            b for b in below if b != "__pycache__" and not b.startswith(".")
        )
        for name in sorted(names):
            path = Path(directory, name)
            yield path.relative_to(root).as_posix(), path


def _matches(inside: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(inside, pattern) for pattern in patterns)


def _package(kind: str, name: str, full_name: str, files: dict[str, bytes]) -> Package:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        manifest = f"{kind}\n{name}\n{full_name}\n".encode()
        for member, content in sorted({**files, MANIFEST: manifest}.items()):
            info = zipfile.ZipInfo(member, _ZIP_TIME)
            info.create_system = 3  # Unix, whatever this is.
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    packed = file.getvalue()
    return Package(kind, name, digest_of_archive(packed), packed)


# -- value
# -------------------------------------------------------------------------------


class _ClassPickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped base
    """Pickles classes by value without cloudpickle's tracking, and notes which.

    Tracked classes carry a random id, so each run of a script would make another
    digest, and loading a newer revision would rewrite the classes of the older one in
    place.
    """

    found: dict[type, None]

    def reducer_override(self, obj: Any) -> Any:
        reduced = cloudpickle.Pickler.reducer_override(self, obj)
        if not isinstance(obj, type) or type(reduced) is not tuple or len(reduced) < 3:
            return reduced
        self.found[obj] = None
        track_id = cloudpickle.cloudpickle._get_or_create_tracker_id(obj)  # noqa: SLF001
        args = [None if arg is track_id else arg for arg in reduced[1]]
        module, (attributes, slots) = module_of(obj), reduced[2]
        for i, arg in enumerate(args):
            if type(arg) is dict and "__module__" in arg:
                # cloudpickle leaves the qualified name of a nested class behind.
                args[i] = {
                    **arg,
                    "__module__": module,
                    "__qualname__": obj.__qualname__,
                }
            elif obj.__module__ in MAIN_NAMES and arg is obj.__module__:
                args[i] = module  # Of an enum.
        if "__module__" in attributes:
            attributes = {**attributes, "__module__": module}
        return (reduced[0], tuple(args), (attributes, slots), *reduced[3:])


def _dump_value(value: object, found: dict[type, None]) -> bytes:
    file = io.BytesIO()
    pickler = _ClassPickler(file, protocol=5)
    pickler.found = found
    try:
        pickler.dump(value)
    except pickles.PICKLE_ERRORS as error:
        name = next(iter(found)).__qualname__
        raise UnsupportedValueError("class", name, str(error)[:500]) from error
    return file.getvalue()
