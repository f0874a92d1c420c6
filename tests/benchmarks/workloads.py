"""What is measured: operations, each with the requests that its writers repeat.

Every measurement has conversations of its own, named after the run that it is in. Texts are made
of words by chance (the seed is the writer), 215 characters as in a chat, so that neither storage
nor compression is flattered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from infra.jetstream.topology import Topology
from tests.benchmarks import echo, naive
from tests.benchmarks.load import Request
from tests.benchmarks.texts import text

WINDOW_MESSAGES = 60
"""Imported before the window is read: more than it holds."""

PUBLISH = Topology(stream="BENCH", prefix="bench.publish")
"""A stream like the ledger's, to publish to without any service."""

BATCH = 1_000
"""Events in one raw atomic batch: as many as the server takes."""

IMPORTED = 500
"""Messages in one `import` command: as many as the contract allows."""

Service = Literal["worker", "echo", "bare", "naive", "none"]

BY = ": "
"""Between an operation and the peer that carries it out, in a measurement's name."""

Requests = Callable[[str, int], list[Request]]
"""Of a run (a token for subjects) and a number of writers: one request for each writer."""


@dataclass(frozen=True)
class Workload:
    """One operation.

    `prepare` makes, step by step, what the requests need. `served_by` is the process whose cost
    is read beside the server's. `ceiling` is the echo's subject that it is compared with, None
    for what is itself a reference. `events` are those that one request writes.
    """

    name: str
    what: str
    requests: Requests
    prepare: Sequence[Requests] = ()
    served_by: Service = "worker"
    ceiling: str | None = echo.ECHO
    ok: str = '"ok":true'
    events: int = 1
    batch: int = 1

    def echo(self, reply_bytes: int) -> Workload:
        """The same requests to the echo; it answers `reply_bytes` where the ceiling asks for it."""
        assert self.ceiling is not None
        subject = self.ceiling

        def requests(run: str, writers: int) -> list[Request]:
            return [
                (f"{subject}.{original.split('.', 1)[1]}", body)
                for original, body in self.requests(run, writers)
            ]

        def tell(_run: str, _writers: int) -> list[Request]:
            return [(echo.TELL, '{"ok":true}'.ljust(reply_bytes))]

        return replace(
            self,
            name=f"echo of {self.name}",
            requests=requests,
            prepare=[tell] if subject == echo.SAME else (),
            served_by="echo",
            ceiling=None,
        )


@dataclass(frozen=True)
class Case:
    """An operation at so many writers."""

    workload: Workload
    concurrency: int


@dataclass(frozen=True)
class Plan:
    """What is measured, how often and for how long. `seconds` are of one measurement."""

    cases: Sequence[Case] = field(default_factory=list)
    rounds: int = 3
    seconds: float = 2.0
    echo_seconds: float = 1.2
    warm_up_s: float = 0.3
    requests_max: int = 1 << 40
    peer_cases: Sequence[tuple[str, int]] = ()
    """What is measured of each peer: operation and number of writers."""
    peer_seconds: float = 1.0


# -- the operations -------------------------------------------------------------------------------


def _message(seed: int, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text(seed)}


def _conversation(run: str, writer: int) -> str:
    return f"default.{run}-{writer}"


def _init(run: str, writers: int) -> list[Request]:
    body = json.dumps({"user_id": "bench", "title": "A conversation of the benchmark"})
    return [(f"convo.cmd.{_conversation(run, writer)}.init", body) for writer in range(writers)]


def _init_one(run: str, _writers: int) -> list[Request]:
    return _init(run, 1)


def _append(run: str, writers: int) -> list[Request]:
    return [
        (f"convo.cmd.{_conversation(run, writer)}.append", json.dumps(_message(writer)))
        for writer in range(writers)
    ]


def _append_to_one(run: str, writers: int) -> list[Request]:
    return [
        (f"convo.cmd.{_conversation(run, 0)}.append", json.dumps(_message(writer)))
        for writer in range(writers)
    ]


