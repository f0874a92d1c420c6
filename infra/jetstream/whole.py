"""A batch counts when its commit is seen: what of a stream is whole, and what is not yet there.

nats-server stores a batch message by message, and readers see those before the last one is there;
for microseconds as a rule, for hours on a disk that is wedged. A restart then completes the batch,
or forgets it and issues its sequences again. So whoever shows or projects an event of a batch has
to have seen the commit, `Nats-Batch-Commit` on the batch's last message (ADR-50).

Only a stream's end can be a part of a batch: what is behind a message says that it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping

from nats.aio.client import Client

from infra.jetstream.envelope import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, stored_headers
from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable, reason
from infra.jetstream.topology import call

_LAST = b'{"last_by_subj": ">"}'


def may_be_open(headers: Mapping[str, str]) -> bool:
    """Whether a message may belong to a batch that is not committed yet."""
    return BATCH_ID in headers and BATCH_COMMIT not in headers


def whole_up_to(seq: int, headers: Mapping[str, str]) -> int:
    """The last sequence that is whole, told by the message at the stream's end."""
    return seq - int(headers.get(BATCH_SEQUENCE, "0")) if may_be_open(headers) else seq


async def find_whole(nc: Client, stream: str, *, seen: int, timeout: float) -> int:
    """The last sequence of a stream that is whole now; `seen` is one that a reader was shown.

    Asks a replica for the stream's end, and the leader where that one lags. Raises
    StoreUnavailable.
    """
    try:
        end = await nc.request(f"$JS.API.DIRECT.GET.{stream}", _LAST, timeout=timeout)
    except NATS_FAILURES as error:
        raise StoreUnavailable(f"the end of {stream} was not told: {reason(error)}") from error
    headers: Mapping[str, str] = end.headers or {}
    seq = int(headers.get("Nats-Sequence", "0"))
    if seq < seen:
        answer = await call(nc, f"STREAM.MSG.GET.{stream}", {"last_by_subj": ">"}, timeout=timeout)
        if "message" not in answer:
            raise StoreUnavailable(f"the end of {stream} was not told: {answer.get('error')}")
        seq, headers = answer["message"]["seq"], stored_headers(answer["message"])
    return whole_up_to(seq, headers)
