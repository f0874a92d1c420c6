"""How long a process that has just started takes to read a conversation for the first time.

    python -m tests.benchmarks.cold_reads [PROCESSES]

Conversations of 100 and of 20,000 events are written to a ledger. Then processes are started one
after the other; each reads every conversation once, long and short in turn, behind a request that
warms it up. Prints the medians and their ratio: below 2 is wanted.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.acceptance.deployment import Deployment, answering
from tests.acceptance.raw import RawConnection

SHORT, LONG = 100, 20_000
OF_EACH = 4
PROCESSES = 8
PER_IMPORT = 500
SNAPSHOT_EVERY = 50
"""A conversation at rest has at most about as many events behind its snapshot."""

RATIO_MAX = 2.0
SNAPSHOT_WITHIN_S = 120.0


def main() -> int:
    """Measures; returns 1 when the ratio is not what is wanted."""
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else PROCESSES
    with tempfile.TemporaryDirectory(prefix="cold-reads-") as folder:
        ledger = Deployment(Path(folder))
        try:
            ledger.start()
            conversations = written(ledger)
            taken = {SHORT: list[float](), LONG: list[float]()}
            for _ in range(processes):
                measure(ledger, conversations, taken)
        finally:
            ledger.stop()
    medians = {events: statistics.median(times) * 1_000 for events, times in taken.items()}
    for events, times in taken.items():
        print(
            f"{events:>6} events: median {medians[events]:.2f} ms of {len(times)} cold reads "
            f"({min(times) * 1_000:.2f} to {max(times) * 1_000:.2f})"
        )
    ratio = medians[LONG] / medians[SHORT]
    print(f"ratio {ratio:.2f}, wanted below {RATIO_MAX:g}")
    return int(ratio >= RATIO_MAX)


def written(ledger: Deployment) -> list[tuple[str, int]]:
    """Conversations as (subject tokens, events), their snapshots taken."""
    conversations = [
        (f"bench.c-{events}-{number}", events)
        for number in range(OF_EACH)
        for events in (LONG, SHORT)
    ]
    with RawConnection(ledger.url, timeout=60) as nats:
        for tokens, events in [*conversations, ("bench.warm-up", SHORT)]:
            ask(nats, f"convo.cmd.{tokens}.init", {"user_id": "ada", "title": "Cold"})
            for first in range(2, events + 1, PER_IMPORT):
                numbers = range(first, min(first + PER_IMPORT, events + 1))
                messages = [{"role": "tool", "content": f"line {number}"} for number in numbers]
                ask(nats, f"convo.cmd.{tokens}.import", {"messages": messages})
            fill_block(nats)
            wait_for_snapshot(nats, tokens, events - SNAPSHOT_EVERY)
    return conversations


def fill_block(nats: RawConnection) -> None:
    """Writes more than a block of the store holds, to a conversation that is not measured."""
    ask(nats, "convo.cmd.bench.filler.init", {"user_id": "ada", "title": "Filler"})
    for _ in range(2):
        messages = [{"role": "tool", "content": random_text(250_000)} for _ in range(25)]
        ask(nats, "convo.cmd.bench.filler.turn", {"messages": messages})


def random_text(length: int) -> str:
    """A text that does not compress to nothing."""
    return random.randbytes(length // 2).hex()


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


def measure(
    ledger: Deployment, conversations: list[tuple[str, int]], taken: dict[int, list[float]]
) -> None:
    """Reads each conversation once in a fresh process; adds the seconds to `taken`."""
    [worker] = ledger.workers
    worker.stop()
    worker.start()
    answering(ledger.url)
    with RawConnection(ledger.url, timeout=60) as nats:
        ask(nats, "convo.get.bench.warm-up.messages", {})
        for tokens, events in random.sample(conversations, len(conversations)):
            started = time.perf_counter()
            nats.request(f"convo.get.{tokens}.messages")
            taken[events].append(time.perf_counter() - started)


def ask(nats: RawConnection, subject: str, body: dict[str, object]) -> None:
    """Sends a request that has to succeed."""
    reply = nats.request(subject, json.dumps(body).encode()).json()
    if not reply["ok"]:
        raise RuntimeError(f"{subject}: {reply['error']}")


if __name__ == "__main__":
    sys.exit(main())
