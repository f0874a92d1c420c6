"""Ids: any text of 1 to 200 bytes names a conversation, and none reaches another one's subject."""

from __future__ import annotations

import pytest

from tests.acceptance.client import Conversation, Ledger, refused, token

IDS = [
    "a.b",
    ".",
    "...",
    "a b",
    " ",
    "\t\r\n",
    "*",
    ">",
    "a.*.>",
    "%",
    "%2E",
    "100%",
    "a/b\\c",
    "$SRV.PING",
    "-_~:@=+",
    "\x00",
    "\x7f",
    "'\"`;--",
    "{{partition(3,1,2)}}",
    "ä",
    "a\u0308",
    "漢字",
    "👩‍👩‍👧",
    "العربية",
    "\u2028",
    "\ufffd",
    "\U0010ffff",
    "x" * 200,
    "." * 200,
    "漢" * 66 + "aa",
]


@pytest.mark.parametrize("name", IDS, ids=ascii)
async def test_any_text_names_a_conversation(ledger: Ledger, name: str) -> None:
    conversation = ledger.conversation(name, tenant_id=name)
    reply = await conversation.init()
    assert (reply["state"]["conversation_id"], reply["state"]["tenant_id"]) == (name, name)
    await conversation.append(f"in {name}", role="assistant")
    assert await conversation.contents() == [f"in {name}"]
    stored = (await conversation.events())[-1]
    assert (stored["conversation_id"], stored["tenant_id"]) == (name, name)


async def test_each_id_is_a_conversation_of_its_own(ledger: Ledger) -> None:
    names = ["own", "Own", "own.", "own ", "ow.n", "own%2E", "own*", "ówn", "o\u0301wn"]
    pairs = [("t", name) for name in names] + [("t.", "own"), ("t.own", "own"), ("tow", "n")]
    conversations = [ledger.conversation(name, tenant_id=tenant) for tenant, name in pairs]
    for number, conversation in enumerate(conversations):
        await conversation.init(user_id=f"user {number}")
        await conversation.append(number * "x", role="tool")
    for number, conversation in enumerate(conversations):
        state = await conversation.state()
        assert (state["user_id"], state["version"]) == (f"user {number}", 2)
        assert await conversation.contents() == [number * "x"]


@pytest.mark.parametrize("name", ["x" * 201, "漢" * 67, "." * 201, "x" * 1_000])
async def test_an_id_over_200_bytes_is_refused(ledger: Ledger, name: str) -> None:
    for conversation, field in (
        (ledger.conversation(name), "conversation_id"),
        (ledger.conversation("c", tenant_id=name), "tenant_id"),
    ):
        error = await conversation.refused("invalid_request", "init", {"user_id": "ada"})
        assert [each["field"] for each in error["details"]] == [field]
        await conversation.get_refused("invalid_request", "state")


@pytest.mark.parametrize(
    "written",
    [
        "a%2eb",  # lower-case hex
        "%41",  # encoded without need
        "a%2D",
        "%",  # not whole
        "a%2",
        "%G0",
        "%%",
        "%FF",  # no UTF-8
        "%C0%80",  # an overlong zero
        "%ED%A0%80",  # a lone surrogate
        "%F4%90%80%80",  # beyond Unicode
        "a/b",  # not encoded
        "a$b",
        "ä",
        "%C3ä",
        "漢" * 200,
    ],
)
async def test_a_token_that_is_not_canonical_is_refused(ledger: Ledger, written: str) -> None:
    for subject in (f"{written}.c.{{}}", f"acme.{written}.{{}}"):
        body = b'{"user_id": "ada"}'
        await refused(ledger.nats, "invalid_request", "convo.cmd." + subject.format("init"), body)
        await refused(ledger.nats, "invalid_request", "convo.get." + subject.format("state"), b"")


async def test_tenants_do_not_meet(ledger: Ledger) -> None:
    ours, theirs = await ledger.begun(), None
    theirs = Conversation(ledger.nats, "another", ours.conversation_id)
    await theirs.get_refused("conversation_not_initialized", "messages")
    await theirs.init(user_id="eve")
    await theirs.append("theirs", command_id="k", message_id="m")
    await ours.append("ours", command_id="k", message_id="m")
    assert (await ours.contents(), await theirs.contents()) == (["ours"], ["theirs"])


@pytest.mark.parametrize(
    "subject",
    [
        "convo.cmd.init",
        "convo.cmd.acme.init",
        "convo.cmd.acme.c-1.append.now",
        "convo.cmd.acme.c-1.no-such-verb",
        "convo.cmd.acme.c-1.Append",
        "convo.cmd.acme.c-1.%61ppend",
        "convo.cmd.acme.c-1." + "x" * 3_000,
        "convo.get.state",
        "convo.get.acme.state",
        "convo.get.acme.c-1.no-such-view",
        "convo.get.acme.c-1.state.now",
        "convo.get.acme.c-1." + "x" * 3_000,
    ],
    ids=lambda subject: subject[:40],
)
async def test_a_subject_that_is_no_request_is_refused(ledger: Ledger, subject: str) -> None:
    error = await refused(ledger.nats, "invalid_request", subject, b"{}")
    assert len(error["message"]) < 600


async def test_an_unknown_verb_is_answered_with_the_known_ones(ledger: Ledger) -> None:
    error = await ledger.conversation().refused("invalid_request", "apend")
    for verb in ("init", "append", "usage", "turn", "reset", "update", "import"):
        assert verb in error["message"]
    error = await ledger.conversation().get_refused("invalid_request", "mesages")
    for view in ("messages", "usage", "state", "history", "events"):
        assert view in error["message"]


def test_tokens_are_the_contract_s() -> None:
    assert token("a.b") == "a%2Eb"
    assert token("ä *>%") == "%C3%A4%20%2A%3E%25"
    assert token("-_~:@=+Az09") == "-_~:@=+Az09"
