"""The commands that keep a ledger from loss: backup, restore, fence, scrub."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli import output
from services.cli.errors import CommandFailed, Interrupted
from services.cli.operations import data_option
from services.cli.options import Client, client_options

if TYPE_CHECKING:
    from nats.aio.client import Client as Connection

    from infra.jetstream.archive import Archive
    from infra.jetstream.fence import Witnesses
    from infra.settings import Settings
    from services.backup import Copied
    from services.ledger_check import PartitionCheck

ACCEPTED = (
    "accepted: the ledger counts as it is now. Tables and lists may hold what it lost: "
    "`convo rebuild analytics`, and remove the directory's folder (docs/operations.md)"
)

directory_argument = click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False)
)


@click.command()
@directory_argument
@click.option("--keys", is_flag=True, help="The notary's private key too (from --data).")
@data_option
@client_options
def backup(client: Client, *, folder: Path, keys: bool, data_dir: Path | None) -> None:
    """Copy the ledger into DIR, while it is in use.

    Run again with the same DIR, it adds what is new since. Events and the notary's records are
    copied; everything else is made anew from them.

    \b
    Example:
      convo backup /backup/convo
      convo backup /backup/convo --keys --json
    """
    from infra.jetstream.archive import ArchiveRefused
    from infra.jetstream.errors import StoreUnavailable
    from infra.loop import run

    began = time.monotonic()
    try:
        archive, copied = run(_backup(client, folder, data_dir, keys=keys))
    except (ArchiveRefused, StoreUnavailable) as error:
        raise CommandFailed(str(error)) from None
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted: what was copied is kept, the same command goes on"
        ) from None
    seconds = time.monotonic() - began
    if client.as_json:
        output.show_json(
            {
                "ok": True,
                "backup": archive.id,
                "positions": archive.facts["positions"],
                "streams": [each.report() for each in copied],
                "seconds": round(seconds, 3),
            }
        )
        return
    output.show([f"backed up in {seconds:.1f} s: {folder}", *map(_copied, copied)])


def _copied(each: Copied) -> str:
    return (
        f"  {each.stream:<16} {each.messages:,} new ({each.bytes:,} bytes), "
        f"up to sequence {each.last_seq:,}"
    )


async def _backup(
    client: Client, folder: Path, data_dir: Path | None, *, keys: bool
) -> tuple[Archive, list[Copied]]:
    from infra.jetstream.archive import Archive
    from services.backup import back_up
    from services.cli.requests import connected, settings_of
    from services.cli.scanning import Counting, topology_of
    from services.notary import FOLDER

    settings = settings_of(client.nats, data_dir=data_dir)
    async with connected(settings, "convo backup") as connection:
        ledger = await topology_of(connection, settings)
        archive = Archive.open_or_make(folder)
        try:
            with Counting("backing up", wanted=not client.as_json) as counting:
                copied = await back_up(
                    connection,
                    ledger,
                    archive,
                    lambda _, done, total: counting.at(done, total),
                    keys=settings.data_dir / FOLDER if keys else None,
                )
        finally:
            archive.close()
    return archive, copied


@click.command()
@directory_argument
@click.option("--check", is_flag=True, help="Only check DIR; needs no server.")
@click.option(
    "--accept-loss", is_flag=True, help="Even where more was seen here than the backup has."
)
@data_option
@client_options
def restore(
    client: Client, *, folder: Path, check: bool, accept_loss: bool, data_dir: Path | None
) -> None:
    """Bring a ledger back from the backup in DIR.

    Into the data directory (--data), with a server of its own meanwhile; or, with --nats, into the
    streams of a server that has no ledger. Never over a ledger that is there. Then everything is
    read again and verified. An interrupted restore goes on with the same command.

    \b
    Example:
      convo restore /backup/convo --data /srv/convo
      convo restore /backup/convo --nats nats://nats.example:4222
      convo restore /backup/convo --check
    """
    from infra.jetstream.archive import Archive, ArchiveRefused
    from infra.jetstream.errors import StoreUnavailable, StreamMismatch
    from infra.loop import run
    from services.cli.scanning import Counting

    began = time.monotonic()
    checks: list[PartitionCheck] = []
    try:
        archive = Archive.open(folder)
        with Counting("checking the backup", wanted=not client.as_json, what="bytes") as counting:
            archive.check(counting.at)
        if not check:
            checks = run(_restore(client, archive, data_dir, accept_loss=accept_loss))
    except (ArchiveRefused, StoreUnavailable, StreamMismatch) as error:
        raise CommandFailed(str(error)) from None
    except KeyboardInterrupt:
        raise Interrupted("interrupted: the same command goes on where this one ended") from None
    _tell(client, archive, checks, time.monotonic() - began)


def _tell(client: Client, archive: Archive, checks: list[PartitionCheck], seconds: float) -> None:
    from services.cli.verifying import NOT_VALID, partition_lines

    valid = all(each.valid for each in checks)
    if client.as_json:
        output.show_json(
            {
                "ok": True,
                "backup": archive.id,
                "made_at": archive.facts["made_at"],
                "positions": archive.facts["positions"],
                "valid": valid,
                "partitions": [each.report() for each in checks],
                "seconds": round(seconds, 3),
            }
        )
    else:
        done = "restored and verified" if checks else "the backup is whole"
        output.show([f"{done} in {seconds:.1f} s: {archive.folder}, of {archive.facts['made_at']}"])
        for name, part in archive.parts.items():
            output.show([f"  {name:<16} up to sequence {part.last_seq:,}"])
        for each in checks:
            output.show(partition_lines(each, None))
    if not valid:
        raise CommandFailed(NOT_VALID)


async def _restore(
    client: Client, archive: Archive, data_dir: Path | None, *, accept_loss: bool
) -> list[PartitionCheck]:
    from infra.jetstream.fence import Witnesses, seen
    from services.bootstrap import FENCE, topology
    from services.cli.requests import settings_of
    from services.cli.scanning import Counting
    from services.ledger_check import check_partition
    from services.notary import FOLDER
    from services.restore import put_key_back
    from services.restore import restore as fill

    settings = settings_of(client.nats, data_dir=data_dir)
    settings = settings.model_copy(update={"partitions": archive.facts["partitions"]})
    ledger = topology(settings)
    witnesses = Witnesses(settings.data_dir / FENCE)
    if not accept_loss:
        _require_no_loss(archive, witnesses)
    checks = []
    async with _target(settings) as connection:
        with Counting("restoring", wanted=not client.as_json) as counting:
            await fill(connection, ledger, archive, lambda _, done, total: counting.at(done, total))
        for partition in range(ledger.partitions):
            name = ledger.stream_name(partition)
            with Counting(f"checking {name}", wanted=not client.as_json) as counting:
                checks.append(
                    await check_partition(connection, ledger, partition, progress=counting.at)
                )
            witness = await seen(connection, name)
            if witness is not None:
                witnesses.put(witness)
        put_key_back(archive, settings.data_dir / FOLDER)
    return checks


def _require_no_loss(archive: Archive, witnesses: Witnesses) -> None:
    """CommandFailed when the backup ends in front of what was seen in the data directory."""
    for name, part in archive.parts.items():
        witness = witnesses.get(name)
        if witness is not None and witness.seq > part.last_seq:
            raise CommandFailed(
                f"the backup has {name} up to sequence {part.last_seq:,}, and {witnesses.folder} "
                f"has seen {witness.seq:,}: what is between would be lost. Take a newer backup, or "
                "another data directory; if that loss is known and accepted: --accept-loss"
            )


@asynccontextmanager
async def _target(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to the server to restore into: the one that was named, or one started for the
    data directory, which nobody else may use meanwhile."""
    from services.cli.requests import connected
    from services.roster import services

    if settings.nats_url is None:
        async with _embedded(settings) as connection:
            yield connection
        return
    async with connected(settings, "convo restore") as connection:
        running: list[dict[str, Any]] = await services(connection)
        if running:
            names = ", ".join(sorted({each["name"] for each in running}))
            raise CommandFailed(
                f"services answer on this server ({names}): stop them (`convo up`, `convo serve`) "
                "before a ledger is restored into it"
            )
        yield connection


