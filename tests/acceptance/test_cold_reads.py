"""A long conversation read by a process that has just started: from its snapshot and the events
behind it, so that its length does not matter."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from tests.acceptance.client import Conversation, Ledger
from tests.acceptance.conftest import connected
from tests.acceptance.deployment import Deployment, answering

EVENTS = 20_000
PER_IMPORT = 500
SNAPSHOT_EVERY = 50
TAIL = 30
"""Events behind the last import: fewer than a new snapshot is written for."""

READ_MAX = 120
"""Events that a cold read may look at: those since the snapshot, and a check or two."""

SNAPSHOT_TIMEOUT_S = 60.0


class Spy:
    """Counts the events that services read from the streams, by conversation.

    An event that is read by Direct Get comes to the reader's inbox with the subject it is stored
    under in a header; one that the stream's leader reads comes as JSON.
    """

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()

    async def start(self, nats: Client) -> None:
        await nats.subscribe("_INBOX.>", cb=self._hear)
        await nats.flush()

    async def _hear(self, message: Msg) -> None:
        subject = (message.headers or {}).get("Nats-Subject", "")
        if b"stream_msg_get_response" in message.data:
            subject = json.loads(message.data).get("message", {}).get("subject", "")
        if subject.startswith("convo.evt."):
            self.read[subject.split(".", 3)[3]] += 1


async def grow(conversation: Conversation, events: int) -> None:
    """Imports messages that say their versions until the conversation has that many events."""
    for first in range(2, events + 1, PER_IMPORT):
        numbers = range(first, min(first + PER_IMPORT, events + 1))
        messages = [
            {"role": "tool", "content": f"{number}", "message_id": f"m-{number}"}
            for number in numbers
        ]
        await conversation.do("import", messages=messages, command_id=f"import-{first}")


async def snapshot_taken(conversation: Conversation, version: int) -> None:
    """Returns once a snapshot at that version or a later one is there."""
    jetstream = conversation.nats.jetstream()
    deadline = time.monotonic() + SNAPSHOT_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            message = await jetstream.get_last_msg(
                "CONVO-SNAPSHOTS", f"convo.snap.0.{conversation.tokens}"
            )
        except NotFoundError:
            pass
        else:
            if json.loads(message.data or b"{}")["view"]["version"] >= version:
                return
        await asyncio.sleep(0.02)
    raise AssertionError(f"no snapshot at version {version}")


@pytest.mark.slow
async def test_a_conversation_of_20000_events_is_read_from_its_snapshot_and_tail(
    tmp_path: Path,
) -> None:
    ledger = Deployment(tmp_path)
    [worker] = ledger.workers
    spy = Spy()
    try:
        ledger.start()
        nats = await connected(ledger.url)
        long, short = Ledger(nats).conversation(), Ledger(nats).conversation()
        for conversation, events in ((long, EVENTS), (short, 100)):
            begun = {"title": "Given", "context": {"events": events}, "command_id": "begin"}
            await conversation.init(**begun)
            await grow(conversation, events)
        await snapshot_taken(long, EVENTS - SNAPSHOT_EVERY)
        for number in range(EVENTS + 1, EVENTS + TAIL):
            await long.append(f"{number}", role="tool", command_id=f"k-{number}")
        await long.do("usage", prompt_tokens=7, completion_tokens=3)
        live = await long.messages(), await long.state(), await long.usage()

        worker.stop()
        worker.start()
        await asyncio.to_thread(answering, ledger.url)
        await spy.start(nats)
        assert (await long.messages(), await long.state(), await long.usage()) == live
        assert live[1]["version"] == EVENTS + TAIL
        assert live[1]["message_count"] == EVENTS + TAIL - 2
        assert [int(each["content"]) for each in live[0]] == list(
            range(EVENTS + TAIL - 50, EVENTS + TAIL)
        )
        assert 0 < spy.read[long.tokens] <= READ_MAX, "the spy has to see the reads"
        await short.messages()
        assert 0 < spy.read[short.tokens] <= READ_MAX

        before = spy.read[long.tokens]
        again = await long.append("again", role="tool", command_id=f"k-{EVENTS + 1}")
        assert (again["duplicate"], again["version"]) == (True, EVENTS + 1)
        taken = {"role": "tool", "content": "x", "message_id": f"m-{EVENTS}"}
        await long.refused("invalid_state", "append", taken)
        assert (await long.append("next", role="tool"))["version"] == EVENTS + TAIL + 1
        page = await long.get("history", before_version=EVENTS // 2, limit=10)
        assert [int(each["content"]) for each in page["messages"]] == list(
            range(EVENTS // 2 - 10, EVENTS // 2)
        )
        assert spy.read[long.tokens] - before <= 1_000

        messages = [{"role": "tool", "content": "again"}]
        for first in (2, EVENTS // 2 + 2):  # commands that only the snapshot remembers
            reply = await long.do("import", messages=messages, command_id=f"import-{first}")
            assert reply["duplicate"]
            assert reply["message_ids"] == [f"m-{first + n}" for n in range(PER_IMPORT)]
        reply = await long.init(command_id="begin")
        assert (reply["duplicate"], reply["state"]["version"]) == (True, 1)
        assert ledger.complaints() == []
        await nats.close()
    finally:
        ledger.stop()
