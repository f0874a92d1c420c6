"""Every refusal carries the contract's code and status."""

from __future__ import annotations

import pytest

from domain import errors

CONTRACT = {
    "invalid_request": (400, False),
    "conversation_not_initialized": (404, False),
    "message_not_found": (404, False),
    "version_conflict": (409, False),
    "invalid_state": (409, False),
    "conversation_closed": (410, False),
    "conversation_erased": (410, False),
    "message_too_large": (413, False),
    "rate_limited": (429, True),
}


def test_there_is_one_class_for_each_code_of_the_contract() -> None:
    found = {
        error.code: (error.status, error.retryable)
        for error in errors.ConversationError.__subclasses__()
    }

    assert found == CONTRACT


@pytest.mark.parametrize(
    "error",
    [
        errors.ConversationNotInitialized.named("acme", "c-1"),
        errors.VersionConflict.between(expected=1, current=2),
        errors.MessageTooLarge.content(index=0, size_bytes=2, limit_bytes=1),
        errors.RateLimited.until(messages_per_minute=1, retry_after_ms=5),
    ],
)
def test_a_message_holds_the_facts_and_says_what_to_do(error: errors.ConversationError) -> None:
    assert ": " in error.message
    assert str(error) == error.message
    assert isinstance(error.details, dict)
    for fact in error.details.values():
        assert str(fact) in error.message or fact == 0
