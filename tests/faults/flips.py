"""A bit flipped, a page zeroed, a file cut off in a copy of a store that was stopped in good order.

Each time the server starts on the damaged copy, and the ledger on that. Whatever it shows of a
conversation has to be what was written, or an error. And where the stream is not what it was, the
ledger has to say so: at the start (the fence), or when everything is read (gaps, chains).
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections import Counter
from pathlib import Path

from nats.aio.client import Client
from nats.errors import Error as NatsError

from infra.connection import connect
from infra.jetstream.errors import LedgerDamaged, StoreUnavailable
from infra.server import EmbeddedServer, ServerFailed
from infra.settings import Settings
from services.bootstrap import FENCE, running, topology
from services.ledger_check import check_partition
from tests.faults.history import Folded, Sight, fold, wrong_sights
from tests.faults.load import Load, sight_of
from tests.faults.result import Result
from tests.faults.rig import Ledger

WRITERS = 10
COMMANDS = 800
PAGE = 4096
ANSWER_TIMEOUT_S = 10.0

KINDS = ("a bit", "cut off", "a bit, no index", "a page", "cut off, no index")


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many damages of each kind in turn, each to a fresh copy of one store."""
    result = Result("bit flips", rounds=rounds)
    async with Ledger(directory / "ledger") as ledger:
        load = Load(ledger.url, WRITERS, rng, pace_s=0)
        await load.start()
        await load.further(COMMANDS)
        await load.stop()
        events, tables = await ledger.settled()
        result.judge(load, events, tables)
    kept = ledger.data_dir
    truth = fold(events)
    whole, root = await _noticed(kept, truth, result)
    if whole != "nothing":
        result.blame([f"wrong: the check finds something in a whole store: {whole}"])
    noticed: Counter[str] = Counter()
    for number in range(rounds):
        copy = directory / "copy"
        shutil.copytree(kept, copy)
        told = damage(copy, KINDS[number % len(KINDS)], rng)
        by, found = await _noticed(copy, truth, result)
        if by == "nothing" and found != root:
            result.blame([f"undetected: {told}"])
        noticed["no difference" if by == "nothing" and found == root else by] += 1
        shutil.rmtree(copy)
    await control(result, kept, truth, rng, directory / "copy")
    result.notes.append(", ".join(f"{count} by {by}" for by, count in noticed.most_common()))
    return result.end()


async def control(
    result: Result, kept: Path, truth: dict[str, Folded], rng: random.Random, copy: Path
) -> None:
    """The end of the stream cut off where nothing is known of it: what is shown then is too old."""
    control = Result("")
    shutil.copytree(kept, copy)
    damage(copy, "cut off, no index", rng)
    shutil.rmtree(copy / FENCE)
    by, _ = await _noticed(copy, truth, control)
    shutil.rmtree(copy)
    words = f"without what the fence knows: {control.wrong} answers too old, noticed by {by}"
    result.controlled(words, bites=control.wrong > 0)


def damage(data_dir: Path, kind: str, rng: random.Random) -> str:
    """Does it to a block file of the events; tells what was done."""
    block = rng.choice(sorted(data_dir.glob("nats/**/streams/CONVO-EVENTS-0/msgs/*.blk")))
    content = bytearray(block.read_bytes())
    place = rng.randrange(len(content))
    match kind.partition(",")[0]:
        case "a bit":
            content[place] ^= 1 << rng.randrange(8)
        case "a page":
            page = content[place : place + PAGE]
            content[place : place + PAGE] = bytes(len(page))
        case _:
            del content[place:]
    block.write_bytes(content)
    if kind.endswith("no index"):
        block.with_name("index.db").unlink(missing_ok=True)
    return f"{kind}, {block.name} at {place} of {block.stat().st_size} bytes"


async def _noticed(data_dir: Path, truth: dict[str, Folded], result: Result) -> tuple[str, str]:
    """Who noticed that the store is damaged ("nothing" when nobody did), and the Merkle root of
    what is on the stream. Wrong answers go to the result."""
    settings = Settings(data_dir=data_dir)
    server = EmbeddedServer(data_dir)
    try:
        await server.start()
    except ServerFailed:
        return "nats-server, which does not start", ""
    try:
        try:
            async with running(settings, ("commands", "queries"), url=server.url):
                client = await connect(server.url, name="faults", settings=settings)
                try:
                    refused = await _ask_everything(client, truth, result)
                    check = await check_partition(client, topology(settings), 0)
                finally:
                    await client.close()
        except (LedgerDamaged, StoreUnavailable) as error:
            return f"the start ({type(error).__name__})", ""
    finally:
        await server.stop()
    if not check.valid:
        return "answers and the check" if refused else "the check", check.root
    if refused:
        return "answers alone", check.root
    return "nothing", check.root


async def _ask_everything(client: Client, truth: dict[str, Folded], result: Result) -> int:
    """Asks for every view of every conversation; how many answers were errors."""
    refused = 0
    sights: list[Sight] = []
    for tokens, folded in truth.items():
        for view in ("messages", "usage", "state"):
            try:
                answer = await client.request(
                    f"convo.get.{tokens}.{view}", b"{}", timeout=ANSWER_TIMEOUT_S
                )
            except NatsError:
                refused += 1
                continue
            reply = json.loads(answer.data)
            if reply["ok"]:
                sights.append(sight_of(tokens, view, reply, at_least=folded.version))
            else:
                refused += 1
    result.blame(await asyncio.to_thread(wrong_sights, sights, truth))
    return refused
