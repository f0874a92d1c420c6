"""`convo import`: conversations of a file into the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from infra.loop import run
from services.cli import output
from services.cli.errors import CommandFailed, Interrupted
from services.cli.options import Client, client_options

if TYPE_CHECKING:
    from services.cli.importer import Tally

CONVERSATIONS_IN_FLIGHT = 64

DEADLINE_S = 60.0
"""How long one command is tried again before the import stops."""


@click.command(name="import")
@click.argument(
    "source", metavar="FILE", type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option("--tenant", metavar="TENANT", help="Import into this tenant, whatever the lines say.")
@click.option("--user-id", metavar="ID", help="The user of lines that name none. [default: import]")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=CONVERSATIONS_IN_FLIGHT,
    show_default=True,
    metavar="N",
    help="Conversations in flight at a time.",
)
@client_options
def import_(
    client: Client, *, source: str, tenant: str | None, user_id: str | None, concurrency: int
) -> None:
    """Import conversations from a file.

    FILE holds JSON lines, plain or gzip; `-` is standard input.
    One conversation on each line: {"id", "messages": [{"role", "content", "name"?, "tool_calls"?,
    "tool_call_id"?, "timestamp"?, ...}], "usage"?: [{"message_index"?, "model"?, ...}],
    "tenant_id"?, "user_id"?}. A field without a place of its own goes to the metadata, and so does
    a timestamp that is not RFC 3339 with a zone. Usage is taken under OpenAI's or Anthropic's
    names.

    Importing the same file again writes nothing, so an interrupted import is simply repeated.
    A line that cannot be imported is reported, the others go in, and the exit status is 1.

    \b
    Example:
      convo import conversations.jsonl.gz
      zcat *.jsonl.gz | convo import - --tenant acme --json
    """
    from services.cli import requests
    from services.cli.importer import Importer, Tally
    from services.cli.line_reader import LineReader, opened
    from services.cli.progress import Progress

    settings = requests.settings_of(client.nats)
    patience = requests.Patience(client.timeout_s, retries=None, deadline_s=DEADLINE_S)
    tally = Tally()

    async def work() -> None:
        with opened(source) as (file, size_bytes):
            progress = Progress(tally, size_bytes, wanted=not client.as_json)
            async with requests.connected(settings, "convo import") as connection, progress:
                importer = Importer(
                    connection,
                    patience,
                    tally,
                    report=progress.say,
                    tenant=tenant,
                    user_id=user_id,
                )
                await importer.run(LineReader(file), concurrency)

    run(work())
    _finish(tally, client)


def _finish(tally: Tally, client: Client) -> None:
    """Prints the summary, and fails with one line unless every line went in."""
    if client.as_json:
        output.show_json(tally.summary())
    else:
        output.show([tally.sentence()])
    again = "repeat the same command to go on: what is there is not written again"
    if tally.interrupted:
        raise Interrupted(f"interrupted; {again}")
    if tally.stopped:
        raise CommandFailed(f"stopped: {tally.stopped}; {again}")
    if tally.refused:
        lines = "1 line was" if tally.refused == 1 else f"{tally.refused:,} lines were"
        raise CommandFailed(f"{lines} not imported (see above): correct and import again")
