"""Backing a ledger up, while it is in use, into a folder that grows with it.

What is copied of each partition is a beginning of its stream, cut where a batch ends: a state that
the ledger was in. The notary's records are read first, so that no checkpoint in the backup speaks
of events that are not. Run again, it adds what is new. Snapshots, tables and lists are made anew
from the events and are not copied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from domain import clock
from infra.jetstream import outcome
from infra.jetstream.archive import Archive, ArchiveOfAnother, Part, Writing, fingerprint
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.scan import message_at, scan
from infra.jetstream.topology import Topology, call
from infra.notary.keys import copy_keys
from services.endpoint import VERSION
from services.notary import STREAM as NOTARY

Progress = Callable[[str, int, int], None]
"""Hears of which stream how many messages of how many are copied."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What one run has added of one stream, and where the backup of it ends now."""

    stream: str
    messages: int
    last_seq: int
    bytes: int

    def report(self) -> dict[str, Any]:
        """The same as a plain object."""
        return {
            "stream": self.stream,
            "added": self.messages,
            "last_seq": self.last_seq,
            "bytes": self.bytes,
        }


async def back_up(
    nc: Client,
    topology: Topology,
    archive: Archive,
    progress: Progress,
    *,
    keys: Path | None = None,
) -> list[Copied]:
    """Adds to the archive what it does not have yet of the ledger; what each stream had new.

    `keys`: the folder of the notary's key, to be copied too. Raises ArchiveRefused (the archive
    is of another ledger, or the ledger is damaged) and StoreUnavailable; what was copied before is
    kept, and another run goes on behind it.
    """
    names = [topology.stream_name(partition) for partition in range(topology.partitions)]
    found: dict[str, dict[str, Any]] = {}
    for name in (NOTARY, *names):  # the notary's first, see above
        info = await call(nc, f"STREAM.INFO.{name}", {})
        if outcome.unmade(info) and name == NOTARY:
            continue
        if "error" in info:
            raise StoreUnavailable(f"{name} cannot be read: {info['error'].get('description')}")
        await _recognise(nc, archive.part(name), info)
        found[name] = info
    if archive.facts.setdefault("partitions", topology.partitions) != topology.partitions:
        raise ArchiveOfAnother(
            f"{archive.folder} is of a ledger with {archive.facts['partitions']} partitions, this "
            f"one has {topology.partitions}: name another folder"
        )
    if keys is not None:
        await asyncio.to_thread(copy_keys, keys, archive.folder / "notary")
    copied = [await _copy(nc, archive, name, info, progress) for name, info in found.items()]
    archive.facts |= {
        "made_at": clock.to_text(clock.now()),
        "made_by": f"conversation-ledger {VERSION}",
        "positions": {
            str(partition): archive.part(name).last_seq for partition, name in enumerate(names)
        },
    }
    await asyncio.to_thread(archive.save)
    return copied


async def _copy(
    nc: Client, archive: Archive, name: str, info: dict[str, Any], progress: Progress
) -> Copied:
    """Copies what the stream has behind the archive's end, up to its own end as `info` has it."""
    part = archive.part(name)
    part.created, part.config = info["created"], info["config"]
    before, bytes_before, total = part.last_seq, part.bytes, info["state"]["last_seq"]
    if total > before:
        loop = asyncio.get_running_loop()
        writing = Writing(archive, part)
        with ThreadPoolExecutor(1) as thread:  # one: what ends the work comes behind the work
            try:
                async with aclosing(scan(nc, name, from_seq=before + 1)) as blocks:
                    async for block in blocks:
                        wanted = [stored for stored in block if stored.seq <= total]
                        await loop.run_in_executor(thread, writing.take, wanted)
                        progress(name, block[-1].seq - before, total - before)
                        if block[-1].seq >= total:
                            break
            except OSError:
                thread.submit(writing.drop).result()
                raise
            finally:
                thread.submit(writing.cut).result()
    return Copied(name, part.last_seq - before, part.last_seq, part.bytes - bytes_before)


async def _recognise(nc: Client, part: Part, info: dict[str, Any]) -> None:
    """Raises ArchiveOfAnother unless the stream still has what was copied of it."""
    if not part.last_seq:
        return
    ends_at = info["state"]["last_seq"]
    if ends_at < part.last_seq:
        raise ArchiveOfAnother(
            f"{part.stream} ends at sequence {ends_at}, and the backup has it up to "
            f"{part.last_seq}: the ledger went back in time, or is another one. Keep the backup as "
            "it is (`convo restore` brings it back), and back this ledger up into another folder"
        )
    for seq, known in ((1, part.first), (part.last_seq, part.last)):
        stored = await message_at(nc, part.stream, seq)
        if stored is None or fingerprint(stored) != known:
            raise ArchiveOfAnother(
                f"{part.stream} has {'another' if stored else 'no'} message at sequence {seq} than "
                "the backup: it is another ledger, or it went back in time and was written on. "
                "Keep the backup as it is, and back this ledger up into another folder"
            )
