"""What became of a group that nobody answered to: its subjects, read through the leader."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from nats.aio.client import Client

from infra.jetstream import outcome
from infra.jetstream.envelope import Message, Tail, sent_under, stored_headers
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.topology import call
from infra.jetstream.whole import find_whole, may_be_open


async def read_back(
    nc: Client, stream: str, messages: Sequence[Message], ids: set[str], *, timeout: float
) -> int | set[Tail]:
    """Reads what is on the subjects of a group's messages behind where they were expected to end.

    Returns the stream sequence of the group's first event when that was sent under one of `ids`
    (one event is enough: a group is atomic); else the tails behind which somebody else's event is.
    Raises StoreUnavailable when the leader does not answer, each time within `timeout` seconds.
    """
    place: dict[Tail, int] = {}  # of the first event of each tail within the group
    for index, message in enumerate(messages):
        place.setdefault(message.tail, index)
    first, *others = place
    found = await _first_behind(nc, stream, first, timeout)
    if found is not None and found[1] in ids:
        return found[0]
    behind = await asyncio.gather(*(_first_behind(nc, stream, tail, timeout) for tail in others))
    told = {first: found, **dict(zip(others, behind, strict=True))}
    for tail, event in told.items():
        if event is not None and event[1] in ids:
            return event[0] - place[tail]  # it has arrived while the others were read
    return {tail for tail, event in told.items() if event is not None}


async def _first_behind(
    nc: Client, stream: str, tail: Tail, timeout: float
) -> tuple[int, str] | None:
    """Sequence and write id of the first event behind `tail.seq`, as the leader has it."""
    wanted = {"seq": tail.seq + 1, "next_by_subj": tail.subject}
    answer = await call(nc, f"STREAM.MSG.GET.{stream}", wanted, timeout=timeout)
    error = answer.get("error")
    if error is None:
        message = answer["message"]
        await _check_whole(nc, stream, message, timeout)
        return message["seq"], sent_under(message)
    if outcome.absent(answer):
        return None
    raise StoreUnavailable(f"reading {tail.subject} back failed: {error.get('description')}")


async def _check_whole(nc: Client, stream: str, message: Mapping[str, Any], timeout: float) -> None:
    """Raises StoreUnavailable for a message of a batch that lies there without its commit."""
    if not may_be_open(stored_headers(message)):
        return
    seq = message["seq"]
    if seq > await find_whole(nc, stream, seen=seq, timeout=timeout):
        raise StoreUnavailable(f"a batch at sequence {seq} of {stream} is not committed")
