"""A NATS client that no message can bring down, whoever published it.

nats-py 2.16 ends its read loop, with a traceback, at the first subject that is no UTF-8 or header
block that is none; the connection then hears nothing until its pings fail. It also takes vertical
tabs and form feeds in a subject for blanks, which nats-server does not, and drops the connection
over them. Both would let anyone who may publish a request silence a service. And it ends its read
loop at the answer to a flush that was given up before (a cancelled task, a server that was slow).
And its flush overtakes what was sent just before it, so that it says nothing: a connection that was
drained could be closed on requests that the server still delivered.

Header blocks of the usual form are read in a third of nats-py's time, which is half of what reading
a stream costs. Any other block is left to nats-py.
"""

from __future__ import annotations

import asyncio
import re

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol import parser

from infra.bulk import BulkParser, Delivered, Read, Take

MALFORMED = "Malformed-Headers"
"""Stands in the headers of a message whose own could not be read (a name that no sender can set
without meaning it: such a message is refused either way)."""

# The client's own expressions, but blanks are what the protocol says: space and tab.
parser.MSG_RE = re.compile(
    rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n"
)
parser.HMSG_RE = re.compile(
    rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n"
)

# A header without blanks and letters beyond ASCII, and a block of nothing else.
_NAME, _VALUE = "[!-9;-~]+", "[!-~]*"
_FIRST_LINE = "NATS/1.0\r\n"
_HEADER = re.compile(rf"({_NAME}): ?({_VALUE})\r\n")
_USUAL_BLOCK = re.compile(rf"{_FIRST_LINE}(?:{_NAME}: ?{_VALUE}\r\n)+\r\n")


class SturdyClient(Client):
    """nats-py's client, except for what this module's text says.

    A message whose reply subject begins with one of `never_answer` arrives without one: an answer
    sent there would be a write in our name to where the sender may not write.
    """

    never_answer: tuple[str, ...] = ()

    fails_with_connection = False
    """Whether requests under way fail at once when the connection is lost. nats-py has them wait
    out their timeouts, although no answer can come any more."""

    def __init__(self) -> None:
        super().__init__()
        self._ps: BulkParser = BulkParser(self)

    async def _process_op_err(self, e: Exception) -> None:
        was_connected = self.is_connected
        await super()._process_op_err(e)
        if self.fails_with_connection and was_connected and not self.is_connected:
            for answer in list(self._resp_map.values()):
                if not answer.done():
                    answer.set_exception(ConnectionResetError("the connection was lost"))

    def take_in_bulk(
        self, subscription: Subscription, take: Take, read: Read | None = None
    ) -> None:
        """Has `take` get the subscription's messages from now on until it is unsubscribed, except
        for those that `read` takes itself."""
        self._ps.takers[subscription._id] = take
        if read is not None:
            self._ps.readers[subscription._id] = read

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        take = self._ps.takers.get(sid)
        if take is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            self.stats["in_msgs"] += 1
            self.stats["in_bytes"] += len(data)
            take([Delivered(subject, reply, headers or b"", data)])

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        if self._pending and self.is_connected:
            assert self._transport is not None
            self._transport.writelines(self._pending[:])
            self._pending = []
            self._pending_data_size = 0
        await super()._send_ping(future)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # nobody waits for this one any more
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._ps.takers.pop(sid, None)
        self._ps.readers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        answer_to = reply.decode("utf-8", "replace")
        if self.never_answer and answer_to.startswith(self.never_answer):
            answer_to = ""
        return self.msg_class(
            subject=subject.decode("utf-8", "replace"),
            reply=answer_to,
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        usual = _usual_headers(headers or b"")
        if usual is not None:
            return usual
        try:
            return await super()._process_headers(headers)
        except (IndexError, ValueError):
            return {MALFORMED: "1"}


def _usual_headers(block: bytes) -> dict[str, str] | None:
    """The headers of a block of the usual form; None for any other."""
    try:
        text = block.decode("ascii")
    except UnicodeDecodeError:
        return None
    if _USUAL_BLOCK.fullmatch(text) is None:
        return None
    return dict(_HEADER.findall(text, len(_FIRST_LINE)))


def headers_of(block: bytes) -> dict[str, str]:
    """The headers of a block that says no status, as the client reads them."""
    usual = _usual_headers(block)
    if usual is not None:
        return usual
    found: dict[str, str] = Client._parse_header_lines(block.partition(b"\r\n")[2])
    return found


async def subscribe_in_bulk(
    nc: Client, subject: str, take: Take, read: Read | None = None
) -> Subscription:
    """A subscription whose messages `take` gets as they are read, without a queue in between;
    `read` takes those that it can read itself.

    Who subscribes so bounds what can come. A client that is nats-py's own works too, message by
    message.
    """

    async def each(message: Msg) -> None:
        take([_delivered(message)])

    subscription = await nc.subscribe(subject, cb=each)
    if isinstance(nc, SturdyClient):
        nc.take_in_bulk(subscription, take, read)
    return subscription


def _delivered(message: Msg) -> Delivered:
    """The message with its headers as they came."""
    headers = dict(message.headers or {})
    status = (
        f" {headers.pop('Status')} {headers.pop('Description', '')}" if "Status" in headers else ""
    )
    lines = [f"NATS/1.0{status}", *(f"{name}: {value}" for name, value in headers.items())]
    block = "".join(f"{line}\r\n" for line in [*lines, ""]) if headers or status else ""
    return Delivered(message.subject.encode(), message.reply.encode(), block.encode(), message.data)
