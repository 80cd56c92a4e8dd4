"""Membership step by step: what one peer concludes from what it hears, and when."""

from __future__ import annotations

import pytest

from activestore.core.cluster_effects import (
    HintsHeard,
    SendTo,
)
from activestore.core.cluster_events import (
    Joined,
    Lagged,
    LinkLost,
    MessageArrived,
    RecordChanged,
    TimerFired,
)
from activestore.core.membership import MembershipConfig
from activestore.core.peers import PeerState
from activestore.wire.gossip import (
    GOSSIP_BODY_BYTES_MAX,
    GOSSIP_BYTES_MAX,
    INCARNATION_MAX,
    Hint,
    Update,
    encode_body,
    encode_records,
    encode_update,
)
from activestore.wire.messages import Ack, Gossip, Nack, Probe, ProbeFor, Sync, Synced
from tests.core.alone import Alone, changes, notes, sent, told, troubles
from tests.core.cluster_world import ClusterWorld, peer_id_of, record_of

ME, A, B, C = (peer_id_of(n) for n in range(4))


# -- states ---------------------------------------------------------------------------


def test_unknown_to_alive_on_record() -> None:
    alone = Alone()

    effects = alone.hear(Update(A, 1, PeerState.ALIVE, record_of(1)))

    assert changes(effects) == [(A, None, PeerState.ALIVE)]
    assert {r.peer_id for r in alone.core.live()} == {ME, A}


def test_alive_to_suspect_at_once_and_to_dead_later() -> None:
    alone = Alone(1, 2, 3, 4, 5, 6, 7, 8, 9)

    effects = alone.hear(Update(B, 1, PeerState.SUSPECT, None, C))
    assert changes(effects) == [(B, PeerState.ALIVE, PeerState.SUSPECT)]
    assert B in {r.peer_id for r in alone.core.live()}

    for number in (4, 5):
        alone.hear(Update(B, 1, PeerState.SUSPECT, None, peer_id_of(number)))
    for number in range(1, 10):
        if number != 2:
            alone.core.members[peer_id_of(number)].heard_s = 0.0
    effects = alone.fire_until(4.5)
    assert (B, PeerState.SUSPECT, PeerState.DEAD) in changes(effects)
    assert B not in {r.peer_id for r in alone.core.live()}


@pytest.mark.parametrize("state", [PeerState.SUSPECT, PeerState.DEAD, PeerState.LEFT])
def test_worse_state_at_a_lower_incarnation_is_old_news(state: PeerState) -> None:
    alone = Alone(1)
    alone.hear(Update(A, 5, PeerState.ALIVE, record_of(1)))

    effects = alone.hear(Update(A, 4, state))

    assert changes(effects) == []
    assert alone.core.state_of(A) is PeerState.ALIVE


@pytest.mark.parametrize("state", [PeerState.SUSPECT, PeerState.DEAD, PeerState.LEFT])
def test_only_a_higher_incarnation_brings_a_peer_back(state: PeerState) -> None:
    alone = Alone(1, 2)
    alone.hear(Update(B, 1, state))

    alone.hear(Update(B, 1, PeerState.ALIVE, record_of(2)))
    assert alone.core.state_of(B) is state
    effects = alone.hear(Update(B, 2, PeerState.ALIVE, record_of(2)))

    assert changes(effects) == [(B, state, PeerState.ALIVE)]


def test_suspect_without_record_of_an_unknown_peer_is_not_taken() -> None:
    alone = Alone(1)

    for state in PeerState:
        alone.hear(Update(C, 4, state))
    alone.hear(Update(C, 4, PeerState.DEAD, record_of(3)))

    assert alone.core.state_of(C) is None


def test_version_moves_with_the_live_set_and_not_with_load() -> None:
    alone = Alone(1)
    record, version = record_of(1), alone.core.version

    busy = record._replace(meta={**record.meta, "load": 0.9})
    alone.hear(Update(A, 2, PeerState.ALIVE, busy))
    assert alone.core.version == version
    assert alone.core.record_of(A).meta["load"] == 0.9
    assert busy.meta in [r.meta for r in alone.core.live()]
    alone.hear(Update(A, 2, PeerState.SUSPECT))
    assert alone.core.version == version
    alone.hear(Update(A, 3, PeerState.ALIVE, record._replace(endpoints=("tcp://b:1",))))
    assert alone.core.version == version + 1
    alone.hear(Update(A, 3, PeerState.LEFT))
    assert alone.core.version == version + 2


