"""The messages between the daemon and an executor: numbers and fields.

Every message is a msgpack array; its first element is one of these numbers. They never
leave the machine and both ends are of one version, so they may change freely.

    slot channel, to the executor
      PACKAGE  [., digest, archive]
      ACTIVATE [., copy, object id, class name, revision, is_reader, is_new, state row,
                stored class version, buffers]
      RUN      [., call, attempt, copy, kind, method, is_readonly, is_short, is_stream,
                credit, is_reentrant, body, buffers]
      RESULT   [., request, code, body, buffers]      to a REQUEST or CHECKPOINT
      ITEM_IN  [., request, index, body, buffers]     of a nested stream
      CREDIT   [., call, items]
      STOP     [., call, reason]
    slot channel, to the daemon
      ENDED    [., call, attempt, code, body, buffers, run_us, delta, state, created,
                is_dropped, state_bytes]
      ITEM     [., call, attempt, body, buffers]
      REQUEST  [., call, request, waits, record, buffers]  a wire record: a nested call
      WAITS    [., call, request]      the method now waits for what it had submitted
      ABANDON  [., call, request]      of a nested stream: the method does not read on
      CHECKPOINT [., call, attempt, request, delta, created]
      CREDIT   [., call, request, items]              of a nested stream
      RELEASED [., region numbers]                    both ways
      GONE     [., region numbers]                    both ways
    control channel, to the executor
      DROP [., copy], INTERRUPT [., slot, call, reason], RECALL [., slot], PING [.],
      ADD_SLOT [., slot] + descriptor, EXIT [.]
    control channel, to the daemon
      PONG [.], READY [., pid]

Rules of this file: names only.
"""

from __future__ import annotations

PACKAGE, ACTIVATE, RUN, RESULT, ITEM_IN, CREDIT, STOP = range(1, 8)
ENDED, ITEM, REQUEST, CHECKPOINT, WAITS, ABANDON = range(16, 22)
RELEASED, GONE = 24, 25
DROP, INTERRUPT, RECALL, PING, ADD_SLOT, EXIT = range(32, 38)
PONG, READY = 48, 49
