"""A reply watched by many while it is made, by the recipe of docs/streaming.md itself.

Half of the viewers go away and come back, and a worker is killed meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from tests.acceptance.client import Conversation, Ledger
from tests.acceptance.conftest import Deploy, connected

PAGE = Path(__file__).resolve().parents[2] / "docs" / "streaming.md"
CHUNKS = 5_000
GATHERED = 5
VIEWERS = 20

Watch = Callable[[Client, str, str], AsyncIterator[str]]


def recipe() -> Watch:
    """`watch`, as the page has it."""
    [code] = re.findall(
        r"^```python recipe\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    watch: Watch = names["watch"]
    return watch


async def certainly(conversation: Conversation, verb: str, **body: Any) -> dict[str, Any]:
    """Sends a command until it is answered; what was written already is skipped."""
    subject = f"convo.cmd.{conversation.tokens}.{verb}"
    while True:
        try:
            answer = await conversation.nats.request(subject, json.dumps(body).encode(), timeout=5)
        except nats.errors.Error:
            continue
        reply: dict[str, Any] = json.loads(answer.data)
        if reply["ok"]:
            return reply
        assert reply["error"]["retryable"] or reply["error"]["code"] == "outcome_unknown", reply


class Viewer:
    """One who watches; `seen` are the lengths of the text each time it was shown."""

    def __init__(self, url: str, watch: Watch, text: str, *, leaves: random.Random | None) -> None:
        self._url = url
        self._watch = watch
        self._text = text
        self._leaves = leaves
        self.shown = ""
        self.visits = 0

    async def view(self, conversation: str, message_id: str) -> None:
        """Watches until the reply is whole, from however many connections."""
        while not await self._visit(conversation, message_id):
            pass

    async def _visit(self, conversation: str, message_id: str) -> bool:
        self.visits += 1
        client = await connected(self._url)
        stay = self._leaves.randrange(5, 150) if self._leaves and self.visits < 8 else None
        shown = 0
        try:
            async for text in self._watch(client, conversation, message_id):
                # Always a beginning of the answer, never one that was seen further before.
                assert self._text.startswith(text)
                assert text.startswith(self.shown)
                self.shown = text
                shown += 1
                if stay is not None and shown > stay:
                    return False
            return True
        finally:
            await client.close()


@pytest.mark.parametrize("seed", [7])
async def test_every_viewer_ends_with_the_exact_text(deploy: Deploy, seed: int) -> None:
    deployment = deploy(workers=2)
    chance = random.Random(seed)
    texts = [f"{number} {chance.choice(['a', '日本', ''])}" for number in range(CHUNKS)]
    whole = "".join(texts)
    producer = await connected(deployment.url)
    conversation = await Ledger(producer).begun()
    message_id = (await conversation.do("reply.start"))["message_id"]
    watch = recipe()
    viewers = [
        Viewer(
            deployment.url,
            watch,
            whole,
            leaves=random.Random(chance.random()) if number < VIEWERS // 2 else None,
        )
        for number in range(VIEWERS)
    ]
    watching = asyncio.gather(*(each.view(conversation.tokens, message_id) for each in viewers))
    for index in range(0, CHUNKS, GATHERED):
        if index == CHUNKS // 2:
            deployment.workers[0].kill()
        some = texts[index : index + GATHERED]
        await certainly(conversation, "reply.chunk", message_id=message_id, index=index, texts=some)
        assert not watching.done(), watching.exception()
    await certainly(conversation, "reply.finish", message_id=message_id, command_id="the end")
    async with asyncio.timeout(60):
        await watching

    assert [each.shown for each in viewers] == [whole] * VIEWERS
    assert all((each.visits > 1) == (number < VIEWERS // 2) for number, each in enumerate(viewers))
    events = await conversation.events()
    chunks = [event["data"] for event in events if event["type"] == "ReplyChunkAppended"]
    assert "".join(chunk["text"] for chunk in chunks) == whole
    assert [chunk["first_index"] for chunk in chunks] == list(range(0, CHUNKS, GATHERED))
    assert events[-1]["data"]["chars"] == len(whole)
    await producer.close()
