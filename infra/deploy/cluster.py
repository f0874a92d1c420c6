"""Three nats-servers on loopback as one cluster (R3), for trials and tests: `make cluster`.

Each has a store of its own, so one of them may be killed and the ledger goes on. All three share
this machine's disk and power: a real deployment puts them on three hosts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path

from nats.errors import Error as NatsError

from infra.connection import ConnectionRefused, connect
from infra.lock import DataDirInUse, DataDirUnusable, own
from infra.server import DISK_SHARE, EmbeddedServer, Peering, ServerFailed, free_port
from infra.settings import Settings
from infra.startable import Startable
from infra.supervision import Supervisor

MEMBERS = 3
PORT = 4231
"""Of the first; the others follow."""

ROUTE_PORT = 6231
ELECTED_TIMEOUT_S = 60.0
POLL_S = 0.05


class Cluster(Startable):
    """Three servers that answer and have a leader once `start` returns.

    `port` and `route_port` are the first of three in a row; 0 takes free ones.
    """

    def __init__(self, data_dir: Path, *, port: int = 0, route_port: int = 0) -> None:
        self.supervisor = Supervisor()
        routes = [route_port + n if route_port else free_port() for n in range(MEMBERS)]
        self.servers = [
            EmbeddedServer(
                data_dir / str(n + 1),
                port=port + n if port else 0,
                supervisor=self.supervisor,
                process=f"nats-server-{n + 1}",
                peering=Peering("convo", routes[n], tuple(routes)),
                disk_share=DISK_SHARE / MEMBERS,
            )
            for n in range(MEMBERS)
        ]

    @property
    def url(self) -> str:
        """The URLs of all three, with commas: what a client is given."""
        return ",".join(server.url for server in self.servers)

    async def start(self) -> None:
        """`ServerFailed` and its kinds, `DataDirUnusable`; nothing is left running then."""
        try:
            starting = [asyncio.ensure_future(server.start()) for server in self.servers]
            try:
                await asyncio.gather(*starting)
            finally:
                for each in starting:
                    each.cancel()
                await asyncio.gather(*starting, return_exceptions=True)
            await self._elected()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends all three; harmless to repeat."""
        await asyncio.gather(*(server.stop() for server in self.servers))

    async def _elected(self) -> None:
        """Returns once JetStream answers: the three have found each other and chosen a leader."""
        client = await connect(self.url, name="convo-cluster", settings=Settings())
        deadline = time.monotonic() + ELECTED_TIMEOUT_S
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(NatsError):
                    await client.jetstream(timeout=1).account_info()
                    return
                await asyncio.sleep(POLL_S)
        finally:
            await client.close()
        msg = f"The cluster chose no leader within {ELECTED_TIMEOUT_S:g} s; see the servers' logs."
        raise ServerFailed(msg)


async def run(data_dir: Path, port: int, route_port: int) -> int:
    """Runs the cluster in the foreground until Ctrl-C; the exit status."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        with own(data_dir):
            async with Cluster(data_dir, port=port, route_port=route_port) as cluster:
                print(
                    f"Three NATS servers (R3): {cluster.url}\n"
                    f"  data  {data_dir.absolute()}\n"
                    "A ledger on them, from another terminal:\n"
                    f"  CONVO_REPLICAS=3 CONVO_NATS_URL={cluster.url} make run\n"
                    "Ctrl-C stops them.",
                    flush=True,
                )
                await stop.wait()
    except (ConnectionRefused, DataDirInUse, DataDirUnusable, ServerFailed) as error:
        print(f"make cluster: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make cluster", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data/cluster"), metavar="DIR")
    parser.add_argument("--port", type=int, default=PORT, help="the first of three in a row")
    parser.add_argument("--route-port", type=int, default=ROUTE_PORT, help="the same, for routes")
    options = parser.parse_args()
    return asyncio.run(run(options.data, options.port, options.route_port))


if __name__ == "__main__":
    sys.exit(main())
