"""How long a backup and a restore take, beside JetStream's own snapshot of the same stream.

    python -m tests.benchmarks.backup [EVENTS] [CONVERSATIONS]

Fills a stream, backs it up, backs it up again behind 1,000 events more, restores it into another
server, and copies it with `$JS.API.STREAM.SNAPSHOT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.connection import connect
from infra.jetstream.archive import Archive
from infra.jetstream.envelope import Tail
from infra.jetstream.store import Store
from infra.jetstream.topology import call
from infra.lean import LeanClient
from infra.loop import run
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.backup import back_up
from services.restore import restore
from tests.benchmarks.audit import LEDGER, fill, message

STREAM = LEDGER.stream_name(0)
CHUNK = 512 * 1024


@contextlib.contextmanager
def timed(what: str, events: int, file: Path | None = None) -> Iterator[None]:
    """Prints how long the block took."""
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    size = ""
    if file is not None:
        files = [file] if file.is_file() else [each for each in file.rglob("*") if each.is_file()]
        size = f", {sum(each.stat().st_size for each in files) / 1e6:.1f} MB"
    print(f"{what}: {seconds:.2f} s, {events / seconds:,.0f} events/s{size}", flush=True)


@contextlib.asynccontextmanager
async def another(folder: Path) -> AsyncIterator[LeanClient]:
    """A connection to a server of its own."""
    async with EmbeddedServer(folder) as server:
        client = await connect(server.url, name="bench", settings=Settings())
        yield client
        await client.close()


async def copy(nc: Client, folder: Path) -> None:
    """What `convo backup` does."""
    archive = Archive.open_or_make(folder)
    await back_up(nc, LEDGER, archive, lambda *_: None)
    archive.close()


async def snapshot(nc: Client, file: Path) -> None:
    """JetStream's own copy of the stream."""
    inbox = nc.new_inbox()
    done = asyncio.Event()
    with file.open("wb") as out:

        async def take(message: Msg) -> None:
            if not message.data:
                done.set()
                return
            out.write(message.data)
            if message.reply:
                await message.respond(b"")

        subscription = await nc.subscribe(inbox, cb=take)
        wanted = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": CHUNK}
        answer = await call(nc, f"STREAM.SNAPSHOT.{STREAM}", wanted, timeout=60)
        assert "error" not in answer, answer
        await done.wait()
        await subscription.unsubscribe()


async def main(events: int, conversations: int) -> None:
    """Fills, measures, prints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with another(folder / "one") as nc:
            store = await Store.open(LEDGER, writing=nc, reading=nc)
            with timed("stored", events):
                await fill(store, events, conversations)
            with timed("backup", events, folder / "copy"):
                await copy(nc, folder / "copy")
            await fill_more(store)
            with timed("backup again, 1,000 events more", 1_000):
                await copy(nc, folder / "copy")
            with timed("JetStream's snapshot", events, folder / "snapshot"):
                await snapshot(nc, folder / "snapshot")
            archive = Archive.open(folder / "copy")
            with timed("the backup's files checked", events):
                archive.check()
            async with another(folder / "two") as other:
                with timed("restore", events):
                    await restore(other, LEDGER, archive, lambda *_: None)
            await store.close()


async def fill_more(store: Store) -> None:
    """A thousand events of one more conversation."""
    tail = Tail(LEDGER.subject("acme.more"))
    await store.append([message(tail, number) for number in range(1_000)])


if __name__ == "__main__":
    run(
        main(
            int(sys.argv[1]) if len(sys.argv) > 1 else 500_000,
            int(sys.argv[2]) if len(sys.argv) > 2 else 10_000,
        )
    )