# -- refutation and this peer's own record ----------------------------------------------


@pytest.mark.parametrize("state", [PeerState.SUSPECT, PeerState.DEAD, PeerState.LEFT])
def test_suspicion_of_oneself_is_refuted_with_a_higher_incarnation(
    state: PeerState,
) -> None:
    """Source: SWIM section 4.2."""
    alone = Alone(1)

    alone.hear(Update(ME, 1, state, None, A))

    assert alone.core.me.incarnation == 2
    refutation = told(alone.until(Gossip, 1.0))
    assert (ME, 2, PeerState.ALIVE) in [u[:3] for u in refutation]


def test_old_suspicion_of_oneself_is_not_refuted_again() -> None:
    alone = Alone(1)
    alone.hear(Update(ME, 1, PeerState.SUSPECT))

    alone.hear(Update(ME, 1, PeerState.SUSPECT))

    assert alone.core.me.incarnation == 2


def test_suspect_is_told_so_in_its_probe_and_its_answer_refutes() -> None:
    """Source: Lifeguard, buddy system."""
    world = ClusterWorld(3)
    first, second = world.grow(2)
    world.run(10)
    world.step(first, MessageArrived(C, Gossip(C, None, encode_records(
        [Update(second.peer_id, second.core.me.incarnation, PeerState.SUSPECT, None, C)]
    ))))  # fmt: skip
    assert first.sees(second.peer_id) is PeerState.SUSPECT

    world.run(2.0)

    assert first.sees(second.peer_id) is PeerState.ALIVE
    assert second.core.me.incarnation == 2


def test_record_of_oneself_with_a_higher_incarnation_is_jumped_over() -> None:
    """After a restart one's own number may be far behind."""
    alone = Alone(1)
    old = record_of(0, endpoints=("tcp://10.0.0.9:1",))

    alone.hear(Update(ME, 40, PeerState.ALIVE, old))

    assert alone.core.me.incarnation == 41
    assert alone.core.me.endpoints == record_of(0).endpoints


def test_restarted_peer_is_the_same_peer_at_its_new_address() -> None:
    world = ClusterWorld(5)
    nodes = world.grow(5)
    world.run(10)
    world.kill(nodes[2])
    world.run(30)
    assert not any(nodes[2].peer_id in n.live for n in world.nodes.values())

    record = record_of(2, endpoints=("tcp://10.0.0.1:900",))
    world.add(record, join=nodes[0])

    world.run_until(world.is_converged, within_s=10)
    for node in world.nodes.values():
        assert node.core.record_of(record.peer_id).endpoints == record.endpoints


def test_copied_disk_is_told_and_the_two_do_not_outbid_each_other_for_ever() -> None:
    world = ClusterWorld(6)
    nodes = world.grow(4)
    world.run(10)

    copy = world.add(
        record_of(3, endpoints=("tcp://10.0.0.1:903",), meta={"start": b"two"}),
        join=nodes[0],
    )  # fmt: skip
    world.run(600)

    # As long as it goes on, which costs one message of each in half a minute.
    said = [text for text in nodes[3].notes + copy.notes if "is a copy" in text]
    assert 2 <= len(said) <= 2 * 600 / 30
    assert nodes[3].core.me.incarnation < 2 * 600 / 30 + 20


def test_last_incarnation_of_all_is_said_and_not_passed() -> None:
    alone = Alone(1)

    effects = alone.hear(Update(ME, INCARNATION_MAX, PeerState.DEAD))

    assert alone.core.me.incarnation == 1
    assert "last" in notes(effects)[0]


def test_changed_endpoint_is_told_at_once_and_load_rarely() -> None:
    alone = Alone(1)
    record = record_of(0)
    alone.step(RecordChanged(record._replace(endpoints=("tcp://c:1",))))
    assert alone.core.me.incarnation == 2

    for number in range(100):
        meta = {**record.meta, "load": number / 100}
        event = RecordChanged(record._replace(endpoints=("tcp://c:1",), meta=meta))
        alone.step(event, after_s=0.1)
    alone.fire_until(29.0)
    assert alone.core.me.incarnation == 2
    alone.fire_until(31.0)

    assert alone.core.me.incarnation == 3
    assert alone.core.me.meta["load"] == 0.99


def test_record_too_large_to_tell_is_said_and_not_taken() -> None:
    alone = Alone(1)
    record = record_of(0, meta={"installed": ["package"] * 200})

    effects = alone.step(RecordChanged(record))

    assert "cannot be told" in notes(effects)[0]
    assert alone.core.me == record_of(0)


