"""Lists and search measured: `python -m tests.benchmarks.search [FOLDER]`.

FOLDER holds conversations to import (*.jsonl.gz, the samples of the documentation by default). All
processes are what a user runs: nats-server, a worker, the directory. In one run:

- catching up: an empty directory takes in everything that was imported;
- search: thirty queries in turn, one at a time, over NATS, while the same files are imported again
  and again into other tenants; and with nothing else going on;
- list: pages of 50 of a tenant with 10,000 conversations, one at a time, through the whole list.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from statistics import quantiles
from typing import Any

from nats.aio.client import Client
from nats.errors import NoRespondersError

from infra.connection import connect
from infra.server import EmbeddedServer
from infra.settings import PREFIX, Settings
from infra.supervision import Program, Supervisor

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "docs/samples"
CONVERSATIONS = 10_000
PAGE = 50
SEARCHES = 600
WRITERS = 64

QUERIES = [
    *("steamer", "Integration Tests", '"integration tests"', "don't know", '"apt-get install"'),
    *("refund*", "economy cabin", "xorg.conf", "basketball NBA", "2024-05-15", "the", "i", "a*"),
    *("北京", "酒店", "地铁站", "天安门广场", "评分 免费", "安", "5分", "的"),
    *("映画", "こんばんは", "好きです", "ラーメン", "です ます", "です", "の"),
    *("precedente", "русском"),
]


class Ledger:
    """The processes of a ledger, and a client of it."""

    def __init__(self, url: str, client: Client) -> None:
        self.url = url
        self.client = client

    async def ask(self, subject: str, body: dict[str, Any], min_seq: int = 0) -> dict[str, Any]:
        headers = {"Convo-Min-Seq": str(min_seq)} if min_seq else None
        message = await self.client.request(
            subject, json.dumps(body).encode(), timeout=30, headers=headers
        )
        reply: dict[str, Any] = json.loads(message.data)
        return reply

    async def do(self, subject: str, body: dict[str, Any], min_seq: int = 0) -> dict[str, Any]:
        reply = await self.ask(subject, body, min_seq)
        if not reply["ok"]:
            msg = f"{subject}: {reply['error']['message']}"
            raise SystemExit(msg)
        return reply

    async def head(self) -> int:
        info = await self.ask("$JS.API.STREAM.INFO.CONVO-EVENTS-0", {})
        return int(info["state"]["last_seq"])

    async def import_into(self, tenant: str, folder: Path) -> None:
        """Imports every file as a user would, one after the other."""
        for file in sorted(folder.glob("*.jsonl.gz")):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "services.cli", "import", str(file)),
                *("--tenant", tenant, "--nats", self.url, "--json"),
                cwd=ROOT,
                env=environment(),
                stdout=asyncio.subprocess.DEVNULL,
            )
            try:
                await process.wait()
            except asyncio.CancelledError:
                process.terminate()
                await process.wait()
                raise


def environment(**settings: object) -> dict[str, str]:
    """Of a process that gets these settings and none of this machine's."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {
        **ours,
        "PYTHONPATH": str(ROOT),
        **{f"{PREFIX}{name}": str(value) for name, value in settings.items()},
    }


@contextlib.asynccontextmanager
async def ledger(data_dir: Path) -> AsyncIterator[tuple[Ledger, Callable[[], None]]]:
    """A ledger without a directory, and what starts that."""
    supervisor = Supervisor(data_dir / "status.json")
    names: list[str] = []

    def start(name: str, *services: str) -> None:
        names.append(name)
        argv = (sys.executable, "-P", "-m", "services.cli", "serve", *services)
        settings = environment(NATS_URL=server.url, DATA_DIR=data_dir)
        supervisor.start(Program(name, argv, settings))

    async with EmbeddedServer(data_dir) as server:
        client = await connect(server.url, name="benchmark", settings=Settings())
        try:
            start("worker", "commands", "queries")
            found = Ledger(server.url, client)
            await answering(found, "convo-commands")
            yield found, lambda: start("directory", "directory")
        finally:
            await client.close()
            await supervisor.stop(names, within=30)


