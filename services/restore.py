"""Bringing a ledger back from a backup, into a server that has none: every event at the sequence
that it had.

Events are written in the backup's order as atomic batches, each behind the exact sequence that the
one before it ended at, so that nobody else can get in between and a restore that was cut short
goes on where it ended. Until it is complete the streams are marked, and no service starts on them;
nothing is told on `convo.live` either. Then everything is read again and checked, as
`convo verify --all` does.

What the server says about a message (the time at which it was stored, the batch that it came in)
is the restore's; what the ledger says (subject, sequence, headers of its own, body, the hash) is
as it was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.nuid import NUID

from infra.jetstream import outcome
from infra.jetstream.archive import Archive, ArchiveRefused, Part, fingerprint
from infra.jetstream.envelope import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE
from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable
from infra.jetstream.scan import Stored, ends_batch, message_at
from infra.jetstream.topology import BATCH_MESSAGES_MAX, RESTORING, Topology, call
from infra.notary.keys import KEY_FILE, copy_keys
from services.notary import STREAM as NOTARY
from services.notary import ensure_stream

BATCH_BYTES = 4_000_000
EXPECTED_LAST_SEQUENCE = "Nats-Expected-Last-Sequence"
COMMIT_WITHIN_S = 10.0
ATTEMPTS = 30
PAUSE_S = 0.2


Progress = Callable[[str, int, int], None]
"""Hears of which stream how many messages of how many are there."""


async def restore(nc: Client, topology: Topology, archive: Archive, progress: Progress) -> None:
    """Makes the streams and fills them with what the archive has, which must have been checked.

    Goes on with a restore of the same backup that was cut short. Raises ArchiveRefused when there
    is a ledger already, or somebody writes to it meanwhile, and StoreUnavailable.
    """
    names = [topology.stream_name(partition) for partition in range(topology.partitions)]
    for name in names:
        await _require_empty(nc, archive, name)
    await _require_no_records(nc, archive)
    for partition, name in enumerate(names):
        await _begin(nc, topology.events_config(partition), archive)
        await _fill(nc, archive, archive.part(name), progress, together=BATCH_MESSAGES_MAX)
    if NOTARY in archive.parts:
        await ensure_stream(nc, topology.replicas)
        await _fill(nc, archive, archive.part(NOTARY), progress, together=1)
    for partition in range(topology.partitions):
        config = topology.events_config(partition)
        answer = await call(nc, f"STREAM.UPDATE.{config['name']}", config)
        if "error" in answer:
            raise StoreUnavailable(
                f"{config['name']} is filled, but cannot be opened "
                f"({answer['error'].get('description')}): run the same command again"
            )


def put_key_back(archive: Archive, folder: Path) -> bool:
    """Copies the notary's key back, where the folder has none; whether there is one now."""
    if not (folder / KEY_FILE).exists():
        copy_keys(archive.folder / "notary", folder)
    return (folder / KEY_FILE).exists()


# -- what there must not be ------------------------------------------------------------------------


async def _require_empty(nc: Client, archive: Archive, name: str) -> None:
    """Passes when the stream is missing, empty, or the beginning of this very restore."""
    info = await _info(nc, name)
    if info is None or info["state"]["last_seq"] == 0 or _is_ours(info, archive):
        return
    there, kept = info["state"]["last_seq"], archive.part(name).last_seq
    compared = "newer" if there > kept else "as new" if there == kept else "older, or another one"
    raise ArchiveRefused(
        f"{name} holds {there:,} events already, the backup has {kept:,}: the ledger that is there "
        f"is {compared}, and a restore never writes over one. Restore beside it, into a directory "
        "of its own: `convo restore DIR --data NEW`; or, if that ledger is to go, remove its data "
        "directory (on a server of your own: its streams) first"
    )


async def _require_no_records(nc: Client, archive: Archive) -> None:
    """Passes unless a notary has begun to sign on this server."""
    info = await _info(nc, NOTARY)
    if info is None or info["state"]["last_seq"] == 0:
        return
    part = archive.part(NOTARY)
    seq = min(info["state"]["last_seq"], part.last_seq)
    ours = seq > 0 and await _has(nc, archive, part, seq)
    if not ours or info["state"]["last_seq"] > part.last_seq:
        raise ArchiveRefused(
            f"{NOTARY} holds records of another notary: services have run on this server. Stop "
            "them, and restore into an empty directory (`convo restore DIR --data NEW`), or delete "
            f"that stream first (`nats stream rm {NOTARY}`)"
        )


async def _has(nc: Client, archive: Archive, part: Part, seq: int) -> bool:
    """Whether the stream has the archive's message at this sequence."""
    there = await message_at(nc, part.stream, seq)
    kept = await asyncio.to_thread(lambda: next(iter(archive.read(part.stream, seq)))[0])
    return there is not None and fingerprint(there) == fingerprint(kept)


async def _info(nc: Client, name: str) -> dict[str, Any] | None:
    info = await call(nc, f"STREAM.INFO.{name}", {})
    if outcome.unmade(info):
        return None
    if "error" in info:
        raise StoreUnavailable(f"{name} cannot be read: {info['error'].get('description')}")
    return info


def _is_ours(info: dict[str, Any], archive: Archive) -> bool:
    metadata: dict[str, str] = info["config"].get("metadata") or {}
    return metadata.get(RESTORING) == archive.id


