"""close, reopen, erase: how a conversation ends, for a while or for good."""

from __future__ import annotations

from typing import Any

import pytest

from domain.errors import (
    ConversationIsClosed,
    ConversationIsErased,
    ConversationNotInitialized,
    InvalidRequest,
    InvalidState,
    VersionConflict,
)
from tests.domain.specification import (
    Request,
    Scenario,
    append,
    close,
    edit,
    erase,
    given,
    import_,
    init,
    message,
    redact,
    reopen,
    reply_start,
    reset,
    turn,
    update,
    usage,
)

TITLED = init(title="A title, so that none is made up")
SAID = append("hello", message_id="m-1")
REASONS = ["closed", "inactive", "deleted"]

TALK = [append("back"), turn(message("back")), import_(message("back")), usage(), reply_start()]
UPKEEP = [update(title="New"), edit("m-1", "new"), redact("m-1")]
WRITES = [*TALK, *UPKEEP, reset(), import_()]
ENDINGS = [close(), reopen(), erase()]

REOPENED = ("ConversationReopened", {"reason": "active again"})


def closed(reason: str) -> tuple[str, dict[str, Any]]:
    return ("ConversationClosed", {"reason": reason})


def status_of(scenario: Scenario) -> str:
    assert scenario.conversation is not None
    return scenario.conversation.status


def types(scenario: Scenario, request: Request) -> list[str]:
    return [event.TOPIC for event in scenario.when(request).events]


def named(request: Request) -> str:
    return request.verb


# close, done


def test_closing_needs_no_reason() -> None:
    given(TITLED).when(close()).then(closed("closed"))


@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_is_the_status(reason: str) -> None:
    scenario = given(TITLED)

    scenario.when(close(reason)).then(closed(reason))

    assert status_of(scenario) == reason


@pytest.mark.parametrize(
    ("first", "then"), [("inactive", "closed"), ("inactive", "deleted"), ("closed", "deleted")]
)
def test_a_closed_conversation_may_be_closed_further(first: str, then: str) -> None:
    given(TITLED, close(first)).when(close(then)).then(closed(then))


def test_closing_ends_the_replies_that_are_being_written() -> None:
    given(TITLED, reply_start("r-1")).when(close("deleted")).then(
        ("ReplyAborted", {"message_id": "r-1", "reason": "deleted"}), closed("deleted")
    )


# close, what is so already


@pytest.mark.parametrize("reason", REASONS)
def test_closing_again_is_harmless(reason: str) -> None:
    given(TITLED, close(reason)).when(close(reason)).then_nothing()


@pytest.mark.parametrize(
    ("first", "then"), [("closed", "inactive"), ("deleted", "closed"), ("deleted", "inactive")]
)
def test_closing_never_takes_a_closing_back(first: str, then: str) -> None:
    given(TITLED, close(first)).when(close(then)).then_nothing()


# reopen


@pytest.mark.parametrize("reason", REASONS)
def test_a_closed_conversation_is_reopened(reason: str) -> None:
    scenario = given(TITLED, close(reason))

    scenario.when(reopen(reason="ada is back")).then(
        ("ConversationReopened", {"reason": "ada is back"})
    )

    assert status_of(scenario) == "active"
    assert scenario.when(SAID).events


def test_reopening_an_active_one_is_harmless() -> None:
    given(TITLED).when(reopen()).then_nothing()


# of itself


@pytest.mark.parametrize("request_", TALK, ids=named)
def test_who_talks_in_an_inactive_conversation_begins_a_new_session(request_: Request) -> None:
    scenario = given(TITLED, SAID, close("inactive"))
    alone = types(given(TITLED, SAID), request_)

    assert types(scenario, request_) == ["ConversationReopened", "SessionReset", *alone]
    assert status_of(scenario) == "active"


def test_a_reset_of_an_inactive_conversation_resets_it_once() -> None:
    given(TITLED, close("inactive")).when(reset(reason="mine")).then(
        REOPENED, ("SessionReset", {"reason": "mine"})
    )
    given(TITLED, close("inactive")).when(import_(mode="replace")).then(
        REOPENED, ("SessionReset", {})
    )


