"""nats-py's client, quicker at the two things that an append consists of.

`publish` with headers of the usual form and `request` do the same as their originals in a third
and in half of the time, and both take headers that are lines already; `publish_events` sends many
messages as one; an answer goes to whoever waits for it without a queue and a task between
them. Whatever is unusual about a call is left to the originals. Nor does a request that could not
be sent leave anything behind. All this reaches into nats-py 2.16, and the tests compare the two on
the wire.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import (
    ConnectionClosedError,
    ConnectionDrainingError,
    NoRespondersError,
    OutboundBufferLimitError,
)
from nats.errors import TimeoutError as NoAnswer

from infra.sturdy import SturdyClient

_NO_RESPONDERS = "503"
_LINES = re.compile(r"(?:[A-Za-z0-9-]+: [!-~]+\r\n)+")
"""Headers whose values have no blanks: nothing in them has to be looked at."""

Event = tuple[str, str, bytes]
"""Subject, header lines (each with its end), body."""


class LeanClient(SturdyClient):
    """A client for programs that append, and take the time of it."""

    def __init__(self) -> None:
        super().__init__()
        self._tokens = count(1)
        self._answers: Subscription | None = None

    async def _send_publish(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        payload_size: int,
        headers: Mapping[str, Any] | str | None,
    ) -> None:
        block = headers if isinstance(headers, str) else _block(headers)
        if block is None or not subject:
            await super()._send_publish(subject, reply, payload, payload_size, headers)  # type: ignore[arg-type]  # (it is called so)
            return
        header = f"NATS/1.0\r\n{block}\r\n".encode()
        size = len(header)
        command = f"HPUB {subject} {reply} {size} {size + payload_size}\r\n".encode()
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        await self._send_command(b"".join((command, header, payload, b"\r\n")))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def publish_events(self, events: Sequence[Event]) -> None:
        """Publishes messages, in their order and in one piece, that nobody answers.

        Each within what the server takes. Raises as `publish` does; then none was sent.
        """
        if self.is_closed:
            raise ConnectionClosedError
        if self.is_draining_pubs:
            raise ConnectionDrainingError
        if not self.is_connected:
            raise OutboundBufferLimitError
        frames: list[bytes] = []
        for subject, lines, body in events:
            header = f"NATS/1.0\r\n{lines}\r\n".encode()
            size = len(header)
            frames.append(f"HPUB {subject} {size} {size + len(body)}\r\n".encode())
            frames += (header, body, b"\r\n")
            self.stats["out_bytes"] += len(body)
        self.stats["out_msgs"] += len(events)
        await self._send_command(b"".join(frames))

    async def _init_request_sub(self) -> None:
        await super()._init_request_sub()
        self._answers = next(
            sub for sub in self._subs.values() if sub._cb == self._request_sub_callback
        )

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        if self._answers is None or sid != self._answers._id:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        assert self._resp_sub_prefix is not None
        token = subject[len(self._resp_sub_prefix) :].decode()
        answer = self._resp_map.get(token)
        if answer is not None and not answer.done():
            told = await self._process_headers(headers)
            answer.set_result(self._build_message(sid, subject, reply, data, told))

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | str | None = None,
    ) -> Msg:
        """As the original: the answer. Headers may be lines, each with its end.

        Raises `nats.errors.TimeoutError` and the others.
        """
        passed: Any = headers  # what they are is looked at in `_send_publish`
        if old_style:
            return await super().request(subject, payload, timeout, old_style, passed)
        if self.is_draining_pubs:
            raise ConnectionDrainingError
        if not self._resp_sub_prefix:
            await self._init_request_sub()
        token = str(next(self._tokens))
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._resp_map[token] = answer
        giving_up = asyncio.get_running_loop().call_later(timeout, _give_up, answer)
        try:
            assert self._resp_sub_prefix is not None
            inbox = self._resp_sub_prefix.decode() + token
            await self.publish(subject, payload, reply=inbox, headers=passed)
            message = await answer
        finally:
            giving_up.cancel()
            self._resp_map.pop(token, None)
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            raise NoRespondersError
        return message


def _block(headers: Mapping[str, Any] | None) -> str | None:
    """The headers' lines; None when there are none, or one has to be looked at more closely."""
    if not headers:
        return None
    block = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    usual = _LINES.fullmatch(block) and block.count("\n") == len(headers)
    return block if usual else None


def _give_up(answer: asyncio.Future[Msg]) -> None:
    if not answer.done():
        answer.set_exception(NoAnswer())