def _turn(run: str, writers: int) -> list[Request]:
    def body(writer: int) -> str:
        messages = [_message(2 * writer), _message(2 * writer + 1, "assistant")]
        usage = {"prompt_tokens": 120, "completion_tokens": 48, "model": "bench-1"}
        return json.dumps({"messages": messages, "usage": usage})

    return [
        (f"convo.cmd.{_conversation(run, writer)}.turn", body(writer)) for writer in range(writers)
    ]


def _fill_window(run: str, writers: int) -> list[Request]:
    roles = ("user", "assistant")
    messages = [_message(n, roles[n % 2]) for n in range(WINDOW_MESSAGES)]
    body = json.dumps({"messages": messages, "mode": "append"})
    return [(f"convo.cmd.{_conversation(run, writer)}.import", body) for writer in range(writers)]


def _import(run: str, writers: int) -> list[Request]:
    messages = [_message(n, ("user", "assistant")[n % 2]) for n in range(IMPORTED)]
    body = json.dumps({"messages": messages, "mode": "append"})
    return [(f"convo.cmd.{_conversation(run, writer)}.import", body) for writer in range(writers)]


def _naive(run: str, writers: int) -> list[Request]:
    return [
        (f"{naive.APPEND}.{run}-{writer}", json.dumps(_message(writer)))
        for writer in range(writers)
    ]


def _read_window(run: str, writers: int) -> list[Request]:
    return [(f"convo.get.{_conversation(run, writer)}.messages", "{}") for writer in range(writers)]


def _publish(run: str, writers: int) -> list[Request]:
    return [
        (f"{PUBLISH.subject(f'{run}-{writer}')}", json.dumps(_message(writer)))
        for writer in range(writers)
    ]


def _bare(run: str, writers: int) -> list[Request]:
    return [
        (f"{echo.BARE}.{_conversation(run, writer)}", json.dumps(_message(writer)))
        for writer in range(writers)
    ]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="bare",
            what="a responder without a client library: what the load and nats-server can do",
            requests=_bare,
            served_by="bare",
            ceiling=None,
        ),
        Workload(
            name="publish",
            what="one durable JetStream publish without a service or an expectation",
            requests=_publish,
            served_by="none",
            ceiling=None,
            ok='{"stream"',
        ),
        Workload(
            name="batch",
            what="1,000 such publishes as one atomic batch, without a service",
            requests=_publish,
            served_by="none",
            ceiling=None,
            ok=f'"count":{BATCH}',
            events=BATCH,
            batch=BATCH,
        ),
        Workload(
            name="append",
            what="one message, each writer to a conversation of its own",
            requests=_append,
            prepare=[_init],
        ),
        Workload(
            name="append-one",
            what="one message, all writers to the same conversation",
            requests=_append_to_one,
            prepare=[_init_one],
        ),
        Workload(
            name="turn",
            what="two messages and their usage at once: three events",
            requests=_turn,
            prepare=[_init],
        ),
        Workload(
            name="messages",
            what="the recent window, 50 messages; the echo answers as many bytes",
            requests=_read_window,
            prepare=[_init, _fill_window],
            ceiling=echo.SAME,
        ),
        Workload(
            name="import",
            what="500 messages in one command, all or nothing",
            requests=_import,
            prepare=[_init],
            ceiling=None,
            events=IMPORTED,
        ),
        Workload(
            name=f"append{BY}a naive JetStream service",
            what="one awaited publish with compare-and-set per command, nothing else",
            requests=_naive,
            served_by="naive",
            ceiling=None,
        ),
    )
}

USUAL = {
    "bare": (256,),
    "publish": (1,),
    "append": (1, 16, 256, 1024),
    "append-one": (64,),
    "turn": (256,),
    "messages": (1, 16),
    "batch": (4,),
    "import": (8,),
    f"append{BY}a naive JetStream service": (1, 16, 256),
}
"""At how many writers each is measured when nothing else is said."""

USUAL_OF_PEERS = (("append", 1), ("append", 16), ("append", 256), ("messages", 16))
"""The same for those that a user would pick instead."""
