"""Classes that ask much of a machine, or little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from activestore import ActiveObject, activemethod


class Modest(ActiveObject):
    """Runs everywhere."""

    resources: ClassVar[Mapping[str, float]] = {"cpus": 1, "memory_mb": 1}

    @activemethod(readonly=True)
    def where(self) -> str:
        return "here"


class Greedy(Modest):
    """Runs nowhere."""

    resources: ClassVar[Mapping[str, float]] = {"memory_mb": 1e12, "quantum_cores": 2}