# -- filling ---------------------------------------------------------------------------------------


async def _begin(nc: Client, config: dict[str, Any], archive: Archive) -> None:
    """Makes the stream, or takes an empty one over: marked, and silent on live subjects."""
    marked = {**config, "metadata": {**config["metadata"], RESTORING: archive.id}}
    marked.pop("republish", None)
    there = await _info(nc, config["name"])
    if there is not None and _is_ours(there, archive):
        return
    do = "CREATE" if there is None else "UPDATE"
    answer = await call(nc, f"STREAM.{do}.{config['name']}", marked)
    if "error" in answer:
        raise StoreUnavailable(
            f"{config['name']} cannot be made: {answer['error'].get('description')}; a restore "
            "needs a user who may create and update streams"
        )


async def _fill(
    nc: Client, archive: Archive, part: Part, progress: Progress, *, together: int
) -> None:
    """Writes the archive's messages behind what the stream has of them already.

    `together`: how many go into one atomic batch; 1 for a stream that takes none.
    """
    info = await call(nc, f"STREAM.INFO.{part.stream}", {})
    last_seq: int = info["state"]["last_seq"]
    if last_seq > part.last_seq or (last_seq and not await _has(nc, archive, part, last_seq)):
        raise ArchiveRefused(
            f"{part.stream} holds something else than the backup: remove what an earlier restore "
            "has left, and begin again in an empty directory"
        )
    async with aclosing(_blocks(archive, part.stream, last_seq + 1)) as blocks:
        async for messages in blocks:
            for batch in _batches(messages, together):
                await _commit(nc, part.stream, batch, last_seq)
                last_seq = batch[-1].seq
                progress(part.stream, last_seq, part.last_seq)


async def _blocks(
    archive: Archive, stream: str, from_seq: int
) -> AsyncGenerator[list[Stored], None]:
    """The archive's messages, cut where batches end; the next ones are read meanwhile."""
    reading = iter(archive.read(stream, from_seq))
    following = asyncio.create_task(asyncio.to_thread(next, reading, None))
    left: list[Stored] = []
    try:
        while (block := await following) is not None:
            following = asyncio.create_task(asyncio.to_thread(next, reading, None))
            left += block
            whole = next((i for i in range(len(left), 0, -1) if ends_batch(left[i - 1])), 0)
            if whole:
                yield left[:whole]
                left = left[whole:]
    finally:
        await asyncio.gather(following, return_exceptions=True)
    if left:
        yield left


def _batches(messages: Sequence[Stored], together: int) -> Iterator[list[Stored]]:
    """Parts of at most so many messages, none of which ends within a batch of the original."""
    part: list[Stored] = []
    open_: list[Stored] = []
    size = 0
    for stored in messages:
        open_.append(stored)
        if not ends_batch(stored):
            continue
        bytes_ = sum(len(each.body) for each in open_)
        if part and (len(part) + len(open_) > together or size + bytes_ > BATCH_BYTES):
            yield part
            part, size = [], 0
        part, size, open_ = part + open_, size + bytes_, []
    if part or open_:
        yield part + open_


async def _commit(nc: Client, stream: str, messages: Sequence[Stored], behind: int) -> None:
    """Stores messages as one batch directly behind sequence `behind`; once, whatever happens."""
    known: outcome.Outcome
    why = ""
    for _ in range(ATTEMPTS):
        try:
            known = outcome.of_answer(await _publish(nc, messages, behind))
        except NATS_FAILURES as error:
            known = outcome.of_exception(error, sent=True)
        if isinstance(known, outcome.Stored):
            return
        if isinstance(known, outcome.Full | outcome.Refused):
            raise StoreUnavailable(
                f"{stream} does not take sequence {messages[0].seq} ({known.reason}): mend that, "
                "and run the same command again"
            )
        info = await call(nc, f"STREAM.INFO.{stream}", {})
        there = info.get("state", {}).get("last_seq", behind)
        if there == messages[-1].seq:
            last = await message_at(nc, stream, there)
            if last is not None and fingerprint(last) == fingerprint(messages[-1]):
                return  # an attempt that nobody answered to
        if there != behind:
            raise ArchiveRefused(
                f"somebody else writes to {stream}: stop the services (`convo up`, `convo serve`), "
                "and begin again with an empty directory"
            )
        why = known.reason
        await asyncio.sleep(PAUSE_S)
    raise StoreUnavailable(
        f"{stream} does not take sequence {messages[0].seq} ({why}): run the same command "
        "again to go on"
    )


async def _publish(nc: Client, messages: Sequence[Stored], behind: int) -> dict[str, Any]:
    id = NUID().next().decode()
    for place, stored in enumerate(messages, start=1):
        headers = {
            name: value for name, value in stored.headers.items() if not name.startswith("Nats-")
        }
        if len(messages) > 1:
            headers |= {BATCH_ID: id, BATCH_SEQUENCE: str(place)}
        if place == 1:
            headers[EXPECTED_LAST_SEQUENCE] = str(behind)
        if place < len(messages):
            await nc.publish(stored.subject, stored.body, headers=headers)
            continue
        if len(messages) > 1:
            headers[BATCH_COMMIT] = "1"
        answer = await nc.request(
            stored.subject, stored.body, timeout=COMMIT_WITHIN_S, headers=headers
        )
    told: dict[str, Any] = json.loads(answer.data)
    return told
