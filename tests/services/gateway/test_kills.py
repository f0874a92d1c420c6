"""Processes that are killed (SIGKILL) in the middle of their work: what their clients see of it."""

from __future__ import annotations

import asyncio
from itertools import count

import httpx

from tests.acceptance.client import Ledger
from tests.acceptance.deployment import Worker
from tests.model_server import said
from tests.services.gateway.site import GatewayProcess, Site
from tests.services.gateway.talking import Talking
from tests.services.gateway.test_chats import asked, chunks, made, streamed, text_in

WRITERS, MESSAGES = 8, 30


class Sweeper(Worker):
    """The process that ends answers nobody goes on with."""

    services = ("sweeper",)


class Writer:
    """A client that appends in turn, each message under a key of its own, wherever it is taken."""

    def __init__(self, id: str, gateways: list[GatewayProcess]) -> None:
        self.id = id
        self.lost_answers = 0
        self.said = 0
        self._gateways = gateways

    async def run(self, client: httpx.AsyncClient) -> None:
        for number in range(MESSAGES):
            await self._say(client, number)
            self.said += 1

    async def _say(self, client: httpx.AsyncClient, number: int) -> None:
        for attempt in count():
            gateway = self._gateways[min(attempt, 1)]
            try:
                answer = await client.post(
                    f"{gateway.http}/v1/threads/{self.id}/message",
                    json={"role": "user", "content": f"{number}"},
                    headers={"idempotency-key": f"{self.id}-{number}"},
                )
            except httpx.TransportError:
                self.lost_answers += 1
                continue
            assert answer.status_code == 200, answer.text
            return


async def test_what_a_killed_gateway_did_not_answer_is_sent_to_another_and_written_once(
    site: Site, gateway: GatewayProcess, ledger: Ledger, id: str
) -> None:
    doomed = site.gateway()
    writers = [Writer(f"{id}-{number}", [doomed, gateway]) for number in range(WRITERS)]
    async with httpx.AsyncClient(timeout=30) as client:
        for writer in writers:
            await ledger.conversation(writer.id, "default").init()
        writing = asyncio.gather(*(writer.run(client) for writer in writers))
        while sum(writer.said for writer in writers) < WRITERS * MESSAGES // 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        site.gateways.remove(doomed)  # nobody has to stop it
        doomed.kill()
        await writing

    assert sum(writer.lost_answers for writer in writers) >= 1  # the kill was felt
    for writer in writers:
        kept = await ledger.conversation(writer.id, "default").history()
        assert [each["content"] for each in kept] == [f"{number}" for number in range(MESSAGES)]


async def test_an_answer_of_a_killed_responder_ends_for_who_watches_it(
    site: Site, http: httpx.AsyncClient, talking: Talking
) -> None:
    id = await made(http)
    sweeper = Sweeper(site.server, site.directory / "sweeper", reply_silence="1s")
    found = []
    try:
        async with http.stream("POST", f"/api/chat/{id}", json=asked("stall after 3")) as answer:
            async for chunk in chunks(answer):
                found.append(chunk)
                if text_in(found) == said(3) and chunk != "[DONE]" and "delta" in chunk:
                    talking.responder.kill()
                    sweeper.start()
    finally:
        sweeper.stop()
        talking.responder.start()

    assert text_in(found) == said(3)
    assert found[-2:] == [{"type": "error", "errorText": "silent"}, "[DONE]"]
    assert (await http.get(f"/api/chat/{id}/stream")).status_code == 204
    assert text_in(await streamed(http, id, asked("say 2"))) == said(2)
