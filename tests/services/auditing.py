"""A ledger in the test's own process, for tests that audit it, and copies of its streams."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from nats.aio.client import Client

from infra.connection import connect
from infra.settings import Settings
from services.bootstrap import Process, running

JSON = dict[str, Any]


class Refused(AssertionError):
    """A request that was answered with an error, which is `error`."""

    def __init__(self, error: JSON) -> None:
        super().__init__(str(error))
        self.error = error


class Ledger:
    """Commands, queries and audit answered on one server, over one connection."""

    def __init__(self, nc: Client, process: Process, url: str) -> None:
        self.nc = nc
        self.process = process
        self.url = url

    async def ask(self, subject: str, **body: Any) -> JSON:
        """The reply to a request that has to be answered with ok; raises Refused."""
        message = await self.nc.request(subject, json.dumps(body).encode(), timeout=30)
        reply: JSON = json.loads(message.data)
        if not reply["ok"]:
            raise Refused(reply["error"])
        return reply

    async def audit(self, conversation: str, what: str, **body: Any) -> JSON:
        """The reply of the audit service about a conversation of tenant acme."""
        return await self.ask(f"convo.audit.acme.{conversation}.{what}", **body)

    async def do(self, conversation: str, verb: str, **body: Any) -> JSON:
        """Carries out a command on a conversation of tenant acme."""
        return await self.ask(f"convo.cmd.acme.{conversation}.{verb}", **body)

    async def replay(self, conversation: str, **body: Any) -> list[JSON]:
        """All entries, page by page."""
        entries: list[JSON] = []
        while True:
            page = await self.audit(conversation, "replay", **body)
            entries += page["entries"]
            if "next" not in page:
                return entries
            assert page["entries"], "a page that goes on has something on it"
            body["from_version"] = page["next"]

    async def talk(self, conversation: str, turns: int = 2) -> None:
        """A conversation of `1 + 1 + 3 * turns` events (the title's one included)."""
        await self.do(conversation, "init", user_id="ada")
        for number in range(turns):
            await self.do(
                conversation,
                "turn",
                messages=[
                    {"role": "user", "content": f"Question {number}: \u00e9\u4f60\U0001f600"},
                    {"role": "assistant", "content": f"Answer {number}", "metadata": {"n": number}},
                ],
                usage={"prompt_tokens": 10, "completion_tokens": number},
            )


@contextlib.asynccontextmanager
async def ledger_on(url: str, *services: str, **settings: Any) -> AsyncIterator[Ledger]:
    """A ledger on the server at `url`, within the block."""
    in_force = Settings(**settings)
    wanted = services or ("commands", "queries", "audit")
    async with running(in_force, wanted, url=url) as process:
        nc = await connect(url, name="auditing", settings=in_force)
        try:
            yield Ledger(nc, process, url)
        finally:
            await nc.close()
