"""How often peers look after each other, by the kind of network between them; pure.

Numbers of hashicorp/memberlist, which years of clusters have tuned; where one differs,
the reason stands beside it.

Source: reliability.md 1.2 and 1.5; hashicorp/memberlist config.go, util.go.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from activestore.wire.gossip import PeerRecord


class Profile(NamedTuple):
    """The rhythm between two peers."""

    name: str
    probe_interval_s: float  # one peer is probed each
    probe_timeout_s: float  # then others are asked to probe it
    indirect_count: int  # how many others
    suspicion_mult: int  # probe intervals that a suspect has, times log10 N
    gossip_interval_s: float
    gossip_fanout: int  # peers told in each
    push_pull_interval_s: float  # one peer compared with in each, up to 32 peers


LAN = Profile(
    name="lan",
    probe_interval_s=1.0,  # first suspicion after 1.58 s on average, one ping/s idle
    probe_timeout_s=0.5,  # the 99th percentile of a round trip, with a busy peer's loop
    indirect_count=3,  # three independent paths: 1 % loss fools all of them once in 1e6
    suspicion_mult=4,  # 4 s at 10 peers: a collected or swapped process has come back
    gossip_interval_s=0.2,  # 1,000 peers know in about 2 s
    gossip_fanout=3,  # 15 messages of 1,400 B/s at most: 21 kB/s
    push_pull_interval_s=30.0,  # repairs what gossip missed; 0.1 kB/s at 100 peers
)
WAN = Profile(
    name="wan",
    probe_interval_s=5.0,  # links between sites fail rarely and cost money
    probe_timeout_s=3.0,  # a satellite hop and one retransmission of TCP
    indirect_count=3,  # as LAN
    suspicion_mult=6,  # 30 s: routes take that long to change
    gossip_interval_s=0.5,  # a round trip between continents, and as much again
    gossip_fanout=4,  # makes up for the slower beat
    push_pull_interval_s=60.0,  # half as often: it is paid for
)
EDGE = Profile(
    name="edge",
    probe_interval_s=5.0,  # a radio that sleeps between two probes saves the battery
    probe_timeout_s=2.0,  # waking the radio takes up to a second
    indirect_count=3,  # as LAN
    suspicion_mult=4,  # 20 s: Wi-Fi that changes its access point has come back
    gossip_interval_s=1.0,  # few wake-ups; 10 boards know in 3 s
    gossip_fanout=2,  # a board's upload is small
    push_pull_interval_s=60.0,  # as WAN
)

# memberlist: a suspicion that nobody confirms lasts this many times its minimum.
SUSPICION_MAX_FACTOR = 6
# With 2 or 3 peers nobody is there to confirm, and one lost second decides: they wait
# twice as long, which memberlist does not.
LONELY_FACTOR = 2
# memberlist: an update is sent this often, times log10 N.
RETRANSMIT_MULT = 4
# memberlist: from this many peers on push-pull is less frequent.
PUSH_PULL_FULL_RATE_MAX = 32


class MembershipConfig(NamedTuple):
    """What can be set; profiles are chosen by pairs of peers."""

    lan: Profile = LAN
    wan: Profile = WAN
    edge: Profile = EDGE
    # reliability.md 1.2: the limit of a flat view; 1 kB each in Python.
    members_max: int = 10_000
    # Of a partition's other side as many addresses are kept, for a day, and one is tried
    # in each interval: Serf's reconnect.
    lost_max: int = 128
    lost_s: float = 24 * 3600.0
    reconnect_interval_s: float = 30.0
    # How often the first addresses are asked for again: alone, from one to the other;
    # else rarely, for a partition that outlived its memory.
    seed_interval_s_min: float = 1.0
    seed_interval_s_max: float = 30.0
    seed_check_interval_s: float = 300.0
    # A late wake-up of this many seconds is a sign of bad health: reliability.md 1.3.
    lag_s: float = 0.25


def profile_between(
    me: PeerRecord, peer: PeerRecord, config: MembershipConfig
) -> Profile:
    """Return the rhythm between two peers: WAN between zones, else the slower of two."""
    if me.zone != peer.zone:
        return config.wan
    names = (me.profile, peer.profile)
    if names == ("lan", "lan"):
        return config.lan
    return config.edge if "edge" in names else config.wan


def suspicion_bounds(profile: Profile, peers_count: int) -> tuple[int, float, float]:
    """Return (confirmations wanted, shortest, longest time in s) of a suspicion.

    Source: memberlist suspectNode: k = mult - 2, and 0 where too few could confirm.
    """
    scale = max(1.0, math.log10(max(1, peers_count)))
    shortest = profile.suspicion_mult * scale * profile.probe_interval_s
    wanted = profile.suspicion_mult - 2
    if peers_count - 2 < wanted:
        return 0, LONELY_FACTOR * shortest, LONELY_FACTOR * shortest
    return wanted, shortest, SUSPICION_MAX_FACTOR * shortest


def retransmits(peers_count: int) -> int:
    """Return how often an update is sent on by each that hears it."""
    return RETRANSMIT_MULT * math.ceil(math.log10(peers_count + 1))


def push_pull_interval_s(profile: Profile, peers_count: int) -> float:
    """Return the time between two push-pulls; less frequent in large clusters."""
    if peers_count <= PUSH_PULL_FULL_RATE_MAX:
        return profile.push_pull_interval_s
    factor = math.ceil(math.log2(peers_count) - math.log2(PUSH_PULL_FULL_RATE_MAX)) + 1
    return profile.push_pull_interval_s * factor


def slowest_push_pull_s(config: MembershipConfig, peers_count: int) -> float:
    """Return the longest time between two push-pulls that any peer may keep."""
    profiles = (config.lan, config.wan, config.edge)
    return max(push_pull_interval_s(profile, peers_count) for profile in profiles)
