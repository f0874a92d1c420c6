"""The committer on three replicas: leaders step down and die, and what is reported is still so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from infra.deploy.cluster import Cluster
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.topology import Topology, call

from .faulty_client import Weather
from .rigs import connected, fresh_topology, opened
from .test_committer import Process, check_stored, faulty

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def replicated() -> Topology:
    return fresh_topology(replicas=3)


async def leaders_change(cluster: Cluster, topology: Topology, times: int) -> None:
    """Has the stream's leader step down, again and again."""
    name = topology.stream_name(0)
    async with connected(cluster.url) as nc:
        for _ in range(times):
            await asyncio.sleep(0.4)
            await call(nc, f"STREAM.LEADER.STEPDOWN.{name}", {})


async def leader_of(cluster: Cluster, stream: str) -> str:
    """The name of the server that leads a stream, once there is one."""
    async with connected(cluster.url) as nc, asyncio.timeout(60):
        while True:
            with contextlib.suppress(StoreUnavailable):
                answer = await call(nc, f"STREAM.INFO.{stream}", {}, timeout=2)
                leader: str = answer.get("cluster", {}).get("leader", "")
                if leader:
                    return leader
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("seed", range(3))
async def test_leaders_that_step_down_under_load_lose_and_double_nothing(
    cluster: Cluster, seed: int
) -> None:
    topology = replicated()
    names = [f"c-{n}" for n in range(20)]
    async with (
        opened(cluster.url, topology, deadline=30) as store,
        faulty(cluster.url, topology, deadline=30, timeout=2) as (other, client),
    ):
        weather = Weather(client, Random(seed), badness=0.1)
        processes = [
            Process(store, names, Random(10 + seed)),
            Process(store, names, Random(20 + seed)),
            Process(other, names, Random(30 + seed)),
        ]
        await asyncio.gather(
            *(process.work(25) for process in processes), leaders_change(cluster, topology, 6)
        )
        await weather.clear()
        handed = [each for process in processes for each in process.handed]
        reported = await check_stored(store, handed)
        assert reported["NoneType"] > 100
        assert reported["StoreUnavailable"] == reported["OutcomeUnknown"] == 0


async def test_a_leader_that_is_killed_under_load_loses_and_doubles_nothing(
    cluster: Cluster,
) -> None:
    topology = replicated()
    async with opened(cluster.url, topology, deadline=60) as store:
        name = topology.stream_name(0)
        process = Process(store, [f"c-{n}" for n in range(20)], Random(7))
        for _ in range(2):
            work = asyncio.ensure_future(process.work(40))
            await asyncio.sleep(0.3)
            leader = await leader_of(cluster, name)
            [server] = [each for each in cluster.servers if each._name == leader]
            server.kill()
            await work
        reported = await check_stored(store, process.handed)
        assert reported["NoneType"] == len(process.handed)
