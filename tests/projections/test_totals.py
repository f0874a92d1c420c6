"""Token totals: since the last reset, and over the whole life."""

from __future__ import annotations

from projections.totals import Totals
from tests.domain.specification import (
    Request,
    append,
    given,
    import_,
    init,
    message,
    reset,
    through_storage,
    turn,
    usage,
)


def totals_of(*requests: Request) -> Totals:
    totals = Totals()
    for event in through_storage(given(init(), *requests).events):
        totals.apply(event)
    return totals


def sums(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt": prompt, "completion": completion, "total": prompt + completion}


def test_they_add_up() -> None:
    totals = totals_of(usage(12, 5), usage(1, 2, cached_tokens=1, reasoning_tokens=2))

    assert totals.since_reset() == sums(13, 7)
    assert totals.lifetime() == sums(13, 7)


def test_the_usage_of_a_turn_counts() -> None:
    tokens = {"prompt_tokens": 9, "completion_tokens": 1}

    assert totals_of(turn(message(), usage=tokens)).since_reset() == sums(9, 1)


def test_a_reset_begins_the_sessions_again_and_keeps_the_lifes() -> None:
    totals = totals_of(usage(12, 5), reset(), usage(3, 4))

    assert totals.since_reset() == sums(3, 4)
    assert totals.lifetime() == sums(15, 9)


def test_replacing_the_messages_is_a_reset() -> None:
    totals = totals_of(usage(12, 5), import_(message(), mode="replace"))

    assert totals.since_reset() == sums(0, 0)
    assert totals.lifetime() == sums(12, 5)


def test_messages_use_no_tokens_by_themselves() -> None:
    assert totals_of(append(), append()).lifetime() == sums(0, 0)


def test_sums_beyond_64_bits_are_exact() -> None:
    totals = totals_of(*[usage(2**53, 2**53)] * 3)

    assert totals.lifetime() == sums(3 * 2**53, 3 * 2**53)
