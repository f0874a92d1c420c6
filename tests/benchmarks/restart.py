"""How long a ledger is away when its server, or all of it, is killed.

    python -m tests.benchmarks.restart [EVENTS] [CONVERSATIONS] [ROUNDS] [STORE]

STORE keeps a filled store for the next time.

Fills a store, runs `convo up` on it, and kills (SIGKILL) in turn nats-server, the worker, and
everything; everything is started again at once. Measured from the kill, or from the start, to the
first acknowledged command of a client that asks every 10 ms.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nats
import uvloop
from nats.aio.client import Client
from nats.errors import Error as NatsError

from infra.connection import connect
from infra.jetstream.store import Store
from infra.server import EmbeddedServer
from infra.settings import Settings
from tests.benchmarks.audit import LEDGER, fill
from tests.faults.history import quiet
from tests.faults.rig import SERVER, Ledger

ASKED_EVERY_S = 0.01


async def filled(data_dir: Path, events: int, conversations: int) -> None:
    """Stores events as the ledger does."""
    async with EmbeddedServer(data_dir) as server:
        nc = await connect(server.url, name="bench", settings=Settings())
        store = await Store.open(LEDGER, writing=nc, reading=nc)
        await fill(store, events, conversations)
        await store.close()
        await nc.close()
    async with Ledger(data_dir.with_name("filling"), data_dir=data_dir) as ledger:
        await ledger.settled()  # what follows the ledger has it all


async def answered(nc: Client) -> None:
    """Returns at the first command that is acknowledged, asked again and again."""
    number = 0
    while True:
        number += 1
        body = json.dumps({"role": "assistant", "content": "still there?"}).encode()
        try:
            reply = await nc.request("convo.cmd.default.measured.append", body, timeout=0.5)
            if json.loads(reply.data)["ok"]:
                return
        except (NatsError, OSError):
            pass
        await asyncio.sleep(ASKED_EVERY_S)


def told(what: str, seconds: list[float]) -> None:
    """Prints the median and the worst."""
    each = " ".join(f"{one:.2f}" for one in seconds)
    print(f"{what}: p50 {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s ({each})")
    sys.stdout.flush()


async def main(events: int, conversations: int, rounds: int, kept: Path | None) -> None:
    """Fills, kills, measures, prints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        store = kept or folder / "filled"
        if not store.exists():
            await filled(store, events, conversations)
            print(f"{events:,} events stored in {time.perf_counter() - began:.0f} s", flush=True)
        shutil.copytree(store, folder / "data")
        ledger = Ledger(folder / "ledger", data_dir=folder / "data")
        began = time.perf_counter()
        await ledger.start()
        print(f"up in {time.perf_counter() - began:.2f} s", flush=True)
        nc = await nats.connect(
            ledger.url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=ASKED_EVERY_S,
            connect_timeout=1,
            pending_size=0,
            error_cb=quiet,
        )
        try:
            await nc.request("convo.cmd.default.measured.init", b'{"user_id": "ada"}', timeout=10)
            for what in (SERVER, "worker-1"):
                seconds = []
                for _ in range(rounds):
                    await answered(nc)
                    await asyncio.sleep(2.0)
                    began = time.perf_counter()
                    await ledger.kill(what)
                    await answered(nc)
                    seconds.append(time.perf_counter() - began)
                told(f"{what} killed", seconds)
            seconds = []
            for _ in range(rounds):
                await ledger.kill_everything()
                began = time.perf_counter()
                starting = asyncio.ensure_future(ledger.start())
                await answered(nc)
                seconds.append(time.perf_counter() - began)
                await starting
            told("everything killed, from the start on", seconds)
        finally:
            await nc.close()
            await ledger.stop()


if __name__ == "__main__":
    uvloop.run(
        main(
            int(sys.argv[1]) if len(sys.argv) > 1 else 500_000,
            int(sys.argv[2]) if len(sys.argv) > 2 else 10_000,
            int(sys.argv[3]) if len(sys.argv) > 3 else 5,
            Path(sys.argv[4]) if len(sys.argv) > 4 else None,
        )
    )
