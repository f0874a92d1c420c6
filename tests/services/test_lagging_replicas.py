"""Reads right after an acknowledgement, answered by a replica that has not heard of it yet.

On three replicas 22 % of Direct Gets right after an acknowledgement were. Here the replica is made
up: a reader that hides the end of the stream for a moment, from whoever does not ask the leader.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import pytest
import pytest_asyncio
from nats.aio.client import Client

from infra.jetstream.envelope import Recorded
from infra.jetstream.reader import Reader, _Page
from infra.server import EmbeddedServer
from services.commands import CommandService
from services.conversations import Conversations
from services.endpoint import COMMAND_ID, CONSISTENCY, MIN_SEQ, Outbox
from services.in_use import views
from services.queries import QueryService

from .rigs import ADAS, Answers, append, init, ledger, process_on, request

LAGS_FOR_S = 0.15


class LaggingReader(Reader):
    """A reader whose Direct Gets know nothing behind stream sequence `knows`, for a moment."""

    knows = 2**62
    catching_up: asyncio.TimerHandle | None = None

    def lag(self, knows: int) -> None:
        if self.catching_up is not None:
            self.catching_up.cancel()
        self.knows = knows
        self.catching_up = asyncio.get_running_loop().call_later(LAGS_FOR_S, self.catch_up)

    def catch_up(self) -> None:
        self.knows = 2**62

    async def _one(self, api: str, body: bytes) -> tuple[Recorded | None, Mapping[str, Any]]:
        found, headers = await super()._one(api, body)
        if found is None or found.seq <= self.knows:
            return found, headers
        if body:  # the first one from a sequence on
            return None, {}
        everything = {"seq": 1, "next_by_subj": found.subject, "batch": 1_000}
        stream_api = api.removesuffix(f".{found.subject}")
        page = await self._page(stream_api, json.dumps(everything).encode())
        return (page.events[-1] if page.events else None), {}

    async def _page(self, api: str, body: bytes) -> _Page:
        page = await super()._page(api, body)
        known = [event for event in page.events if event.seq <= self.knows]
        if len(known) < len(page.events):
            page.events, page.pending, page.last_headers = known, 0, {}
        return page


class Served:
    """Both services on conversations whose replica can be made to lag."""

    def __init__(self, conversations: Conversations) -> None:
        self.conversations = conversations
        self.reader = LaggingReader(conversations.store.reader._nc, timeout=10)
        conversations.store.reader = self.reader
        self.answers = Answers()
        self.outbox = Outbox(cast("Client", self.answers))
        self.commands = CommandService(conversations, self.outbox)
        self.queries = QueryService(conversations, self.outbox)

    async def asked(
        self, kind: str, word: str, body: dict[str, Any], **headers: str
    ) -> dict[str, Any]:
        named = {
            {"command_id": COMMAND_ID, "min_seq": MIN_SEQ, "consistency": CONSISTENCY}[name]: value
            for name, value in headers.items()
        }
        asked = request(f"convo.{kind}.{ADAS.key}.{word}", json.dumps(body).encode(), named)
        await (self.commands if kind == "cmd" else self.queries).handle(asked)
        async with asyncio.timeout(30):
            return await self.answers.given.get()


@pytest_asyncio.fixture
async def served(nats_server: EmbeddedServer) -> AsyncIterator[Served]:
    """A conversation of ten events, the last three of which another process has just written.

    The replica knows the first seven.
    """
    topology = ledger()
    async with (
        process_on(nats_server.url, topology) as elsewhere,
        process_on(nats_server.url, topology) as here,
    ):
        served = Served(here)
        await init(elsewhere)
        for n in range(6):
            await append(elsewhere, f"message {n}")
        assert (await here.view(ADAS)).version == 7
        for n in range(6, 9):
            await append(elsewhere, f"message {n}", command_id=f"command-{n}")
        served.reader.lag(7)
        yield served
        await served.outbox.close()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read waits for a replica longer than that lags, on a slow machine too."""
    monkeypatch.setattr(views, "MIN_SEQ_WAIT_S", 10.0)


def said(answer: dict[str, Any]) -> list[str]:
    assert answer["ok"], answer
    return [message["content"] for message in answer["messages"]]


EVERYTHING = [f"message {n}" for n in range(9)]


@pytest.mark.parametrize("fresh", [{"min_seq": "10"}, {"consistency": "strong"}])
async def test_messages_include_what_was_asked_for(served: Served, fresh: dict[str, str]) -> None:
    assert said(await served.asked("get", "messages", {}, **fresh)) == EVERYTHING


@pytest.mark.parametrize("fresh", [{"min_seq": "10"}, {"consistency": "strong"}])
async def test_the_history_includes_what_was_asked_for(
    served: Served, fresh: dict[str, str]
) -> None:
    assert said(await served.asked("get", "history", {}, **fresh)) == EVERYTHING
    served.reader.lag(7)
    answer = await served.asked("get", "history", {"before_version": 100}, **fresh)
    assert said(answer) == EVERYTHING


@pytest.mark.parametrize("fresh", [{"min_seq": "10"}, {"consistency": "strong"}])
async def test_the_events_include_what_was_asked_for(served: Served, fresh: dict[str, str]) -> None:
    for after, expected in ((0, range(1, 11)), (7, range(8, 11)), (8, range(9, 11))):
        served.reader.lag(7)
        answer = await served.asked("get", "events", {"after_version": after}, **fresh)
        assert [event["version"] for event in answer["events"]] == list(expected)
        assert "next" not in answer


@pytest.mark.parametrize("fresh", [{"min_seq": "10"}, {"consistency": "strong"}])
async def test_a_state_at_a_version_is_of_that_version(
    served: Served, fresh: dict[str, str]
) -> None:
    for version in (10, 9, 7):
        served.reader.lag(7)
        answer = await served.asked("get", "state", {"at_version": version}, **fresh)
        assert answer["state"]["version"] == version
    served.reader.lag(7)
    answer = await served.asked("get", "state", {"at": "2100-01-01T00:00:00Z"}, **fresh)
    assert answer["state"]["version"] == 10


@pytest.mark.parametrize("number", [6, 8])
async def test_a_command_repeated_right_away_is_a_duplicate_and_no_fault(
    served: Served, number: int
) -> None:
    body = {"role": "assistant", "content": f"message {number}"}
    answer = await served.asked("cmd", "append", body, command_id=f"command-{number}")
    assert answer["ok"], answer
    assert answer["duplicate"]
    assert (answer["version"], answer["seq"]) == (number + 2, number + 2)


async def test_ones_own_command_repeated_right_away_is_a_duplicate_too(served: Served) -> None:
    served.reader.catch_up()
    first = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    written = await served.asked("cmd", "turn", first, command_id="turn-1")
    assert written["version"] == 13
    for knows in (10, 11, 12):
        served.reader.lag(knows)
        answer = await served.asked("cmd", "turn", first, command_id="turn-1")
        assert answer == {**written, "duplicate": True}


async def test_a_repeated_init_shows_the_state_it_made(served: Served) -> None:
    served.reader.catch_up()
    begun = await served.asked("cmd", "init", {"user_id": "ada"})
    assert begun["state"]["version"] == 10
    served.reader.lag(7)
    assert (await served.asked("cmd", "init", {"user_id": "ada"})) == begun


async def test_a_command_goes_behind_what_was_written_elsewhere(served: Served) -> None:
    answer = await served.asked("cmd", "append", {"role": "user", "content": "after"})
    assert answer["ok"], answer
    assert answer["version"] == 12, "with its title"
