"""The fixture chain: store_dir -> nats_server (the embedded one, on a free port) -> nats_client."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio
from nats.aio.client import Client

from infra.connection import connect
from infra.server import EmbeddedServer
from infra.settings import PREFIX, Settings, variable

pytest.register_assert_rewrite("tests.fake.contract")  # before whoever comes first imports it

UNTIL_TIMEOUT_S = 30.0

# A script's background jobs ignore Ctrl-C, and so would everything that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes, or is looked for, is the machine's concern: it may be busy.
hypothesis.settings.register_profile(
    "patient",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def no_settings_of_this_machine() -> Iterator[None]:
    """Whoever runs the tests may have a ledger of their own: its CONVO_ variables do not count."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in os.environ if each.startswith(PREFIX)]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module", autouse=True)
def data_dir_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Services that are given no data directory have one that no other module's have seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable("data_dir"), str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def data_dir_of_the_test(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for each test: what one has seen of a ledger is no other's concern."""
    monkeypatch.setenv(variable("data_dir"), str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory of the test module's own."""
    return tmp_path_factory.mktemp("ledger")


@pytest_asyncio.fixture(scope="module")
async def nats_server(store_dir: Path) -> AsyncIterator[EmbeddedServer]:
    """A real nats-server for the module, answering; its streams are shared by the module's tests.

    A test that kills it (`nats_server.kill()`) finds it restarted on the same port.
    """
    async with EmbeddedServer(store_dir) as server:
        yield server


@pytest_asyncio.fixture
async def nats_client(nats_server: EmbeddedServer) -> AsyncIterator[Client]:
    """A connection for one test, made as the product makes its own."""
    client = await connect(nats_server.url, name="test", settings=Settings())
    yield client
    await client.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Waits until something holds; fails (never passes by) when it does not within 30 s."""

    async def wait(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(UNTIL_TIMEOUT_S):
            while not holds():  # noqa: ASYNC110 - what is waited for is outside this program
                await asyncio.sleep(0.005)

    return wait
