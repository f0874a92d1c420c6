"""The commands that keep a copy of a ledger: backup, restore."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from services.cli import output
from services.cli.errors import CommandFailed, Interrupted
from services.cli.operations import data_option
from services.cli.options import Client, client_options

if TYPE_CHECKING:
    from nats.aio.client import Client as Connection

    from infra.jetstream.archive import Archive
    from infra.settings import Settings
    from services.backup import Copied
    from services.ledger_check import PartitionCheck

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
    from services.cli.scanning import run

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
@data_option
@client_options
def restore(client: Client, *, folder: Path, check: bool, data_dir: Path | None) -> None:
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
    from infra.connection import ConnectionRefused
    from infra.jetstream.archive import Archive, ArchiveRefused
    from infra.jetstream.errors import StoreUnavailable, StreamMismatch
    from infra.lock import DataDirInUse, DataDirUnusable
    from infra.server import ServerFailed
    from services.cli.scanning import Counting, run

    began = time.monotonic()
    checks: list[PartitionCheck] = []
    try:
        archive = Archive.open(folder)
        with Counting("checking the backup", wanted=not client.as_json, what="bytes") as counting:
            archive.check(counting.at)
        if not check:
            checks = run(_restore(client, archive, data_dir))
    except (ArchiveRefused, StoreUnavailable, StreamMismatch) as error:
        _refuse(error)
    except (ConnectionRefused, DataDirInUse, DataDirUnusable, ServerFailed) as error:
        _refuse(error)
    except KeyboardInterrupt:
        raise Interrupted("interrupted: the same command goes on where this one ended") from None
    _tell(client, archive, checks, time.monotonic() - began)


def _refuse(error: Exception) -> NoReturn:
    raise CommandFailed(str(error)) from None


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


async def _restore(client: Client, archive: Archive, data_dir: Path | None) -> list[PartitionCheck]:
    from services.bootstrap import topology
    from services.cli.requests import settings_of
    from services.cli.scanning import Counting
    from services.ledger_check import check_partition
    from services.notary import FOLDER
    from services.restore import put_key_back
    from services.restore import restore as fill

    settings = settings_of(client.nats, data_dir=data_dir)
    settings = settings.model_copy(update={"partitions": archive.facts["partitions"]})
    ledger = topology(settings)
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
        put_key_back(archive, settings.data_dir / FOLDER)
    return checks


@asynccontextmanager
async def _target(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to the server to restore into: the one that was named, or one started for the
    data directory, which nobody else may use meanwhile."""
    from infra.lock import own
    from infra.server import EmbeddedServer
    from services.cli.inspection import services
    from services.cli.requests import connected

    if settings.nats_url is None:
        with own(settings.data_dir):
            async with EmbeddedServer(settings.data_dir) as server:
                there = settings.model_copy(update={"nats_url": server.url})
                async with connected(there, "convo restore") as connection:
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
