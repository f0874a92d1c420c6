"""`convo keys`: the API keys of the gateway (CONVO_AUTH=keys)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli import output
from services.cli.errors import CommandFailed

if TYPE_CHECKING:
    from services.gateway.keys import KeyFile


@click.group()
def keys() -> None:
    """Make, list and remove the gateway's API keys.

    \b
    Example:
      convo keys add web --tenant acme
      convo keys list
      convo keys remove web
    """


data_option = click.option(
    "--data", "data_dir", type=click.Path(path_type=Path), metavar="DIR", help="The data directory."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@keys.command()
@click.argument("name")
@click.option("--tenant", "tenant_id", required=True, metavar="TENANT", help="Whose data it opens.")
@click.option("--user-id", metavar="USER", help="Only this user's; else every user's.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["read", "write", "delete"]),
    help="What it may do (repeatable); everything when not given.",
)
@click.option("--requests-per-minute", type=click.IntRange(1), metavar="N", help="At most so many.")
@data_option
@json_option
def add(*, name: str, data_dir: Path | None, as_json: bool, **fields: Any) -> None:
    """Make a key and print it, this once.

    \b
    Example:
      convo keys add web --tenant acme
      convo keys add ada --tenant acme --user-id ada --scope read
    """
    from services.gateway.errors import GatewayUnusable

    try:
        text = _file(data_dir).add(name, fields.pop("tenant_id"), fields.pop("user_id"), **fields)
    except (GatewayUnusable, OSError) as error:
        raise CommandFailed(str(error)) from None
    if as_json:
        output.show_json({"name": name, "key": text})
    else:
        output.show([text])


@keys.command(name="list")
@data_option
@json_option
def list_(*, data_dir: Path | None, as_json: bool) -> None:
    """Show the keys, without their secrets.

    \b
    Example:
      convo keys list --json
    """
    from services.gateway.errors import GatewayUnusable

    try:
        found = _file(data_dir).load()
    except GatewayUnusable as error:
        raise CommandFailed(str(error)) from None
    if as_json:
        output.show_json([key.model_dump(exclude={"sha256"}) for key in found])
        return
    output.show(
        output.row(
            f"{key.name:<20} tenant {key.tenant_id}  user {key.user_id or '(every)'}"
            f"  {', '.join(key.scopes)}  since {key.created_at[:10]}"
        )
        for key in found
    )


@keys.command()
@click.argument("name")
@data_option
def remove(*, name: str, data_dir: Path | None) -> None:
    """End a key: it is refused within a second.

    \b
    Example:
      convo keys remove web
    """
    from services.gateway.errors import GatewayUnusable

    try:
        _file(data_dir).remove(name)
    except (GatewayUnusable, OSError) as error:
        raise CommandFailed(str(error)) from None


def _file(data_dir: Path | None) -> KeyFile:
    from services.cli.requests import settings_of
    from services.gateway.keys import KeyFile

    return KeyFile(settings_of(None, data_dir=data_dir).api_keys)
