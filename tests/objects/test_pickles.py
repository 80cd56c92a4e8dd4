"""Picklers let go of what they pickled."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from activestore.objects import pickles


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Leave only reference counts: memory is free when its last user is."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("by_value", [False, True])
def test_memory_of_a_pickle_is_free_when_its_buffers_are(by_value: bool) -> None:
    weights = np.zeros(100_000)
    watched = weakref.ref(weights)
    kept = pickles.dump({"w": weights}, ref_of=lambda _: None, by_value=by_value)
    assert [view.nbytes for view in kept.buffers] == [800_000]

    del kept, weights

    assert watched() is None, "something keeps it until the next garbage collection"


def test_memory_of_a_refused_pickle_is_free() -> None:
    weights = np.zeros(100_000)
    watched = weakref.ref(weights)
    with pytest.raises(pickles.PICKLE_ERRORS):
        pickles.dump([weights, threading.Lock()], ref_of=lambda _: None)

    del weights

    assert watched() is None
