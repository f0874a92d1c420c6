"""Reading a stream as it lies there: every message with all its headers, in bulk, judging nothing.

For those who check the record rather than use it: a message that is no event of a ledger is
yielded like any other; but what belongs to a batch without its commit, at the stream's end, is not
there yet (`whole`). Through an ephemeral pull consumer (ADR-13) without acknowledgements, in
memory; two requests are outstanding at a time, which bounds what is held here (`REQUEST_EVENTS`
and `REQUEST_BYTES` each, twice). In order, each message once; a lost consumer or connection is
picked up again behind the last message yielded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.subscription import Subscription

from infra.bulk import Delivered
from infra.jetstream import outcome
from infra.jetstream.envelope import status_of, stored_headers
from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable, reason
from infra.jetstream.topology import call
from infra.jetstream.whole import find_whole, may_be_open
from infra.sturdy import headers_of, subscribe_in_bulk

REQUEST_EVENTS = 4_000
REQUEST_BYTES = 8_000_000
REQUEST_EXPIRES_S = 30.0
SILENCE_MAX_S = 5.0
"""Without a message for this long the consumer is taken for lost, and another one is made."""

_ATTEMPTS = 5
_CONSUMER_INACTIVE_S = 30
_NS = 1_000_000_000


class Stored(NamedTuple):
    """One message of a stream. `time_ns` is when the server stored it, since 1970."""

    seq: int
    subject: str
    headers: Mapping[str, str]
    time_ns: int
    body: bytes

    @property
    def time(self) -> str:
        """When the server stored it: RFC 3339 in UTC, with nanoseconds."""
        seconds, nanoseconds = divmod(self.time_ns, _NS)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def as_stored(stored: Stored) -> dict[str, Any]:
    """A message as an export has it: {seq, subject, time, headers, body}.

    `body` is the stored text; bytes that are no UTF-8 (nothing of ours) are in `body_base64`.
    """
    message: dict[str, Any] = {
        "seq": stored.seq,
        "subject": stored.subject,
        "time": stored.time,
        "headers": dict(stored.headers),
    }
    try:
        message["body"] = stored.body.decode()
    except UnicodeDecodeError:
        message["body_base64"] = b64encode(stored.body).decode()
    return message


def from_stored(message: Mapping[str, Any]) -> Stored:
    """The message that `as_stored` made this of; its time is not read back (0).

    Raises KeyError, TypeError or ValueError for anything else.
    """
    body = message["body"].encode() if "body" in message else b64decode(message["body_base64"])
    return Stored(message["seq"], message["subject"], message["headers"], 0, body)


def ends_batch(stored: Stored) -> bool:
    """Whether what was written together ends with this message: a batch, or it was alone."""
    return not may_be_open(stored.headers)


async def message_at(nc: Client, stream: str, seq: int) -> Stored | None:
    """The message at a sequence as the stream's leader has it, None when there is none; its time
    is not told (0). Raises StoreUnavailable."""
    answer = await call(nc, f"STREAM.MSG.GET.{stream}", {"seq": seq})
    if "error" not in answer:
        message = answer["message"]
        body = b64decode(message.get("data", ""))
        return Stored(message["seq"], message["subject"], stored_headers(message), 0, body)
    if outcome.absent(answer):
        return None
    raise StoreUnavailable(f"{stream} cannot be read: {answer['error'].get('description')}")


async def scan(
    nc: Client, stream: str, *, subject: str = ">", from_seq: int = 1
) -> AsyncGenerator[list[Stored], None]:
    """The messages on `subject` (wildcards allowed) from `from_seq` on, oldest first, in blocks.

    Ends when it has reached what was the end by then. Raises StoreUnavailable.
    """
    attempts = 0
    while True:
        feed = _Feed(nc, stream, subject, from_seq)
        try:
            await feed.begin()
            while not feed.ended:
                block = await feed.whole_part(await feed.next_block())
                if not block:
                    continue
                from_seq = block[-1].seq + 1
                attempts = 0
                yield block
            return
        except StoreUnavailable:
            attempts += 1
            if attempts == _ATTEMPTS:
                raise
            await asyncio.sleep(0.1 * attempts)
        finally:
            await feed.close()


class _Feed:
    """One consumer, and what has come from it."""

    def __init__(self, nc: Client, stream: str, subject: str, from_seq: int) -> None:
        self._nc = nc
        self._stream = stream
        self._subject = subject
        self._from_seq = from_seq
        self._consumer = ""
        self._subscription: Subscription | None = None
        self._inbox = nc.new_inbox()
        self._arrived: list[Stored] = []
        self._wake = asyncio.Event()
        self._asked = 0  # messages still to come of what was asked for
        self._delivered = 0
        self._pending = 0
        self._whole = 0  # up to here the stream is known to be committed
        self._open: list[Stored] = []  # of a batch that is not
        self._lost: str | None = None

    @property
    def ended(self) -> bool:
        """Whether everything there was has been handed out."""
        return self._pending == 0 and not self._arrived

    async def begin(self) -> None:
        """Makes the consumer and asks for the first messages."""
        config = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._from_seq,
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": self._subject,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _CONSUMER_INACTIVE_S * _NS,
        }
        answer = await call(
            self._nc,
            f"CONSUMER.CREATE.{self._stream}",
            {"stream_name": self._stream, "config": config},
        )
        if "error" in answer:
            raise StoreUnavailable(
                f"reading {self._stream} failed: {answer['error'].get('description')}"
            )
        self._consumer = answer["name"]
        self._pending = answer["num_pending"]
        if self._pending:
            self._subscription = await subscribe_in_bulk(self._nc, self._inbox, self._on_messages)
            await self._ask()

    async def next_block(self) -> list[Stored]:
        """What has arrived since the last one, at least one message."""
        heard = time.monotonic()
        while not self._arrived:
            if self._lost is not None:
                raise StoreUnavailable(f"reading {self._stream} broke off: {self._lost}")
            self._wake.clear()
            await self._ask()
            try:
                await asyncio.wait_for(self._wake.wait(), SILENCE_MAX_S)
            except TimeoutError:
                silent_s = time.monotonic() - heard
                raise StoreUnavailable(
                    f"{self._stream} has sent nothing for {silent_s:.0f} s, "
                    f"{self._pending} messages were due: check the server, then try again"
                ) from None
        block, self._arrived = self._arrived, []
        await self._ask()
        return block

    async def whole_part(self, block: list[Stored]) -> list[Stored]:
        """What may be handed out of a block, and of those before it: all that is committed."""
        block = self._open + block
        last = block[-1]
        if ends_batch(last):
            self._whole = last.seq
        elif last.seq > self._whole:
            self._whole = await find_whole(
                self._nc, self._stream, seen=last.seq, timeout=SILENCE_MAX_S
            )
        self._open = [stored for stored in block if stored.seq > self._whole]
        return block[: len(block) - len(self._open)]

    async def close(self) -> None:
        """Gives the consumer up."""
        if not self._consumer:
            return
        with contextlib.suppress(*NATS_FAILURES, StoreUnavailable):
            if self._subscription is not None:
                await self._subscription.unsubscribe()
            await self._nc.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}")

    async def _ask(self) -> None:
        """Keeps a request outstanding beside the one that is being served."""
        body = json.dumps(
            {
                "batch": REQUEST_EVENTS,
                "max_bytes": REQUEST_BYTES,
                "expires": int(REQUEST_EXPIRES_S * _NS),
            }
        ).encode()
        try:
            while self._pending and self._asked <= REQUEST_EVENTS:
                self._asked += REQUEST_EVENTS  # first: its answer may be here before publish is
                await self._nc.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                    body,
                    reply=self._inbox,
                )
        except NATS_FAILURES as error:
            raise StoreUnavailable(
                f"reading {self._stream} broke off ({reason(error)}): try again"
            ) from error

    def _on_messages(self, messages: Sequence[Delivered]) -> None:
        for message in messages:
            if self._lost is not None:
                break
            try:
                if message.reply.startswith(b"$JS.ACK."):
                    self._on_message(message)
                else:
                    self._request_ended(*status_of(message.headers))
            except (ValueError, IndexError):
                self._lost = "something came that no consumer sends"
        self._wake.set()

    def _on_message(self, message: Delivered) -> None:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer's>.<time>.<pending>; with a
        # domain and an account in front of the stream, and something behind, by ADR-15.
        tokens = message.reply.split(b".")
        first = 5 if len(tokens) == 9 else 7
        delivered = int(tokens[first + 1])
        if delivered != self._delivered + 1:
            self._lost = "a message got lost on the way"
            return
        self._delivered = delivered
        self._pending = int(tokens[first + 3])
        self._arrived.append(
            Stored(
                int(tokens[first]),
                message.subject.decode("utf-8", "replace"),
                headers_of(message.headers),
                int(tokens[first + 2]),
                message.body,
            )
        )
        self._asked -= 1

    def _request_ended(self, status: str, said: str, more: Mapping[str, str]) -> None:
        """A request ended before it was full: by its bytes or its time, or with its consumer."""
        left = more.get("Nats-Pending-Messages", "")
        if left.isdigit() and "Leadership" not in said:
            self._asked -= int(left)
        elif status != "100":  # a heartbeat
            self._lost = f"{status} {said}".rstrip()
