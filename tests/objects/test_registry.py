"""Published code: packed the same each time, loaded in a process that lacks it."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from activestore.errors import (
    ClassNotFoundError,
    InvalidRequestError,
    RequirementError,
    TooLargeError,
)
from activestore.objects.registry import (
    Package,
    PackageLoader,
    describe,
    missing_requirements,
    pack_source,
)

PACKAGE = {
    "__init__.py": "",
    "model.py": (
        "from activestore import ActiveObject, activemethod\n"
        "from .sub.helper import double\n"
        "class Counter(ActiveObject):\n"
        "    value: int\n"
        "    @activemethod\n"
        "    def add(self, n: int) -> int:\n"
        '        "Add."\n'
        "        return double(n)\n"
        "    @activemethod\n"
        "    def fail(self):\n"
        "        raise ValueError('on purpose')  # the line shown\n"
        "    class Inner(ActiveObject):\n"
        "        x: int\n"
    ),
    "sub/__init__.py": "",
    "sub/helper.py": "def double(n):\n    return 2 * n\n",
    "lazy.py": "raise RuntimeError('nobody asked for it')\n",
    "data/words.txt": "hello\n",
    "__pycache__/junk.py": "",
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def loader() -> Iterator[PackageLoader]:
    made = PackageLoader()
    yield made
    for name in ("shop", "solo", "colorsys2"):
        made.unload(name)
    assert not [m for m in sys.modules if m.partition(".")[0] in ("shop", "solo")]


def load(loader: PackageLoader, package: Package) -> list[type]:
    return loader.load(*package)


def solo(tmp_path: Path, text: str) -> Package:
    path = tmp_path / "solo.py"
    path.write_text(text)
    return pack_source(path)


BASE = "from activestore import ActiveObject\n"


def test_a_package_loads_with_its_relative_imports_and_data(
    tmp_path: Path, loader: PackageLoader
) -> None:
    root = write(tmp_path / "shop", PACKAGE)

    classes = load(loader, pack_source(root, data_files=["data/*"]))

    names = [f"{c.__module__}.{c.__qualname__}" for c in classes]
    assert names == ["shop.model.Counter", "shop.model.Counter.Inner"]
    assert classes[0]().add(4) == 8
    import importlib.resources

    files = importlib.resources.files("shop")
    assert (files / "data" / "words.txt").read_text() == "hello\n"


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    one = pack_source(write(tmp_path / "a" / "shop", PACKAGE))
    other = pack_source(write(tmp_path / "b" / "shop", PACKAGE) / "sub" / "helper.py")
    changed = pack_source(write(tmp_path / "c" / "shop", {**PACKAGE, "lazy.py": ""}))

    assert one == other
    assert one.digest != changed.digest
    assert len(one.digest) == 16


def test_a_module_is_found_by_name_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"solo.py": "raise SystemExit('imported')"})
    monkeypatch.syspath_prepend(str(tmp_path))

    package = pack_source("solo")

    assert package[:2] == ("source", "solo")
    assert package == pack_source(tmp_path / "solo.py")


def test_tracebacks_show_published_lines(tmp_path: Path, loader: PackageLoader) -> None:
    classes = load(loader, pack_source(write(tmp_path / "shop", PACKAGE)))

    with pytest.raises(ValueError, match="on purpose") as raised:
        classes[0]().fail()

    assert "# the line shown" in "".join(traceback.format_exception(raised.value))


def test_a_new_revision_replaces_the_old(tmp_path: Path, loader: PackageLoader) -> None:
    old = solo(tmp_path, BASE + "class A(ActiveObject):\n    n = 1\n")
    new = solo(tmp_path, BASE + "class A(ActiveObject):\n    n = 2\n")
    load(loader, old)
    loader.add(new.digest, new.archive)

    found = loader.class_of("solo.A", new.digest)

    assert found.n == 2  # type: ignore[attr-defined]
    assert loader.find_class("solo.A") is found
    assert loader.revision_of("solo.A") == new.digest
    assert loader.class_of("solo.A", old.digest).n == 1  # type: ignore[attr-defined]


def test_published_code_wins_against_an_installed_module(
    tmp_path: Path, loader: PackageLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = solo(tmp_path, BASE + "class A(ActiveObject):\n    where = 'published'\n")
    write(tmp_path / "site", {"solo.py": "where = 'installed'\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    import solo as installed  # type: ignore[import-not-found]

    assert installed.where == "installed"
    assert load(loader, package)[0].where == "published"  # type: ignore[attr-defined]


def test_imported_classes_are_not_published_again(
    tmp_path: Path, loader: PackageLoader
) -> None:
    package = solo(
        tmp_path, BASE + "class A(ActiveObject):\n    pass\nB = ActiveObject\n"
    )

    assert [c.__name__ for c in load(loader, package)] == ["A"]


def test_a_missing_third_party_module_is_a_requirement(
    tmp_path: Path, loader: PackageLoader
) -> None:
    package = solo(tmp_path, "import nowhere_lib.deep\n")

    with pytest.raises(RequirementError) as raised:
        load(loader, package)

    assert raised.value.class_name == "solo"
    assert raised.value.missing == ("nowhere_lib",)
    assert "solo" not in sys.modules


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("x = 1\ndef f(:\n", "solo.py:2", "SyntaxError"),
        ("x = 1\n\ny = x / 0\n", "solo.py:3", "ZeroDivisionError"),
        ("import sys\nsys.exit(1)\n", "solo", "sys.exit"),
    ],
)
def test_code_that_cannot_be_imported_says_where(
    tmp_path: Path, loader: PackageLoader, text: str, where: str, reason: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        load(loader, solo(tmp_path, text))

    assert raised.value.where == where
    assert reason in raised.value.reason
    assert not any("solo" in str(finder) for finder in sys.meta_path)


@pytest.mark.parametrize("name", ["json", "activestore", "not-a-name"])
def test_reserved_names_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text("")

    with pytest.raises(InvalidRequestError):
        pack_source(path)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    for what in (
        "no_such_module_anywhere",
        tmp_path / "gone.py",
        "numpy.core._x.so.py",
    ):
        with pytest.raises(InvalidRequestError):
            pack_source(what)


def test_over_16_mib_is_too_large(tmp_path: Path) -> None:
    write(tmp_path / "shop", PACKAGE)
    (tmp_path / "shop" / "model.bin").write_bytes(bytes(17 * 1024 * 1024))

    with pytest.raises(TooLargeError):
        pack_source(tmp_path / "shop", data_files=["*.bin"])


def test_a_damaged_archive_is_refused(tmp_path: Path, loader: PackageLoader) -> None:
    package = solo(tmp_path, "")

    with pytest.raises(InvalidRequestError, match="digest"):
        loader.add(package.digest, package.archive[:-1])


def test_an_unknown_class_or_revision_is_not_found(
    tmp_path: Path, loader: PackageLoader
) -> None:
    package = solo(tmp_path, BASE + "class A(ActiveObject):\n    pass\n")
    load(loader, package)

    for name, digest in (("solo.B", package.digest), ("solo.A", b"x" * 16)):
        with pytest.raises(ClassNotFoundError):
            loader.class_of(name, digest)
    assert loader.find_class("other.C") is None


def test_interfaces_are_described(tmp_path: Path, loader: PackageLoader) -> None:
    classes = load(loader, pack_source(write(tmp_path / "shop", PACKAGE)))

    first = describe(classes)[0]

    assert first["class_name"] == "shop.model.Counter"
    assert first["methods"]["add"]["doc"] == "Add."
    assert first["fields"] == {"value": "int"}


def test_requirements_that_are_missing_here_are_named() -> None:
    requires = (
        "numpy>=1.0", "numpy>=999", "nowhere-lib", "nowhere-lib; python_version < '3'",
        "pytest", "nowhere[extra]>1",
    )  # fmt: skip

    missing = missing_requirements(requires)

    assert missing == ["numpy>=999", "nowhere-lib", "nowhere[extra]>1"]
    with pytest.raises(InvalidRequestError):
        missing_requirements(["no == = way"])


# -- by value, from one process to another
# -----------------------------------------------------

SCRIPT = """
import sys, enum
from pathlib import Path
from activestore import ActiveObject, activemethod
from activestore.objects.registry import pack_value
from activestore.objects.snapshot import Snapshotter
from activestore.wire.state import NamedState, encode_states

