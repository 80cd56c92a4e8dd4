"""Plays what was recorded: a client of an earlier version, or a peer of it.

Rules of this file: every byte that goes out was recorded; only the ids that a session
makes anew (of peers, of requests) are put in place.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import zmq

from activestore.wire import codec, values
from activestore.wire.messages import (
    Beat,
    Call,
    Failure,
    Hello,
    Item,
    Ping,
    Pong,
    Refused,
    Reply,
    Request,
    Welcome,
)

# What was recorded of each version before this one.
RECORDED: dict[int, dict[str, Any]] = {
    version: json.loads(
        (Path(__file__).parent / f"protocol-{version}.json").read_text()
    )
    for version in (1, 2)
}
PEER_IDS = {
    version: bytes.fromhex(recorded["peer_id"])
    for version, recorded in RECORDED.items()
}
ANSWER_S_MAX = 20.0
POLL_MS = 5


def messages_of(row: dict[str, Any]) -> list[Any]:
    """Return the messages of a recorded row."""
    return codec.decode_frames([bytes.fromhex(frame) for frame in row["frames"]])


class RecordedClient:
    """Says to a peer, step by step, what the recorded client said."""

    def __init__(self, endpoint: str, version: int) -> None:
        self._version = version
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(endpoint)

    def __enter__(self) -> RecordedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close(0)
        self._context.term()

    def talk(self, peer_id: bytes) -> list[tuple[Any, list[Any], list[Any]]]:
        """Say it all to a peer of this id: (message, answers recorded, answers now)."""
        found = []
        rows = RECORDED[self._version]["talk"]
        for place, row in enumerate(rows):
            if row["by"] != "client":
                continue
            (asked,) = messages_of(row)
            recorded = []
            for later in rows[place + 1 :]:
                if later["by"] == "client":
                    break
                recorded += messages_of(later)
            self._socket.send_multipart([
                bytes.fromhex(frame).replace(PEER_IDS[self._version], peer_id)
                for frame in row["frames"]
            ])  # fmt: skip
            found.append((asked, recorded, self._answers() if recorded else []))
        return found

    def ask(self, row: dict[str, Any]) -> Any:
        """Send a recorded message as it is; return the answer."""
        self._socket.send_multipart([bytes.fromhex(frame) for frame in row["frames"]])
        return self._answers()[0]

    def _answers(self) -> list[Any]:
        answers: list[Any] = []
        end_s = time.monotonic() + ANSWER_S_MAX
        while not answers or type(answers[-1]) is Item:
            left_s = end_s - time.monotonic()
            assert self._socket.poll(max(0.0, left_s) * 1000), f"only {answers} came"
            frames = self._socket.recv_multipart()
            messages = codec.decode_frames(frames)
            answers += [one for one in messages if type(one) is not Beat]
        return answers


class RecordedPeer:
    """Answers with what the recorded peer answered to the same question."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.surprises: list[str] = []  # what nobody had asked the recorded peer
        self.greetings: list[Hello] = []
        self._answers: dict[tuple[Any, ...], list[Any]] = {}
        self._greet: dict[int, Any] = {}
        pairs = [
            (messages_of(one)[0], messages_of(two))
            for one, two in RECORDED[version]["asked"]
        ]
        pairs += _pairs(RECORDED[version]["talk"])
        for asked, answers in pairs:
            if type(asked) is Hello:
                self._greet[asked.version_min, asked.version_max] = answers[0]
            else:
                self._answers.setdefault(_what(asked), answers)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 100)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="recorded", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Go away."""
        self._is_over = True
        self._thread.join()
        self._socket.close()
        self._context.term()

    def _run(self) -> None:
        while not self._is_over:
            if self._socket.poll(POLL_MS):
                route, *frames = self._socket.recv_multipart()
                for message in codec.decode_frames(frames):
                    for answer in self._answer(message):
                        self._socket.send_multipart([route, codec.encode(answer)])

    def _answer(self, message: Any) -> list[Any]:
        if type(message) is Hello:
            self.greetings.append(message)
            return [self._greeting(message.version_min)]
        if type(message) is Ping:
            return [Pong(message.token, self._greeting(1).incarnation, True)]
        answers = self._answers.get(_what(message))
        if answers is None:
            self.surprises.append(str(_what(message)))
            return []
        return [
            one._replace(sequence=message.sequence) if hasattr(one, "sequence") else one
            for one in answers
        ]

    def _greeting(self, version_min: int) -> Any:
        """Return what was said to the latest that spoke this version and later ones.

        What lies beyond its own version means nothing to a peer.
        """
        highest = max(high for low, high in self._greet if low == version_min)
        return self._greet[version_min, highest]


def _pairs(rows: list[dict[str, Any]]) -> list[tuple[Any, list[Any]]]:
    pairs: list[tuple[Any, list[Any]]] = []
    for row in rows:
        for message in messages_of(row):
            if row["by"] == "client":
                pairs.append((message, []))
            else:
                pairs[-1][1].append(message)
    return pairs


def _what(message: Any) -> tuple[Any, ...]:
    """Return what makes two messages the same question."""
    if type(message) is Request:
        return Request, message.operation
    if type(message) is Call:
        return Call, message.method, message.operation
    return (type(message),)


def outcome(answer: Any) -> Any:
    """Return what an answer says, ids and times left out."""
    if type(answer) in (Reply, Item):
        return type(answer).__name__, values.decode(answer.body, ())
    if type(answer) is Failure:
        return "Failure", answer.code, values.decode(answer.body, ())[:3]
    if type(answer) is Welcome:
        return "Welcome", answer.version, set(answer.limits)
    assert type(answer) is Refused, answer
    return "Refused", answer.code
