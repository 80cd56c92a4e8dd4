"""Two bounds on time: silence of the peer, and a deadline somebody set.

Source: design section 5 ("Two different bounds").
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from activestore.errors import UnavailableError

pytestmark = [pytest.mark.net, pytest.mark.slow]


@pytest.mark.timeout(40)
def test_method_longer_than_the_silence_bound_returns(peer, store):
    """Beats say that the call still runs."""
    rogue = peer.connect(timeout_s=3.0).create("models.Rogue")

    assert rogue.block(12.0) == "slept"


@pytest.mark.soak
@pytest.mark.timeout(150)
def test_method_of_ninety_seconds_returns_to_a_client_with_five(peer, store):
    rogue = peer.connect(timeout_s=5.0).create("models.Rogue")

    assert rogue.block(90.0) == "slept"


@pytest.mark.timeout(40)
def test_stopped_peer_is_reported_within_the_silence_bound(peer, store):
    counter = peer.connect(timeout_s=5.0).create("models.Counter")
    assert counter.add(1) == 1

    peer.send(signal.SIGSTOP)
    started_s = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        counter.add(1)
    waited_s = time.monotonic() - started_s
    peer.send(signal.SIGCONT)

    assert 4.9 <= waited_s <= 6.0
    assert peer.endpoint in str(caught.value)


@pytest.mark.timeout(40)
def test_stopped_peer_is_reported_during_a_long_method(peer, store):
    """The bound counts from the last beat, not from the call."""
    rogue = peer.connect(timeout_s=3.0).create("models.Rogue")
    future = rogue.block.submit(60.0)
    time.sleep(2.2)

    peer.send(signal.SIGSTOP)
    started_s = time.monotonic()
    with pytest.raises(UnavailableError):
        future.result(timeout=20)
    waited_s = time.monotonic() - started_s
    peer.send(signal.SIGCONT)

    assert waited_s <= 4.0


@pytest.mark.timeout(40)
def test_peer_that_was_stopped_for_less_than_the_bound_answers(peer, store):
    counter = peer.connect(timeout_s=5.0).create("models.Counter")

    peer.send(signal.SIGSTOP)
    future = counter.add.submit(1)
    time.sleep(1.5)
    peer.send(signal.SIGCONT)

    assert future.result(timeout=10) == 1
    assert counter.add(1) == 2


@pytest.mark.timeout(40)
def test_killed_peer_is_reported_within_the_silence_bound(peer, store):
    counter = peer.connect(timeout_s=2.0).create("models.Counter")

    peer.kill()
    started_s = time.monotonic()
    with pytest.raises(UnavailableError):
        counter.add(1)

    assert time.monotonic() - started_s <= 3.0


@pytest.mark.timeout(40)
def test_connect_to_nobody_fails_within_its_timeout(peer):
    peer.kill()

    started_s = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        peer.connect(timeout_s=1.0)

    assert time.monotonic() - started_s <= 2.0
    assert peer.endpoint in str(caught.value)


@pytest.mark.timeout(60)
def test_stop_in_order_lets_running_calls_end(peer, store):
    """SIGTERM drains: what runs is answered and kept, what is new is refused."""
    rogue = store.create("models.Rogue", alias="r")
    future = rogue.work.submit(1.0)
    time.sleep(0.2)

    status = peer.stop()

    assert status == 0
    rounds = future.result(timeout=5)
    peer.start()
    assert peer.connect().get("r").peek() == rounds


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_whole_group_drains_too(peer, store, number):
    """Ctrl-C in a terminal and a service manager's stop reach the executors as well."""
    rogue = store.create("models.Rogue", alias="r")
    future = rogue.work.submit(1.0)
    time.sleep(0.3)
    executors = peer.executors()

    os.killpg(peer.pid, number)

    assert future.result(timeout=10) >= 1
    assert peer.wait() == 0
    assert len(executors) == 2
