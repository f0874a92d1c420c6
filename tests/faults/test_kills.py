"""The reply comes after the fsync: servers and workers are killed under load, and nothing that was
acknowledged is missing, doubled or out of order afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
from pathlib import Path

import pytest

from tests.acceptance.deployment import Deployment, answering
from tests.faults.load import Deed, Event, Load, Place, problems, read_stream

ROUNDS = 20
WRITERS = 12
WORKERS = 2

SEED = int(os.environ.get("CONVO_TEST_SEED", random.randrange(2**32)))


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_nothing_acknowledged_is_lost_to_20_rounds_of_kills(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    ledger = Deployment(tmp_path, workers=WORKERS)
    load = Load(ledger.url, WRITERS, rng)
    try:
        ledger.start()
        await load.start()
        for round_ in range(ROUNDS):
            await load.further(rng.randrange(10, 40))
            with_server = round_ % 2 == 0
            victims = rng.sample(ledger.workers, (0, 1, 1, WORKERS)[round_ % 4])
            for worker in victims:
                worker.kill()
            if with_server:
                ledger.server.kill()
                ledger.server.start()
            for worker in victims:
                worker.start()
            await load.further(1)
        await asyncio.to_thread(answering, ledger.url, WORKERS)
        await load.stop()
        for worker in ledger.workers:
            worker.stop()  # drains: whatever is still on its way arrives or never will
        events = await read_stream(ledger.url)
    finally:
        ledger.stop()
    print(  # noqa: T201 (shown when it fails)
        f"seed {SEED}: {len(load.deeds)} commands, {load.acknowledged} acknowledged, "
        f"{load.unanswered} times no answer, {len(events)} events"
    )
    assert problems(load.deeds, events) == []
    assert load.acknowledged > ROUNDS * 10
    assert load.unanswered > ROUNDS / 2, "the kills have to hit requests under way"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert ledger.complaints() == []


async def test_a_ledger_that_forgets_is_noticed(tmp_path: Path) -> None:
    """The control: the same load, kill and audit on a stream that is kept in memory."""
    ledger = Deployment(tmp_path)
    [worker] = ledger.workers
    worker.command = [sys.executable, "-P", "-m", "tests.faults.forgetful_worker", ledger.url]
    load = Load(ledger.url, WRITERS, random.Random(SEED))
    try:
        ledger.start()
        await load.start()
        await load.further(50)
        ledger.server.kill()
        ledger.server.start()
        worker.kill()  # it would go on trying
        await load.stop()
        events = await read_stream(ledger.url)
    finally:
        ledger.stop()
    found = problems(load.deeds, events)
    assert len([each for each in found if each.startswith("missing")]) >= 50


# -- the audit itself ------------------------------------------------------------------------------


def stream(*contents: str) -> list[Event]:
    """One conversation's events with these contents, their versions and chain without a fault."""
    digest = bytes(32)
    found = []
    for version, content in enumerate(contents, start=1):
        told = {"type": "MessageAppended", "version": version, "data": {"content": content}}
        body = json.dumps(told).encode()
        digest = hashlib.sha256(digest + body).digest()
        found.append(Event(version, "t.c", digest.hex(), body))
    return found


ONE = Deed(0, "t.c", "one", 1, [Place(1, 1)])
TURN = Deed(0, "t.c", "turn", 3, [Place(2, 2), Place(3, 3), Place(4, 4)])
UNKNOWN = Deed(0, "t.c", "unknown", 3)
TURNED = ("turn", "turn", "turn")
WHOLE = stream("one", *TURNED)


@pytest.mark.parametrize(
    ("events", "kinds"),
    [
        (WHOLE, set()),
        (stream("one", *TURNED, "unknown", "unknown", "unknown"), set()),
        (stream("one", *TURNED, "unknown"), {"torn"}),
        (stream("one", *TURNED, *["unknown"] * 6), {"doubled"}),
        (stream("one", *TURNED, "one"), {"doubled", "elsewhere"}),
        (stream("one"), {"missing"}),
        (stream("one", "turn", "turn"), {"torn", "elsewhere"}),
        (stream(*TURNED, "one"), {"elsewhere"}),
        (stream("one", *TURNED, "nobody's"), {"strange"}),
        ([*WHOLE[:2], *WHOLE[3:]], {"gap", "chain", "torn", "elsewhere"}),
        ([*WHOLE[:3], WHOLE[3]._replace(digest="0" * 64)], {"chain"}),
        ([*WHOLE[:3], WHOLE[3]._replace(seq=9)], {"elsewhere"}),
    ],
)
def test_the_audit_notices(events: list[Event], kinds: set[str]) -> None:
    found = problems([ONE, TURN, UNKNOWN], events)
    assert {each.partition(":")[0] for each in found} == kinds


def test_the_audit_notices_a_wrong_order() -> None:
    [found] = problems([TURN, ONE], WHOLE)
    assert found.startswith("out of order")
