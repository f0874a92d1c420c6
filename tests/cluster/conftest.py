"""Three nats-servers on loopback, as `make cluster` starts them, for callers that are threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from nats.nuid import NUID

from infra.deploy.cluster import Cluster
from infra.jetstream import JetStreamDatastore
from tests.infra.jetstream.library import OpenDatastore
from tests.infra.jetstream.nats_process import api

REPLICAS = 3
START_TIMEOUT_S = 120.0


class RunningCluster:
    """A cluster whose supervision goes on in a thread of its own."""

    def __init__(self, directory: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.cluster = Cluster(directory)
        self._run(self.cluster.start())

    @property
    def url(self) -> str:
        return self.cluster.url

    def kill_leader(self, stream: str) -> None:
        """Crashes the server that leads a stream; it is restarted, as after any crash."""
        leader = self.leader(stream)
        for server in self.cluster.servers:
            if server._name == leader:
                self._loop.call_soon_threadsafe(server.kill)
                return
        raise AssertionError(f"{leader} is none of the three")

    def leader(self, stream: str) -> str:
        """The name of the server that leads a stream."""
        for server in self.cluster.servers:
            with suppress(OSError, AssertionError):
                info = api(server.url, f"STREAM.INFO.{stream}", {})
                return str(info["cluster"]["leader"])
        raise AssertionError("none of the three answers")

    def stop(self) -> None:
        self._run(self.cluster.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_TIMEOUT_S)


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    cluster = RunningCluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="class")
def nats_url(request: pytest.FixtureRequest, running_cluster: RunningCluster) -> str:
    """The URLs of all three, for test classes also as their attributes, with the replicas."""
    if request.cls is not None:
        request.cls.nats_url = running_cluster.url
        request.cls.replicas = REPLICAS
    return running_cluster.url


@pytest.fixture
def prefix() -> str:
    return NUID().next().decode()


@pytest.fixture
def open_datastore(nats_url: str, prefix: str) -> Iterator[OpenDatastore]:
    """Opens the test's streams, each time as one more process would."""
    opened: list[JetStreamDatastore] = []

    def open_one() -> JetStreamDatastore:
        opened.append(JetStreamDatastore(nats_url, prefix, replicas=REPLICAS))
        return opened[-1]

    yield open_one
    for datastore in opened:
        datastore.close()
