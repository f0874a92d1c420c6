"""The incarnation fence: whether the streams are still the ones that were seen before.

A stream that was restored from an old copy, made anew, or cut off at its end goes on as if nothing
had happened and issues sequences a second time. So whoever uses one keeps a witness of it: when it
was created, its first message, its last sequence and that message's fingerprint. A stream that has
these still is the one that was seen, whatever became of the server; one that does not has lost
what somebody was told is stored, and nothing may be built on it.

The witness of each stream is a file (`<folder>/<stream>.json`), written again about every second
while something comes; of several processes on one folder one writes. Each of them also compares
with what it has seen itself, and with the last that was stored for it, always when the server was
away.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from infra.jetstream import outcome
from infra.jetstream.archive import fingerprint
from infra.jetstream.errors import LedgerDamaged, StoreUnavailable, StreamMismatch
from infra.jetstream.scan import Stored, message_at
from infra.jetstream.topology import call, differences
from infra.lock import FileLock

log = logging.getLogger(__name__)

LOOK_S = 1.0

CONFIRM_S = 10.0
"""A stream of several replicas is looked at again for so long before it is judged: a leader that
was just elected may not have applied everything yet. One of a single replica has no excuse."""

PASSED_WITHIN_S = 5.0
"""How long requests wait for a server that was away."""

_PAUSE_S = 0.25
_AWAY_PAUSE_S = 0.02


class LedgerWentBack(LedgerDamaged):
    """The ledger is not the one that was seen here, or lacks what was seen of it."""

    def __init__(self, stream: str, problem: str) -> None:
        super().__init__(
            f"{stream} is not what it was: {problem}. It went back in time or was replaced, and "
            "nothing may be written or shown as if that were not so. Bring back the store that was "
            "there, or a backup (`convo restore`); if the loss is known and accepted: `convo fence "
            "--accept-loss`"
        )
        self.stream = stream
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Witness:
    """What was seen of a stream. `first` and `last` are the fingerprints of message 1 and of
    message `seq`; `created` is when the server says that it made the stream."""

    stream: str
    created: str
    replicas: int
    first: str
    seq: int
    last: str


async def seen(nc: Client, stream: str) -> Witness | None:
    """A stream as it is now; None when it is empty or not there. Raises StoreUnavailable."""
    info = await call(nc, f"STREAM.INFO.{stream}", {})
    if outcome.unmade(info):
        return None
    if "error" in info:
        raise StoreUnavailable(f"{stream} cannot be read: {info['error'].get('description')}")
    seq: int = info["state"]["last_seq"]
    first = await message_at(nc, stream, 1) if seq else None
    last = await message_at(nc, stream, seq) if seq else None
    if first is None or last is None:
        return None
    replicas = info["config"].get("num_replicas", 1)
    return Witness(stream, info["created"], replicas, fingerprint(first), seq, fingerprint(last))


async def problem_with(nc: Client, witness: Witness) -> str | None:
    """Why the stream is not what the witness saw; None when it is. Raises StoreUnavailable."""
    info = await call(nc, f"STREAM.INFO.{witness.stream}", {})
    if outcome.unmade(info):
        return f"it is gone, and had {witness.seq:,} events"
    if "error" in info:
        raise StoreUnavailable(
            f"{witness.stream} cannot be read: {info['error'].get('description')}"
        )
    ends_at = info["state"]["last_seq"]
    if ends_at < witness.seq:
        return f"it ends at sequence {ends_at:,}, and had {witness.seq:,}"
    for seq, known in ((1, witness.first), (witness.seq, witness.last)):
        found = await message_at(nc, witness.stream, seq)
        if found is None:
            return f"it has no event at sequence {seq:,} any more"
        if fingerprint(found) != known:
            return f"it has another event at sequence {seq:,}"
    return None


async def confirm(nc: Client, witness: Witness) -> None:
    """Passes when the stream is what the witness saw. Raises LedgerWentBack, StoreUnavailable."""
    give_up_at = time.monotonic() + (CONFIRM_S if witness.replicas > 1 else 0.0)
    while (problem := await problem_with(nc, witness)) is not None:
        if time.monotonic() >= give_up_at:
            raise LedgerWentBack(witness.stream, problem)
        await asyncio.sleep(_PAUSE_S)


class Witnesses:
    """The witnesses kept in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, stream: str) -> Witness | None:
        """What was seen of the stream; None when nothing was, or the file cannot be read."""
        path = self._path(stream)
        try:
            return Witness(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be read (%s): nothing is compared with it", path, error)
            return None

    def put(self, witness: Witness) -> None:
        """Replaces what is kept of the stream, in one step. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(witness.stream)
        fresh = path.with_suffix(f".{os.getpid()}")
        with fresh.open("w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(witness), indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)

    def forget(self, stream: str) -> None:
        """Keeps nothing of the stream."""
        self._path(stream).unlink(missing_ok=True)

    def _path(self, stream: str) -> Path:
        return self.folder / f"{stream}.json"


class Fence:
    """Watches over the streams of one process. `broken` is done when one went back in time, or was
    given a configuration that breaks the ledger's promises.

    `wanted`: the configuration of each stream, as `Topology.events_config` has it, by name.
    """

    def __init__(self, nc: Client, folder: Path, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        self.broken: asyncio.Future[LedgerWentBack | StreamMismatch]
        self.broken = asyncio.get_running_loop().create_future()
        self.acknowledged: Callable[[str], Stored | None] = lambda _stream: None
        """The last message of a stream that was stored for this process."""
        self._nc = nc
        self._kept = Witnesses(folder)
        self._streams = tuple(wanted)
        self._wanted = wanted
        self._seen: dict[str, Witness] = {}
        self._lock: FileLock | None = None
        self._confirmed_at = -1  # how often the connection had come back when all was confirmed
        self._confirming: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Compares every stream with what was seen of it. Raises LedgerWentBack."""
        for stream in self._streams:
            witness = self._kept.get(stream)
            if witness is not None:
                await confirm(self._nc, witness)
                self._seen[stream] = witness

    async def start(self) -> None:
        """Goes on watching, in a task of its own."""
        self._confirmed_at = self._nc.stats["reconnects"]
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Writes down what was seen last, and stops watching."""
        if self._task is None:
            return
        for task in (self._task, self._confirming):
            while task is not None and not task.done():
                task.cancel()  # more than once: nats-py may swallow one
                await asyncio.wait({task}, timeout=0.1)
        if self._nc.is_connected and not self.broken.done():
            try:
                async with asyncio.timeout(2.0):
                    await self._look()
            except (StoreUnavailable, StreamMismatch, LedgerWentBack, TimeoutError) as error:
                log.info("what was stored last is not written down: %s", error)
        if self._lock is not None:
            self._lock.close()

    @property
    def is_passed(self) -> bool:
        """Whether the server was not away since everything was compared."""
        return (
            self._nc.is_connected
            and self._confirmed_at == self._nc.stats["reconnects"]
            and not self.broken.done()
        )

    async def passed(self) -> None:
        """Returns once everything was compared since the server was away.

        All who wait are told the same. Raises LedgerWentBack, StoreUnavailable.
        """
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.get_running_loop().create_task(self._confirm_all())
        await asyncio.shield(self._confirming)

    async def _confirm_all(self) -> None:
        give_up_at = time.monotonic() + PASSED_WITHIN_S
        while not self.is_passed:
            if self.broken.done():
                raise self.broken.result()
            reconnects = self._nc.stats["reconnects"]
            try:
                for witness in self._seen.values():
                    await self._confirm(self._with_what_was_stored(witness))
                self._confirmed_at = reconnects
            except StoreUnavailable:
                if time.monotonic() > give_up_at:
                    raise
            if not self.is_passed:
                await asyncio.sleep(_AWAY_PAUSE_S)

    def _with_what_was_stored(self, witness: Witness) -> Witness:
        """The witness as it would be had it been taken after the last acknowledgement."""
        last = self.acknowledged(witness.stream)
        if last is None or last.seq <= witness.seq:
            return witness
        return replace(witness, seq=last.seq, last=fingerprint(last))

    async def _watch(self) -> None:
        while not self.broken.done():
            try:
                await self.passed()
                await self._look()
            except (StoreUnavailable, StreamMismatch, LedgerWentBack) as error:
                log.debug("%s", error)
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        """Takes a new witness of each stream that has grown, behind the one before it."""
        for stream in self._streams:
            await self._require_promises(stream)
            before = self._seen.get(stream)
            now = await seen(self._nc, stream)
            if now == before:
                continue
            if before is not None:
                await self._confirm(before)
            if now is not None:
                self._seen[stream] = now
                await asyncio.to_thread(self._keep, now)

    async def _require_promises(self, stream: str) -> None:
        """Raises StreamMismatch when the stream was given another configuration since the start."""
        info = await call(self._nc, f"STREAM.INFO.{stream}", {})
        wanted = self._wanted[stream]
        if "error" in info or not wanted:
            return
        found = differences(wanted, info["config"])
        if found:
            error = StreamMismatch(stream, found)
            if not self.broken.done():
                self.broken.set_result(error)
            raise error

    async def _confirm(self, witness: Witness) -> None:
        try:
            await confirm(self._nc, witness)
        except LedgerWentBack as error:
            if not self.broken.done():
                self.broken.set_result(error)
            raise

    def _keep(self, witness: Witness) -> None:
        """Writes a witness down, unless another process on this folder does."""
        try:
            if self._lock is None:
                self._kept.folder.mkdir(parents=True, exist_ok=True)
                self._lock = FileLock(self._kept.folder / ".lock")
            self._kept.put(witness)
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("%s cannot be written: %s", self._kept.folder, error.strerror or error)
