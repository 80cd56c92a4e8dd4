"""The classes that are published here: their latest revisions, and what they need.

Rules of this file: a view of what storage holds, kept in memory; it changes only after
a publish is durable. It never runs a class's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from activestore.core.calls import MethodInfo
from activestore.core.events import ClassPublished
from activestore.errors import ClassNotFoundError, RequirementError
from activestore.model import DURABILITIES
from activestore.objects.requirements import missing_requirements
from activestore.storage.engine import ClassRecord
from activestore.wire import values


class Classes:
    """Latest revisions by class name."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self._resources = resources
        self._records: dict[str, ClassRecord] = {}
        self._interfaces: dict[str, Mapping[str, Any]] = {}
        self._missing: dict[str, RequirementError | None] = {}
        # Called with what a class requires that is new here.
        self.on_required: Callable[[Sequence[str]], None] = lambda requires: None
        # Called with every record that becomes the latest.
        self.on_added: Callable[[ClassRecord], None] = lambda record: None

    def add(self, record: ClassRecord) -> ClassPublished:
        """Make `record` the latest revision; return the event that tells the core."""
        name = record.class_name
        interface: Any = values.decode(record.interface)
        self._records[name] = record
        self._interfaces[name] = interface
        self._missing.pop(name, None)
        self.on_added(record)
        if interface["requires"]:
            self.on_required(interface["requires"])
        methods = {
            method: MethodInfo(
                bool(about["readonly"]),
                bool(about["stream"]),
                float(about["timeout_s"]),
            )
            for method, about in interface["methods"].items()
        }
        return ClassPublished(
            name, record.revision, interface.get("package") or package_of(name),
            self.durability_of(name),
            frozenset(interface["fields"]), methods,
        )  # fmt: skip

    def names(self) -> tuple[str, ...]:
        """Return the names of all published classes, sorted."""
        return tuple(sorted(self._records))

    def revision_of(self, class_name: str) -> bytes | None:
        """Return the latest revision of a class, None where it is not published."""
        record = self._records.get(class_name)
        return None if record is None else record.revision

    def record_of(self, class_name: str) -> ClassRecord:
        """Return the latest record of a class.

        Raises:
            ClassNotFoundError: it is not published here.
        """
        record = self._records.get(class_name)
        if record is None:
            raise ClassNotFoundError(class_name, self.names())
        return record

    def records(self) -> Sequence[ClassRecord]:
        """Return the latest records of all classes, by name."""
        return [self._records[name] for name in self.names()]

    def interface_of(self, class_name: str) -> Mapping[str, Any]:
        """Return the published interface of a class as a map.

        Raises:
            ClassNotFoundError: it is not published here.
        """
        self.record_of(class_name)
        return self._interfaces[class_name]

    def durability_of(self, class_name: str) -> int:
        """Return the durability of a class as the number that the core uses."""
        interface = self._interfaces.get(class_name)
        return 0 if interface is None else DURABILITIES.index(interface["durability"])

    def missing_for(self, class_name: str) -> RequirementError | None:
        """Return why the class cannot run here, None where it can or is not known."""
        interface = self._interfaces.get(class_name)
        if interface is None:
            return None
        if class_name not in self._missing:
            missing = self.lacking(interface["requires"], interface["resources"])
            self._missing[class_name] = (
                RequirementError(class_name, missing) if missing else None
            )
        return self._missing[class_name]

    def lacking(
        self, requires: Sequence[str], resources: Mapping[str, float]
    ) -> tuple[str, ...]:
        """Return what of these needs this peer does not have, in words."""
        return (*missing_requirements(requires), *self._missing_resources(resources))

    def _missing_resources(self, needed: Mapping[str, float]) -> list[str]:
        has = self._resources
        return [
            f"{name}: {amount:g} (here {has.get(name, 0.0):g})"
            for name, amount in needed.items()
            if has.get(name, 0.0) < amount
        ]


def package_of(class_name: str) -> str:
    """Return what is loaded and replaced as one: a top-level module, or a class by value."""
    top = class_name.partition(".")[0]
    return class_name if top == "__main__" else top
