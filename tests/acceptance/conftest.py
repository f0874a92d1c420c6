"""The ledger under test. The ones on 1 and on 3 partitions are shared by all tests that ask for a
`ledger`: each takes conversations of its own, and none may leave a complaint in a worker's log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client

from tests.acceptance.client import Conversation, Ledger
from tests.acceptance.deployment import Deployment


@pytest.fixture(scope="session", params=[1, 3], ids=["1-partition", "3-partitions"])
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A server and one worker, up and answering."""
    deployed = Deployment(tmp_path_factory.mktemp("deployment"), partitions=request.param)
    try:
        deployed.start()
        yield deployed
    finally:
        deployed.stop()
    assert [worker.exit_status() for worker in deployed.workers] == [0]


@pytest.fixture
def quiet(deployment: Deployment) -> Iterator[None]:
    """Fails the test when a worker logged an error or a traceback meanwhile."""
    deployment.complaints()
    yield
    assert deployment.complaints() == []


@pytest_asyncio.fixture
async def ledger(deployment: Deployment, quiet: None) -> AsyncIterator[Ledger]:
    """The ledger under test, over a connection of the test's own."""
    client = await connected(deployment.url)
    yield Ledger(client)
    await client.close()


@pytest_asyncio.fixture
async def conversation(ledger: Ledger) -> Conversation:
    """A conversation that has just begun, by user ada; it is at version 1."""
    return await ledger.begun()


Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deploy]:
    """Starts a ledger of the test's own: `deploy(workers=3, messages_per_minute=5)`."""
    started: list[Deployment] = []

    def start(**options: object) -> Deployment:
        deployed = Deployment(tmp_path / f"deployment-{len(started)}", **options)  # type: ignore[arg-type]
        started.append(deployed)
        deployed.start()
        return deployed

    yield start
    for deployed in started:
        deployed.stop()


async def connected(url: str) -> Client:
    """A NATS connection as any user makes one."""
    return await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
