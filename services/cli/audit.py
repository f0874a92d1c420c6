"""The commands that go through the record again: replay, verify, diff."""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any

import click

from services.cli import output
from services.cli.options import (
    Client,
    Named,
    client_options,
    conversation_argument,
    given,
    split_name,
)

VERSION = re.compile(r"\d{1,16}")


class Moment(click.ParamType[Any]):
    """A version (a whole number) or a time (RFC 3339 with its zone)."""

    name = "moment"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """Both, as the help shows them."""
        return "VERSION|TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The version as an int, the time as it is written."""
        from datetime import datetime

        if VERSION.fullmatch(value):
            return int(value)
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            time = None
        if time is None or time.tzinfo is None:
            self.fail(
                f"{value!r} is neither a version (7) nor a time with its zone "
                "(2026-11-21T09:00:00Z)",
                param,
                ctx,
            )
        return value


class Speed(click.ParamType[Any]):
    """How fast time passes in a replay: `1x` as it happened, `10x`, `max` without any pause."""

    name = "speed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The factor; None for max."""
        if value == "max":
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)x", value)
        if found is None or float(found[1]) <= 0:
            self.fail("write it as 1x, 10x or max", param, ctx)
        return float(found[1])


MOMENT = Moment()


@click.command()
@conversation_argument
@click.option("--from", "from_", type=MOMENT, help="Begin there.")
@click.option("--to", type=MOMENT, help="End there, it included.")
@click.option("--at", metavar="TIME", type=MOMENT, help="End with what had happened by then.")
@click.option("--tz", default="UTC", metavar="ZONE", help="Of the times: UTC, local, Europe/Rome.")
@click.option("--step", is_flag=True, help="Go on at each key; q ends.")
@click.option("--follow", is_flag=True, help="Then show what happens, until Ctrl-C.")
@click.option(
    "--speed", type=Speed(), default="max", metavar="SPEED", help="1x, 10x or max. [default: max]"
)
@client_options
def replay(client: Client, *, named: Named, from_: Any, to: Any, at: Any, **flags: Any) -> None:
    """Go through a conversation event by event.

    Each with the state it led to: who did what and when, what changed, the messages in the window
    and the digest of that window, the token totals. With --json an entry a line, whole.

    \b
    Example:
      convo replay c-1
      convo replay c-1 --from 7 --to 12 --tz local
      convo replay c-1 --at 2026-11-21T09:00:00Z --json
      convo replay c-1 --step
      convo replay c-1 --speed 10x --follow
    """
    import asyncio
    import contextlib

    from services.cli.replaying import Ended, Span, replay_conversation
    from services.cli.timeline import Timeline, UnknownZone, zone_of

    if at is not None and to is not None:
        raise click.UsageError("--at and --to exclude each other")
    if flags["follow"] and (to is not None or at is not None):
        raise click.UsageError("--follow has no end: leave --to and --at away")
    if flags["step"] and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("--step waits for keys: it needs a terminal")
    try:
        zone = zone_of(flags["tz"])
    except UnknownZone:
        raise click.UsageError(
            f"there is no time zone {flags['tz']!r}: write UTC, local, or one as Europe/Rome"
        ) from None
    timeline = Timeline(
        zone, flags["tz"], width=shutil.get_terminal_size().columns, colours=sys.stdout.isatty()
    )
    span = Span(from_, to if at is None else at)
    with contextlib.suppress(Ended):
        asyncio.run(
            replay_conversation(
                client,
                named,
                span,
                timeline,
                speed=flags["speed"],
                step=flags["step"],
                follow=flags["follow"],
            )
        )


@click.command()
@click.argument("name", metavar="[TENANT/]CONVERSATION|BUNDLE", required=False)
@click.option("--tenant", metavar="TENANT", help="The tenant; CONVERSATION is then taken whole.")
@click.option("--all", "everything", is_flag=True, help="Every event, chain and checkpoint.")
@click.option("--projections", is_flag=True, help="Compare what readers are shown with the record.")
@click.option(
    "--key", metavar="KEY|FILE", help="The notary's public key, as it was published to you."
)
@client_options
def verify(client: Client, *, name: str | None, tenant: str | None, **flags: Any) -> None:
    """Check that the record is the one that was written.

    Of a conversation: its hash chain, recomputed from the stream alone. With --all: every
    conversation, every sequence of the streams, and the notary's signed checkpoints. Of a file
    that `convo export` wrote: all of it, without a server. With --projections: snapshots and live
    views, of CONVERSATION or of all, beside the record folded again. The exit status is 1 when
    anything does not fit, and the first bad version, or checkpoint, is named.

    \b
    Example:
      convo verify c-1
      convo verify --all --key notary.pub
      convo verify c-1.evidence.jsonl
      convo verify --projections
    """
    from services.cli import verifying

    if name is None and not (flags["everything"] or flags["projections"]):
        raise click.UsageError("name a conversation or a bundle, or say --all")
    if flags["everything"] and name is not None:
        raise click.UsageError("--all takes no conversation")
    pinned = verifying.public_key(flags["key"])
    if flags["projections"]:
        verifying.projections(client, None if name is None else split_name(name, tenant))
    if flags["everything"]:
        verifying.everything(client, pinned)
    if flags["everything"] or flags["projections"] or name is None:
        return
    if tenant is None and verifying.is_bundle(name):
        verifying.bundle(client, name, pinned)
    else:
        verifying.one(client, split_name(name, tenant))


@click.command()
@conversation_argument
@click.option("--from", "from_", type=MOMENT, required=True, help="The one state; 0: before all.")
@click.option("--to", type=MOMENT, required=True, help="The other state.")
@client_options
def diff(client: Client, *, named: Named, from_: Any, to: Any) -> None:
    """Show what changed between two versions or times.

    Path by path of the state, `-` what was and `+` what is; the window's messages by their ids.

    \b
    Example:
      convo diff c-1 --from 3 --to 9
      convo diff c-1 --from 2026-11-21T09:00:00Z --to 12 --json
    """
    from services.cli.requests import audit
    from services.cli.timeline import differences

    body = given(
        **{
            f"{end}_{'version' if isinstance(moment, int) else 'at'}": moment
            for end, moment in (("from", from_), ("to", to))
        }
    )
    answer = audit(client, named, "diff", body)
    if client.as_json:
        output.show_json(answer.raw)
    else:
        output.show(differences(answer.reply))
