"""Three replicas under load: leaders killed, frozen, cut off from their peers; all restarted in
turn; a bit flipped in one copy."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.faults.load import Load
from tests.faults.members import MEMBERS, Members, Network
from tests.faults.result import Result
from tests.faults.rig import Ledger

WRITERS = 8
WORKERS = 2
BACK_WITHIN_S = 60.0
DAMAGED = "the record is damaged"
"""What a request is told that a damaged copy was read for: not answered, and so not wrongly."""

Strike = Callable[[Members, Load, random.Random], Awaitable[None]]


async def _run(
    name: str,
    strike: Strike,
    rounds: int,
    rng: random.Random,
    directory: Path,
    *,
    network: Network | None = None,
) -> Result:
    result = Result(name, rounds=rounds)
    async with (
        Members(directory, network) as members,
        Ledger(directory / "ledger", nats=members.url, workers=WORKERS, replicas=3) as ledger,
    ):
        load = Load(members.url, WRITERS, rng, fresh=False)

        async def struck(_: int) -> None:
            await members.whole()
            await strike(members, load, rng)

        await load.through(rounds, struck)
        await members.whole()
        events, tables = await ledger.settled()
        if strike is _flip:
            halted = [each for each in load.odd if DAMAGED in each]
            load.odd = [each for each in load.odd if DAMAGED not in each]
            if halted:
                result.notes.append(f"halted: {len(halted)} requests were told of the damage")
        result.judge(load, events, tables)
        result.blame(ledger.complaints())
    return result.end()


async def kills(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many leaders killed, each started again once another one leads."""
    return await _run("R3 leader kills", _kill, rounds, rng, directory)


async def _kill(members: Members, load: Load, rng: random.Random) -> None:
    leader = await members.leader()
    await leader.kill()
    await load.further(1, within=BACK_WITHIN_S)
    await leader.start()


async def pauses(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many leaders frozen, from a moment to longer than an election takes."""
    return await _run("R3 leader pauses", _pause, rounds, rng, directory)


async def _pause(members: Members, load: Load, rng: random.Random) -> None:
    leader = await members.leader()
    leader.signal(signal.SIGSTOP)
    await asyncio.sleep(rng.choice([0.5, 2.0, 6.0, 11.0]))
    leader.signal(signal.SIGCONT)


async def partitions(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many members cut off from their peers, most of them leaders, some from clients as well."""
    with Network() as network:
        return await _run("R3 partitions", _part, rounds, rng, directory, network=network)


async def _part(members: Members, load: Load, rng: random.Random) -> None:
    network = members.network
    assert network is not None
    victim = await members.leader() if rng.random() < 0.7 else rng.choice(members.members)
    network.cut(victim.number, clients=rng.random() < 0.4)
    await asyncio.sleep(rng.uniform(3.0, 10.0))
    network.mend(victim.number)


async def rolling(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many times all three stopped in good order and started again, one after the other."""
    return await _run("R3 rolling restarts", _roll, rounds, rng, directory)


async def _roll(members: Members, load: Load, rng: random.Random) -> None:
    for member in rng.sample(members.members, MEMBERS):
        await member.stop()
        await member.start()
        await members.whole()


async def flips(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many times one copy is damaged while its server is down; then that copy has to lead."""
    result = await _run("R3 bit flips", _flip, rounds, rng, directory)
    result.notes.append("what a damaged copy had lost was read from another one")
    return result


async def _flip(members: Members, load: Load, rng: random.Random) -> None:
    member = rng.choice(members.members)
    await member.stop()
    blocks = sorted(member.store.glob("**/streams/CONVO-EVENTS-0/msgs/*.blk"))
    block = rng.choice(blocks)
    content = bytearray(block.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    block.write_bytes(content)
    await member.start()
    await members.whole()
    with contextlib.suppress(TimeoutError):
        await members.step_down(member)
