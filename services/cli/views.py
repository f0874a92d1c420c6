"""The commands that read one conversation: messages, usage-totals, state, history, events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from services.cli import output
from services.cli.options import Client, Named, Reading, conversation_argument, given, read_options


@click.command()
@conversation_argument
@click.option("--limit", type=int, metavar="N", help="The last N only.")
@read_options
def messages(client: Client, reading: Reading, *, named: Named, limit: int | None) -> None:
    """Show the recent window.

    That is the last messages since the last reset, oldest first.

    \b
    Example:
      convo messages c-1 --limit 20
    """
    answer = _read(client, reading, named, "messages", given(limit=limit))
    if not client.as_json:
        output.show(output.messages(answer["messages"]))
        if answer.get("truncated"):
            output.show(
                ["(older messages left out: too large for one answer; see `convo history`)"]
            )


@click.command(name="usage-totals")
@conversation_argument
@read_options
def usage_totals(client: Client, reading: Reading, *, named: Named) -> None:
    """Show the tokens used since the reset and in all.

    \b
    Example:
      convo usage-totals c-1
    """
    answer = _read(client, reading, named, "usage", {})
    if not client.as_json:
        output.show(output.totals(answer))


@click.command()
@conversation_argument
@click.option("--at-version", type=int, metavar="N", help="As it was right after version N.")
@click.option("--at", metavar="TIME", help="As it was at this time, RFC 3339 with its zone.")
@read_options
def state(
    client: Client,
    reading: Reading,
    *,
    named: Named,
    at_version: int | None,
    at: str | None,
) -> None:
    """Show the state, now or at an earlier version or time.

    \b
    Example:
      convo state c-1
      convo state c-1 --at-version 7
      convo state c-1 --at 2026-11-21T09:00:00Z
    """
    body = given(at_version=at_version, at=at)
    answer = _read(client, reading, named, "state", body)
    if not client.as_json:
        output.show(output.state(answer["state"]))


@click.command()
@conversation_argument
@click.option("--after-version", type=int, metavar="N", help="The page after version N.")
@click.option("--before-version", type=int, metavar="N", help="The page before version N.")
@click.option("--limit", type=int, metavar="N", help="At most N messages a page, up to 1000.")
@click.option("--include-reset", is_flag=True, help="Reach behind the last reset.")
@click.option("--all", "every_page", is_flag=True, help="All pages; with --json a reply a line.")
@read_options
def history(
    client: Client,
    reading: Reading,
    *,
    named: Named,
    every_page: bool,
    include_reset: bool,
    **fields: Any,
) -> None:
    """Show the whole conversation, page by page.

    Oldest first; without --all one page, and how to get the next.

    \b
    Example:
      convo history c-1 --limit 100
      convo history c-1 --all --include-reset
    """
    body = given(include_reset=include_reset or None, **fields)
    onward = "after_version" if body.get("before_version") is None else "before_version"
    for page in _pages(client, reading, named, "history", body, onward=onward, every=every_page):
        output.show(output.messages(page["messages"]))


@click.command()
@conversation_argument
@click.option("--after-version", type=int, metavar="N", help="The page after version N.")
@click.option("--limit", type=int, metavar="N", help="At most N events a page, up to 1000.")
@click.option("--all", "every_page", is_flag=True, help="All pages; with --json a reply a line.")
@read_options
def events(
    client: Client,
    reading: Reading,
    *,
    named: Named,
    every_page: bool,
    **fields: Any,
) -> None:
    """Show the events as they are stored.

    Each on a line, cut short; --json has all of it.

    \b
    Example:
      convo events c-1 --after-version 10
      convo events c-1 --all --json
    """
    for page in _pages(
        client,
        reading,
        named,
        "events",
        given(**fields),
        onward="after_version",
        every=every_page,
    ):
        output.show(output.event(each) for each in page["events"])


def _read(
    client: Client,
    reading: Reading,
    named: Named,
    view: str,
    body: dict[str, Any],
) -> dict[str, Any]:
    """Asks for the view; with --json its answer is shown as it is."""
    from services.cli.requests import read

    answer = read(client, reading, named, view, body)
    if client.as_json:
        output.show_json(answer.raw)
    return answer.reply


def _pages(
    client: Client,
    reading: Reading,
    named: Named,
    view: str,
    body: dict[str, Any],
    *,
    onward: str,
    every: bool,
) -> Iterator[dict[str, Any]]:
    """Yields pages to be shown; `next` of one is `onward` of the following.

    With --json they are shown here, as they are, and none is yielded.
    """
    while True:
        page = _read(client, reading, named, view, body)
        if not client.as_json:
            yield page
        following = page.get("next")
        if following is None:
            return
        if not every:
            if not client.as_json:
                flag = onward.replace("_", "-")
                output.show([f"(more: --{flag} {following}, or --all)"])
            return
        body = {**body, onward: following}
