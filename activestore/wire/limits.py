"""Every bound of the wire in one place, each with its reason.

Source: design sections 4, 5 and 9; reliability.md 5.4 and 7; schemas/protocol.md
section 3.
"""

from __future__ import annotations

# This version and the oldest one that is still spoken. Version 2 brought clusters: the
# messages between peers, and the operations that name another peer. Version 3 brought
# replicas: Replicate, and what asks for copies or for older states.
PROTOCOL_VERSION = 3
PROTOCOL_VERSION_MIN = 1

# The oldest one that peers speak to each other: of version 1 no peer knew any other.
PEER_VERSION_MIN = 2

# Version in which replicas came. A peer of an earlier one would keep one copy and say that
# all is well, so it is not asked, and no peer has it take one.
REPLICAS_SINCE = 3

# Operations of Request that clients ask for, with the version in which they came.
OPERATIONS_SINCE = {
    "move": 2, "refs": 2, "suited": 2, "replicate": REPLICAS_SINCE,
    "group": REPLICAS_SINCE, "force": REPLICAS_SINCE, "export": REPLICAS_SINCE,
    "discard": REPLICAS_SINCE, "replication": REPLICAS_SINCE,
}  # fmt: skip

# A decoded msgpack element can cost 72 times its bytes in memory (measured for empty
# maps), so the part of a frame that the daemon itself decodes is kept to 4 KiB: 300 kB
# at worst.
HEADER_BYTES_MAX = 4096

# One ZeroMQ frame. Larger buffers are cut into frames of this size by the sender.
FRAME_BYTES_MAX = 16 * 1024 * 1024

# All records and buffers of one message together, as the default of a setting.
MESSAGE_BYTES_MAX = 2 * 1024 * 1024 * 1024

# Buffers from this size travel in frames of their own: below it pyzmq copies anyway.
BUFFER_BYTES_MIN = 64 * 1024

# Records that one frame may hold; a full batch keeps the other clients waiting < 2 ms.
RECORDS_PER_FRAME_MAX = 256

# Nesting and elements of one encoded value.
VALUE_DEPTH_MAX = 32
VALUE_ELEMENTS_MAX = 100_000

# An inline body: larger values hold large buffers, which travel beside it.
BODY_BYTES_MAX = FRAME_BYTES_MAX - HEADER_BYTES_MAX - 8

# A client tells of its open requests where the oldest is this far behind, and as many at
# most; then at every so many requests.
OPEN_TOLD_FROM = 256
OPEN_TOLD_MAX = 256
OPEN_TOLD_EVERY = 64

# Sequence numbers in one Beat, so that its header stays under HEADER_BYTES_MAX.
BEAT_SEQUENCES_MAX = 400
# What a Beat carries in its `extra` of requests whose answer its peer does not expect soon: who
# has them, or must agree, is not heard.
UNHEARD = "unheard"
# Beside it, and in the `extra` of a request that is then asked elsewhere: up to which epoch a
# member of a group knows of nobody who leads with a majority, and its peer id. Who follows such
# a leader looks whether it is there, and leads if not.
UNLED = "unled"

# Names of classes, methods, aliases: in characters.
NAME_CHARS_MAX = 256

# Whoever waits for a majority says that it did not answer so long before the deadline of
# the call: the word is to be there in time. And so much of its own deadline a caller keeps
# that is a method, to hear how its nested call ended and to end itself. A tenth of what
# there is at most.
EARLY_S = 0.05
NESTED_EARLY_S = 0.25
EARLY_SHARE = 0.1


def early_s(left_s: float, early_s_max: float = EARLY_S) -> float:
    """Return how long before a deadline that is `left_s` away its end is told."""
    return min(early_s_max, left_s * EARLY_SHARE)