@click.command()
@click.option("--accept-loss", is_flag=True, help="Take the ledger as it is now for the right one.")
@data_option
@client_options
def fence(client: Client, *, accept_loss: bool, data_dir: Path | None) -> None:
    """Compare the ledger with what was seen of it before.

    Services refuse a ledger that went back in time: one that was restored from an old copy, made
    anew, or cut off at its end. This shows what is the matter; with --accept-loss, what was seen is
    forgotten, and the ledger as it is now counts. The exit status is 1 when it went back.

    \b
    Example:
      convo fence
      convo fence --accept-loss --data /srv/convo
    """
    from infra.jetstream.errors import StoreUnavailable
    from infra.loop import run

    try:
        rows = run(_fence(client, data_dir, accept_loss=accept_loss))
    except StoreUnavailable as error:
        raise CommandFailed(str(error)) from None
    problems = [row for row in rows if row["problem"] is not None]
    if client.as_json:
        valid = not problems or accept_loss
        output.show_json({"ok": True, "valid": valid, "accepted": accept_loss, "streams": rows})
    else:
        output.show(map(_fence_line, rows))
    if problems and not accept_loss:
        raise CommandFailed(
            "the ledger went back in time, or is another one: bring back the store that was there, "
            "or a backup (`convo restore`); if the loss is known and accepted: --accept-loss"
        )
    if problems and not client.as_json:
        output.show([ACCEPTED])


