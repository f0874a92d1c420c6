"""How long a process that has just started takes to read a conversation for the first time.

    python -m tests.benchmarks.cold_reads [PROCESSES]

Conversations of 100 and of 20,000 events are written to a ledger, long and short in turn, some with
events behind their snapshot. Behind each follow so many events of other conversations that its end
is in a block of the server's store that it shares with no other one that is measured, a block full
of small events for every one of them. Then processes are started one after the other; each reads
every conversation once, in random order, behind a request that warms it up.

That is done twice: with a server that was just started too, so that it has to fetch each block, and
with one that has the blocks at hand. Prints medians and their ratios: at most 1.5 is wanted.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.deployment import Deployment, answering
from tests.acceptance.raw import RawConnection

SHORT, LONG = 100, 20_000
TAILS = (0, 25)
"""Events behind the snapshot; a conversation at rest has fewer than 50."""

OF_EACH = 2
PROCESSES = 8
PER_IMPORT = 500
FILLING = 20_000
"""Events that fill a block of the store, 8 MB."""

RATIO_MAX = 1.5
SNAPSHOT_WITHIN_S = 120.0


@dataclass(frozen=True)
class Written:
    """A conversation, by its subject tokens."""

    tokens: str
    events: int
    tail: int


Taken = dict[tuple[int, int], list[float]]
"""Seconds of each read, by events and tail."""


def main() -> int:
    """Measures; returns 1 when a ratio is not what is wanted."""
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else PROCESSES
    with tempfile.TemporaryDirectory(prefix="cold-reads-") as folder:
        ledger = Deployment(Path(folder))
        try:
            ledger.start()
            conversations = written(ledger)
            fetching, at_hand = Taken(), Taken()
            for _ in range(processes):
                restart_server(ledger)
                measure(ledger, conversations, fetching)
                measure(ledger, conversations, at_hand)
        finally:
            ledger.stop()
    ratios = [
        told("the server fetches its blocks", fetching),
        told("the server has them at hand", at_hand),
    ]
    return int(max(ratios) > RATIO_MAX)


def told(server: str, taken: Taken) -> float:
    """Prints what was taken; returns the ratio of long to short ones."""
    by_events: dict[int, list[float]] = defaultdict(list)
    print(f"{server}:")
    for (events, tail), seconds in sorted(taken.items()):
        by_events[events] += seconds
        print(f"  {events:>6} events, {tail:>2} behind the snapshot: {figures(seconds)}")
    short, long = statistics.median(by_events[SHORT]), statistics.median(by_events[LONG])
    print(
        f"  {LONG:,} events {long * 1_000:.2f} ms, {SHORT} events {short * 1_000:.2f} ms: "
        f"ratio {long / short:.2f}, wanted at most {RATIO_MAX:g}"
    )
    return long / short


def figures(seconds: list[float]) -> str:
    """Median and extremes."""
    low, middle, high = (
        each * 1_000 for each in (min(seconds), statistics.median(seconds), max(seconds))
    )
    return f"median {middle:.2f} ms of {len(seconds)} ({low:.2f} to {high:.2f})"


def written(ledger: Deployment) -> list[Written]:
    """The conversations that are read, their snapshots taken."""
    conversations = [
        Written(f"bench.c-{events}-{tail}-{number}", events, tail)
        for number in range(OF_EACH)
        for tail in TAILS
        for events in (LONG, SHORT)
    ]
    with RawConnection(ledger.url, timeout=60) as nats:
        write(nats, Written("bench.warm-up", SHORT, 0))
        for number, conversation in enumerate(conversations):
            write(nats, conversation)
            write(nats, Written(f"bench.filler-{number}", FILLING, 0))
    return conversations


def write(nats: RawConnection, conversation: Written) -> None:
    """Writes the conversation, so that its snapshot is where it is said to be."""
    tokens, snapshot_at = conversation.tokens, conversation.events - conversation.tail
    ask(nats, f"convo.cmd.{tokens}.init", {"user_id": "ada", "title": "Cold"})
    for first in range(2, snapshot_at + 1, PER_IMPORT):
        numbers = range(first, min(first + PER_IMPORT, snapshot_at + 1))
        messages = [{"role": "tool", "content": f"line {number}"} for number in numbers]
        ask(nats, f"convo.cmd.{tokens}.import", {"messages": messages})
    wait_for_snapshot(nats, tokens, snapshot_at)
    for number in range(snapshot_at + 1, conversation.events + 1):
        ask(nats, f"convo.cmd.{tokens}.append", {"role": "tool", "content": f"line {number}"})


def wait_for_snapshot(nats: RawConnection, tokens: str, version: int) -> None:
    """Returns once there is a snapshot at that version or a later one."""
    subject = f"$JS.API.DIRECT.GET.CONVO-SNAPSHOTS.convo.snap.0.{tokens}"
    give_up_at = time.monotonic() + SNAPSHOT_WITHIN_S
    while True:
        found = nats.request(subject)
        if b"Nats-Subject" in found.header and found.json()["view"]["version"] >= version:
            return
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"no snapshot of {tokens} at version {version}")
        time.sleep(0.02)


def restart_server(ledger: Deployment) -> None:
    """A server that has only read from its store what it needs to start."""
    [worker] = ledger.workers
    worker.stop()
    ledger.server.stop()
    ledger.server.start()


def measure(ledger: Deployment, conversations: list[Written], taken: Taken) -> None:
    """Reads each conversation once in a fresh process; adds the seconds to `taken`."""
    [worker] = ledger.workers
    worker.stop()
    worker.start()
    answering(ledger.url)
    with RawConnection(ledger.url, timeout=60) as nats:
        ask(nats, "convo.get.bench.warm-up.messages", {})
        for each in random.sample(conversations, len(conversations)):
            started = time.perf_counter()
            reply = nats.request(f"convo.get.{each.tokens}.messages")
            seconds = time.perf_counter() - started
            if reply.json().get("version") != each.events:
                raise RuntimeError(f"{each.tokens} was not read: {reply.body[:300]!r}")
            taken.setdefault((each.events, each.tail), []).append(seconds)


def ask(nats: RawConnection, subject: str, body: dict[str, object]) -> None:
    """Sends a request that has to succeed."""
    reply = nats.request(subject, json.dumps(body).encode()).json()
    if not reply["ok"]:
        raise RuntimeError(f"{subject}: {reply['error']}")


if __name__ == "__main__":
    sys.exit(main())
