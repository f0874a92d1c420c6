"""Conversations on three replicas: what was acknowledged here is at once shown and known there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from infra.deploy.cluster import Cluster
from services.conversations import Conversations

from .rigs import ADAS, append, contents, init, ledger, process_on

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


async def test_fresh_reads_and_repeated_commands_right_after_an_acknowledgement(
    cluster: Cluster,
) -> None:
    topology = replace(ledger(), replicas=3)
    # given processes that are connected to different servers
    async with (
        process_on(cluster.servers[0].url, topology) as one,
        process_on(cluster.servers[1].url, topology) as two,
        process_on(cluster.servers[2].url, topology) as three,
    ):
        await init(one)
        everywhere: list[Conversations] = [one, two, three]
        for n in range(120):
            # when one of them has written
            here, there = everywhere[n % 3], everywhere[(n + 1) % 3]
            told = await append(here, f"message {n}", command_id=f"command-{n}")
            # then the others show it, when they are asked for that much
            view = await there.view(ADAS, min_seq=told.seq)
            assert contents(view.state())[-1] == f"message {n}"
            view = await everywhere[(n + 2) % 3].view(ADAS, strong=True)
            assert view.version == told.version
            # and a repetition is known as one
            receipt = (await append(there, "x", command_id=f"command-{n}")).receipt
            assert receipt is not None
            assert receipt.last_version == told.version
            replayed = await there.replay(ADAS, lambda _: True, through=told.seq)
            assert replayed.version == told.version
