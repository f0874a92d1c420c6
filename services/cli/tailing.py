"""`convo tail`: events as they are stored, one conversation's without gap or repeat."""

from __future__ import annotations

import asyncio
import contextlib

import click

from services.cli.options import Client, client_options, split_name


@click.command()
@click.argument("name", metavar="[[TENANT/]CONVERSATION]", required=False)
@click.option("--tenant", metavar="TENANT", help="The tenant; without CONVERSATION, all of it.")
@click.option("--history", type=click.IntRange(min=0), metavar="N", help="First the last N events.")
@click.option(
    "--from-version", type=click.IntRange(min=1), metavar="N", help="First those from version N on."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@client_options
def tail(
    client: Client,
    *,
    name: str | None,
    tenant: str | None,
    history: int | None,
    from_version: int | None,
    limit: int | None,
) -> None:
    """Show events live, as they are stored.

    Of one conversation, of a tenant, or of all; Ctrl-C ends it. One conversation is followed
    without gap or repeat, whatever happens to the connection. Of several a loss is told on
    standard error. With --json an event a line, as `convo events` has it.

    \b
    Example:
      convo tail
      convo tail c-1 --history 10
      convo tail --tenant acme --json
    """
    if history is not None and from_version is not None:
        raise click.UsageError("--history and --from-version exclude each other")
    if name is None and (history is not None or from_version is not None):
        raise click.UsageError("--history and --from-version need a CONVERSATION")

    from domain.identity import encode_token
    from services.cli.follower import LimitReached, Shown, follow_conversation, follow_many
    from services.cli.requests import Patience, connected, conversation, settings_of

    shown = Shown(as_json=client.as_json, limit=limit)
    settings = settings_of(client.nats)

    async def work() -> None:
        async with connected(settings, "convo tail") as connection:
            if name is not None:
                await follow_conversation(
                    connection,
                    conversation(split_name(name, tenant)),
                    shown,
                    Patience(client.timeout_s),
                    history=history,
                    from_version=from_version,
                )
            else:
                tokens = ">" if tenant is None else f"*.{encode_token(tenant)}.*"
                await follow_many(connection, f"convo.live.{tokens}", shown)

    with contextlib.suppress(LimitReached):
        asyncio.run(work())