# -- probes -----------------------------------------------------------------------------


def test_every_peer_is_probed_once_in_a_round_in_random_order() -> None:
    """Source: SWIM section 4.3."""
    alone = Alone(*range(1, 8))
    rounds = []
    for _ in range(4):
        targets = []
        while len(targets) < 7:
            (probe,) = alone.until(Probe)
            alone.step(MessageArrived(probe.peer_id, Ack(probe.message.token, A)))
            targets.append(probe.peer_id)
        rounds.append(targets)

    # The first round began while peers were still being added.
    assert all(len(set(targets)) == 7 for targets in rounds[1:])
    assert len({tuple(targets) for targets in rounds[1:]}) > 1


def test_silent_target_is_probed_through_three_others_and_then_suspected() -> None:
    alone = Alone(*range(1, 8))
    (probe,) = alone.until(Probe)
    start_s = alone.now_s

    requests = alone.until(ProbeFor)
    assert alone.now_s == pytest.approx(start_s + 0.5)
    assert len({r.peer_id for r in requests} - {probe.peer_id}) == 3
    for request in requests:
        alone.step(MessageArrived(request.peer_id, Nack(request.message.token, A)))
    effects = alone.fire_until(start_s + 1.0)

    assert (probe.peer_id, PeerState.ALIVE, PeerState.SUSPECT) in changes(effects)
    assert alone.core.health == 0  # All helpers were well, and so is this peer.


def test_answer_through_a_helper_is_as_good() -> None:
    alone = Alone(*range(1, 8))
    (probe,) = alone.until(Probe)
    start_s = alone.now_s
    helper = alone.until(ProbeFor)[0]

    alone.step(MessageArrived(helper.peer_id, Ack(helper.message.token, A)))
    alone.fire_until(start_s + 1.1)

    assert alone.core.state_of(probe.peer_id) is PeerState.ALIVE


def test_answer_of_a_stranger_is_none() -> None:
    alone = Alone(*range(1, 8))
    (probe,) = alone.until(Probe)
    start_s = alone.now_s

    alone.step(MessageArrived(C + b"", Gossip(C)))
    stranger = peer_id_of(99)
    alone.step(MessageArrived(stranger, Ack(probe.message.token, stranger)))
    alone.fire_until(start_s + 1.0)

    assert alone.core.state_of(probe.peer_id) is PeerState.SUSPECT


def test_helper_probes_and_says_in_time_that_there_was_no_answer() -> None:
    alone = Alone(1, 2)

    effects = alone.step(MessageArrived(A, ProbeFor(77, B, A)))
    (probe,) = sent(effects, Probe)
    assert (probe.peer_id, probe.message.target) == (B, B)
    start_s = alone.now_s
    nack = alone.until(Nack)[0]
    assert alone.now_s == pytest.approx(start_s + 0.4)
    assert (nack.peer_id, nack.message.token) == (A, 77)
    effects = alone.step(MessageArrived(B, Ack(probe.message.token, B)))

    assert [(s.peer_id, s.message.token) for s in sent(effects, Ack)] == [(A, 77)]


def test_probe_meant_for_another_is_not_acknowledged() -> None:
    """Another peer may have the address of one that is gone."""
    alone = Alone(1)

    effects = alone.step(MessageArrived(A, Probe(5, B, A)))

    assert sent(effects, Ack) == []
    assert [s.message.token for s in sent(effects, Nack)] == [5]


def test_lost_link_is_looked_after_at_once() -> None:
    alone = Alone(1, 2, 3)

    effects = alone.step(LinkLost(B))

    assert [s.peer_id for s in sent(effects, Probe)] == [B]
    assert sent(alone.step(LinkLost(B)), Probe) == []
    alone.fire_until(alone.now_s + 1.0)
    assert alone.core.state_of(B) is PeerState.SUSPECT


def test_one_way_link_is_no_death_where_others_reach_the_peer() -> None:
    world = ClusterWorld(8)
    nodes = world.grow(8)
    world.run(20)

    world.blocked = lambda source, target: source is nodes[0] and target is nodes[1]
    world.run(300)

    assert world.deaths == []


# -- health -----------------------------------------------------------------------------


def test_peer_that_hears_nobody_doubts_itself() -> None:
    """Neither target nor helpers answer: the score rises, and probes last longer."""
    alone = Alone(*range(1, 8))

    alone.fire_until(4.0)
    assert alone.core.health >= 3
    (probe,) = alone.until(Probe)
    alone.step(MessageArrived(probe.peer_id, Ack(probe.message.token, A)))

    assert alone.core.health <= 6


