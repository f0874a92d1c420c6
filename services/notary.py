"""The notary: follows the events streams in order and signs, again and again, what they held.

Keeps its records on a stream of its own, `CONVO-NOTARY`, one signed note each, for ever:
- `convo.notary.checkpoints.<partition>`: `infra.notary.checkpoint.Checkpoint`; the header
  `Notary-Frontier` lets the notary go on from there without reading the stream again (it is no
  part of what is signed, and checked against the signed root);
- `convo.notary.keys`: the public keys, each introduced by the one before it.

A partition's checkpoint is made when `checkpoint_events` events have come since the last one, and
when `checkpoint_every` has passed and any has. Only whole batches are counted. The notary signs no
further when a stream contradicts itself or its own earlier checkpoints: it says so in the log.

Several notaries with the same key do no harm: a checkpoint goes behind the one that it was made
on, or not at all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from nats.aio.client import Client
from pydantic_core import from_json

from domain import clock
from infra.jetstream import outcome
from infra.jetstream.chain import entry_of
from infra.jetstream.envelope import EXPECTED_LAST_SUBJECT_SEQUENCE
from infra.jetstream.errors import NATS_FAILURES, LedgerDamaged, StoreUnavailable, reason
from infra.jetstream.scan import Stored, ends_batch, scan
from infra.jetstream.topology import Topology, call
from infra.notary.checkpoint import (
    NO_PREVIOUS,
    Checkpoint,
    KeyHistory,
    key_record,
    note_digest,
    origin,
)
from infra.notary.keys import KeyFolder, KeyUnusable
from infra.notary.merkle import Frontier, leaf_hash
from infra.notary.notes import NoteRefused, Signer
from infra.settings import Settings
from services.tasks import ended

log = logging.getLogger(__name__)

STREAM = "CONVO-NOTARY"
PREFIX = "convo.notary"
KEYS = f"{PREFIX}.keys"
FRONTIER = "Notary-Frontier"
FOLDER = "notary"
"""Within the data directory: the notary's keys."""

LOOK_S = 0.5
"""How often the notary looks at what has come."""


class NotaryStopped(Exception):
    """The notary must not sign any more; the message says why and what to do."""


def checkpoints_subject(partition: int) -> str:
    """The subject of one partition's checkpoints."""
    return f"{PREFIX}.checkpoints.{partition}"


