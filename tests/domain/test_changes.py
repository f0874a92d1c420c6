"""edit and redact: a message in other words, or in none."""

from __future__ import annotations

from typing import Any

import pytest

from domain.conversation import MESSAGE_IDS_MAX
from domain.errors import (
    ConversationNotInitialized,
    InvalidRequest,
    InvalidState,
    MessageNotFound,
    MessageTooLarge,
    VersionConflict,
)
from domain.rules import Forgotten, Limits, PastMessage
from tests.domain.specification import (
    Request,
    append,
    edit,
    given,
    import_,
    init,
    message,
    redact,
    reply_abort,
    reply_finish,
    reply_start,
    reset,
)

TITLED = init(title="A title, so that none is made up")
SAID = append("hello", message_id="m-1")
EITHER = [edit("m-1", "new"), redact("m-1")]

verbs = pytest.mark.parametrize("request_", EITHER, ids=lambda each: each.verb)


def edited(content: Any) -> tuple[str, dict[str, Any]]:
    return ("MessageEdited", {"message_id": "m-1", "content": content})


REDACTED = ("MessageRedacted", {"message_id": "m-1"})


# done


@pytest.mark.parametrize("content", ["new", "", [{"type": "text", "text": "new"}]])
def test_a_message_gets_other_content(content: Any) -> None:
    given(TITLED, SAID).when(edit("m-1", content)).then(edited(content))


def test_a_message_is_redacted_with_or_without_a_reason() -> None:
    given(TITLED, SAID).when(redact("m-1")).then(REDACTED)
    given(TITLED, SAID).when(redact("m-1", reason="a card number")).then(
        ("MessageRedacted", {"message_id": "m-1", "reason": "a card number"})
    )


@verbs
def test_a_message_of_an_earlier_session_may_be_changed(request_: Request) -> None:
    assert given(TITLED, SAID, reset()).when(request_).events


@verbs
def test_a_finished_or_aborted_reply_may_be_changed(request_: Request) -> None:
    assert given(TITLED, reply_start("m-1"), reply_finish("m-1")).when(request_).events
    assert given(TITLED, reply_start("m-1"), reply_abort("m-1")).when(request_).events


def test_a_message_may_be_edited_again_and_then_redacted() -> None:
    scenario = given(TITLED, SAID, edit("m-1", "one"))

    scenario.when(edit("m-1", "two")).then(edited("two"))
    scenario.when(redact("m-1")).then(REDACTED)


def test_redacting_a_reply_that_is_being_written_ends_it() -> None:
    given(TITLED, reply_start("m-1")).when(redact("m-1")).then(
        ("ReplyAborted", {"message_id": "m-1", "reason": "redacted"}), REDACTED
    )


def test_an_edit_never_changes_the_title() -> None:
    given(init(), SAID).when(edit("m-1", "another first line")).then(edited("another first line"))


# what is so already


def test_a_redacted_message_is_redacted() -> None:
    given(TITLED, SAID, redact("m-1")).when(redact("m-1", reason="again")).then_nothing()


# rejected


@verbs
def test_a_conversation_that_does_not_exist_has_none(request_: Request) -> None:
    given().when(request_).then_refused(ConversationNotInitialized)


@verbs
def test_a_message_that_is_not_there_is_not_found(request_: Request) -> None:
    error = given(TITLED).when(request_).then_refused(MessageNotFound)

    assert error.details == {"message_id": "m-1"}


def test_a_redacted_message_is_not_edited() -> None:
    given(TITLED, SAID, redact("m-1")).when(edit("m-1", "new")).then_refused(InvalidState)


def test_a_reply_that_is_being_written_is_not_edited() -> None:
    given(TITLED, reply_start("m-1")).when(edit("m-1", "new")).then_refused(InvalidState)


def test_content_over_the_limit_is_refused_with_the_figures() -> None:
    scenario = given(TITLED, SAID, limits=Limits(max_content_bytes=5))

    error = scenario.when(edit("m-1", "abc日")).then_refused(MessageTooLarge)

    assert error.details == {"index": 0, "size_bytes": 6, "limit_bytes": 5}


@pytest.mark.parametrize("content", [None, [], 3])
def test_content_has_to_be_something(content: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        given(TITLED, SAID).when(edit("m-1", content))
    assert isinstance(refused.value.details, list)
    assert [each["field"] for each in refused.value.details] == ["content"]


@verbs
def test_a_message_of_long_ago_is_looked_up(request_: Request) -> None:
    half = [message(str(number)) for number in range(MESSAGE_IDS_MAX // 2)]
    scenario = given(TITLED, SAID, import_(*half), import_(*half))

    with pytest.raises(Forgotten) as asked:
        scenario.when(request_)
    assert asked.value.message_id == "m-1"
    scenario.when(request_, PastMessage(exists=False)).then_refused(MessageNotFound)
    assert scenario.when(request_, PastMessage(exists=True)).events


def test_what_was_redacted_since_it_was_looked_up_is_known() -> None:
    half = [message(str(number)) for number in range(MESSAGE_IDS_MAX // 2)]
    scenario = given(TITLED, SAID, import_(*half), import_(*half))
    seen_before = PastMessage(exists=True)
    scenario.when(redact("m-1"), seen_before).then(REDACTED)

    scenario.when(redact("m-1"), seen_before).then_nothing()
    scenario.when(edit("m-1", "new"), seen_before).then_refused(InvalidState)
    scenario.when(edit("m-1", "new"), PastMessage(exists=True, redacted=True)).then_refused(
        InvalidState
    )


# repeated


@verbs
def test_the_same_command_again_writes_nothing(request_: Request) -> None:
    scenario = given(TITLED, SAID, request_.under("c-1"))

    assert scenario.when(request_.under("c-1")).then_repeated().first_version == 3


@verbs
def test_a_command_id_of_another_verb_is_refused(request_: Request) -> None:
    scenario = given(TITLED, append("hello", message_id="m-1").under("c-1"))

    scenario.when(request_.under("c-1")).then_refused(InvalidState)


# conflicting


@verbs
def test_it_is_refused_where_the_conversation_is_at_another_version(request_: Request) -> None:
    given(TITLED, SAID).when(request_.expecting(1)).then_refused(VersionConflict)
