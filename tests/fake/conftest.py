"""The real server that the fake is held against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.infra.jetstream.nats_process import NatsProcess


@pytest.fixture(scope="package")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsProcess]:
    """One server; each test has streams of its own."""
    with NatsProcess(tmp_path_factory.mktemp("nats")) as server:
        yield server
