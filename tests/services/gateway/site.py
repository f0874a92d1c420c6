"""A ledger with gateways before it: a nats-server, the services, and gateways as they are wanted,
each a process of its own. Nothing is restarted by itself: a test decides what is up."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from infra.server import HOST, free_port
from tests.acceptance.deployment import NatsServer, Worker, answering

READY_WITHIN_S = 60.0


class Services(Worker):
    """One process of the services that gateways ask."""

    services = ("commands", "queries", "directory")


class GatewayProcess(Worker):
    """One process of `convo serve gateway` on a port of its own."""

    services = ("gateway",)

    def __init__(self, server: NatsServer, directory: Path, **settings: object) -> None:
        self.port = free_port()
        super().__init__(server, directory, gateway_port=self.port, **settings)

    @property
    def http(self) -> str:
        """Its URL for HTTP."""
        return f"http://{HOST}:{self.port}"

    @property
    def ws(self) -> str:
        """Its URL for WebSockets."""
        return f"ws://{HOST}:{self.port}"

    def start(self) -> None:
        """Returns once it answers."""
        super().start()
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            assert self._process is not None
            assert self._process.poll() is None, self.log
            try:
                httpx.get(f"{self.http}/openapi.json", timeout=5)
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline, self.log
            time.sleep(0.02)


class Site:
    """A ledger and its gateways."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = NatsServer(directory)
        self.worker: Worker = Services(self.server, directory / "worker")
        self.gateways: list[GatewayProcess] = []

    def start(self) -> None:
        """Returns once the services answer."""
        self.server.start()
        self.worker.start()
        answering(self.server.url)

    def gateway(self, **settings: object) -> GatewayProcess:
        """One more gateway, up and answering."""
        place = self.directory / f"gateway-{len(self.gateways) + 1}"
        self.gateways.append(GatewayProcess(self.server, place, **settings))
        self.gateways[-1].start()
        return self.gateways[-1]

    def stop(self) -> None:
        """Stops everything in good order; harmless to repeat."""
        for gateway in self.gateways:
            gateway.stop()
        self.worker.stop()
        self.server.stop()
