"""The gateway under test: one ledger for all tests, and a gateway that asks for no credentials."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import httpx
import nats
import pytest
import pytest_asyncio

from tests.acceptance.client import Ledger
from tests.services.gateway.site import GatewayProcess, Site
from tests.services.gateway.talking import Talking


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A ledger, up; gateways are added by who wants one."""
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        site.start()
        yield site
    finally:
        site.stop()
    statuses = [process.exit_status() for process in (site.worker, *site.gateways)]
    assert statuses == [0] * len(statuses)


@pytest.fixture(scope="session")
def gateway(site: Site) -> GatewayProcess:
    """The gateway that asks for no credentials."""
    return site.gateway()


@pytest.fixture(scope="session")
def talking(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talking]:
    """User messages are answered, by a model that does what they say (`tests.model_server`)."""
    talking = Talking(site.server, tmp_path_factory.mktemp("talking"))
    try:
        talking.start()
        yield talking
    finally:
        talking.stop()
    assert talking.responder.exit_status() == 0


@pytest_asyncio.fixture
async def http(gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the gateway."""
    async with httpx.AsyncClient(base_url=gateway.http, timeout=30) as client:
        yield client


@pytest_asyncio.fixture
async def ledger(site: Site) -> AsyncIterator[Ledger]:
    """The same ledger over NATS."""
    client = await nats.connect(site.server.url)
    yield Ledger(client)
    await client.close()


@pytest.fixture
def id() -> str:
    """The id of a conversation that nobody has begun yet."""
    return f"c-{uuid4()}"
