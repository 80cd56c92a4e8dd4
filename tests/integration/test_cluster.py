"""Several real peers: they find each other, and calls find their objects.

Source: design sections 5 and 7.
"""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(60)]


def test_peers_that_join_one_know_all(cluster):
    _, stores = cluster(4)

    names = {row["peer"] for row in stores[3].peers()}

    assert names == {f"peer-{n}" for n in range(4)}


def test_call_of_an_object_at_another_peer_is_forwarded(cluster, models_file):
    _, (here, there) = cluster(2)
    there.publish(models_file)
    counter = there.create("models.Counter", 5)
    object_id = repr(counter).split()[-1].rstrip(">")

    same = here.get(object_id)

    assert same.add(2) == 7
    assert counter.peek() == 7
    same.value = 9
    assert counter.value == 9
