"""What runs: `run/status.json` of `convo up`, the micro services that answer, the streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client as Connection

from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.topology import call
from infra.settings import Settings, without_password
from infra.supervision import read_status
from services.bootstrap import topology
from services.cli.errors import CommandFailed
from services.cli.output import row
from services.cli.requests import connected, server_url
from services.roster import services

COMMANDS = "convo-commands"


@dataclass(slots=True)
class Inspection:
    """What was found; `problem` says why commands are not answered, when they are not."""

    url: str
    data_dir: str
    server: str | None = None
    up: dict[str, Any] | None = None
    services: list[dict[str, Any]] = field(default_factory=list)
    streams: list[dict[str, Any]] = field(default_factory=list)
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The --json answer."""
        return {
            "ok": self.problem is None,
            "url": self.url,
            "server": self.server,
            "up": self.up,
            "services": self.services,
            "streams": self.streams,
            "problem": self.problem,
        }

    def lines(self) -> Iterator[str]:
        """The same for a person."""
        if self.server:
            yield f"server     nats-server {self.server} at {self.url}"
        if self.up is None:
            yield row(f"processes  no `convo up` runs on {self.data_dir}")
        else:
            yield f"processes  of `convo up`, pid {self.up.get('pid')}"
            for each in self.up.get("processes", ()):
                yield row(
                    f"  {each['name']:<16} {each['state']:<11} pid {each['pid'] or '-'}"
                    f"  restarts {each['restarts']}  since {each['since']}"
                    + (f"  last exit: {each['last_exit']}" if each.get("last_exit") else "")
                )
            store = self.up.get("store")
            if store:
                yield row(f"store      {store['state']}  {store['reason'] or ''}".rstrip())
        if self.server:
            yield "services" if self.services else "services   none answers"
            for each in self.services:
                yield (
                    f"  {each['name']:<16} {each['version']}  {each['requests']:,} requests,"
                    f" {each['errors']:,} errors, since {each['started']}"
                )
                if each.get("says"):
                    yield row(f"    {said(each['says'])}")
            yield "streams" if self.streams else "streams    none yet"
            for each in self.streams:
                yield (
                    f"  {each['name']:<16} {each['messages']:,} events, {each['bytes']:,} bytes,"
                    f" seq {each['first_seq']} to {each['last_seq']}, replicas: {each['replicas']}"
                )


async def inspect(settings: Settings, timeout_s: float) -> Inspection:
    """Looks at the data directory, then asks the server; finds what it can of both."""
    running = read_status(settings.data_dir)
    if settings.nats_url is None and running is not None and running.get("url"):
        settings = settings.model_copy(update={"nats_url": running["url"]})
    found = Inspection(
        url=without_password(server_url(settings)),
        data_dir=str(settings.data_dir.absolute()),
        up=running,
    )
    try:
        async with connected(settings, "convo status") as connection:
            found.server = server_version(connection)
            found.services = await services(connection)
            found.streams = await streams(connection, settings, timeout_s)
    except CommandFailed as error:
        found.problem = error.message
    except StoreUnavailable as error:
        found.problem = str(error)
    else:
        if not any(each["name"] == COMMANDS for each in found.services):
            found.problem = (
                "the server is there, but commands are not answered: start them with `convo up` or"
                " `convo serve commands`"
            )
        else:
            found.problem = next(filter(None, map(_refuses_writes, found.services)), None)
    return found


def _refuses_writes(service: dict[str, Any]) -> str | None:
    """Why a command service takes no writes just now, where it says so."""
    says = service.get("says") or {}
    if service["name"] != COMMANDS or says.get("state", "ok") == "ok":
        return None
    return f"writes are refused ({says['state']}): {says.get('reason')}"


def server_version(connection: Connection) -> str:
    """The version of the server that the connection is with, as 2.15.1."""
    version = connection.connected_server_version
    return f"{version.major}.{version.minor}.{version.patch}"


def said(says: dict[str, Any]) -> str:
    """What a service says of its state, on a line: {"state", "reason"?, "lag_ms"?, …}."""
    parts = [str(says.get("state", "?"))]
    if says.get("positions"):
        parts.append("at " + ", ".join(f"{p}:{seq}" for p, seq in says["positions"].items()))
    if says.get("lag_ms") is not None:
        parts.append(f"{says['lag_ms']} ms behind")
    if says.get("reason"):
        parts.append(str(says["reason"]))
    return "  ".join(parts)


async def streams(
    connection: Connection, settings: Settings, timeout_s: float
) -> list[dict[str, Any]]:
    """A row for each events stream that exists, partition by partition; `StoreUnavailable`."""
    rows = []
    ledger = topology(settings)
    for partition in range(settings.partitions):
        name = ledger.stream_name(partition)
        answer = await call(connection, f"STREAM.INFO.{name}", {}, timeout=timeout_s)
        if "error" in answer:
            continue
        state, config = answer["state"], answer["config"]
        rows.append(
            {
                "name": name,
                "messages": state["messages"],
                "bytes": state["bytes"],
                "first_seq": state["first_seq"],
                "last_seq": state["last_seq"],
                "replicas": config["num_replicas"],
            }
        )
    return rows
