"""Three nats-servers as one cluster (R3), each in our hands: killed, frozen, cut off, restarted.

On loopback, or each in a network namespace of its own. There a server has two links: one to its
clients, one to the other servers, so that it can be cut off from its peers and still be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nats
from nats.errors import Error as NatsError

from infra.server import CLUSTER, CONFIG, HOST, MAX_PAYLOAD, find_program, free_port
from infra.supervision import TETHER
from tests.faults.history import quiet
from tests.faults.rig import POLL_S, READY_TIMEOUT_S, STOP_TIMEOUT_S, run

MEMBERS = 3
STREAM = "CONVO-EVENTS-0"
ROUTE_PORT = 6222
CLIENT_PORT = 4222
GB = 1024**3


@functools.cache
def why_not() -> str:
    """Why this machine has no network namespaces for us; empty when it has."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "ip (iproute2) not found"
    try:
        with Network() as network:
            network.join(0)
    except subprocess.CalledProcessError as error:
        return f"network namespaces do not work here: {error.stderr.strip()}"
    return ""


class Network:
    """Namespaces, one for each member, joined by a bridge; removed at the end of the block."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        number = (os.getpid() + 97 * next(self._numbers)) % 250
        self._name = f"cv{os.getpid()}x{number}"
        self._clients = f"198.18.{number}"
        self._routes = f"198.19.{number}"
        self._members: list[int] = []

    def space(self, member: int) -> str:
        """The name of a member's namespace."""
        return f"{self._name}n{member}"

    def address(self, member: int) -> str:
        """Where a member's clients reach it."""
        return f"{self._clients}.{4 * member + 2}"

    def route_address(self, member: int) -> str:
        """Where the other members reach it."""
        return f"{self._routes}.{member + 1}"

    def join(self, member: int) -> None:
        """Makes a member's namespace and its two links."""
        self._members.append(member)
        space, ours = self.space(member), self._link(member)
        run("ip", "netns", "add", space)
        run("ip", "-n", space, "link", "set", "lo", "up")
        for kind, address, width in (
            ("c", self.address(member), 30),
            ("r", self.route_address(member), 24),
        ):
            run(
                *["ip", "link", "add", ours + kind, "type", "veth"],
                *["peer", "name", kind, "netns", space],
            )
            run("ip", "-n", space, "addr", "add", f"{address}/{width}", "dev", kind)
            run("ip", "-n", space, "link", "set", kind, "up")
        run("ip", "addr", "add", f"{self._clients}.{4 * member + 1}/30", "dev", ours + "c")
        run("ip", "link", "set", ours + "r", "master", self._name)
        run("ip", "link", "set", ours + "c", "up")
        run("ip", "link", "set", ours + "r", "up")

    def cut(self, member: int, *, clients: bool) -> None:
        """Cuts a member off from the others, and from its clients too where told."""
        for kind in "rc" if clients else "r":
            run("ip", "link", "set", self._link(member) + kind, "down")

    def mend(self, member: int) -> None:
        """Joins a member again."""
        for kind in "rc":
            run("ip", "link", "set", self._link(member) + kind, "up")

    def _link(self, member: int) -> str:
        return f"{self._name}{member}"

    def __enter__(self) -> Self:
        run("ip", "link", "add", self._name, "type", "bridge")
        run("ip", "link", "set", self._name, "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for member in self._members:
            for link in "cr":
                with contextlib.suppress(subprocess.CalledProcessError):
                    run("ip", "link", "del", self._link(member) + link)
            with contextlib.suppress(subprocess.CalledProcessError):
                run("ip", "netns", "del", self.space(member))
        run("ip", "link", "del", self._name)


class Member:
    """One server of the cluster, configured as the embedded one is."""

    def __init__(
        self, number: int, directory: Path, address: str, port: int, prefix: list[str]
    ) -> None:
        self.number = number
        self.name = f"member-{number}"
        self.directory = directory
        self.address = address
        self.port = port
        self.url = f"nats://{address}:{port}"
        self.store = directory / "jetstream"
        self._prefix = prefix
        self._config = directory / "nats-server.conf"
        self._process: asyncio.subprocess.Process | None = None

    def configure(self, address: str, port: int, routes: list[str]) -> None:
        """Writes the configuration, with the place where peers reach it and those of all peers."""
        self.store.mkdir(parents=True)
        text = CONFIG.format(
            name=self.name,
            host=self.address,
            port=self.port,
            ports_dir=json.dumps(str(self.directory)),
            max_payload=MAX_PAYLOAD,
            log_file=json.dumps(str(self.directory / "nats-server.log")),
            store=json.dumps(str(self.store)),
            max_file_store=4 * GB,
            sync="always",
        )
        joined = ", ".join(f'"nats://{each}"' for each in routes)
        text += CLUSTER.format(name="faults", host=address, port=port, routes=joined)
        self._config.write_text(text, encoding="utf-8")

    async def start(self) -> None:
        """Returns once it greets whoever connects."""
        with (self.directory / "out.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *self._prefix],
                *[str(find_program()), "--config", str(self._config)],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not await self._greets():
                assert self._process.returncode is None, f"{self.name} ended"
                await asyncio.sleep(POLL_S)

    async def _greets(self) -> bool:
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection(self.address, self.port)
                try:
                    return await reader.read(4) == b"INFO"
                finally:
                    writer.close()
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL; returns once it is gone."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        await self._process.wait()

    async def stop(self) -> None:
        """Lets it finish in good order; harmless to repeat."""
        if self._process is None or self._process.returncode is not None:
            return
        self.signal(signal.SIGCONT)
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            await self.kill()
            raise


class Members:
    """The three of them, up inside the block."""

    def __init__(self, directory: Path, network: Network | None = None) -> None:
        self.network = network
        self.members: list[Member] = []
        places: list[tuple[str, int]] = []
        for number in range(MEMBERS):
            if network is None:
                place, prefix = (HOST, free_port()), []
                peers = (HOST, free_port())
            else:
                network.join(number)
                prefix = ["ip", "netns", "exec", network.space(number)]
                place = (network.address(number), CLIENT_PORT)
                peers = (network.route_address(number), ROUTE_PORT)
            self.members.append(Member(number, directory / f"member-{number}", *place, prefix))
            places.append(peers)
        routes = [f"{address}:{port}" for address, port in places]
        for member, (address, port) in zip(self.members, places, strict=True):
            member.configure(address, port, routes)

    @property
    def url(self) -> str:
        """The URLs of all three, with commas."""
        return ",".join(member.url for member in self.members)

    async def leader(self, stream: str = STREAM) -> Member:
        """The member that leads the stream, once there is one that the others know."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                name = (await self._info(stream)).get("cluster", {}).get("leader")
                for member in self.members:
                    if member.name == name:
                        return member
                await asyncio.sleep(0.1)

    async def whole(self, stream: str = STREAM) -> None:
        """Returns once every replica of the stream is there and has what the leader has."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                cluster = (await self._info(stream)).get("cluster", {})
                replicas = cluster.get("replicas") or []
                good = [
                    each for each in replicas if each.get("current") and not each.get("offline")
                ]
                if cluster.get("leader") and len(good) == MEMBERS - 1:
                    return
                await asyncio.sleep(0.1)

    async def step_down(self, preferred: Member, stream: str = STREAM) -> bool:
        """Has that member lead the stream; says whether it does."""
        await self.ask(
            f"STREAM.LEADER.STEPDOWN.{stream}", {"placement": {"preferred": preferred.name}}
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if (await self.leader(stream)).name == preferred.name:
                return True
            await asyncio.sleep(0.1)
        return False

    async def _info(self, stream: str) -> dict[str, Any]:
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            return await self.ask(f"STREAM.INFO.{stream}", {})
        return {}

    async def ask(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        """Asks JetStream's API, through whichever member answers."""
        client = await nats.connect(
            random.sample(self.url.split(","), MEMBERS),
            allow_reconnect=False,
            connect_timeout=1,
            error_cb=quiet,
        )
        try:
            answer = await client.request(
                f"$JS.API.{subject}", json.dumps(body).encode(), timeout=2
            )
            found: dict[str, Any] = json.loads(answer.data)
            return found
        finally:
            await client.close()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(member.start() for member in self.members))
            async with asyncio.timeout(READY_TIMEOUT_S):
                while True:
                    with contextlib.suppress(NatsError, OSError, TimeoutError):
                        if "error" not in await self.ask("INFO", {}):
                            return self
                    await asyncio.sleep(0.1)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.gather(*(member.stop() for member in self.members))
