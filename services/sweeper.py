"""The sweeper: closes what nobody talks in any more, and ends replies whose producer is gone.

It reads the events streams to their end, again and again, and holds what is active. What has been
silent for too long it ends by commands like anybody's (`close` as inactive, `reply.abort`), each
on condition that the conversation still is at the version at which it fell silent: an event that
came meanwhile wins, and of several sweepers one. Which ones run, and how often they are started
anew, makes no difference; starting reads the streams from their beginning.

The time is the library's clock, compared with the times in the events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from nats.aio.client import Client
from nats.errors import Error as NatsError
from pydantic_core import from_json, to_json

from domain import clock
from domain.mapper import ConversationMapper
from infra.jetstream.envelope import EVENT_TYPE, EVENT_VERSION
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.scan import Stored, scan
from infra.jetstream.topology import Topology
from infra.settings import Settings
from projections.idleness import Idleness, Silent
from services.endpoint import ACTOR, EXPECTED_VERSION
from services.tasks import ended

log = logging.getLogger(__name__)

WHO: Final = "service:sweeper"
AT_ONCE: Final = 64
"""How many commands are under way at a time."""

REQUEST_TIMEOUT_S: Final = 10.0
PAUSE_MAX_S: Final = 10.0
PAUSE_MIN_S: Final = 0.2

_MOVED_ON = frozenset({"version_conflict"})


class Sweeper:
    """Sweeps the conversations of all partitions, over the connection `nc`."""

    def __init__(self, settings: Settings, topology: Topology, nc: Client) -> None:
        self._nc = nc
        self._topology = topology
        self._inactive_after = settings.inactive_after
        self._reply_silence = settings.reply_silence
        self._mapper = ConversationMapper()
        self._partitions = [Idleness() for _ in range(topology.partitions)]
        self._next_seqs = [1] * topology.partitions
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to sweep, until `close`."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stops; what is under way is left to whoever sweeps next."""
        if self._task is not None:
            await ended(self._task)

    async def sweep(self) -> int:
        """Reads what is new and ends what is due; returns how many conversations and replies.

        Raises StoreUnavailable, and what the mapper raises for an event that it does not know.
        """
        await self._read()
        now = clock.now()
        ended = 0
        for partition in self._partitions:
            ended += await self._end(partition, partition.replies(now - self._reply_silence))
        if ended:
            await self._read()  # the versions have moved on
        for partition in self._partitions:
            due = partition.conversations(now - self._inactive_after)
            ended += await self._end(partition, due)
        return ended

    async def _run(self) -> None:
        pause_s = _pause_s(self._inactive_after, self._reply_silence)
        while True:
            try:
                if ended := await self.sweep():
                    log.info("ended %d silent conversations and replies", ended)
            except StoreUnavailable as error:
                log.info("the sweeper could not read the ledger and tries again: %s", error)
            except Exception:
                log.exception("the sweeper is stuck; it goes on from there as soon as it can")
            await asyncio.sleep(pause_s)

    async def _read(self) -> None:
        for partition, idleness in enumerate(self._partitions):
            blocks = scan(
                self._nc,
                self._topology.stream_name(partition),
                from_seq=self._next_seqs[partition],
            )
            async with contextlib.aclosing(blocks):
                async for block in blocks:
                    for stored in block:
                        self._take(idleness, stored)
                        self._next_seqs[partition] = stored.seq + 1
                    await asyncio.sleep(0)

    def _take(self, idleness: Idleness, stored: Stored) -> None:
        if EVENT_TYPE not in stored.headers:
            return  # nothing of ours
        idleness.apply(
            self._mapper.event_of(
                self._topology.originator(stored.subject),
                int(stored.headers[EVENT_VERSION]),
                stored.headers[EVENT_TYPE],
                stored.body,
            )
        )

    async def _end(self, idleness: Idleness, due: Iterable[Silent]) -> int:
        """Ends what is due, some of it at a time; returns how many of them this sweeper ended."""
        waiting = list(due)
        ended = 0
        for start in range(0, len(waiting), AT_ONCE):
            batch = waiting[start : start + AT_ONCE]
            ended += sum(await asyncio.gather(*(self._end_one(idleness, each) for each in batch)))
        return ended

    async def _end_one(self, idleness: Idleness, silent: Silent) -> bool:
        if silent.message_id is None:
            verb, body = "close", {"reason": "inactive"}
        else:
            verb, body = "reply.abort", {"message_id": silent.message_id, "reason": "silent"}
        try:
            answer = await self._nc.request(
                f"convo.cmd.{silent.key}.{verb}",
                to_json(body),
                timeout=REQUEST_TIMEOUT_S,
                headers={ACTOR: WHO, EXPECTED_VERSION: str(silent.version)},
            )
        except NatsError as error:
            log.info("nobody took %s of %s, it is sent again: %r", verb, silent.key, error)
            return False
        reply = from_json(answer.data)
        if reply["ok"] or not (reply["error"]["retryable"] or reply["error"]["code"] in _MOVED_ON):
            # Ended by now, or not to be ended; what happens next is told by its next event.
            if silent.message_id is None:
                idleness.forget(silent.key)
            else:
                idleness.forget_reply(silent.key, silent.message_id)
        return bool(reply["ok"] and reply["events"])


def _pause_s(*spans: timedelta) -> float:
    """How long to wait between two rounds: a tenth of what is waited for, within bounds."""
    return min(PAUSE_MAX_S, max(PAUSE_MIN_S, min(spans).total_seconds() / 10))