async def answering(ledger: Ledger, service: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await ledger.ask(f"$SRV.PING.{service}", {})
                return
            except NoRespondersError:
                await asyncio.sleep(0.02)


async def timed(ledger: Ledger, subject: str, bodies: Iterator[dict[str, Any]]) -> list[float]:
    """Milliseconds of each request, one after the other."""
    took = []
    for body in bodies:
        began = time.perf_counter()
        await ledger.do(subject, body)
        took.append((time.perf_counter() - began) * 1_000)
    return took


def show(what: str, took: list[float]) -> None:
    percentiles = quantiles(took, n=100)
    print(
        f"{what:<34} p50 {percentiles[49]:7.2f} ms   p99 {percentiles[98]:7.2f} ms"
        f"   max {max(took):7.2f} ms   of {len(took)}",
        flush=True,
    )


async def measure(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as data_dir:
        async with ledger(Path(data_dir)) as (found, start_directory):
            began = time.perf_counter()
            await found.import_into("all", folder)
            events = await found.head()
            print(f"imported {events:,} events in {time.perf_counter() - began:.1f} s", flush=True)

            began = time.perf_counter()
            start_directory()
            await answering(found, "convo-directory")
            while not (await found.ask("convo.list.all", {"limit": 1}, events))["ok"]:
                pass  # each answer waits for it, five seconds at most
            took_s = time.perf_counter() - began
            print(f"caught up in {took_s:.1f} s, {events / took_s:,.0f} events/s", flush=True)

            await search_while_importing(found, folder)
            await found.do("convo.list.all", {"limit": 1}, await found.head())
            queries = cycle({"query": query} for query in QUERIES)
            quiet = await timed(found, "convo.search.all", (next(queries) for _ in range(SEARCHES)))
            show("search, nothing else going on", quiet)
            for query in QUERIES:
                each = await timed(found, "convo.search.all", iter([{"query": query}] * 7))
                print(f"    {query:<20} {sorted(each)[3]:7.2f} ms", flush=True)
            await list_ten_thousand(found)


async def search_while_importing(found: Ledger, folder: Path) -> None:
    async def import_for_ever() -> None:
        for number in count():
            await found.import_into(f"again-{number}", folder)

    importing = asyncio.create_task(import_for_ever())
    try:
        before = await found.head()
        while await found.head() == before:  # noqa: ASYNC110 (waits for another process)
            await asyncio.sleep(0.05)
        queries = cycle({"query": query} for query in QUERIES)
        busy = await timed(found, "convo.search.all", (next(queries) for _ in range(SEARCHES)))
        print(f"meanwhile {await found.head() - before:,} events were imported", flush=True)
        show("search, while imports run", busy)
    finally:
        importing.cancel()
        await asyncio.gather(importing, return_exceptions=True)


async def list_ten_thousand(found: Ledger) -> None:
    numbers = iter(range(CONVERSATIONS))

    async def write() -> None:
        for number in numbers:
            body = {"user_id": f"user-{number % 100}", "title": f"Conversation {number}"}
            await found.do(f"convo.cmd.many.c-{number}.init", body)

    await asyncio.gather(*(write() for _ in range(WRITERS)))
    await found.do("convo.list.many", {"limit": 1}, await found.head())

    pages: list[float] = []
    shown = 0
    body: dict[str, Any] = {"limit": PAGE}
    while True:
        began = time.perf_counter()
        page = await found.do("convo.list.many", body)
        pages.append((time.perf_counter() - began) * 1_000)
        shown += len(page["conversations"])
        if "next" not in page:
            break
        body["cursor"] = page["next"]
    if shown != CONVERSATIONS:
        msg = f"the pages hold {shown} conversations instead of {CONVERSATIONS}"
        raise SystemExit(msg)
    show(f"list, pages of {PAGE}", pages)
    of_a_user = [{"limit": PAGE, "user_id": f"user-{number}"} for number in range(100)]
    show("list of a user", await timed(found, "convo.list.many", iter(of_a_user)))


if __name__ == "__main__":
    asyncio.run(measure(Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES))
