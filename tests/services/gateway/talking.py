"""A model and a responder that asks it, as processes beside a site."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import httpx

from infra.server import HOST, free_port
from tests.acceptance.deployment import NatsServer, Worker, answering

READY_WITHIN_S = 60.0


class ModelProcess(Worker):
    """`tests.model_server` as a process of its own."""

    def __init__(self, server: NatsServer, directory: Path) -> None:
        super().__init__(server, directory)
        self.port = free_port()
        self.command = [sys.executable, "-m", "tests.model_server", "--port", str(self.port)]

    @property
    def http(self) -> str:
        """Its URL."""
        return f"http://{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """What CONVO_MODEL_URL has to be."""
        return f"{self.http}/v1"

    def go(self, name: str) -> None:
        """Lets the answers go on that `hold` under this name."""
        httpx.post(f"{self.http}/go/{name}", timeout=30).raise_for_status()

    def start(self) -> None:
        """Returns once it listens."""
        super().start()
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                httpx.get(self.url, timeout=0.5)
            except httpx.ConnectError:
                assert time.monotonic() < deadline, self.log
                time.sleep(0.02)
            except httpx.TransportError:
                return


class ResponderProcess(Worker):
    """`convo serve responder`."""

    services = ("responder",)

    def __init__(self, server: NatsServer, directory: Path, model: ModelProcess) -> None:
        super().__init__(server, directory, model_url=model.url, model="test-model")
        self._url = server.url

    def start(self) -> None:
        """Returns once it answers."""
        super().start()
        answering(self._url, services=("convo-responder",))


class Talking:
    """Both of them."""

    def __init__(self, server: NatsServer, directory: Path) -> None:
        self.model = ModelProcess(server, directory / "model")
        self.responder = ResponderProcess(server, directory / "responder", self.model)

    def start(self) -> None:
        """Returns once user messages are answered."""
        self.model.start()
        self.responder.start()

    def stop(self) -> None:
        """Stops both in good order."""
        self.responder.stop()
        self.model.stop()
