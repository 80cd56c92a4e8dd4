"""Published code in an executor: loading it, one revision of a package at a time.

Modules of a source package are served from its archive by a finder at the head of
sys.meta_path, under their own names, so that pickles and imports find them as usual;
they win against installed modules of the same name. Classes by value get names that
states use.

Modules have no `__file__`; data files are reached through importlib.resources. Where
two packages by value hold the same helper class, each has its own.

Rules of this file: whatever a publisher's code does at import ends in one of the errors
below, and then nothing of it stays loaded. Calls of several threads are taken in turn.

Source: design section 4, publishing.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import linecache
import sys
import threading
import traceback
import types
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

from activestore.errors import (
    ActiveStoreError,
    ClassNotFoundError,
    InvalidRequestError,
    RequirementError,
)
from activestore.model import ActiveObject, class_name_of, interface_of
from activestore.objects import pickles, rebuild
from activestore.objects.archives import digest_of_archive
from activestore.objects.packages import (
    MANIFEST,
    PACKAGE_BYTES_MAX,
    SOURCE,
    VALUE,
    VALUE_FILE,
    Package,
    is_by_value,
    pack_source,
    pack_value,
    refuse_reserved,
)
from activestore.objects.requirements import missing_requirements

if sys.version_info >= (3, 11):
    from importlib.resources.abc import TraversableResources
else:
    from importlib.abc import TraversableResources

__all__ = [
    "PACKAGE_BYTES_MAX", "Package", "PackageLoader", "describe", "is_by_value",
    "missing_requirements", "pack_source", "pack_value",
]  # fmt: skip


def describe(classes: Iterable[type]) -> list[dict[str, Any]]:
    """Return the interface of each class as a dict; see activestore.model.Interface."""
    return [
        interface_of(cls)
        ._replace(package=class_name_of(cls) if is_by_value(cls) else "")
        ._asdict()
        for cls in classes
    ]


class _Loaded:
    """A package that is loaded."""

    def __init__(
        self, kind: str, name: str, digest: bytes, finder: _ArchiveFinder | None
    ) -> None:
        self.kind = kind
        self.name = name  # The module for a source, "module.Class" for a value.
        self.digest = digest
        self.finder = finder
        self.classes: dict[str, type] = {}  # ActiveObject classes, by class name
        self.named: list[type] = []  # all classes of a package by value


class PackageLoader:
    """Loads published packages in this process and finds their classes."""

    def __init__(self) -> None:
        self._archives: dict[bytes, bytes] = {}
        self._loaded: dict[str, _Loaded] = {}
        self._lock = threading.RLock()

    def add(self, digest: bytes, archive: bytes) -> None:
        """Keep an archive, to be loaded when one of its classes is asked for.

        Raises:
            InvalidRequestError: the archive does not have this digest.
        """
        if digest_of_archive(archive) != digest:
            raise InvalidRequestError(
                f"its digest is {digest_of_archive(archive).hex()}, "
                f"expected {digest.hex()}",
                "package archive",
            )
        with self._lock:
            self._archives[digest] = archive

    def load(self, kind: str, name: str, digest: bytes, archive: bytes) -> list[type]:
        """Load a package and return the ActiveObject classes defined in it.

        Of a package those modules are imported that mention ActiveObject or
        activemethod; the others when something imports them. Another loaded revision
        is dropped first.

        Raises:
            RequirementError: it imports a module that is not installed here.
            InvalidRequestError: it cannot be imported; names file and line.
        """
        self.add(digest, archive)
        with self._lock:
            found_kind, found_name, full_name, files = _open_archive(archive)
            if (kind, name) != (found_kind, found_name):
                raise InvalidRequestError(
                    f"the archive holds {found_kind} {found_name!r}, "
                    f"expected {kind} {name!r}",
                    "package archive",
                )
            loaded = self._loaded.get(full_name)
            if loaded is None or loaded.digest != digest:
                self.unload(full_name)
                if kind == SOURCE:  # What a script defined comes from its module now.
                    self._unload_inside(full_name)
                loaded = self._load(kind, full_name, digest, files)
            return list(loaded.classes.values())

    def unload(self, name: str) -> None:
        """Drop a loaded package: a top-level module, or a "module.Class" by value."""
        with self._lock:
            loaded = self._loaded.pop(name, None)
            if loaded is None:
                return
            rebuild.forget_named(loaded.named)
            if loaded.finder is not None:
                loaded.finder.remove()

    def _unload_inside(self, module: str) -> None:
        for name in [n for n in self._loaded if n.startswith(f"{module}.")]:
            self.unload(name)

    def class_of(self, class_name: str, digest: bytes) -> type:
        """Return a class of the revision `digest`, loading its package where needed.

        Raises:
            ClassNotFoundError: the package is not here, or has no such class.
            RequirementError: it imports a module that is not installed here.
            InvalidRequestError: it cannot be imported; names file and line.
        """
        loaded = self._package_of(class_name)
        if loaded is not None and loaded.digest == digest:
            found = loaded.classes.get(class_name)
            if found is not None:
                return found
        with self._lock:
            archive = self._archives.get(digest)
            if archive is None:
                raise ClassNotFoundError(class_name, self._known())
            kind, name, full_name, _ = _open_archive(archive)
            self.load(kind, name, digest, archive)
            found = self._find_in(self._loaded[full_name], class_name)
        if found is None:
            raise ClassNotFoundError(class_name, self._known())
        return found

    def find_class(self, class_name: str) -> type | None:
        """Return a class of a loaded package, None where there is none."""
        with self._lock:
            loaded = self._package_of(class_name)
            if loaded is not None:
                return self._find_in(loaded, class_name)
            for other in self._loaded.values():
                if class_name in other.classes:  # A helper of another class by value.
                    return other.classes[class_name]
        return None

    def revision_of(self, class_name: str) -> bytes:
        """Return the digest of the loaded package that defines a class.

        Raises:
            ClassNotFoundError: none does.
        """
        with self._lock:
            loaded = self._package_of(class_name)
            if loaded is None:
                for other in self._loaded.values():
                    if class_name in other.classes:
                        return other.digest
                raise ClassNotFoundError(class_name, self._known())
            return loaded.digest

    def is_by_value(self, class_name: str) -> bool:
        """Return whether a class came by value."""
        loaded = self._package_of(class_name)
        return loaded is not None and loaded.kind == VALUE

    # -- loading -----------------------------------------------------------------------

    def _package_of(self, class_name: str) -> _Loaded | None:
        by_value = self._loaded.get(class_name)
        if by_value is not None:
            return by_value
        return self._loaded.get(class_name.partition(".")[0])

    def _known(self) -> tuple[str, ...]:
        return tuple(sorted(n for one in self._loaded.values() for n in one.classes))

    def _load(
        self, kind: str, full_name: str, digest: bytes, files: zipfile.ZipFile
    ) -> _Loaded:
        if kind == VALUE:
            loaded = _load_value(full_name, digest, files)
        else:
            loaded = _load_source(full_name, digest, files)
        self._loaded[full_name] = loaded
        return loaded

    @staticmethod
    def _find_in(loaded: _Loaded, class_name: str) -> type | None:
        """Return a class, importing the module that its name says."""
        found = loaded.classes.get(class_name)
        if found is not None or loaded.finder is None:
            return found
        module = loaded.finder.module_in(class_name)
        if module is None:
            return None
        _import_module(loaded, module)
        value: Any = sys.modules[module]
        for part in class_name[len(module) + 1 :].split("."):
            value = getattr(value, part, None)
        if isinstance(value, type) and class_name_of(value) == class_name:
            loaded.classes[class_name] = value
            return value
        return None


def _open_archive(archive: bytes) -> tuple[str, str, str, zipfile.ZipFile]:
    """Return kind, name, full name and files of an archive."""
    try:
        files = zipfile.ZipFile(io.BytesIO(archive))
        kind, name, full_name = files.read(MANIFEST).decode().splitlines()
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise InvalidRequestError(
            f"cannot be read: {error}", "package archive"
        ) from None
    if kind not in (SOURCE, VALUE):
        raise InvalidRequestError(f"is of unknown kind {kind!r}", "package archive")
    return kind, name, full_name, files


def _load_value(full_name: str, digest: bytes, files: zipfile.ZipFile) -> _Loaded:
    loaded = _Loaded(VALUE, full_name, digest, None)
    try:
        found = pickles.unpickle(files.read(VALUE_FILE))
        main, classes = found["class"], found["classes"]
    except Exception as error:
        raise _import_error(full_name, "", error) from error
    if class_name_of(main) != full_name:
        raise InvalidRequestError(
            f"the archive defines {class_name_of(main)}", full_name
        )
    loaded.named = list(classes)
    rebuild.remember_named(loaded.named)
    for cls in (main, *classes):
        if issubclass(cls, ActiveObject):
            loaded.classes[class_name_of(cls)] = cls
    return loaded


def _load_source(name: str, digest: bytes, files: zipfile.ZipFile) -> _Loaded:
    refuse_reserved(name)
    finder = _ArchiveFinder(name, digest, files)
    loaded = _Loaded(SOURCE, name, digest, finder)
    finder.install()
    try:
        for module in finder.modules_with_classes():
            _import_module(loaded, module)
    except BaseException:
        finder.remove()
        raise
    for imported in finder.imported():
        for value in list(vars(imported).values()):
            _note_classes(loaded, imported.__name__, value)
    return loaded


def _note_classes(loaded: _Loaded, module: str, value: object) -> None:
    """Note an ActiveObject class defined in `module`, and those inside a class."""
    if not isinstance(value, type) or value.__module__ != module:
        return
    if issubclass(value, ActiveObject) and "<locals>" not in value.__qualname__:
        loaded.classes[class_name_of(value)] = value
    for inner in list(vars(value).values()):
        if isinstance(inner, type) and inner.__qualname__.startswith(
            f"{value.__qualname__}."
        ):
            _note_classes(loaded, module, inner)


def _import_module(loaded: _Loaded, module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        raise _import_error(module, loaded.name, error) from error
    except SystemExit as error:
        raise InvalidRequestError("importing it called sys.exit()", module) from error


def _import_error(module: str, package: str, error: Exception) -> ActiveStoreError:
    """Return what to tell the publisher about an import that failed."""
    if isinstance(error, ActiveStoreError):
        return error
    if isinstance(error, ModuleNotFoundError):
        missing = error.name or str(error)
        if missing.partition(".")[0] != package:
            return RequirementError(module, (missing,))
    if isinstance(error, SyntaxError):
        where = f"{_plain_name(error.filename or module)}:{error.lineno}"
        return InvalidRequestError(f"{type(error).__name__}: {error.msg}", where)
    where = module
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(_FILE_PREFIX):
            where = f"{_plain_name(frame.filename)}:{frame.lineno}"
    return InvalidRequestError(
        f"importing it raised {type(error).__name__}: {error}", where
    )


# -- modules out of an archive
# -----------------------------------------------------------

# What tracebacks show as the file. linecache skips names in <>, hence no > at the end.
_FILE_PREFIX = "<published "


def _plain_name(filename: str) -> str:
    return (
        filename.rpartition("> ")[2] if filename.startswith(_FILE_PREFIX) else filename
    )


class _Reader(TraversableResources):
    """Data files of a package, for importlib.resources."""

    def __init__(self, files: zipfile.ZipFile, inside: str) -> None:
        self._files = files
        self._inside = inside

    def files(self) -> Any:
        """Return the package's directory inside the archive."""
        return zipfile.Path(self._files, self._inside)


