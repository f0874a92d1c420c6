"""A nats-server for tests that are not asyncio's: started, killed and restarted by hand."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from infra.server import find_program, free_port

READY_TIMEOUT_S = 30.0
CONFIG = """\
listen: 127.0.0.1:{port}
max_payload: 8MB
jetstream {{ store_dir: {store}, sync_interval: always, {limits} }}
"""


class NatsProcess:
    """One server over one directory, always on the same port. `limits`: of the JetStream block."""

    def __init__(self, directory: Path, limits: str = "") -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._config = directory / "nats-server.conf"
        self._log = directory / "nats-server.log"
        self._config.write_text(
            CONFIG.format(port=self.port, store=json.dumps(str(directory / "js")), limits=limits)
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(find_program()), "--config", str(self._config)], stderr=log
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._greets():
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < deadline, self._log.read_text()[-2000:]
            time.sleep(0.01)

    def kill(self) -> None:
        """As a crash would: SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Lets it finish."""
        self._end(signal.SIGTERM)

    def hang(self) -> None:
        """Has it neither answer nor hang up, until it is told to `go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends `hang`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """A crash, and the same server again."""
        self.kill()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def api(url: str, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    """Asks JetStream's API on a plain socket: what an operator does beside the application."""
    host, port = url.removeprefix("nats://").split(":")
    payload = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        stream = connection.makefile("rwb")
        stream.readline()  # INFO
        stream.write(b'CONNECT {"verbose":false,"headers":true}\r\nSUB answer 1\r\n')
        stream.write(f"PUB $JS.API.{subject} answer {len(payload)}\r\n".encode() + payload)
        stream.write(b"\r\nPING\r\n")
        stream.flush()
        while True:
            line = stream.readline()
            if line.startswith(b"MSG "):
                answer: dict[str, Any] = json.loads(stream.read(int(line.split()[-1])))
                return answer
            assert line, "the server hung up"
