"""`convo bench`: what the ledger that is running takes, as a client of it sees it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from domain.identity import encode_token, new_id
from infra.settings import Settings
from services.cli.requests import Patience, ask, connected

TEXT = ("Somebody asks what was meant, and somebody answers as well as one can. " * 4)[:215]
"""A message as long as those of a chat."""


@dataclass(frozen=True, slots=True)
class Figure:
    """`per_s` answers a second of `writers` that wait for each; latencies in milliseconds."""

    operation: str
    writers: int
    requests: int
    per_s: float
    p50_ms: float
    p99_ms: float

    def line(self) -> str:
        """It on one line, for a person."""
        return (
            f"{self.operation.ljust(8)}  {self.writers:5,} at once  {self.per_s:10,.0f}/s  "
            f"p50 {self.p50_ms:8.2f} ms  p99 {self.p99_ms:8.2f} ms"
        )


async def measure(
    settings: Settings, tenant_id: str, writers: Sequence[int], seconds: float, timeout_s: float
) -> list[Figure]:
    """Appends and window reads by so many writers, each with a conversation of its own.

    The conversations stay, in a tenant of their own: a ledger forgets nothing. Raises CommandFailed
    as any request does.
    """
    patience = Patience(timeout_s)
    async with connected(settings, "convo-bench") as connection:
        figures = []
        for number in writers:
            run = new_id()
            names = [f"{encode_token(tenant_id)}.bench-{run}-{each}" for each in range(number)]
            for name in names:
                begin = f"convo.cmd.{name}.init"
                await ask(connection, begin, b'{"user_id":"bench"}', None, patience)
            message = json.dumps({"role": "user", "content": TEXT}).encode()
            appends = [f"convo.cmd.{name}.append" for name in names]
            reads = [f"convo.get.{name}.messages" for name in names]
            for operation, subjects, body in (
                ("append", appends, message),
                ("messages", reads, b""),
            ):
                ask_one = partial(ask, connection, body=body, headers=None, patience=patience)
                latencies, took = await _repeat(ask_one, subjects, seconds)
                figures.append(_figure(operation, latencies, took, number))
        return figures


def as_json(figures: Sequence[Figure]) -> dict[str, Any]:
    """The --json answer."""
    return {"ok": True, "figures": [asdict(figure) for figure in figures]}


async def _repeat(
    ask_one: Callable[[str], Awaitable[object]], subjects: Sequence[str], seconds: float
) -> tuple[list[float], float]:
    """The seconds that each answer took, and all of it; each subject is asked again and again."""
    latencies: list[float] = []
    began = time.monotonic()

    async def again(subject: str) -> None:
        while (sent := time.monotonic()) < began + seconds:
            await ask_one(subject)
            latencies.append(time.monotonic() - sent)

    await asyncio.gather(*(again(subject) for subject in subjects))
    return sorted(latencies), time.monotonic() - began


def _figure(operation: str, latencies: Sequence[float], took: float, writers: int) -> Figure:
    number = len(latencies)
    return Figure(
        operation,
        writers,
        number,
        number / took,
        1e3 * latencies[number // 2],
        1e3 * latencies[number * 99 // 100],
    )