@pytest.mark.parametrize("request_", UPKEEP, ids=named)
def test_upkeep_leaves_an_inactive_conversation_asleep(request_: Request) -> None:
    scenario = given(TITLED, SAID, close("inactive"))

    assert len(types(scenario, request_)) == 1
    assert status_of(scenario) == "inactive"


def test_a_refused_message_wakes_nobody() -> None:
    scenario = given(TITLED, SAID, close("inactive"))

    scenario.when(append("again", message_id="m-1")).then_refused(InvalidState)
    scenario.when(import_()).then_nothing()

    assert status_of(scenario) == "inactive"


# what a closed one refuses


@pytest.mark.parametrize("reason", ["closed", "deleted"])
@pytest.mark.parametrize("request_", WRITES, ids=named)
def test_a_closed_conversation_takes_nothing(request_: Request, reason: str) -> None:
    error = given(TITLED, SAID, close(reason)).when(request_).then_refused(ConversationIsClosed)

    assert isinstance(error.details, dict)
    assert error.details["status"] == reason
    assert "reopen" in error.message


@pytest.mark.parametrize("reason", REASONS)
def test_init_of_a_closed_one_is_harmless(reason: str) -> None:
    given(TITLED, close(reason)).when(init()).then_nothing()


# erase


def test_a_conversation_is_erased_whatever_its_status() -> None:
    given(TITLED).when(erase()).then(("ConversationErased", {}))
    told = {"reason": "asked for", "legal_basis": "GDPR Art. 17"}
    given(TITLED, close()).when(erase(**told)).then(("ConversationErased", told))


def test_erasing_ends_the_replies_that_are_being_written() -> None:
    given(TITLED, reply_start("r-1")).when(erase()).then(
        ("ReplyAborted", {"message_id": "r-1", "reason": "erased"}), ("ConversationErased", {})
    )


@pytest.mark.parametrize("request_", [init(), *WRITES, *ENDINGS], ids=named)
def test_an_erased_conversation_takes_nothing_any_more(request_: Request) -> None:
    given(TITLED, SAID, erase()).when(request_).then_refused(ConversationIsErased)


# rejected


@pytest.mark.parametrize("request_", ENDINGS, ids=named)
def test_a_conversation_that_does_not_exist_has_no_end(request_: Request) -> None:
    given().when(request_).then_refused(ConversationNotInitialized)


@pytest.mark.parametrize("reason", ["", "bored", "erased", 3])
def test_a_reason_to_close_is_one_of_three(reason: Any) -> None:
    with pytest.raises(InvalidRequest):
        given(TITLED).when(close(reason))


# repeated


@pytest.mark.parametrize("request_", [close("inactive"), erase()], ids=named)
def test_the_same_command_again_writes_nothing(request_: Request) -> None:
    scenario = given(TITLED, request_.under("c-1"))

    assert scenario.when(request_.under("c-1")).then_repeated().first_version == 2


def test_the_same_reopening_again_writes_nothing() -> None:
    scenario = given(TITLED, close(), reopen().under("c-1"), close())

    assert scenario.when(reopen().under("c-1")).then_repeated().first_version == 3
    assert status_of(scenario) == "closed"


@pytest.mark.parametrize("request_", ENDINGS, ids=named)
def test_a_command_id_of_another_verb_is_refused(request_: Request) -> None:
    scenario = given(TITLED, SAID.under("c-1"))

    scenario.when(request_.under("c-1")).then_refused(InvalidState)


# conflicting


@pytest.mark.parametrize("request_", ENDINGS, ids=named)
def test_it_is_refused_where_the_conversation_is_at_another_version(request_: Request) -> None:
    given(TITLED, SAID).when(request_.expecting(1)).then_refused(VersionConflict)


def test_a_conflict_comes_before_being_closed() -> None:
    given(TITLED, close()).when(SAID.expecting(1)).then_refused(VersionConflict)
