"""The processes that peers run in, as the benchmark sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.load import Load, LoadFailed
from tests.benchmarks.peers.catalogue import PEERS
from tests.benchmarks.peers.driver import PeerOrder

ROOT = Path(__file__).resolve().parent.parent.parent.parent
INTERPRETER = ROOT / ".venv" / "peers" / "bin" / "python"
"""Of the environment that `make bench` makes for them."""

_END_WITHIN_S = 30


class PeerProcess:
    """One peer that is up; one order at a time."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    async def carry_out(self, order: PeerOrder) -> Load:
        """Raises LoadFailed when the peer ended over it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        await self._process.stdin.drain()
        return Load(**await self.hear())

    async def hear(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise LoadFailed(f"{self.name} ended; what it said is above")
        heard: dict[str, Any] = json.loads(line)
        return heard


@contextlib.asynccontextmanager
async def peers(
    folder: Path,
    say: Callable[[str], None],
    *,
    interpreter: Path = INTERPRETER,
    names: Iterable[str] = PEERS,
) -> AsyncIterator[list[PeerProcess]]:
    """The peers of these names that can be measured here, up and filled, inside the block.

    `say` is told why one is left out.
    """
    up: list[PeerProcess] = []
    async with contextlib.AsyncExitStack() as stack:
        if not interpreter.exists():
            say("No peers: `make bench` installs them.")
        else:
            for name in names:
                where = folder / re.sub(r"[^a-z]+", "-", name.lower())
                process = await stack.enter_async_context(_running(name, where, interpreter))
                peer = PeerProcess(name, process)
                heard = await peer.hear()
                if "ready" in heard:
                    up.append(peer)
                else:
                    say(f"Left out: {name}: {heard['not_here']}")
        yield up


@contextlib.asynccontextmanager
async def _running(
    name: str, folder: Path, interpreter: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(str(interpreter), "-P", "-m", __package__ or "", name, str(folder)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()  # it stops its server and ends
        try:
            await asyncio.wait_for(process.wait(), _END_WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()
