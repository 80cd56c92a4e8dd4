"""What every test of the core begins with."""

from __future__ import annotations

import pytest

from tests.core.stage import Stage


@pytest.fixture
def stage() -> Stage:
    """One executor with two slots, ready."""
    return Stage()
