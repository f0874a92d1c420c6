"""`convo up`: the embedded nats-server (unless there is one elsewhere) and the workers, supervised,
until Ctrl-C. The workers stop first, so that what they accepted is answered; then the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nats.aio.client import Client
from nats.errors import Error as NatsError

import services
from infra.connection import ConnectionRefused, connect
from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable, StreamMismatch
from infra.jetstream.fence import Fence, LedgerWentBack
from infra.jetstream.topology import ensure, limit_bytes
from infra.lock import DataDirInUse, DataDirUnusable, own
from infra.server import EmbeddedServer, ServerFailed, free_port
from infra.settings import Settings, variable, without_password
from infra.storage import Storage, StorageWatch
from infra.supervision import STATUS_FILE, Child, Program, State, Supervisor
from services.bootstrap import FENCE, topology
from services.health import SUBJECT
from services.tasks import ended

SERVE = (sys.executable, "-P", "-m", "services.cli", "serve")
"""Told by its environment where NATS is."""

WORKER = (*SERVE, "--once-stdin-ends", "commands", "queries")
"""Loads its program while the server recovers its store, see `Ledger._load_workers`."""

BESIDE = {
    "audit": (*SERVE, "audit", "notary"),
    "analytics": (*SERVE, "analytics"),
    "directory": (*SERVE, "directory", "sweeper"),
    "gateway": (*SERVE, "gateway"),
    "responder": (*SERVE, "responder"),
}
"""Further processes by name, each running services of its own. The ledger is ready without them."""

ANSWERING = ("convo-commands", "convo-queries")
"""The micro services that must answer a ping before the ledger counts as ready."""

EVENTS_SHARE = 0.85
"""Of the embedded server's store, for events, in equal parts to the partitions."""

SNAPSHOTS_SHARE = 0.1
"""For snapshots, the oldest of which go when there are too many; the rest is the notary's."""

READY_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 35.0
"""Longer than the longest a command may take (30 s)."""

PING_PAUSE_S = 0.02
DEFAULT_URL = "nats://127.0.0.1:4222"


class NotReady(Exception):
    """The workers do not answer; the message says what to do."""


_CANNOT_START = (
    ConnectionRefused,
    DataDirInUse,
    DataDirUnusable,
    LedgerWentBack,
    NotReady,
    ServerFailed,
    StreamMismatch,
)