async def _fence(
    client: Client, data_dir: Path | None, *, accept_loss: bool
) -> list[dict[str, Any]]:
    from infra.jetstream.fence import Witnesses, problem_with, seen
    from services.bootstrap import FENCE, topology
    from services.cli.requests import settings_of

    settings = settings_of(client.nats, data_dir=data_dir)
    witnesses = Witnesses(settings.data_dir / FENCE)
    ledger = topology(settings)
    rows = []
    async with _ledger_of(settings) as connection:
        for partition in range(ledger.partitions):
            name = ledger.stream_name(partition)
            witness = witnesses.get(name)
            problem = None if witness is None else await problem_with(connection, witness)
            now = await seen(connection, name)
            if accept_loss and problem is not None:
                witnesses.forget(name)
                if now is not None:
                    witnesses.put(now)
            rows.append(
                {
                    "stream": name,
                    "seen_seq": None if witness is None else witness.seq,
                    "last_seq": 0 if now is None else now.seq,
                    "problem": problem,
                }
            )
    return rows


def _fence_line(row: dict[str, Any]) -> str:
    if row["seen_seq"] is None:
        return f"{row['stream']}: nothing was seen of it here; it ends at {row['last_seq']:,}"
    said = row["problem"] or f"it has what was seen, up to sequence {row['seen_seq']:,}"
    return f"{row['stream']}: {said}"


@asynccontextmanager
async def _ledger_of(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to the ledger; to one that is not running, by a server started meanwhile."""
    from infra.supervision import read_status
    from services.cli.requests import connected

    running = read_status(settings.data_dir)
    if settings.nats_url is None and running is None and (settings.data_dir / "nats").is_dir():
        async with _embedded(settings) as connection:
            yield connection
        return
    if settings.nats_url is None and running is not None and running.get("url"):
        settings = settings.model_copy(update={"nats_url": running["url"]})
    async with connected(settings, "convo fence") as connection:
        yield connection


@asynccontextmanager
async def _embedded(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to a server started for the data directory, which nobody else may use meanwhile.

    CommandFailed when it cannot be had.
    """
    from infra.lock import DataDirInUse, DataDirUnusable, own
    from infra.server import EmbeddedServer, ServerFailed
    from services.cli.requests import connected

    try:
        with own(settings.data_dir):
            async with EmbeddedServer(settings.data_dir) as server:
                there = settings.model_copy(update={"nats_url": server.url})
                async with connected(there, "convo") as connection:
                    yield connection
    except (DataDirInUse, DataDirUnusable, ServerFailed) as error:
        raise CommandFailed(str(error)) from None


@click.command()
@click.option(
    "--rate",
    default="10000",
    show_default=True,
    metavar="RATE",
    help="At most so many events a second (5000) or bytes a second (2MB); max: no bound.",
)
@client_options
def scrub(client: Client, *, rate: str) -> None:
    """Read every sequence, and check it, beside the work.

    As `convo verify --all`, at a bounded rate, for a nightly run: no sequence is missing, every
    batch is whole, every chain and checkpoint fits. It goes on behind a fault, says which sequence
    is the first bad one, and ends with exit status 1 when there is one.

    \b
    Example:
      convo scrub
      convo scrub --rate 2MB --json
    """
    from infra.pace import Pace
    from services.cli.verifying import everything

    try:
        pace = Pace.parse(rate)
    except ValueError as error:
        raise click.UsageError(f"--rate: {error}") from None
    everything(client, None, pace)
