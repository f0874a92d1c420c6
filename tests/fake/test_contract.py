"""The fake does what the real server does: the same cases, on both."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Literal

import pytest
from nats.nuid import NUID

from infra.jetstream.topology import Topology, ensure
from tests.infra.jetstream.nats_process import NatsProcess
from tests.infra.jetstream.rigs import connected

from .client import FakeClient
from .clock import Clock, run
from .contract import CASES, Ground
from .server import Server
from .weather import Weather


def topology(replicas: int) -> Topology:
    name = NUID().next().decode()
    return Topology(
        stream=name,
        prefix=f"{name}.e",
        live_prefix=f"{name}.l",
        snapshot_stream=f"{name}-S",
        snapshot_prefix=f"{name}.s",
        replicas=replicas,
    )


async def play(ground: Ground, name: str) -> None:
    await ensure(ground.nc, ground.topology)
    await CASES[name](ground)


def on_the_fake(name: str, replicas: int) -> None:
    async def main(clock: Clock) -> None:
        server = Server(clock, Weather(Random(1)), replicas=replicas)
        client = FakeClient(server, "contract")
        await play(Ground(client.as_client, topology(replicas), replicas), name)

    run(main, seed=1)


def on_servers(url: str, name: str, replicas: int) -> None:
    async def main() -> None:
        async with connected(url) as nc:
            await play(Ground(nc, topology(replicas), replicas), name)

    asyncio.run(main())


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_fake_keeps_the_contract(name: str, replicas: Literal[1, 3]) -> None:
    on_the_fake(name, replicas)


@pytest.mark.parametrize("name", CASES)
def test_the_server_keeps_the_contract(name: str, shared_server: NatsProcess) -> None:
    on_servers(shared_server.url, name, 1)