@pytest.mark.parametrize("lag_s", [0.2, 0.3, 5.0])
def test_late_loop_counts_against_health_once(lag_s: float) -> None:
    alone = Alone()

    alone.step(Lagged(lag_s), after_s=lag_s)
    alone.step(Lagged(lag_s))

    assert alone.core.health == (1 if lag_s > 0.25 else 0)


def test_paused_peer_accuses_nobody_and_buries_nobody() -> None:
    """What it did not hear while it slept is no evidence."""
    world = ClusterWorld(9)
    nodes = world.grow(10)
    world.run(20)

    world.pause(nodes[4], 20.0)
    world.run(60)

    assert [death for death in world.deaths if death[2] == nodes[4].peer_id] == []
    assert world.is_converged()


def test_stretches_of_starvation_kill_nobody() -> None:
    """A quarter of the peers does nothing for 5 s again and again."""
    world = ClusterWorld(10, does_check=False)
    nodes = world.grow(20)
    world.run(20)

    for _ in range(10):
        for node in nodes[:5]:
            world.pause(node, 3.5)
        world.run(20)

    assert world.suspicions > 0
    assert world.deaths == []


# -- syncs and hints ----------------------------------------------------------------------


def test_sync_brings_what_is_newer_on_either_side_and_nothing_else() -> None:
    world = ClusterWorld(15)
    left, right = world.add(record_of(0)), world.add(record_of(1))
    for node, number, incarnation in (
        (left, 2, 5), (right, 2, 4), (left, 3, 4), (right, 3, 5), (left, 4, 7),
        (right, 5, 7), (left, 6, 2), (right, 6, 2),
    ):  # fmt: skip
        update = Update(
            peer_id_of(number), incarnation, PeerState.ALIVE, record_of(number)
        )
        body = encode_records([update])
        world.step(node, MessageArrived(C, Synced(C, None, body)))

    world.step(left, Joined([right.core.me]))
    world.run(0.02)

    for node in (left, right):
        known = {i: m.incarnation for i, m in node.core.members.items()}
        expected = dict(
            zip(map(peer_id_of, range(7)), (1, 1, 5, 5, 7, 7, 2), strict=True)
        )
        assert known == expected
    assert not [c for _, c in right.changes if c.peer_id == peer_id_of(6)][1:]


def test_death_in_a_sync_is_a_suspicion_and_the_dead_is_asked() -> None:
    """After a partition each side believes the other dead."""
    alone = Alone(1, 2)
    body = encode_records([Update(B, 1, PeerState.DEAD)])

    effects = alone.step(MessageArrived(A, Synced(A, None, body)))

    assert changes(effects) == [(B, PeerState.ALIVE, PeerState.SUSPECT)]
    (asked,) = sent(effects, Gossip)
    assert asked.peer_id == B
    assert told([asked])[0][:3] == (B, 1, PeerState.SUSPECT)


def test_hints_reach_everybody_who_tells_them_on() -> None:
    world = ClusterWorld(16)
    nodes = world.grow(20)
    world.run(20)
    hint = Hint(b"o" * 16, A, 3)
    heard = {nodes[0].address}
    nodes[0].core.tell_hint(hint, world.now_s)
    world._arm(nodes[0])

    for _ in range(100):
        world.run(0.05)
        for node in nodes:
            if node.address in heard:
                continue
            if any(isinstance(e, HintsHeard) and hint in e.hints for e in node.effects):
                heard.add(node.address)
                node.core.tell_hint(hint, world.now_s)
                world._arm(node)

    assert len(heard) == 20


def test_gossip_stays_within_its_bytes() -> None:
    alone = Alone(1)
    for number in range(2, 300):
        alone.hear(Update(peer_id_of(number), 1, PeerState.ALIVE, record_of(number)))
        alone.core.tell_hint(Hint(number.to_bytes(16, "big"), A, 1), alone.now_s)

    sizes = [
        len(e.message.body)
        for e in alone.fire_until(alone.now_s + 5.0)
        if isinstance(e, SendTo) and not isinstance(e.message, Sync)
    ]

    assert max(sizes) <= GOSSIP_BYTES_MAX
    assert max(sizes) > GOSSIP_BYTES_MAX / 2


