"""Pages cut by bytes as well as by count: nothing too long, nothing lost between two pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random
from typing import Any, cast

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request
from pydantic_core import from_json, to_json

from infra.jetstream import reader as reader_module
from infra.server import EmbeddedServer
from services.conversations import Conversations
from services.endpoint import Outbox
from services.paging import cut_state, newest_that_fit, oldest_that_fit
from services.queries import Asked, EventsQuery, HistoryQuery, MessagesQuery, QueryService

from .rigs import ADAS, append, hears_everything, init, ledger, process_on, sending

ROOM = 4_096
items = st.lists(
    st.one_of(st.text(max_size=300), st.dictionaries(st.text(max_size=5), st.text(max_size=300))),
    max_size=30,
)
limits = st.integers(0, 12_000)


@given(items, limits)
def test_the_newest_that_fit_are_the_longest_end_within_the_bytes(
    items: list[Any], bytes_max: int
) -> None:
    kept = list(newest_that_fit(items, bytes_max))
    assert kept == items[len(items) - len(kept) :]
    check_cut(kept, items, bytes_max, longer=items[len(items) - len(kept) - 1 :])


@given(items, limits)
def test_the_oldest_that_fit_are_the_longest_start_within_the_bytes(
    items: list[Any], bytes_max: int
) -> None:
    kept = list(oldest_that_fit(items, bytes_max))
    assert kept == items[: len(kept)]
    check_cut(kept, items, bytes_max, longer=items[: len(kept) + 1])


def check_cut(kept: list[Any], items: list[Any], bytes_max: int, longer: list[Any]) -> None:
    if items:
        assert kept, "never nothing, where there is something"
    if len(kept) > 1:
        assert len(to_json(kept)) <= bytes_max - ROOM + 1
    if len(kept) < len(items):
        assert len(to_json(longer)) > bytes_max - ROOM - 1, "one more would have fitted"


@given(
    items, st.dictionaries(st.text(max_size=5), st.text(max_size=500)), st.integers(6_000, 20_000)
)
def test_a_state_is_cut_at_the_oldest_end_of_its_messages_and_says_so(
    messages: list[Any], context: dict[str, str], bytes_max: int
) -> None:
    state = {"title": "x", "context": context, "recent_messages": messages, "version": 7}
    cut = cut_state(state, bytes_max)
    kept = cut["recent_messages"]
    assert {**cut, "recent_messages": 0} == {
        **state,
        "recent_messages": 0,
        **({"truncated": True} if len(kept) < len(messages) else {}),
    }
    assert list(kept) == messages[len(messages) - len(kept) :]
    if len(kept) > 1:
        assert len(to_json(cut)) <= bytes_max
    assert state["recent_messages"] is messages, "the view's own is not touched"


# -- page after page, over a real ledger ---------------------------------------------------------


class Narrow:
    """A connection that carries little, so that pages are cut."""

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload
        self.is_connected = False


@pytest_asyncio.fixture
async def talk(nats_server: EmbeddedServer) -> AsyncIterator[Conversations]:
    """A conversation of 170 messages of many sizes, some among other events, with a reset."""
    random = Random(5)
    async with process_on(nats_server.url, ledger(), window_size=40) as conversations:
        await init(conversations)
        told = []
        for n in range(170):
            told.append(append(conversations, f"{n}:" + "x" * random.choice([0, 10, 500, 3_000])))
            if n == 60:
                told.append(sending(conversations, "reset", {}))
            if n in (20, 100):
                told += [
                    sending(conversations, "usage", {"prompt_tokens": 1, "completion_tokens": 1})
                    for _ in range(90)
                ]
        for each in told:
            await each
        yield conversations


def service(conversations: Conversations, max_payload: int) -> tuple[QueryService, Outbox]:
    outbox = Outbox(cast("Client", Narrow(max_payload)))
    return QueryService(conversations, outbox), outbox


def number(message: dict[str, Any]) -> int:
    return int(str(message["content"]).partition(":")[0])


@pytest.mark.parametrize(
    ("max_payload", "limit"),
    [
        (10_000, 20),
        (60_000, 10),
        (60_000, 1_000),
        (8_000_000, 13),
        (8_000_000, 100),
    ],
)
async def test_the_history_is_whole_page_after_page_in_both_directions(
    talk: Conversations, max_payload: int, limit: int
) -> None:
    queries, outbox = service(talk, max_payload)
    for include_reset, expected in ((True, list(range(170))), (False, list(range(61, 170)))):
        forward: list[int] = []
        query: dict[str, Any] = {"limit": limit, "include_reset": include_reset}
        while True:
            page = await queries._history(Asked(ADAS, HistoryQuery(**query), None, False))
            assert len(to_json(page)) <= outbox.reply_bytes_max
            assert len(page["messages"]) <= limit
            forward += map(number, page["messages"])
            if "next" not in page:
                break
            assert page["next"] > query.get("after_version", 0), "each page leads on"
            query["after_version"] = page["next"]
        assert forward == expected
        backward: list[int] = []
        query = {"limit": limit, "include_reset": include_reset, "before_version": 2**40}
        while True:
            page = await queries._history(Asked(ADAS, HistoryQuery(**query), None, False))
            assert len(to_json(page)) <= outbox.reply_bytes_max
            backward[:0] = map(number, page["messages"])
            if "next" not in page:
                break
            assert page["next"] < query["before_version"], "each page leads on"
            query["before_version"] = page["next"]
        assert backward == expected
    await outbox.close()


async def test_a_history_of_large_messages_has_no_hole_where_a_read_was_cut(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    # given more bytes in one stretch of events than one read brings
    async with process_on(nats_server.url, ledger()) as conversations:
        await init(conversations)
        large = 2 * reader_module.PAGE_BYTES // 200_000
        for n in range(large):
            await append(conversations, f"{n}:" + "x" * 200_000)
        queries, outbox = service(conversations, 8_000_000)
        # when it is read backwards, and forwards
        for start in ({"before_version": 2**40}, {"after_version": 0}):
            query: dict[str, Any] = {"limit": 1_000, **start}
            seen: list[int] = []
            while True:
                page = await queries._history(Asked(ADAS, HistoryQuery(**query), None, False))
                seen += map(number, page["messages"])
                if "next" not in page:
                    break
                query[next(iter(start))] = page["next"]
            # then every message is there, once
            assert sorted(seen) == list(range(large))
        await outbox.close()


@pytest.mark.parametrize("max_payload", [10_000, 60_000, 8_000_000])
@pytest.mark.parametrize("limit", [1, 33, 1_000])
async def test_the_events_are_whole_page_after_page(
    talk: Conversations, max_payload: int, limit: int
) -> None:
    queries, outbox = service(talk, max_payload)
    stored = await talk.store.read(ADAS.key)
    seen: list[dict[str, Any]] = []
    after = 0
    while True:
        query = EventsQuery(after_version=after, limit=limit)
        page = await queries._events(Asked(ADAS, query, None, False))
        assert len(to_json(page)) <= outbox.reply_bytes_max
        assert len(page["events"]) <= limit
        seen += page["events"]
        if "next" not in page:
            break
        after = page["next"]
    assert [event["seq"] for event in seen] == [each.seq for each in stored]
    assert [event["hash"] for event in seen] == [each.digest for each in stored]
    for event, each in zip(seen, stored, strict=True):
        del event["seq"], event["hash"]
        assert event == from_json(each.body)
    await outbox.close()


async def test_a_window_that_is_too_long_is_cut_at_its_oldest_end_and_says_so(
    talk: Conversations,
) -> None:
    for max_payload, whole in ((10_000, False), (8_000_000, True)):
        queries, outbox = service(talk, max_payload)
        answer = await queries._messages(Asked(ADAS, MessagesQuery(), None, False))
        page = from_json(answer) if isinstance(answer, bytes) else answer
        numbers = [number(message) for message in page["messages"]]
        assert numbers == list(range(170 - len(numbers), 170))
        assert (len(numbers) == 40) is whole
        assert page.get("truncated", False) is not whole
        assert len(to_json(page)) <= outbox.reply_bytes_max
        await outbox.close()


async def test_a_window_that_is_known_here_is_answered_before_the_next_request_is_taken(
    talk: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that hears of everything, and one reading that asked the ledger
    hears_everything(talk, monkeypatch)
    queries, outbox = service(talk, 8_000_000)
    sent: list[bytes] = []
    monkeypatch.setattr(outbox, "send", lambda _request, body, _headers=None: sent.append(body))
    subject = f"convo.get.{ADAS.key}.messages"

    async def ask(headers: dict[str, str] | None = None) -> None:
        message = Msg(cast("Client", None), subject, "reply", b"", headers)
        await queries.handle(Request(message))

    await ask()
    assert not sent
    await queries.idle()
    # when it is asked for again
    await ask()
    # then the answer is there, and the same
    assert len(sent) == 2
    assert sent[0] == sent[1]
    # and who wants more certainty than that waits for it
    await ask({"Convo-Consistency": "strong"})
    assert len(sent) == 2
    await queries.idle()
    assert sent[2] == sent[0]
    await outbox.close()
