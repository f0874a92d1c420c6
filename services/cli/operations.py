"""The commands that run a ledger and look after it: up, serve, status, doctor."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from infra.loop import run
from services.cli import output
from services.cli.errors import CommandFailed
from services.cli.options import Client, client_options

SERVICES = (
    "commands",
    "queries",
    "audit",
    "notary",
    "sweeper",
    "analytics",
    "directory",
    "gateway",
    "responder",
)

data_option = click.option(
    "--data", "data_dir", type=click.Path(path_type=Path), metavar="DIR", help="The data directory."
)
nats_option = click.option("--nats", metavar="URL", help="An existing NATS server to use.")


@click.command()
@data_option
@click.option("--port", type=click.IntRange(0, 65_535), metavar="N", help="Of NATS; 0: a free one.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that answer commands and queries.",
)
@nats_option
@click.option("--json", "as_json", is_flag=True, help="Log in JSON, one object a line.")
@click.pass_context
def up(
    ctx: click.Context,
    *,
    data_dir: Path | None,
    port: int | None,
    workers: int,
    nats: str | None,
    as_json: bool,
) -> None:
    """Run the ledger: a NATS server and every service.

    In the foreground, until Ctrl-C.

    \b
    Example:
      convo up
      convo up --data /var/lib/convo --port 4333 --workers 2
      convo up --nats nats://nats.example:4222
    """
    from services.cli import logs
    from services.cli.requests import settings_of
    from services.up import up as ledger

    settings = settings_of(nats, data_dir=data_dir, port=port, log="json" if as_json else None)
    logs.configure(settings)
    ctx.exit(asyncio.run(ledger(settings, workers=workers)))


@click.command()
@click.argument("services", nargs=-1, required=True, type=click.Choice(SERVICES))
@nats_option
@click.option("--json", "as_json", is_flag=True, help="Log in JSON, one object a line.")
@click.option("--once-stdin-ends", "gated", is_flag=True, hidden=True)
def serve(*, services: tuple[str, ...], nats: str | None, as_json: bool, gated: bool) -> None:
    """Run single services against a NATS server.

    Until Ctrl-C or SIGTERM. `convo up` starts them by itself; this runs more of them, anywhere.

    \b
    Example:
      convo serve commands queries --nats nats://nats.example:4222
    """
    from infra.connection import ConnectionRefused
    from infra.jetstream.errors import StoreUnavailable, StreamMismatch
    from services.bootstrap import serve as serving
    from services.cli import logs
    from services.cli.requests import server_url, settings_of
    from services.gateway.errors import GatewayUnusable

    settings = settings_of(nats, log="json" if as_json else None)
    logs.configure(settings)
    if gated:  # by `convo up`, whose server is not there yet: all is loaded meanwhile
        sys.stdin.buffer.read()
    try:
        run(serving(settings, tuple(dict.fromkeys(services)), url=server_url(settings)))
    except (ConnectionRefused, GatewayUnusable, StreamMismatch, StoreUnavailable) as error:
        raise CommandFailed(str(error)) from None


@click.command()
@data_option
@client_options
def status(client: Client, *, data_dir: Path | None) -> None:
    """Show what runs: processes, services and streams.

    The exit status is 1 when no command service answers.

    \b
    Example:
      convo status
      convo status --data /var/lib/convo --json
    """
    from services.cli.inspection import inspect
    from services.cli.requests import settings_of

    found = asyncio.run(inspect(settings_of(client.nats, data_dir=data_dir), client.timeout_s))
    if client.as_json:
        output.show_json(found.as_json())
    else:
        output.show(found.lines())
    if found.problem is not None:
        raise CommandFailed(found.problem)


@click.command()
@data_option
@client_options
def doctor(client: Client, *, data_dir: Path | None) -> None:
    """Check settings, installation and ledger.

    Prints the settings in force and where each came from, and versions. Each check is a line
    that begins with ok, warn or FAIL and says what to do. The exit status is 1 when one fails.

    \b
    Example:
      convo doctor
      convo doctor --nats nats://nats.example:4222 --json
    """
    from services.cli.checkup import examine
    from services.cli.requests import settings_of

    found = asyncio.run(examine(settings_of(client.nats, data_dir=data_dir), client.timeout_s))
    if client.as_json:
        output.show_json(found.as_json())
    else:
        output.show(found.lines())
    if found.failed:
        checks = "check" if found.failed == 1 else "checks"
        raise CommandFailed(f"{found.failed} {checks} failed: see the lines that begin with FAIL")


@click.command()
@click.option(
    "--writers",
    type=click.IntRange(min=1, max=4096),
    multiple=True,
    metavar="N",
    help="How many at once; may be given several times. [default: 1, 16, 256]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=600),
    default=2.0,
    show_default=True,
    help="How long each measurement takes.",
)
@click.option(
    "--tenant",
    "tenant_id",
    default="bench",
    show_default=True,
    help="Whose conversations are written; they stay.",
)
@client_options
def bench(client: Client, *, writers: tuple[int, ...], seconds: float, tenant_id: str) -> None:
    """Measure appends and reads on the ledger that is running.

    Each writer appends to a conversation of its own, and waits for each answer; then each reads its
    recent window. All of it goes over one connection of this process, which takes a processor of
    its own at high rates: it is a figure of what a client sees, not of what the ledger can do.

    \b
    Example:
      convo bench
      convo bench --writers 64 --seconds 10 --json
    """
    from services.cli.benching import as_json, measure
    from services.cli.requests import settings_of

    figures = asyncio.run(
        measure(
            settings_of(client.nats), tenant_id, writers or (1, 16, 256), seconds, client.timeout_s
        )
    )
    if client.as_json:
        output.show_json(as_json(figures))
    else:
        output.show(figure.line() for figure in figures)
