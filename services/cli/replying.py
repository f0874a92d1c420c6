"""A producer of replies: what comes in is gathered into chunks and written as it comes.

Five chunks, or those of 200 ms, make one command, so that a stream costs few events (contract,
section 3). Each carries a command id of its own and is sent again until it is answered; what has
been written already is skipped by the ledger.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from services.cli.errors import CommandFailed, Interrupted
from services.cli.options import Client, Named, Writing
from services.cli.requests import (
    Answer,
    Patience,
    ask,
    connected,
    conversation,
    encode,
    settings_of,
    write_headers,
)
from services.gathering import Pieces, gathered

if TYPE_CHECKING:
    from nats.aio.client import Client as Connection

READ_BYTES: Final = 16_384


class Beginning(NamedTuple):
    """The body of `reply.start`, and the headers that go with it."""

    body: dict[str, Any]
    writing: Writing


class Reply:
    """One reply that is being written."""

    def __init__(self, connection: Connection, key: str, patience: Patience) -> None:
        self._connection = connection
        self._key = key
        self._patience = patience
        self.message_id = ""
        self._next_index = 0

    async def start(self, beginning: Beginning) -> None:
        """Begins the message."""
        answer = await self._command("reply.start", beginning.body, beginning.writing)
        self.message_id = answer.reply["message_id"]

    async def write(self, texts: list[str]) -> None:
        """Writes the chunks that come next."""
        await self._command(
            "reply.chunk",
            {"message_id": self.message_id, "index": self._next_index, "texts": texts},
        )
        self._next_index += len(texts)

    async def finish(self, ending: dict[str, Any]) -> Answer:
        """Ends it whole."""
        return await self._command("reply.finish", {"message_id": self.message_id, **ending})

    async def abort(self, reason: str) -> None:
        """Ends it as it is."""
        await self._command("reply.abort", {"message_id": self.message_id, "reason": reason})

    async def _command(
        self, verb: str, body: dict[str, Any], writing: Writing | None = None
    ) -> Answer:
        headers = write_headers(writing or Writing(None, None, None))
        subject = f"convo.cmd.{self._key}.{verb}"
        return await ask(self._connection, subject, encode(body), headers, self._patience)


async def say(
    client: Client, named: Named, beginning: Beginning, ending: dict[str, Any], source: BinaryIO
) -> Answer:
    """Writes all of `source` (UTF-8) as one reply; the answer to its end.

    `Interrupted` when it was cancelled: the reply is aborted and what was said stays.
    """
    async with connected(settings_of(client.nats), "convo reply") as connection:
        key = conversation(named).key
        reply = Reply(connection, key, Patience(client.timeout_s))
        await reply.start(beginning)
        try:
            pieces = _pieces(source)
            while texts := await gathered(pieces):
                await reply.write(texts)
            return await reply.finish(ending)
        except asyncio.CancelledError:
            await reply.abort("interrupted")
            raise Interrupted(
                f"aborted; what was said stays, as message {reply.message_id}"
            ) from None
        except UnicodeDecodeError:
            await reply.abort("not UTF-8")
            raise CommandFailed("the input is not UTF-8: the reply is aborted") from None
        except CommandFailed:
            with contextlib.suppress(CommandFailed):  # as it may have ended otherwise
                await reply.abort("failed")
            raise


def _pieces(source: BinaryIO) -> Pieces:
    """What is read, piece by piece, as it comes; None at the end. Read by a thread, which is left
    where it waits when nobody wants more."""
    loop = asyncio.get_running_loop()
    pieces: Pieces = asyncio.Queue()
    decoder = codecs.getincrementaldecoder("utf-8")()

    def put(piece: str | UnicodeDecodeError | None) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    def read() -> None:
        try:
            while data := _read_some(source):
                if text := decoder.decode(data):
                    put(text)
            if text := decoder.decode(b"", final=True):
                put(text)
            put(None)
        except UnicodeDecodeError as error:
            put(error)

    threading.Thread(target=read, daemon=True).start()
    return pieces


def _read_some(source: BinaryIO) -> bytes:
    try:
        return os.read(source.fileno(), READ_BYTES)
    except OSError:  # no file behind it
        return source.read(READ_BYTES)
