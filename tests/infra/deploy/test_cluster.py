from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig

from infra.connection import connect
from infra.deploy.cluster import Cluster
from infra.settings import Settings

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


async def test_it_goes_on_when_one_server_is_killed(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        client = await connect(cluster.url, name="test", settings=Settings())
        jetstream = client.jetstream(timeout=10)
        await jetstream.add_stream(StreamConfig(name="KEPT", subjects=["kept"], num_replicas=3))
        first = await jetstream.publish("kept", b"one")
        await cluster.supervisor.stop(["nats-server-1"], within=0)
        async with asyncio.timeout(60):
            while True:
                try:
                    second = await jetstream.publish("kept", b"two", headers={"Nats-Msg-Id": "2"})
                    break
                except NatsError:
                    await asyncio.sleep(0.1)
        assert second.seq == first.seq + 1
        await client.close()
