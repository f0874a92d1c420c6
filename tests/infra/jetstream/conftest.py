"""Servers for the recorders, whose callers are threads and know nothing of asyncio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.nuid import NUID

from infra.jetstream import JetStreamDatastore
from tests.infra.jetstream.library import OpenDatastore
from tests.infra.jetstream.nats_process import NatsProcess


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsProcess]:
    """One server for all tests that leave it alone; each takes a prefix of its own."""
    with NatsProcess(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsProcess]:
    """A server that the test may kill."""
    with NatsProcess(tmp_path) as server:
        yield server


@pytest.fixture(scope="class")
def nats_url(request: pytest.FixtureRequest, shared_server: NatsProcess) -> str:
    """The shared server's URL, for test classes also as their attribute `nats_url`."""
    if request.cls is not None:
        request.cls.nats_url = shared_server.url
    return shared_server.url


@pytest.fixture
def prefix() -> str:
    """A namespace of streams that no other test has."""
    return NUID().next().decode()


@pytest.fixture
def open_datastore(nats_url: str, prefix: str) -> Iterator[OpenDatastore]:
    """Opens the test's streams, each time as one more process would."""
    opened: list[JetStreamDatastore] = []

    def open_one() -> JetStreamDatastore:
        opened.append(JetStreamDatastore(nats_url, prefix))
        return opened[-1]

    yield open_one
    for datastore in opened:
        datastore.close()
