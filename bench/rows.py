"""The rows of the design's table that concern one peer: what is measured, and the target.

Rules of this file: a target is the design's; it is never moved to where we are.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One line of the report. `at_most`: whether the target is an upper bound.

    A row without a target is there to be known.
    """

    name: str
    unit: str
    target: float | None
    at_most: bool
    about: str


ROWS = {
    row.name: row
    for row in (
        Row("null_spin", "x raw", 1.0, True, "null readonly call p50, spinning"),
        Row("null_no_spin", "x raw", 2.0, True, "null readonly call p50, spin_us = 0"),
        Row(
            "peer_direct",
            "x own",
            1.2,
            True,
            "null call to an object at another peer, directly",
        ),
        Row(
            "peer_forwarded",
            "x own",
            2.2,
            True,
            "null call to an object at another peer, forwarded",
        ),
        Row("pipelined", "calls/s", 40_000, False, "1 client, 100 in flight"),
        Row(
            "pipelined_4",
            "calls/s",
            40_000,
            False,
            "4 client processes, 100 in flight each",
        ),
        Row(
            "durable",
            "x bound",
            1.0,
            True,
            "mutating call against commit + 1.5 null calls",
        ),
        Row(
            "durable_pipelined",
            "calls/s",
            10_000,
            False,
            "mutating calls, 100 in flight",
        ),
        Row("persist_small", "objects/s", 10_000, False, "small objects, pipelined"),
        Row("array_out", "MB/s", 1_500, False, "8 MB float64 argument, sum back"),
        Row("array_back", "MB/s", 2_000, False, "8 MB float64 result"),
        Row("persist_large", "MB/s", 600, False, "persist a 100 MB array"),
        Row("thin_rss", "MB", 22, True, "thin client: memory after import"),
        Row("thin_import", "ms", 40, True, "thin client: import time"),
        Row(
            "thin_size",
            "MB",
            8,
            True,
            "thin client: activestore, pyzmq, msgpack on disk",
        ),
        Row("idle_memory", "MB", 60, True, "idle peer: daemon + 1 executor"),
        Row("idle_cpu", "% of a core", 1.0, True, "idle peer"),
        Row("start", "s", 1.0, True, "start to ready"),
        Row(
            "cluster_form",
            "s",
            15.0,
            True,
            "50 peers on this machine: first start until all see all",
        ),
        Row(
            "cluster_idle",
            "% of a core",
            1.0,
            True,
            "the busiest of 50 idle peers, with its executor",
        ),
        Row(
            "cluster_memory",
            "MB",
            None,
            True,
            "one of 50 idle peers, with its executor: shared pages counted once",
        ),
        Row(
            "offload",
            "ms",
            20,
            True,
            "LSTM training of 10 epochs over the method's own time",
        ),
        Row(
            "objects_100k",
            "s",
            5.0,
            True,
            "restart with 100,000 objects to a served look-up",
        ),
        Row("daemon_100k", "MB", 200, True, "daemon's memory with 100,000 objects"),
        Row(
            "written_single",
            "bytes",
            None,
            True,
            "disk bytes per 100-byte change, one by one",
        ),
        Row(
            "written_group",
            "bytes",
            16_384,
            True,
            "disk bytes per 100-byte change, 100 in flight",
        ),
        Row(
            "replicated",
            "x bound",
            1.0,
            True,
            "mutating call with 3 copies against plain call + null call + commit",
        ),
        Row(
            "replicated_over_lines",
            "x bound",
            1.1,
            True,
            "the same where each line takes 20 ms there and back",
        ),
        Row("replicated_pipelined", "calls/s", None, False, "3 copies, 100 in flight"),
        Row(
            "shipped_in_place",
            "MB",
            2.0,
            True,
            "sent to each copy for 1 MB changed of a 100 MB array",
        ),
        Row(
            "shipped_after_absence",
            "MB",
            2.0,
            True,
            "sent to a copy that missed a change of 1 MB of a 100 MB array",
        ),
        Row(
            "header_bytes",
            "bytes",
            200,
            True,
            "wire bytes of a null call and its reply, each",
        ),
        *(
            Row(
                f"offload_bytes_{size}",
                "bytes",
                None,
                True,
                f"wire bytes of a call on {size:,} MB where it lies, against fetching it",
            )
            for size in (1, 10, 100, 1000)
        ),
        Row("model_predict", "x in-process", None, True, "256 MB torch model: predict"),
        Row(
            "model_step",
            "x in-process",
            None,
            True,
            "256 MB torch model: one train step with commit",
        ),
        Row("model_activation", "ms", None, True, "256 MB torch model: activation"),
    )
}
