"""What every test of the core begins with."""

from __future__ import annotations

import pytest

from activestore.core import events
from tests.core.stage import OBJECT, Stage


@pytest.fixture
def stage() -> Stage:
    """One executor with two slots, ready."""
    return Stage()


@pytest.fixture
def led(stage: Stage) -> Stage:
    """A stage on which this peer leads OBJECT, which has copies elsewhere."""
    stage.step(events.ObjectLed(OBJECT))
    return stage