class Wish:
    """What the operator wants: to stop (Ctrl-C, SIGTERM), to hurry (a further Ctrl-C). A further
    SIGTERM is no hurry: `make` and others pass on one that we have had already."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    def hear(self, number: signal.Signals) -> None:
        if self.stop.is_set() and number == signal.SIGINT:
            self.hurry.set()
        self.stop.set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hears SIGINT, SIGTERM and SIGHUP (a terminal that is closed) meanwhile."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, self.hear, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


async def up(
    settings: Settings,
    *,
    workers: int,
    worker: Sequence[str] = WORKER,
    beside: Mapping[str, Sequence[str]] = BESIDE,
) -> int:
    """Runs the ledger in the foreground; returns the exit status once everything has stopped.

    0 after Ctrl-C or SIGTERM; 1, with one line on standard error, when it could not start: the data
    directory is another's, the port is taken, NATS cannot be reached, the workers do not come up.
    """
    wish = Wish()
    try:
        with wish.listening(), own(settings.data_dir):
            await Ledger(settings, workers, worker, beside, wish).run()
    except _CANNOT_START as error:
        print(f"convo up: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


class Gate:
    """Holds processes back that read `stdin`: it ends when the gate is opened."""

    def __init__(self) -> None:
        self.stdin, self._held = os.pipe()
        self._is_open = False

    def open(self) -> None:
        """Lets everybody through, now and later; harmless to repeat."""
        if not self._is_open:
            self._is_open = True
            os.close(self._held)

    def close(self) -> None:
        """Lets go of the files; nothing may be started on it any more."""
        self.open()
        os.close(self.stdin)


class Ledger:
    """The processes of one `convo up`."""

    def __init__(
        self,
        settings: Settings,
        workers: int,
        worker: Sequence[str],
        beside: Mapping[str, Sequence[str]],
        wish: Wish,
    ) -> None:
        assert workers >= 1, "a ledger without workers answers nobody"
        self.settings = settings
        self.names = [f"worker-{number}" for number in range(1, workers + 1)]
        self.worker = worker
        self.beside = beside
        self.wish = wish
        self.status_file = settings.data_dir / STATUS_FILE
        self.supervisor = Supervisor(self.status_file)
        self.server: EmbeddedServer | None = None
        self._environment: dict[str, str] = {}  # of all children, once the server's URL is known
        self._workers: list[Child] = []
        self._gate = Gate()  # of the workers
        self._watching: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Starts everything, waits for the wish to stop, and stops everything, whatever happens."""
        try:
            starting = asyncio.ensure_future(self._start())
            stop = asyncio.ensure_future(self.wish.stop.wait())
            await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                print(starting.result(), flush=True)
                await stop
            starting.cancel()
            await asyncio.wait({starting})
            print("\nStopping: what was accepted is answered first (Ctrl-C: at once).", flush=True)
        finally:
            await self._stop()

    async def _start(self) -> str:
        """Returns the banner once commands and queries are answered."""
        began = time.monotonic()
        url = await self._nats()
        client = await connect(url, name="convo-up", settings=self.settings)
        if self.server is not None:
            watching = self._watch(self.server)
            self._watching = asyncio.get_running_loop().create_task(watching)
        try:
            await self._not_gone_back(client)
            await self._bound(client)
            if not self._workers:
                self._load_workers(url)
            self._gate.open()
            await self._answering(client, self._workers)
            for name, command in self.beside.items():  # only now: the workers need the processors
                self.supervisor.start(Program(name, command, self._environment))
            version = client.connected_server_version
        finally:
            await client.close()
        served_by = f"nats-server {version.major}.{version.minor}.{version.patch}"
        return banner(
            without_password(url),
            f"{'embedded ' if self.server else ''}{served_by}",
            http=self.supervisor.facts.get("http"),
            data_dir=self.settings.data_dir if self.server else None,
            workers=len(self.names),
            started_s=time.monotonic() - began,
        )

    async def _nats(self) -> str:
        """The URL of a NATS server that runs: the settings' own, or the one started here."""
        if self.settings.nats_url:
            return self.settings.nats_url
        if self.settings.replicas > 1:
            msg = (
                f"{variable('replicas')}={self.settings.replicas} needs a cluster of NATS servers, "
                f"and the embedded one is alone. Name the cluster with --nats URL, or leave "
                f"{variable('replicas')} at 1. (`make cluster` starts three for a trial.)"
            )
            raise NotReady(msg)
        self.server = EmbeddedServer(
            self.settings.data_dir,
            port=self.settings.port,
            sync=self.settings.sync,
            staging=self.settings.staging,
            supervisor=self.supervisor,
        )
        await self.server.start(meanwhile=self._load_workers)
        return self.server.url

    def _load_workers(self, url: str) -> None:
        """Starts the workers on a server that may not answer yet: each loads its program, which
        takes about as long as the recovery of a store, and waits at the gate."""
        self.supervisor.facts |= {
            "url": without_password(url),
            "data_dir": str(self.settings.data_dir.absolute()),
        }
        self._environment = {
            **os.environ,
            **self.settings.environment(),
            variable("nats_url"): url,
            "PYTHONPATH": _python_path(),
        }
        if "gateway" in self.beside:
            port = self.settings.gateway_port or free_port()
            self._environment[variable("gateway_port")] = str(port)
            self.supervisor.facts["http"] = f"http://{self.settings.gateway_host}:{port}"
        self._workers = [
            self.supervisor.start(
                Program(name, self.worker, self._environment, stdin=self._gate.stdin)
            )
            for name in self.names
        ]

    async def _watch(self, server: EmbeddedServer) -> None:
        """Looks after the server's store, and says how it is: on NATS, and in the status file."""
        client = None
        while client is None:
            with contextlib.suppress(ConnectionRefused):  # it is being started once more
                client = await connect(server.url, name="convo-up-watch", settings=self.settings)

        async def tell(storage: Storage) -> None:
            told = {"state": str(storage.state), "reason": storage.reason}
            if self.supervisor.facts.get("store") != told:
                self.supervisor.facts["store"] = told
                self.supervisor.write_status()
            with contextlib.suppress(*NATS_FAILURES):
                await client.publish(SUBJECT, json.dumps(told).encode())

        try:
            await StorageWatch(server, tell).run()
        finally:
            await client.close()

    async def _not_gone_back(self, client: Client) -> None:
        """Raises LedgerWentBack before anything is built on a ledger that is not what it was.

        A store that does not answer yet is left to the services, which look again themselves.
        """
        ledger = topology(self.settings)
        with contextlib.suppress(StoreUnavailable):
            await Fence(client, self.settings.data_dir / FENCE, ledger.events_configs()).check()

    async def _bound(self, client: Client) -> None:
        """Makes the embedded server's streams, and gives each its share of the store: one that is
        full refuses cleanly, and is writable again the moment that it may be larger.

        Raises StreamMismatch. Where the store does not answer yet, the next start does it.
        """
        if self.server is None:
            return
        ledger = topology(self.settings)
        store = self.server.max_file_store
        events = int(store * EVENTS_SHARE / ledger.partitions)
        with contextlib.suppress(StoreUnavailable):
            await ensure(client, ledger)
            for partition in range(ledger.partitions):
                await limit_bytes(client, ledger.stream_name(partition), events)
            if ledger.snapshot_stream is not None:
                await limit_bytes(client, ledger.snapshot_stream, int(store * SNAPSHOTS_SHARE))

    async def _answering(self, client: Client, children: Sequence[Child]) -> None:
        """Returns once each service has answered a ping. `NotReady` when none will."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        for service in ANSWERING:
            while not await _answers(client, service):
                if all(child.restarts >= 2 or child.state is State.FAILING for child in children):
                    msg = f"the workers keep ending ({children[0].last_exit}); see above for why."
                    raise NotReady(msg)
                if time.monotonic() > deadline:
                    msg = f"{service} did not answer within {READY_TIMEOUT_S:g} s; see above."
                    raise NotReady(msg)
                await asyncio.sleep(PING_PAUSE_S)

    async def _stop(self) -> None:
        hurry = self.wish.hurry
        if self._watching is not None:
            await ended(self._watching)
        await self.supervisor.stop([*self.names, *self.beside], within=DRAIN_TIMEOUT_S, hurry=hurry)
        self._gate.close()
        if self.server:
            await self.server.stop(hurry=hurry)
        with contextlib.suppress(OSError):
            self.status_file.unlink(missing_ok=True)


async def _answers(client: Client, service: str) -> bool:
    try:
        await client.request(f"$SRV.PING.{service}", timeout=1)
    except NatsError:  # nobody there yet, or the connection is just being made again
        return False
    return True


def banner(
    url: str,
    served_by: str,
    *,
    http: str | None,
    data_dir: Path | None,
    workers: int,
    started_s: float,
) -> str:
    """What an operator reads when the ledger is ready: where it is and how to try it."""
    elsewhere = url != DEFAULT_URL
    nats = "nats" + (f" -s {url}" if elsewhere else "")
    lines = [
        f"Conversation Ledger is ready ({started_s:.1f} s).",
        f"  NATS     {url}  ({served_by})",
        *([f"  HTTP     {http}  (chats at /, the interface at /docs)"] if http else []),
        *([f"  data     {data_dir.absolute()}"] if data_dir else []),
        f"  workers  {workers}",
        "Try it from another terminal:",
        f"  {_command()} init demo ada" + (f" --nats {url}" if elsewhere else ""),
        f'  {nats} req convo.cmd.default.demo.append \'{{"role":"user","content":"Hello"}}\'',
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)


def _command() -> str:
    """How this installation's `convo` is called from a shell here."""
    if shutil.which("convo"):
        return "convo"
    path = Path(sys.executable).with_name("convo")
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return str(path)


def _python_path() -> str:
    """For a child that must find our packages wherever it runs, and not a folder that happens to be
    called `services` in the working directory."""
    ours = str(Path(services.__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
