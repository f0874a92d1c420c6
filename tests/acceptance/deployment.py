"""What is tested: a nats-server process and worker processes, each in the test's hands.

They are started, paused and killed one by one here, without the supervision of `convo up`, so that
a test decides what is up. None of them outlives the test run, even when that is killed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from infra.server import HOST, MAX_PAYLOAD, EmbeddedServer, find_program, free_port
from infra.supervision import TETHER
from tests.acceptance.raw import RawConnection

REPOSITORY = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 45.0

_POLL_S = 0.01


class NatsServer:
    """One nats-server process on a port of its own, configured as the embedded one is.

    Killed and started again it has the same port and store. `config` is added to its configuration.
    """

    def __init__(self, directory: Path, *, config: str = "") -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"nats://{HOST}:{self.port}"
        self.log_file = directory / "log" / "nats-server.log"
        self.config = self._configuration()
        self.config.write_text(f"{self.config.read_text()}\n{config}\n")
        self._process: subprocess.Popen[bytes] | None = None

    def _configuration(self) -> Path:
        embedded = EmbeddedServer(self.directory, port=self.port)
        embedded._prepare_folders()
        return embedded._write_config()

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def start(self) -> None:
        """Returns once the server greets whoever connects."""
        self._process = _tethered(
            [str(find_program()), "--config", str(self.config)], None, self.directory / "out.log"
        )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            assert self._process.poll() is None, self.log_file.read_text()
            try:
                with socket.create_connection((HOST, self.port), 1) as connection:
                    if connection.recv(5) == b"INFO ":
                        return
            except OSError:
                pass
            assert time.monotonic() < deadline, "nats-server does not come up"
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """SIGKILL; returns once the process is gone."""
        _kill(self._process)

    def stop(self) -> None:
        """Lets it finish in good order."""
        _stop(self._process)

    def freeze(self) -> None:
        """It answers nobody any more and keeps its connections (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on as if nothing had been."""
        os.kill(self.pid, signal.SIGCONT)


class Hub(NatsServer):
    """A server that keeps the ledger for the clients of a `Gateway`."""

    def __init__(self, directory: Path) -> None:
        self.leaf_port = free_port()
        super().__init__(directory, config=f'leafnodes {{ listen: "{HOST}:{self.leaf_port}" }}')

    def _configuration(self) -> Path:
        path = super()._configuration()
        path.write_text(path.read_text().replace("jetstream {", "jetstream {\n  domain: hub"))
        return path


class Gateway(NatsServer):
    """A server without a store of its own, joined to a hub (as a leaf node).

    Services and clients on it go on talking to each other while the hub is frozen or gone.
    """

    def __init__(self, directory: Path, hub: Hub) -> None:
        self._hub = hub
        super().__init__(directory)

    def _configuration(self) -> Path:
        path = self.directory / "gateway.conf"
        self.log_file.parent.mkdir(parents=True)
        path.write_text(
            f'listen: "{HOST}:{self.port}"\nmax_payload: {MAX_PAYLOAD}\n'
            f'log_file: "{self.log_file}"\n'
            f'leafnodes {{ remotes: [{{ url: "nats://{HOST}:{self._hub.leaf_port}" }}] }}\n'
            f'mappings {{ "$JS.API.>": "$JS.hub.API.>" }}'
        )
        return path


class Worker:
    """One process of `convo serve`, with the services that its class names. Its log is kept.

    Settings are given by name: `messages_per_minute=3` is CONVO_MESSAGES_PER_MINUTE=3.
    """

    services: Sequence[str] = ("commands", "queries")

    def __init__(
        self,
        server: NatsServer,
        directory: Path,
        **settings: object,
    ) -> None:
        self.log_file = directory / "worker.log"
        self.command = [sys.executable, "-P", "-m", "services.cli", "serve", *self.services]
        self.command += ["--nats", server.url]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CONVO_")},
            "PYTHONPATH": str(REPOSITORY),
            "CONVO_DATA_DIR": str(directory / "data"),
            **{f"CONVO_{name.upper()}": str(value) for name, value in settings.items()},
        }
        directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not running"
        return self._process.pid

    def start(self) -> None:
        """Starts the process; see `answering` for when it is ready."""
        self._process = _tethered(self.command, self._environment, self.log_file)

    def kill(self) -> None:
        """SIGKILL; returns once the process is gone."""
        _kill(self._process)

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def exit_status(self) -> int:
        """Waits for the process to end."""
        assert self._process is not None, "not started"
        return self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Lets it finish in good order."""
        _stop(self._process)

    @property
    def log(self) -> str:
        """All that the process has said."""
        return self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""


class Deployment:
    """A server and workers on it, all up: a ledger to be tested."""

    def __init__(self, directory: Path, *, workers: int = 1, **settings: object) -> None:
        self.directory = directory
        self.server = NatsServer(directory)
        self.workers: list[Worker] = []
        for _ in range(workers):
            self.worker(**settings)
        self.partitions = int(str(settings.get("partitions", 1)))
        self._read: dict[Worker, int] = {}

    @property
    def url(self) -> str:
        return self.server.url

    def worker(self, **settings: object) -> Worker:
        """One more worker, not started yet."""
        place = self.directory / f"worker-{len(self.workers) + 1}"
        self.workers.append(Worker(self.server, place, **settings))
        return self.workers[-1]

    def start(self) -> None:
        """Returns once every worker answers."""
        self.server.start()
        for worker in self.workers:
            worker.start()
        answering(self.url, len(self.workers))

    def stop(self) -> None:
        """Stops workers and server in good order; harmless to repeat."""
        for worker in self.workers:
            worker.stop()
        self.server.stop()

    def complaints(self) -> list[str]:
        """The lines that the workers logged since the last call and nobody should have to read."""
        found = []
        for worker in self.workers:
            log = worker.log
            found += [
                line
                for line in log[self._read.get(worker, 0) :].splitlines()
                if re.search(r"Traceback| ERROR | CRITICAL ", line)
            ]
            self._read[worker] = len(log)
        return found


def answering(
    url: str,
    workers: int = 1,
    services: Sequence[str] = ("convo-commands", "convo-queries"),
) -> None:
    """Returns once that many workers answer a ping for each of the services."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    for service in services:
        found: set[str] = set()
        while len(found) < workers:
            found |= _pinged(url, service, workers)
            assert time.monotonic() < deadline, f"{service} does not come up"


def _pinged(url: str, service: str, wanted: int) -> set[str]:
    """The ids of the instances that answered; fewer than `wanted` when they took half a second."""
    found: set[str] = set()
    with RawConnection(url) as nats:  # a server that comes up only slowly is no failure
        nats.wait_at_most(0.5)
        nats.subscribe(b"_INBOX.ping")
        nats.publish(f"$SRV.PING.{service}".encode(), b"", reply=b"_INBOX.ping")
        try:
            while len(found) < wanted:
                answer = nats.next()
                if answer.no_responders:
                    time.sleep(_POLL_S)
                    break
                found.add(answer.json()["id"])
        except TimeoutError:
            pass
    return found


def _tethered(
    argv: list[str], environment: dict[str, str] | None, output: Path
) -> subprocess.Popen[bytes]:
    """Starts a program that does not outlive this process, its output appended to a file."""
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *argv],
            env=environment,
            cwd=output.parent,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait()


def _stop(process: subprocess.Popen[bytes] | None) -> None:
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGCONT)  # where a test left it frozen
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise
