"""The commands that look over a tenant's conversations: list and search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from services.cli import output
from services.cli.options import DEFAULT_TENANT, Client, client_options, given

STATUSES = ("active", "closed", "inactive", "deleted", "erased")
ROLES = ("user", "assistant", "system", "developer", "tool")

min_seq_option = click.option(
    "--min-seq", type=click.IntRange(0), metavar="N", help="With event seq N included."
)


@click.command(name="list")
@click.argument("tenant", required=False)
@click.option("--tenant", "flag", metavar="TENANT", help="The same as the argument.")
@click.option("--user-id", metavar="USER", help="This user's only.")
@click.option("--status", type=click.Choice(STATUSES), help="[default: neither deleted nor erased]")
@click.option("--limit", type=int, metavar="N", help="At most N a page, up to 1000.")
@click.option("--cursor", metavar="TEXT", help="The page behind; the page before says which.")
@click.option("--all", "every_page", is_flag=True, help="All pages; with --json a reply a line.")
@min_seq_option
@client_options
def list_(
    client: Client,
    *,
    tenant: str | None,
    flag: str | None,
    min_seq: int | None,
    every_page: bool,
    **fields: Any,
) -> None:
    """List a tenant's conversations, newest activity first.

    TENANT is `default` where it is not given.

    \b
    Example:
      convo list
      convo list acme --user-id ada --limit 20
      convo list acme --status deleted --all --json
    """
    from services.cli.requests import tenant_wide

    body = given(**fields)
    while True:
        answer = tenant_wide(client, "list", _tenant(tenant, flag), body, min_seq)
        if client.as_json:
            output.show_json(answer.raw)
        else:
            output.show(map(_conversation, answer.reply["conversations"]))
        following = answer.reply.get("next")
        if following is None:
            return
        if not every_page:
            if not client.as_json:
                output.show([f"(more: --cursor {following}, or --all)"])
            return
        body = {**body, "cursor": following}


@click.command()
@click.argument("query")
@click.option("--tenant", metavar="TENANT", help="[default: default]")
@click.option("--user-id", metavar="USER", help="In this user's conversations.")
@click.option("--role", type=click.Choice(ROLES), help="Said by this role.")
@click.option("--conversation-id", metavar="ID", help="In this conversation.")
@click.option("--from", "from_", metavar="TIME", help="Not before; RFC 3339 with its zone.")
@click.option("--to", metavar="TIME", help="Not after.")
@click.option("--limit", type=int, metavar="N", help="At most N hits, up to 100.")
@min_seq_option
@client_options
def search(
    client: Client,
    *,
    query: str,
    tenant: str | None,
    from_: str | None,
    min_seq: int | None,
    **fields: Any,
) -> None:
    """Find messages by what they say, the best first.

    Every word must be in the message, in any case and with or without accents; "a phrase" as it
    stands, and begin* as the beginning of a word. Of Chinese and Japanese any part is found.

    \b
    Example:
      convo search "refund policy" --tenant acme
      convo search '"gift card" refund*' --role user --user-id ada
      convo search 北京 --json
    """
    from services.cli.requests import tenant_wide

    body = {"query": query, **given(**fields, **{"from": from_})}
    answer = tenant_wide(client, "search", _tenant(None, tenant), body, min_seq)
    if client.as_json:
        output.show_json(answer.raw)
    else:
        output.show(line for hit in answer.reply["hits"] for line in _hit(hit))


def _tenant(argument: str | None, flag: str | None) -> str:
    if argument is not None and flag is not None and argument != flag:
        raise click.UsageError("the tenant is given twice: leave --tenant out")
    return argument or flag or DEFAULT_TENANT


def _conversation(found: dict[str, Any]) -> str:
    """One conversation on one line."""
    tokens = (found.get("tokens_used") or {}).get("total", 0)
    status = "" if found.get("status") == "active" else f"  [{found.get('status')}]"
    return output.row(
        f"{found.get('last_activity')}  {output.one_line(str(found.get('conversation_id')), 400)}"
        f"  {output.one_line(str(found.get('user_id') or '-'))}"
        f"  {found.get('message_count')} messages, {tokens:,} tokens{status}"
        f"  {output.one_line(str(found.get('title') or ''))}".rstrip()
    )


def _hit(found: dict[str, Any]) -> Iterator[str]:
    """One hit: where it is, and the snippet."""
    yield output.row(
        f"{output.one_line(str(found.get('conversation_id')), 400)}  {found.get('version')}"
        f"  {found.get('timestamp')}  {found.get('role')}  {found.get('message_id')}"
    )
    yield f"    {output.one_line(str(found.get('snippet')), 400)}"