class Color(enum.Enum):
    RED = 1

class Layer:
    def __init__(self, n): self.n = n

def scale(n):
    return 10 * n

class Counter(ActiveObject):
    layers: list
    color: object
    def __init__(self): self.layers = [Layer(1)]; self.color = Color.RED
    @activemethod
    def add(self, n):
        self.layers.append(Layer(scale(n)))
        return all(type(l) is Layer for l in self.layers) and self.color is Color.RED

package = pack_value(Counter)
state, _ = Snapshotter(Counter, class_name="script.Counter", revision=package.digest,
    class_version=0, ref_of=lambda o: None, resolve=None, by_value=True).take(Counter())
out = Path(sys.argv[1])
(out / "archive").write_bytes(package.archive)
(out / "digest").write_bytes(package.digest)
(out / "state").write_bytes(encode_states([NamedState(b"0" * 16, "", state)])[0])
"""

EXECUTOR = """
import sys
from pathlib import Path
from activestore.objects.registry import PackageLoader
from activestore.objects.snapshot import Snapshotter
from activestore.wire.state import NamedState, apply_delta, decode_states, encode_states

out = Path(sys.argv[1])
loader = PackageLoader()
digest = (out / "digest").read_bytes()
loader.add(digest, (out / "archive").read_bytes())
cls = loader.class_of("script.Counter", digest)
assert loader.is_by_value("script.Counter")
(named,) = decode_states((out / "state").read_bytes(), [])
taker = Snapshotter(cls, class_name="script.Counter", revision=digest,
    class_version=0, ref_of=lambda o: None, resolve=None, by_value=True)
obj = cls.__new__(cls)
before = taker.load(obj, named.state)
assert taker.changes(obj, before) is None
assert obj.add(3), [type(l) for l in obj.layers]
delta, _ = taker.changes(obj, before)
state = apply_delta(named.state, delta)
(out / "state").write_bytes(encode_states([named._replace(state=state)])[0])
print(len(obj.layers), obj.layers[-1].n)
"""


def run(code: str, argument: Path, cwd: Path) -> str:
    script = cwd / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(argument)],
        capture_output=True, text=True, check=False, env={"PYTHONPATH":
        ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_class_of_main_survives_restarts_of_its_executor(tmp_path: Path) -> None:
    """Helper classes of the script keep their identity in every fresh process."""
    run(SCRIPT, tmp_path, tmp_path)
    first = run(EXECUTOR, tmp_path, tmp_path)
    second = run(EXECUTOR, tmp_path, tmp_path)

    assert (first, second) == ("2 30\n", "3 30\n")


@pytest.mark.slow
def test_the_same_script_gives_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for _ in range(2):
        run(SCRIPT, tmp_path, tmp_path)
        digests.add((tmp_path / "digest").read_bytes())

    assert len(digests) == 1
