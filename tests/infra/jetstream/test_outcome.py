"""What each answer to an append means: acknowledgements, error codes of R1 and R3, exceptions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats import errors as nats_errors

from infra.jetstream.outcome import (
    Full,
    ReadBack,
    Refused,
    Retry,
    Stored,
    of_answer,
    of_exception,
)


def refused_with(code: int, description: str = "said", status: int = 400) -> dict[str, Any]:
    return {
        "error": {"code": status, "err_code": code, "description": description},
        "stream": "S-0",
        "seq": 0,
    }


@pytest.mark.parametrize(
    ("answer", "seq"),
    [
        ({"stream": "S-0", "seq": 1}, 1),
        ({"stream": "S-0", "seq": 2**40}, 2**40),
        ({"stream": "S-0", "seq": 4, "batch": "b1", "count": 2}, 4),
        ({"stream": "S-0", "seq": 7, "duplicate": True}, 7),
        ({"stream": "S-0", "seq": 7, "domain": "hub", "val": "1"}, 7),
    ],
)
def test_an_acknowledgement_is_stored_with_its_sequence(answer: dict[str, Any], seq: int) -> None:
    assert of_answer(answer) == Stored(seq)


@pytest.mark.parametrize(
    "answer",
    [{}, {"stream": "S-0"}, {"seq": 0}, {"seq": -1}, {"seq": "7"}, {"seq": None}, {"error": None}],
)
def test_an_acknowledgement_without_a_sequence_proves_nothing(answer: dict[str, Any]) -> None:
    outcome = of_answer(answer)
    assert isinstance(outcome, ReadBack)
    assert outcome.unknown


@pytest.mark.parametrize(
    ("code", "description"),
    [
        (10071, "wrong last sequence: 3"),  # R1 and R3: stale, or ours is there already
        (10071, "wrong last sequence: 0"),  # or the store failed to read
        (10164, "wrong last sequence"),  # R3: another write is in flight; R1: twice in a batch
        (10201, "atomic publish batch contains duplicate message id"),
    ],
)
def test_a_wrong_sequence_is_no_conflict_before_the_subject_was_read(
    code: int, description: str
) -> None:
    outcome = of_answer(refused_with(code, description))
    assert outcome == ReadBack(f"{description} (JetStream error {code})", unknown=False)


@pytest.mark.parametrize(
    "code",
    [
        10158,  # R3: the same message id is in process
        10210,  # too many batches in flight
        10176,  # a batch of which a part got lost
        10008,  # no leader, or the meta group is not there yet
        10009,
        10074,
    ],
)
def test_what_was_surely_not_written_and_may_go_later_is_sent_again(code: int) -> None:
    assert isinstance(of_answer(refused_with(code)), Retry)


@pytest.mark.parametrize(
    ("code", "description"),
    [
        (10077, "maximum bytes exceeded"),  # the stream
        (10023, "insufficient resources"),  # the server's store
        (10047, "insufficient storage resources available"),
        (10002, "resource limits exceeded for account"),  # the account's share of it
    ],
)
def test_no_room_is_full(code: int, description: str) -> None:
    outcome = of_answer(refused_with(code, description, 503))
    assert isinstance(outcome, Full)
    assert description in outcome.reason
    assert str(code) in outcome.reason


@pytest.mark.parametrize(
    "code",
    [
        10053,  # a limit of the stream
        10054,  # message larger than the stream's max_msg_size
        10174,  # atomic publish disabled
        10175,  # a batch without sequence
        10177,  # a header that no batch may have
        10179,  # a batch id that is too long
        10199,  # more messages than the server's limit
        10200,  # a commit that is none
    ],
)
def test_what_will_never_be_taken_as_it_stands_is_refused(code: int) -> None:
    assert isinstance(of_answer(refused_with(code)), Refused)


KNOWN = {10071, 10164, 10201, 10158, 10210, 10176, 10008, 10009, 10074}
KNOWN |= {10077, 10023, 10047, 10002, 10028}
KNOWN |= {10053, 10054, 10097, 10174, 10175, 10177, 10179, 10199, 10200, 10039, 10059, 10076, 10109}


@given(st.integers(-1, 99_999).filter(lambda code: code not in KNOWN), st.text(max_size=50))
def test_a_code_that_is_not_known_is_unknown(code: int, description: str) -> None:
    outcome = of_answer(refused_with(code, description))
    assert isinstance(outcome, ReadBack)
    assert outcome.unknown
    assert description in outcome.reason


@pytest.mark.parametrize("error", [{}, {"code": 500}, {"description": "no code"}])
def test_an_error_without_a_code_is_unknown(error: dict[str, Any]) -> None:
    outcome = of_answer({"error": error, "seq": 12})
    assert isinstance(outcome, ReadBack)
    assert outcome.unknown


def errors_of_nats() -> list[type[Exception]]:
    """Every class of nats-py's errors that a publish can raise (all but a subscriber's own)."""
    found = [each for each in vars(nats_errors).values() if isinstance(each, type)]
    return [
        each
        for each in found
        if issubclass(each, nats_errors.Error) and each is not nats_errors.SlowConsumerError
    ]


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("error", [*errors_of_nats(), OSError, TimeoutError, ConnectionError])
def test_no_exception_ever_proves_that_it_was_written(error: type[Exception], sent: bool) -> None:
    outcome = of_exception(error(), sent=sent)
    assert not isinstance(outcome, Stored | Full)
    assert outcome.reason
    if isinstance(outcome, ReadBack):
        assert outcome.unknown


@pytest.mark.parametrize(
    "error",
    [
        nats_errors.TimeoutError(),
        nats_errors.StaleConnectionError(),
        nats_errors.UnexpectedEOF(),
        ConnectionResetError(),
        OSError("broken pipe"),
    ],
)
def test_no_answer_to_what_was_sent_is_unknown(error: Exception) -> None:
    outcome = of_exception(error, sent=True)
    assert isinstance(outcome, ReadBack)
    assert outcome.unknown


@pytest.mark.parametrize(
    "error",
    [
        nats_errors.OutboundBufferLimitError(),
        nats_errors.ConnectionClosedError(),
        nats_errors.ConnectionDrainingError(),
    ],
)
def test_what_never_left_is_sent_again(error: Exception) -> None:
    assert isinstance(of_exception(error, sent=False), Retry)


@pytest.mark.parametrize("sent", [True, False])
def test_nobody_listening_is_sent_again(sent: bool) -> None:
    assert isinstance(of_exception(nats_errors.NoRespondersError(), sent=sent), Retry)


@pytest.mark.parametrize("sent", [True, False])
def test_over_the_payload_limit_is_refused(sent: bool) -> None:
    assert isinstance(of_exception(nats_errors.MaxPayloadError(), sent=sent), Refused)
