"""How each failure is told: the contract's code, status and whether to try again."""

from __future__ import annotations

import json
import logging
import traceback

import pytest
from pydantic_core import to_json

from domain import errors as domain_errors
from domain.errors import (
    ConversationError,
    ConversationNotInitialized,
    InvalidRequest,
    InvalidState,
    MessageTooLarge,
    RateLimited,
    VersionConflict,
)
from infra.jetstream import errors as store_errors
from infra.jetstream.errors import (
    Conflict,
    LedgerDamaged,
    OutcomeUnknown,
    StoreReadOnly,
    StoreUnavailable,
    StreamMismatch,
    TooLarge,
)
from services.errors import NotYetThere, Refusal, refusal

CONTRACT = {
    "invalid_request": (400, False),
    "conversation_not_initialized": (404, False),
    "message_not_found": (404, False),
    "version_conflict": (409, None),  # to try again where others got in first
    "invalid_state": (409, False),
    "conversation_closed": (410, False),
    "conversation_erased": (410, False),
    "message_too_large": (413, False),
    "rate_limited": (429, True),
    "storage_unavailable": (503, True),
    "outcome_unknown": (504, True),
    "internal": (500, False),
}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("x"), "invalid_request"),
        (ConversationNotInitialized("x"), "conversation_not_initialized"),
        (VersionConflict.between(expected=1, current=2), "version_conflict"),
        (InvalidState("x"), "invalid_state"),
        (MessageTooLarge.content(index=0, size_bytes=2, limit_bytes=1), "message_too_large"),
        (RateLimited.until(messages_per_minute=1, retry_after_ms=5), "rate_limited"),
        (TooLarge("x"), "message_too_large"),
        (StoreUnavailable("x"), "storage_unavailable"),
        (StoreReadOnly("x"), "storage_unavailable"),
        (NotYetThere(9, 7), "storage_unavailable"),
        (OutcomeUnknown("x"), "outcome_unknown"),
        (Conflict("s", 1), "version_conflict"),
        (LedgerDamaged("x"), "internal"),
        (StreamMismatch("s", ["x"]), "internal"),
        (RuntimeError("x"), "internal"),
        (RecursionError(), "internal"),
        (KeyError("x"), "internal"),
    ],
)
def test_each_failure_is_told_by_the_contracts_code(error: Exception, code: str) -> None:
    told = refusal(error)
    status, retryable = CONTRACT[code]
    assert (told.code, told.status) == (code, status)
    if retryable is not None:
        assert told.retryable is retryable
    assert told.message
    assert "Traceback" not in told.message
    json.loads(to_json(told.body()))


def test_every_error_of_the_domain_has_a_code_of_the_contract() -> None:
    found = [
        each
        for each in vars(domain_errors).values()
        if isinstance(each, type) and issubclass(each, ConversationError)
    ]
    told = {each.code: (each.status, each.retryable) for each in found if "code" in vars(each)}
    for code, (status, retryable) in told.items():
        assert CONTRACT[code][0] == status
        if CONTRACT[code][1] is not None:
            assert CONTRACT[code][1] is retryable


def test_every_error_of_the_store_is_told_and_only_faults_are_internal() -> None:
    internal = set()
    for name, each in vars(store_errors).items():
        if isinstance(each, type) and issubclass(each, Exception):
            made = each.__new__(each)
            if each.__module__ == store_errors.__name__ and refusal(made).code == "internal":
                internal.add(name)
    assert internal == {"LedgerDamaged", "StreamMismatch"}


def test_losing_against_other_writers_may_be_tried_again_and_a_wrong_version_not() -> None:
    assert refusal(Conflict("s", 1)).retryable
    assert not refusal(VersionConflict.between(expected=1, current=2)).retryable
    assert "same command id" in refusal(Conflict("s", 1)).message


def test_the_details_are_the_facts() -> None:
    assert refusal(VersionConflict.between(expected=1, current=2)).details == {
        "expected": 1,
        "current": 2,
    }
    assert refusal(RateLimited.until(messages_per_minute=1, retry_after_ms=5)).details == {
        "messages_per_minute": 1,
        "retry_after_ms": 5,
    }
    assert refusal(OutcomeUnknown("no answer in time")).details == {"reason": "no answer in time"}
    assert refusal(StoreUnavailable("x")).details is None


def test_a_fault_is_told_by_its_incident_alone_and_logged_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        told = refusal(RuntimeError("secret internals"))
    incident = told.details["incident"]
    assert incident in told.message
    assert "secret" not in json.dumps(told.body())
    [record] = caplog.records
    assert incident in record.getMessage()
    assert record.exc_info is not None
    assert "secret internals" in "".join(traceback.format_exception(*record.exc_info))
    assert refusal(RuntimeError("x")).details["incident"] != incident


def test_a_refusal_without_details_has_none_in_its_body() -> None:
    body = Refusal("internal", 500, "x", retryable=False).body()
    assert body == {"ok": False, "error": {"code": "internal", "message": "x", "retryable": False}}


def test_what_was_asked_for_and_what_is_there_is_said() -> None:
    assert "at seq 7 here, not at 9" in refusal(NotYetThere(9, 7)).message
