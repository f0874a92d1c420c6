"""The edge of a service on NATS: replies that always go out, subjects and headers that are read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import OutboundBufferLimitError
from nats.errors import TimeoutError as NoAnswer
from nats.micro.request import Request
from nats.micro.service import Service

from domain.errors import InvalidRequest
from domain.identity import ConversationId
from infra.jetstream.errors import StoreUnavailable
from infra.server import EmbeddedServer
from services.endpoint import (
    ACTOR,
    CONSISTENCY,
    ERROR,
    ERROR_CODE,
    EXPECTED_VERSION,
    MIN_SEQ,
    Outbox,
    conversation_of,
    header_choice,
    header_name,
    header_number,
    start_service,
)
from services.errors import Refusal
from tests.infra.jetstream.rigs import connected


class Wire:
    """The part of a connection that an outbox uses; a publish takes a turn, as a real one may."""

    def __init__(self) -> None:
        self.max_payload = 10_000
        self.is_connected = True
        self.sent: list[tuple[str, bytes, dict[str, str] | None]] = []
        self.fails: Callable[[str], Exception | None] = lambda _: None
        self.flushed = 0
        self.flush_fails: Exception | None = None

    async def publish(
        self, subject: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        await asyncio.sleep(0)
        error = self.fails(subject)
        if error is not None:
            raise error
        size = len(body) + sum(len(n) + len(v) + 4 for n, v in (headers or {}).items())
        assert size <= self.max_payload, "the server closes the connection over that"
        self.sent.append((subject, body, headers))

    async def flush(self) -> None:
        self.flushed += 1
        if self.flush_fails is not None:
            raise self.flush_fails

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body, _ in self.sent]


def asked(reply: str) -> Request:
    return cast("Request", SimpleNamespace(_msg=SimpleNamespace(reply=reply)))


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest_asyncio.fixture
async def outbox(wire: Wire) -> AsyncIterator[Outbox]:
    outbox = Outbox(cast("Client", wire))
    yield outbox
    if not outbox._task.done():
        async with asyncio.timeout(5):
            await outbox.close()


# -- the outbox ----------------------------------------------------------------------------------


async def test_replies_go_out_in_order_and_all_of_them_before_it_closes(
    outbox: Outbox, wire: Wire
) -> None:
    for n in range(50):
        outbox.reply(asked(f"inbox.{n}"), {"ok": True, "n": n})
    async with asyncio.timeout(5):
        await outbox.close()
    assert [subject for subject, _, _ in wire.sent] == [f"inbox.{n}" for n in range(50)]
    assert wire.bodies() == [{"ok": True, "n": n} for n in range(50)]
    assert wire.flushed == 1


async def test_a_reply_that_is_just_going_out_is_not_lost_by_closing(
    outbox: Outbox, wire: Wire
) -> None:
    outbox.reply(asked("inbox"), {"ok": True})
    await asyncio.sleep(0)  # it is taken, and on its way
    async with asyncio.timeout(5):
        await outbox.close()
    assert len(wire.sent) == 1


async def test_closing_an_outbox_that_never_sent_anything(outbox: Outbox, wire: Wire) -> None:
    async with asyncio.timeout(5):
        await outbox.close()
    assert wire.sent == []


async def test_a_request_that_wants_no_reply_gets_none(outbox: Outbox, wire: Wire) -> None:
    outbox.reply(asked(""), {"ok": True})
    outbox.refuse(asked(""), InvalidRequest("no"))
    await outbox.close()
    assert wire.sent == []


async def test_a_refusal_has_the_contracts_body_and_headers(outbox: Outbox, wire: Wire) -> None:
    outbox.refuse(asked("inbox"), InvalidRequest("say it otherwise", [{"field": "role"}]))
    outbox.refuse(asked("inbox"), Refusal("internal", 500, "a fault", retryable=False))
    await outbox.close()
    assert wire.bodies()[0] == {
        "ok": False,
        "error": {
            "code": "invalid_request",
            "message": "say it otherwise",
            "retryable": False,
            "details": [{"field": "role"}],
        },
    }
    assert wire.sent[0][2] == {ERROR: "say it otherwise", ERROR_CODE: "400"}
    assert wire.sent[1][2] == {ERROR: "a fault", ERROR_CODE: "500"}


@given(st.text(max_size=400))
def test_what_a_header_says_of_an_error_is_one_short_line_of_ascii(message: str) -> None:
    async def refused() -> Wire:
        wire = Wire()
        outbox = Outbox(cast("Client", wire))
        outbox.refuse(asked("inbox"), Refusal("internal", 500, message, retryable=False))
        await outbox.close()
        return wire

    [(_, _, headers)] = asyncio.run(refused()).sent
    assert headers is not None
    line = headers[ERROR]
    assert len(line) <= 200
    assert line.isascii()
    assert line == line.strip()
    assert line.isprintable(), "no line breaks, no control characters"


async def test_a_reply_over_the_payload_limit_is_told_as_an_error_in_full_form(
    outbox: Outbox, wire: Wire
) -> None:
    outbox.reply(asked("inbox.1"), {"text": "x" * 10_000})
    outbox.reply(asked("inbox.2"), {"ok": True})
    await outbox.close()
    first, second = wire.bodies()
    assert (first["ok"], first["error"]["code"]) == (False, "invalid_request")
    assert "ask for less" in first["error"]["message"]
    headers = wire.sent[0][2]
    assert headers is not None
    assert headers[ERROR_CODE] == "400"
    assert "ask for less" in headers[ERROR]
    assert second == {"ok": True}


@pytest.mark.parametrize("size", [9_600, 9_800, 9_900, 9_990])
async def test_headers_count_as_payload_too(outbox: Outbox, wire: Wire, size: int) -> None:
    empty = len(json.dumps(Refusal("internal", 500, "", retryable=False).body()).replace(" ", ""))
    told = Refusal("internal", 500, "m" * (size - empty), retryable=False)
    outbox.refuse(asked("inbox"), told)
    await outbox.close()
    assert len(wire.sent) == 1, "something is answered, and the connection survives it"


@pytest.mark.parametrize(
    "error",
    [
        OutboundBufferLimitError(),
        NatsError("anything"),
        OSError("broken pipe"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
        RuntimeError("a fault of ours"),
    ],
)
async def test_a_reply_that_cannot_be_sent_takes_no_other_one_along(
    outbox: Outbox, wire: Wire, error: Exception
) -> None:
    wire.fails = lambda subject: error if subject == "inbox.1" else None
    for n in range(3):
        outbox.reply(asked(f"inbox.{n}"), {"n": n})
    for _ in range(20):
        await asyncio.sleep(0)
    outbox.reply(asked("inbox.3"), {"n": 3})
    async with asyncio.timeout(5):
        await outbox.close()
    assert [subject for subject, _, _ in wire.sent] == ["inbox.0", "inbox.2", "inbox.3"]


async def test_closing_while_disconnected_or_unanswered_is_no_error(wire: Wire) -> None:
    outbox = Outbox(cast("Client", wire))
    wire.is_connected = False
    await outbox.close()
    assert wire.flushed == 0
    outbox = Outbox(cast("Client", wire))
    wire.is_connected, wire.flush_fails = True, NoAnswer()
    await outbox.close()
    assert wire.flushed == 1


async def test_over_nats_a_reply_that_is_too_large_is_an_error_and_the_next_one_arrives(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    async with connected(nats_server.url) as nc:
        outbox = Outbox(nc)
        sizes = iter([9_000_000, nc.max_payload + 1, outbox.reply_bytes_max - 50, 10])

        async def handle(request: Request) -> None:
            outbox.reply(request, {"text": "x" * next(sizes)})

        await start_service(nc, name="large", description="", endpoints={"e": ("large", handle)})
        answers = [await nats_client.request("large", timeout=10) for _ in range(4)]
        assert [json.loads(each.data).get("ok", True) for each in answers] == [
            False,
            False,
            True,
            True,
        ]
        headers = answers[0].headers or {}
        assert headers[ERROR_CODE] == "400"
        assert headers[ERROR]
        await outbox.close()


# -- services ------------------------------------------------------------------------------------


async def test_a_service_answers_for_itself_and_shares_its_work(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    async with connected(nats_server.url) as one, connected(nats_server.url) as other:
        taken: list[str] = []
        services: list[Service] = []
        for name, nc in (("one", one), ("other", other)):

            async def handle(request: Request, name: str = name) -> None:
                taken.append(name)
                await request.respond(b"done")

            services.append(
                await start_service(
                    nc,
                    name="convo-test",
                    description="For this test",
                    endpoints={"commands": ("test.cmd.>", handle)},
                )
            )
        # both are there, and each request is done once
        pings = await nats_client.subscribe("pings")
        await nats_client.publish("$SRV.PING.convo-test", reply="pings")
        ids = {json.loads((await pings.next_msg(5)).data)["id"] for _ in range(2)}
        assert ids == {service.id for service in services}
        for n in range(40):
            await nats_client.request(f"test.cmd.{n}", timeout=5)
        assert len(taken) == 40
        assert set(taken) == {"one", "other"}
        stats = json.loads((await nats_client.request("$SRV.STATS.convo-test", timeout=5)).data)
        assert stats["endpoints"][0]["subject"] == "test.cmd.>"


# -- subjects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "tenant", "conversation", "word"),
    [
        ("convo.cmd.acme.c-1.append", "acme", "c-1", "append"),
        ("convo.cmd.acme.a%2Eb.reply.start", "acme", "a.b", "reply.start"),
        ("convo.cmd.%2A.%3E.init", "*", ">", "init"),
        ("convo.cmd.acme.c.", "acme", "c", ""),
        ("convo.cmd.%F0%9F%98%80.x.init", "😀", "x", "init"),
    ],
)
def test_a_subject_names_a_conversation_and_a_word(
    subject: str, tenant: str, conversation: str, word: str
) -> None:
    assert conversation_of(subject, "convo.cmd.") == (ConversationId(tenant, conversation), word)


@pytest.mark.parametrize(
    "subject",
    [
        "convo.cmd.acme",
        "convo.cmd.acme.init",
        "convo.cmd.",
        "convo.cmd.acme.%2a.init",
        "convo.cmd.acme.%41.init",
        "convo.cmd.acme.%.init",
        "convo.cmd.acme.%FF.init",
        "convo.cmd.*.c.init",
        f"convo.cmd.acme.{'x' * 201}.init",
    ],
)
def test_any_other_subject_is_an_invalid_request(subject: str) -> None:
    with pytest.raises(InvalidRequest):
        conversation_of(subject, "convo.cmd.")


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_whatever_an_id_is_its_subject_leads_back_to_it(tenant: str, conversation: str) -> None:
    try:
        id = ConversationId.parse(tenant, conversation)
    except InvalidRequest:
        return
    assert conversation_of(f"convo.get.{id.key}.state", "convo.get.") == (id, "state")


# -- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("7", 7), ("0012", 12), (str(2**53), 2**53)]
)
def test_a_number_in_a_header(text: str, number: int) -> None:
    assert header_number({MIN_SEQ: text}, MIN_SEQ) == number
    assert header_number({}, MIN_SEQ) is None


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+1", "1.0", "1e3", "0x1", "one", "١", "1_000", str(2**53 + 1), "9" * 5_000],
)
def test_anything_else_where_a_number_belongs_is_told(text: str) -> None:
    with pytest.raises(InvalidRequest, match="whole number") as refused:
        header_number({EXPECTED_VERSION: text}, EXPECTED_VERSION)
    assert refused.value.details == [{"field": EXPECTED_VERSION, "problem": "not a whole number"}]
    assert len(refused.value.message) < 200


def test_a_name_in_a_header() -> None:
    assert header_name({ACTOR: "user:ada"}, ACTOR) == "user:ada"
    assert header_name({ACTOR: "Zoë " * 32}, ACTOR) == "Zoë " * 32
    assert header_name({}, ACTOR) is None


@pytest.mark.parametrize("text", ["", "x" * 129, "\ufffd"])
def test_a_name_that_is_none_is_told(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        header_name({ACTOR: text}, ACTOR)
    [problem] = cast("list[dict[str, str]]", refused.value.details)
    assert problem["field"] == ACTOR


def test_a_choice_in_a_header() -> None:
    choices = ("strong", "eventual")
    assert header_choice({CONSISTENCY: "strong"}, CONSISTENCY, choices) == "strong"
    assert header_choice({}, CONSISTENCY, choices) is None
    with pytest.raises(InvalidRequest, match="one of strong, eventual"):
        header_choice({CONSISTENCY: "Strong"}, CONSISTENCY, choices)


def test_an_error_of_the_store_is_told_by_the_outbox_too() -> None:
    async def refused() -> Wire:
        wire = Wire()
        outbox = Outbox(cast("Client", wire))
        outbox.refuse(asked("inbox"), StoreUnavailable("try again"))
        await outbox.close()
        return wire

    wire = asyncio.run(refused())
    assert wire.bodies()[0]["error"]["code"] == "storage_unavailable"
    headers = wire.sent[0][2]
    assert headers is not None
    assert headers[ERROR_CODE] == "503"
