"""reply.start, reply.chunk, reply.finish, reply.abort: a message that comes piece by piece."""

from __future__ import annotations

from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from freezegun import freeze_time

from domain.conversation import MESSAGE_IDS_MAX
from domain.errors import (
    ConversationNotInitialized,
    InvalidRequest,
    InvalidState,
    MessageNotFound,
    MessageTooLarge,
    RateLimited,
    VersionConflict,
)
from domain.rules import OPEN_REPLIES_MAX, Forgotten, Limits, PastMessage
from tests.domain.specification import (
    Request,
    Scenario,
    append,
    given,
    import_,
    init,
    message,
    reply_abort,
    reply_chunk,
    reply_finish,
    reply_start,
    reset,
    turn,
)

TITLED = init(title="A title, so that none is made up")
TOKENS = {"prompt_tokens": 3, "completion_tokens": 4}

ENDINGS = [reply_finish(), reply_abort()]
ON_A_REPLY = [reply_chunk(0, "x"), *ENDINGS]


def chunks(text: str, first: int, last: int) -> tuple[str, dict[str, Any]]:
    return (
        "ReplyChunkAppended",
        {"message_id": "r-1", "text": text, "first_index": first, "last_index": last},
    )


def completed(text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    digest = sha256(text.encode()).hexdigest()
    return ("ReplyCompleted", {"message_id": "r-1", "chars": len(text), "sha256": digest, **more})


def aborted(reason: str, message_id: str = "r-1") -> tuple[str, dict[str, Any]]:
    return ("ReplyAborted", {"message_id": message_id, "reason": reason})


def long_ago(request: Request) -> Scenario:
    """A conversation whose first message is so old that it is not remembered."""
    half = [message(str(number)) for number in range(MESSAGE_IDS_MAX // 2)]
    return given(TITLED, request, import_(*half), import_(*half))


# done


def test_it_begins_a_message_of_the_assistant_under_an_id_of_its_own() -> None:
    given(TITLED).when(reply_start(None)).then(
        ("ReplyStarted", {"message_id": ..., "role": "assistant", "metadata": {}})
    )


def test_it_begins_as_it_is_told() -> None:
    told: dict[str, Any] = {"role": "tool", "model": "gpt-4o", "metadata": {"trace": "t-1"}}

    given(TITLED).when(reply_start(**told)).then(("ReplyStarted", {"message_id": "r-1", **told}))


def test_several_chunks_of_one_command_are_one_event() -> None:
    scenario = given(TITLED, reply_start())

    scenario.when(reply_chunk(0, "Hel", "lo")).then(chunks("Hello", 0, 1))
    scenario.when(reply_chunk(2, "")).then(chunks("", 2, 2))
    scenario.when(reply_chunk(3, " 世界")).then(chunks(" 世界", 3, 3))


def test_finishing_tells_the_length_and_the_hash_of_the_whole_text() -> None:
    scenario = given(TITLED, reply_start(), reply_chunk(0, "Hello"), reply_chunk(1, " 世界"))

    scenario.when(reply_finish(finish_reason="stop")).then(
        completed("Hello 世界", finish_reason="stop")
    )


def test_a_reply_may_be_empty() -> None:
    given(TITLED, reply_start()).when(reply_finish()).then(completed(""))


def test_finishing_may_record_the_usage_of_the_reply() -> None:
    used = ("UsageRecorded", {**TOKENS, "message_id": "r-1", "metadata": {}})

    given(TITLED, reply_start()).when(reply_finish(usage=TOKENS)).then(completed(""), used)


def test_aborting_needs_no_reason() -> None:
    given(TITLED, reply_start()).when(reply_abort()).then(aborted("stopped"))
    given(TITLED, reply_start()).when(reply_abort(reason="timeout")).then(aborted("timeout"))


def test_others_may_speak_meanwhile_and_replies_may_go_on_side_by_side() -> None:
    scenario = given(TITLED, reply_start(), reply_start("r-2"), append("hello"))

    scenario.when(reply_chunk(0, "x")).then(chunks("x", 0, 0))
    scenario.when(reply_finish("r-2"))
    scenario.when(reply_chunk(1, "y")).then(chunks("y", 1, 1))


def test_a_reset_ends_the_replies_that_are_being_written() -> None:
    scenario = given(TITLED, reply_start(), reply_start("r-2"))

    scenario.when(reset()).then(aborted("reset"), aborted("reset", "r-2"), ("SessionReset", {}))


def test_a_replacing_import_ends_them_as_well() -> None:
    scenario = given(TITLED, reply_start())

    scenario.when(import_(mode="replace")).then(aborted("reset"), ("SessionReset", {}))


def test_a_reply_goes_on_when_a_thousand_messages_have_come_since() -> None:
    scenario = long_ago(reply_start())

    scenario.when(reply_chunk(0, "late")).then(chunks("late", 0, 0))
    scenario.when(reply_finish()).then(completed("late"))


# what is there already


@pytest.mark.parametrize("again", [reply_chunk(0, "a", "b"), reply_chunk(1, "b")])
def test_chunks_that_are_written_are_skipped(again: Request) -> None:
    given(TITLED, reply_start(), reply_chunk(0, "a", "b")).when(again).then_nothing()


def test_of_chunks_that_overlap_the_new_ones_are_written() -> None:
    scenario = given(TITLED, reply_start(), reply_chunk(0, "a", "b"))

    scenario.when(reply_chunk(1, "b", "c", "d")).then(chunks("cd", 2, 3))


# rejected


@pytest.mark.parametrize("request_", [reply_start(), *ON_A_REPLY], ids=lambda each: each.verb)
def test_a_conversation_that_does_not_exist_takes_none(request_: Request) -> None:
    given().when(request_).then_refused(ConversationNotInitialized)


@pytest.mark.parametrize("request_", ON_A_REPLY, ids=lambda each: each.verb)
def test_a_message_that_is_not_there_is_not_found(request_: Request) -> None:
    error = given(TITLED).when(request_).then_refused(MessageNotFound)

    assert error.details == {"message_id": "r-1"}


@pytest.mark.parametrize("request_", ON_A_REPLY, ids=lambda each: each.verb)
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda each: each.verb)
def test_a_reply_that_has_ended_stays_so(request_: Request, ending: Request) -> None:
    given(TITLED, reply_start(), ending).when(request_).then_refused(InvalidState)


@pytest.mark.parametrize("request_", ON_A_REPLY, ids=lambda each: each.verb)
def test_a_message_that_is_no_reply_does_not_fit(request_: Request) -> None:
    given(TITLED, append(message_id="r-1")).when(request_).then_refused(InvalidState)


@pytest.mark.parametrize("request_", ON_A_REPLY, ids=lambda each: each.verb)
def test_a_message_of_long_ago_is_looked_up(request_: Request) -> None:
    scenario = long_ago(append(message_id="r-1"))

    with pytest.raises(Forgotten) as asked:
        scenario.when(request_)
    assert asked.value.message_id == "r-1"
    scenario.when(request_, PastMessage(exists=True)).then_refused(InvalidState)
    scenario.when(request_, PastMessage(exists=False)).then_refused(MessageNotFound)


def test_a_gap_is_refused_and_the_next_index_told() -> None:
    scenario = given(TITLED, reply_start(), reply_chunk(0, "a", "b"))

    error = scenario.when(reply_chunk(5, "f")).then_refused(InvalidState)

    assert error.details == {"message_id": "r-1", "expected_index": 2, "index": 5}


def test_an_id_is_taken_once_by_messages_and_replies_alike() -> None:
    given(TITLED, append(message_id="r-1")).when(reply_start()).then_refused(InvalidState)
    given(TITLED, reply_start()).when(reply_start()).then_refused(InvalidState)
    given(TITLED, reply_start()).when(append(message_id="r-1")).then_refused(InvalidState)
    long_ago(reply_start()).when(reply_start()).then_refused(InvalidState)


def test_only_so_many_replies_are_written_at_once() -> None:
    scenario = given(TITLED, *[reply_start(f"r-{each}") for each in range(OPEN_REPLIES_MAX)])

    error = scenario.when(reply_start("r-x")).then_refused(InvalidState)

    assert isinstance(error.details, dict)
    assert len(error.details["message_ids"]) == OPEN_REPLIES_MAX
    scenario.when(reply_abort("r-0"))
    assert scenario.when(reply_start("r-x")).events


@pytest.mark.parametrize("text", ["abcdef", "abc日"])
def test_the_whole_text_is_limited(text: str) -> None:
    scenario = given(TITLED, reply_start(), reply_chunk(0, text), limits=Limits(6))

    error = scenario.when(reply_chunk(1, "g")).then_refused(MessageTooLarge)

    assert error.details == {"index": 0, "size_bytes": 7, "limit_bytes": 6}
    scenario.when(reply_chunk(0, text)).then_nothing()
    scenario.when(reply_finish()).then(completed(text))


def test_a_reply_counts_as_one_message_of_the_minute() -> None:
    with freeze_time("2026-11-21T09:00:00Z") as clock:
        scenario = given(TITLED, reply_start(), limits=Limits(messages_per_minute=1))
        scenario.when(reply_chunk(0, "as much", " as it likes")).then(
            chunks("as much as it likes", 0, 1)
        )
        error = scenario.when(reply_start("r-2")).then_refused(RateLimited)
        assert error.details == {"messages_per_minute": 1, "retry_after_ms": 60_000}
        clock.tick(timedelta(seconds=60))
        assert scenario.when(reply_start("r-2")).events


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"message_id": "r-1", "index": 0, "texts": []}, "texts"),
        ({"message_id": "r-1", "index": 0, "texts": ["x"] * 101}, "texts"),
        ({"message_id": "r-1", "index": 0, "texts": "x"}, "texts"),
        ({"message_id": "r-1", "index": 0, "texts": [1]}, "texts.0"),
        ({"message_id": "r-1", "index": -1, "texts": ["x"]}, "index"),
        ({"message_id": "r-1", "index": "0", "texts": ["x"]}, "index"),
        ({"index": 0, "texts": ["x"]}, "message_id"),
    ],
)
def test_chunks_have_to_be_texts_in_their_place(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        given(TITLED).when(Request("reply.chunk", body))
    assert isinstance(refused.value.details, list)
    assert refused.value.details[0]["field"] == field


# repeated


def test_the_same_command_again_writes_nothing() -> None:
    scenario = given(
        TITLED,
        reply_start().under("c-1"),
        reply_chunk(0, "a").under("c-2"),
        reply_finish(usage=TOKENS).under("c-3"),
    )

    assert scenario.when(reply_start().under("c-1")).then_repeated().first_version == 2
    assert scenario.when(reply_chunk(0, "a").under("c-2")).then_repeated().first_version == 3
    receipt = scenario.when(reply_finish().under("c-3")).then_repeated()
    assert (receipt.first_version, receipt.last_version) == (4, 5)
    assert receipt.usage == (3, 4, 3, 4)


def test_a_command_id_of_another_verb_is_refused() -> None:
    scenario = given(TITLED, reply_start().under("c-1"))

    scenario.when(reply_abort().under("c-1")).then_refused(InvalidState)


# conflicting


@pytest.mark.parametrize("request_", [reply_start("r-2"), *ON_A_REPLY], ids=lambda each: each.verb)
def test_it_is_refused_where_the_conversation_is_at_another_version(request_: Request) -> None:
    given(TITLED, reply_start()).when(request_.expecting(1)).then_refused(VersionConflict)


# what is remembered


def test_the_text_is_let_go_of_when_the_reply_ends() -> None:
    scenario = given(TITLED, reply_start(), reply_chunk(0, "x" * 10_000))
    assert scenario.conversation is not None
    holding = scenario.conversation.size_bytes

    for ending in ENDINGS:
        after = given(TITLED, reply_start(), reply_chunk(0, "x" * 10_000), ending, turn(message()))
        assert after.conversation is not None
        assert not after.conversation.replies
        assert after.conversation.size_bytes < holding - 9_000