def test_garbage_is_told_of_each_time_and_changes_nothing() -> None:
    alone = Alone(1)
    (probe,) = alone.until(Probe)

    effects = alone.step(MessageArrived(A, Gossip(A, None, b"\xc1\xff")))
    assert "malformed" in troubles(effects)[0]
    again = alone.step(MessageArrived(A, Sync(A, {"from": 5}, b"\xc1")))
    alone.step(MessageArrived(A, Ack(probe.message.token, A, None, b"\xc1")))

    assert "malformed" in troubles(again)[0]
    assert notes(effects + again) == []
    assert alone.core.state_of(A) is PeerState.ALIVE


# -- bounds -------------------------------------------------------------------------------


def test_tombstones_expire_and_are_told_of() -> None:
    alone = Alone(1, 2)
    alone.hear(Update(B, 1, PeerState.LEFT))
    assert alone.core.state_of(B) is PeerState.LEFT

    alone.fire_until(alone.now_s + 100.0)
    assert alone.core.state_of(B) is PeerState.LEFT
    effects = alone.fire_until(alone.now_s + 60.0)

    assert B in [e.peer_id for e in effects if type(e).__name__ == "MemberForgotten"]
    assert alone.core.state_of(B) is None


def test_gossip_that_claims_a_million_members_is_refused_before_they_are_made() -> None:
    alone = Alone(1)
    row = encode_records([Update(B, 1, PeerState.ALIVE, record_of(2))])[2:-1]
    claimed = b"\x91\xdd" + (1_000_000).to_bytes(4, "big")
    bodies = [
        claimed + row * 20,  # fewer rows than it says
        claimed + row * (2 * GOSSIP_BODY_BYTES_MAX // len(row)),  # more than is read
        claimed + b"\x90" * 50_000,
    ]

    for body in bodies:
        effects = alone.step(MessageArrived(A, Gossip(A, None, body)))
        assert "malformed" in troubles(effects)[0]

    assert set(alone.core.members) == {ME, A}


def test_ids_that_are_no_peers_are_neither_kept_nor_answered() -> None:
    """States without a record, accusers and wishes of ids that nobody has."""
    alone = Alone(1)
    unknown = [peer_id_of(number) for number in range(1000, 1400)]
    rows = [
        encode_update(Update(one, 5, PeerState(number % 4), None, unknown[-number]))
        for number, one in enumerate(unknown)
    ]
    body = encode_body(rows, (), unknown)

    for message in (Gossip(A, None, body), Synced(A, None, body), Sync(A, None, body)):
        effects = alone.step(MessageArrived(A, message))
        alone.core.check()
        assert {e.peer_id for e in effects if isinstance(e, SendTo)} <= {A}

    assert set(alone.core.members) == {ME, A}


def test_churn_of_thousands_of_ids_leaves_nothing_behind() -> None:
    """A table that only grows is how a cluster dies in a month (zenoh issue 2089)."""
    alone = Alone(1)
    alone.core._config = alone.core._table._config = MembershipConfig(members_max=200)
    texts = []

    for number in range(10, 4010):
        peer_id = peer_id_of(number)
        record = record_of(number, name=f"churn-{number}")
        message = Gossip(A, None, encode_records(
            [Update(peer_id, 1, PeerState.ALIVE, record)]))  # fmt: skip
        alone.now_s += 0.01
        texts += troubles(alone.core.step(MessageArrived(A, message), alone.now_s))
        if number % 3:
            body = encode_records([Update(peer_id, 1, PeerState(2 + number % 2))])
            alone.core.step(MessageArrived(A, Gossip(A, None, body)), alone.now_s)
        if number % 50 == 0:
            alone.core.step(TimerFired(), alone.now_s)
            alone.core.check()
    assert len(alone.core.members) <= 200
    assert {text for text in texts if "200 are known" in text}
    alone.fire_until(alone.now_s + 12 * 3600.0)

    assert set(alone.core.members) <= {ME, A}


def test_full_table_takes_others_where_tombstones_can_go() -> None:
    alone = Alone(1, 2)
    alone.core._config = alone.core._table._config = MembershipConfig(members_max=3)
    alone.hear(Update(C, 1, PeerState.ALIVE, record_of(3)))
    assert alone.core.state_of(C) is None

    alone.hear(Update(B, 1, PeerState.DEAD))
    alone.hear(Update(C, 1, PeerState.ALIVE, record_of(3)))

    assert alone.core.state_of(C) is PeerState.ALIVE
    assert alone.core.state_of(B) is None