class Notary:
    """Signs checkpoints of every partition while it runs."""

    def __init__(self, topology: Topology, nc: Client, settings: Settings) -> None:
        self._topology = topology
        self._nc = nc
        self._keys = KeyFolder(settings.data_dir / FOLDER)
        self._events = settings.checkpoint_events
        self._every_s = settings.checkpoint_every.total_seconds()
        self._replicas = settings.replicas
        self._signer: Signer | None = None
        self._signing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to follow, in tasks of its own."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stops; what came last is in the first checkpoint after the next start."""
        if self._task is not None:
            await ended(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await ensure_stream(self._nc, self._replicas)
                await self._begin()
                logs = [
                    Log(self._topology, partition, self._nc)
                    for partition in range(self._topology.partitions)
                ]
                await asyncio.gather(*(self._follow(each) for each in logs))
            except (KeyUnusable, NotaryStopped, LedgerDamaged) as error:
                log.error("the notary signs no more: %s", error)
                return
            except StoreUnavailable as error:
                log.warning("the notary waits: %s", error)
                await asyncio.sleep(1.0)

    async def _begin(self) -> None:
        """Makes or loads the key, and sees to it that the ledger knows it."""
        signer = self._keys.load_or_make()
        history = await key_history(self._nc)
        if history.current is None:
            await self._tell_key(key_record(signer, None, clock.to_text(clock.now())), 0)
        elif history.current != signer.public:
            following = self._keys.next()
            if following is None or following.public != history.current:
                raise NotaryStopped(
                    f"its key in {self._keys.folder} ({signer.public.fingerprint}) is not the one "
                    f"that the ledger knows ({history.current.fingerprint}): put that one back"
                )
            signer = self._keys.take_next()  # a rotation that was cut short
        self._signer = signer
        log.info("the notary signs with %s", signer.public.line)

    async def _rotate(self, following: Signer) -> None:
        """Introduces the next key, signed by the present one, and signs with it from then on."""
        assert self._signer is not None
        history = await key_history(self._nc)
        record = key_record(following, self._signer, clock.to_text(clock.now()))
        last = await last_record(self._nc, KEYS)
        if history.current == self._signer.public and last is not None:
            await self._tell_key(record, last.seq)
        self._signer = self._keys.take_next()
        log.info("the notary signs with %s from now on", self._signer.public.line)

    async def _tell_key(self, note: str, behind_seq: int) -> None:
        if not await publish(self._nc, KEYS, note, behind_seq):
            raise StoreUnavailable("another notary has just introduced a key")

    async def _follow(self, log_: Log) -> None:
        await log_.load(await key_history(self._nc))
        last_at = time.monotonic()
        while True:
            async with aclosing(log_.grow(self._events)) as steps:
                async for due in steps:
                    if due:
                        await self._sign(log_)
                        last_at = time.monotonic()
            if log_.is_ahead and time.monotonic() - last_at >= self._every_s:
                await self._sign(log_)
                last_at = time.monotonic()
            await asyncio.sleep(LOOK_S)
            async with self._signing:
                if (following := self._keys.next()) is not None:
                    await self._rotate(following)

    async def _sign(self, log_: Log) -> None:
        async with self._signing:
            assert self._signer is not None
            if not await log_.publish_checkpoint(self._signer):
                raise StoreUnavailable("another notary has signed in between")


class Log:
    """One partition as the notary sees it: the tree so far, and the last checkpoint."""

    def __init__(self, topology: Topology, partition: int, nc: Client) -> None:
        self._stream = topology.stream_name(partition)
        self._subject = checkpoints_subject(partition)
        self._nc = nc
        self._frontier = Frontier()
        self._origin = ""
        self._last: Checkpoint | None = None
        self._last_digest = NO_PREVIOUS
        self._last_seq = 0

    @property
    def is_ahead(self) -> bool:
        """Whether there are entries that no checkpoint covers."""
        return self._frontier.size > self._signed_size

    @property
    def _signed_size(self) -> int:
        return 0 if self._last is None else self._last.size

    async def load(self, keys: KeyHistory) -> None:
        """Goes on from the last checkpoint. Raises NotaryStopped when it cannot be ours."""
        record = await last_record(self._nc, self._subject)
        if record is None:
            return
        note = record.body.decode(errors="replace")
        problem: object = "no key is known that could have signed it"
        for key in keys.keys:
            try:
                self._last = Checkpoint.read(note, key)
                break
            except NoteRefused as refused:
                problem = refused
        if self._last is None:
            raise NotaryStopped(
                f"the last checkpoint of {self._stream} cannot be believed ({problem}): "
                "`convo verify --all` tells more"
            )
        roots = record.headers.get(FRONTIER, "")
        try:
            frontier = Frontier(self._last.size, [bytes.fromhex(each) for each in roots.split()])
        except ValueError:
            frontier = Frontier()
        if frontier.root() != self._last.root:
            frontier = await self._tree_of(self._last.size)
        if frontier.root() != self._last.root:
            raise NotaryStopped(
                f"{self._stream} is not the stream that checkpoint {self._last.number} was made "
                "of: `convo verify --all` tells more"
            )
        self._frontier = frontier
        self._origin = self._last.origin
        self._last_digest = note_digest(note)
        self._last_seq = record.seq

    async def grow(self, step: int) -> AsyncGenerator[bool, None]:
        """Takes in what has come; yields from time to time whether a checkpoint is due.

        One is due with every `step` entries. Raises LedgerDamaged where a sequence is missing.
        """
        last_seq = await last_seq_of(self._nc, self._stream)
        if last_seq < self._frontier.size:
            raise LedgerDamaged(
                f"{self._stream} ends at sequence {last_seq}, and had {self._frontier.size} "
                "before: `convo verify --all` tells more"
            )
        if last_seq == self._frontier.size:
            return
        batch: list[Stored] = []  # of a batch whose commit has not come
        blocks = scan(self._nc, self._stream, from_seq=self._frontier.size + 1)
        async with aclosing(blocks):
            async for block in blocks:
                for stored in block:
                    batch.append(stored)
                    if not ends_batch(stored):
                        continue
                    self._take(batch)
                    batch = []
                    if self._frontier.size - self._signed_size >= step:
                        yield True
                yield False

    def _take(self, batch: Sequence[Stored]) -> None:
        for stored in batch:
            due = self._frontier.size + 1
            if stored.seq != due:
                raise LedgerDamaged(
                    f"{self._stream}: sequence {due} is missing, {stored.seq} comes next"
                )
            leaf = leaf_hash(entry_of(stored))
            self._frontier.append(leaf)
            if due == 1:
                self._origin = origin(self._stream, leaf)

    async def publish_checkpoint(self, signer: Signer) -> bool:
        """Signs the tree as it is; False when another notary was first."""
        frontier = self._frontier
        checkpoint = Checkpoint(
            origin=self._origin,
            size=frontier.size,
            root=frontier.root(),
            number=1 if self._last is None else self._last.number + 1,
            time=clock.to_text(clock.now()),
            previous=self._last_digest,
        )
        note = checkpoint.signed(signer)
        roots = " ".join(each.hex() for each in frontier.roots)
        seq = await publish(self._nc, self._subject, note, self._last_seq, {FRONTIER: roots})
        if not seq:
            return False
        self._last, self._last_digest, self._last_seq = checkpoint, note_digest(note), seq
        return True

    async def _tree_of(self, size: int) -> Frontier:
        frontier = Frontier()
        async with aclosing(scan(self._nc, self._stream)) as blocks:
            async for block in blocks:
                for stored in block:
                    if frontier.size == size:
                        return frontier
                    frontier.append(leaf_hash(entry_of(stored)))
        return frontier


# -- the notary's stream ---------------------------------------------------------------------------


async def ensure_stream(nc: Client, replicas: int) -> None:
    """Makes the stream of records where there is none. Raises StoreUnavailable."""
    info = await call(nc, f"STREAM.INFO.{STREAM}", {})
    if not outcome.unmade(info):
        return
    config = {
        "name": STREAM,
        "subjects": [f"{PREFIX}.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": replicas,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
    }
    made = await call(nc, f"STREAM.CREATE.{STREAM}", config)
    if "error" in made:
        raise StoreUnavailable(f"stream {STREAM} cannot be made: {made['error']['description']}")


async def publish(
    nc: Client, subject: str, note: str, behind_seq: int, headers: dict[str, str] | None = None
) -> int:
    """Stores a record behind the subject's record at `behind_seq` (0: none).

    Returns its sequence, 0 when another one stands there already. Raises StoreUnavailable.
    """
    expected = {EXPECTED_LAST_SUBJECT_SEQUENCE: str(behind_seq)}
    try:
        answer = await nc.request(
            subject, note.encode(), timeout=5.0, headers={**expected, **(headers or {})}
        )
    except NATS_FAILURES as error:
        raise StoreUnavailable(f"a record was not stored: {reason(error)}") from error
    told = outcome.of_answer(from_json(answer.data))
    match told:
        case outcome.Stored(seq):
            return seq
        case outcome.ReadBack(unknown=False):
            return 0
    raise StoreUnavailable(f"a record was not stored: {told.reason}")


async def last_seq_of(nc: Client, stream: str) -> int:
    """The last sequence of a stream, 0 for one that is empty. Raises StoreUnavailable."""
    info = await call(nc, f"STREAM.INFO.{stream}", {})
    if "error" in info:
        raise StoreUnavailable(f"{stream} cannot be read: {info['error'].get('description')}")
    return int(info["state"]["last_seq"])


async def records(nc: Client, subject: str = f"{PREFIX}.>") -> AsyncGenerator[Stored, None]:
    """The notary's records in order; none where there is no notary."""
    info = await call(nc, f"STREAM.INFO.{STREAM}", {})
    if outcome.unmade(info):
        return
    async with aclosing(scan(nc, STREAM, subject=subject)) as blocks:
        async for block in blocks:
            for stored in block:
                yield stored


async def last_record(nc: Client, subject: str) -> Stored | None:
    """The last record of a subject."""
    found = await call(nc, f"STREAM.MSG.GET.{STREAM}", {"last_by_subj": subject})
    error = found.get("error")
    if error is not None:
        if outcome.absent(found) or outcome.unmade(found):
            return None
        raise StoreUnavailable(f"{STREAM} cannot be read: {error.get('description')}")
    async with aclosing(
        scan(nc, STREAM, subject=subject, from_seq=found["message"]["seq"])
    ) as blocks:
        async for block in blocks:
            return block[-1]
    return None


async def key_history(nc: Client) -> KeyHistory:
    """The notary's keys so far. Raises NotaryStopped for records that no notary made."""
    history = KeyHistory()
    async with aclosing(records(nc, KEYS)) as found:
        async for record in found:
            try:
                history.take(record.body.decode(errors="replace"))
            except NoteRefused as refused:
                raise NotaryStopped(
                    f"the record of keys at {STREAM} sequence {record.seq} cannot be believed "
                    f"({refused}): `convo verify --all` tells more"
                ) from None
    return history