class _ArchiveFinder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules of one package."""

    def __init__(self, name: str, digest: bytes, files: zipfile.ZipFile) -> None:
        self._name = name
        self._files = files
        self._label = f"{_FILE_PREFIX}{name} {digest.hex()[:8]}> "
        self._members = frozenset(files.namelist())

    def install(self) -> None:
        """Serve the package's modules from now on; others of that name are dropped."""
        self._drop_modules()
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Serve nothing any more, and drop what was imported."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self._drop_modules()
        for filename in [f for f in linecache.cache if f.startswith(self._label)]:
            del linecache.cache[filename]

    def _drop_modules(self) -> None:
        inside = f"{self._name}."
        for module in [
            m for m in sys.modules if m == self._name or m.startswith(inside)
        ]:
            del sys.modules[module]

    def imported(self) -> list[types.ModuleType]:
        """Return the package's modules that are imported, by name."""
        inside = f"{self._name}."
        return [
            sys.modules[module]
            for module in sorted(sys.modules)
            if module == self._name or module.startswith(inside)
        ]

    def modules_with_classes(self) -> Sequence[str]:
        """Return the top-level module and those that seem to define active classes."""
        found = [self._name]
        for member in sorted(self._members):
            if not member.endswith(".py") or member.endswith("__main__.py"):
                continue
            module = member[:-3].removesuffix("/__init__").replace("/", ".")
            source = self._files.read(member)
            if module != self._name and (
                b"ActiveObject" in source or b"activemethod" in source
            ):
                found.append(module)
        return found

    def module_in(self, class_name: str) -> str | None:
        """Return the longest prefix of a class's name that is a module here."""
        module = class_name.rpartition(".")[0]
        while module and self._member_of(module) is None:
            module = module.rpartition(".")[0]
        return module or None

    def _member_of(self, module: str) -> str | None:
        """Return the file of a module, its directory where it has no file, or None."""
        base = module.replace(".", "/")
        for member in (f"{base}/__init__.py", f"{base}.py"):
            if member in self._members:
                return member
        is_directory = any(member.startswith(f"{base}/") for member in self._members)
        return f"{base}/" if is_directory else None

    # The protocol of finders and loaders.

    def find_spec(
        self, fullname: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != self._name:
            return None
        member = self._member_of(fullname)
        if member is None:
            return None
        return importlib.util.spec_from_loader(
            fullname,
            self,
            origin=self._label + member,
            is_package=self.is_package(fullname),
        )

    def is_package(self, fullname: str) -> bool:
        member = self._member_of(fullname) or ""
        return member.endswith(("/", "/__init__.py"))

    def get_source(self, fullname: str) -> str | None:
        member = self._member_of(fullname)
        if member is None:
            raise ImportError(f"no module {fullname}", name=fullname)
        return "" if member.endswith("/") else self._decode(member)

    def _decode(self, member: str) -> str:
        return importlib.util.decode_source(self._files.read(member))

    def get_code(self, fullname: str) -> types.CodeType | None:
        source = self.get_source(fullname) or ""
        filename = self._label + (self._member_of(fullname) or "")
        # So that tracebacks and inspect.getsource show the lines; None: never stale.
        lines = source.splitlines(keepends=True)
        linecache.cache[filename] = (len(source), None, lines, filename)
        return compile(source, filename, "exec", dont_inherit=True)

    def get_resource_reader(self, fullname: str) -> TraversableResources | None:
        if not self.is_package(fullname):
            return None
        return _Reader(self._files, f"{fullname.replace('.', '/')}/")
