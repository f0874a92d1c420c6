"""The commands about what was said and about the end of it: reply, edit, redact, close, reopen,
erase."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from services.cli import output
from services.cli.conversations import send
from services.cli.options import (
    LIST,
    OBJECT,
    Client,
    Named,
    Writing,
    conversation_argument,
    given,
    stdin,
    text_or_stdin,
    write_options,
)


@click.command()
@conversation_argument
@click.option("--message-id", metavar="ID", help="The message's id. [default: a new UUIDv7]")
@click.option("--role", help="Who says it. [default: assistant]")
@click.option("--model", help="The model that says it.")
@click.option("--metadata", type=OBJECT, help="An object kept with the message.")
@click.option("--finish-reason", metavar="WHY", help="Why it ended, as model APIs say it.")
@click.option("--prompt-tokens", type=int, metavar="N", help="All input tokens it used.")
@click.option("--completion-tokens", type=int, metavar="N", help="All output tokens it used.")
@click.option("--abort", "aborted", metavar="ID", help="End this reply instead, as it is.")
@click.option("--reason", help="With --abort: why.")
@write_options
def reply(
    client: Client,
    writing: Writing,
    *,
    named: Named,
    message_id: str | None,
    aborted: str | None,
    reason: str | None,
    finish_reason: str | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    **fields: Any,
) -> None:
    """Say a message while it comes, from standard input.

    It is on disk and in the window as it grows: pieces are gathered for 200 ms. At the end of the
    input it is finished; Ctrl-C aborts it, and what was said stays. What the input says after that
    is lost. --command-id, --expected-version and --actor go with its beginning.

    \b
    Example:
      my-model | convo reply c-1 --model gpt-4o
      convo reply c-1 --abort MESSAGE_ID --reason "stopped by ada"
    """
    if aborted is not None:
        body = {"message_id": aborted, **given(reason=reason)}
        send(client, writing, named, "reply.abort", body, what="reply aborted")
        return
    if reason is not None:
        raise click.UsageError("--reason belongs to --abort; say why it ended by --finish-reason")
    used = given(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    if len(used) == 1:
        raise click.UsageError("--prompt-tokens and --completion-tokens go together")
    from services.cli.replying import Beginning, say

    beginning = Beginning(given(message_id=message_id, **fields), writing)
    ending = given(finish_reason=finish_reason, usage=used or None)
    answer = asyncio.run(say(client, named, beginning, ending, stdin()))
    if client.as_json:
        output.show_json(answer.raw)
    else:
        output.show([output.written(answer.reply, "reply finished")])


@click.command()
@conversation_argument
@click.argument("message_id", metavar="MESSAGE_ID")
@click.argument("content", metavar="CONTENT", required=False)
@click.option("--content-json", type=LIST, help="The content as a list of typed parts instead.")
@write_options
def edit(
    client: Client,
    writing: Writing,
    *,
    named: Named,
    message_id: str,
    content: str | None,
    content_json: list[Any] | None,
) -> None:
    """Give a message other content.

    CONTENT `-` reads it from standard input. The record keeps what was there before.

    \b
    Example:
      convo edit c-1 MESSAGE_ID "Where is my order 17?"
    """
    if (content is None) == (content_json is None):
        raise click.UsageError("give the content once: as CONTENT or as --content-json")
    said = content_json if content is None else text_or_stdin(content)
    body = {"message_id": message_id, "content": said}
    send(client, writing, named, "edit", body, what="edited")


@click.command()
@conversation_argument
@click.argument("message_id", metavar="MESSAGE_ID")
@click.option("--reason", help="Why, for whoever reads the record.")
@write_options
def redact(
    client: Client, writing: Writing, *, named: Named, message_id: str, reason: str | None
) -> None:
    """Hide a message in every view, for good.

    The record keeps it: `convo events` and `convo replay` show it.

    \b
    Example:
      convo redact c-1 MESSAGE_ID --reason "a card number"
    """
    body = {"message_id": message_id, **given(reason=reason)}
    send(client, writing, named, "redact", body, what="redacted")


@click.command()
@conversation_argument
@click.option("--reason", help="closed (the default), inactive or deleted: its status from then.")
@write_options
def close(client: Client, writing: Writing, *, named: Named, reason: str | None) -> None:
    """Close a conversation.

    It takes nothing more until it is reopened; harmless where it is closed.

    \b
    Example:
      convo close c-1
      convo close c-1 --reason deleted
    """
    send(client, writing, named, "close", given(reason=reason), what=reason or "closed")


@click.command()
@conversation_argument
@click.option("--reason", help="Why, for whoever reads the record.")
@write_options
def reopen(client: Client, writing: Writing, *, named: Named, reason: str | None) -> None:
    """Reopen a closed conversation.

    It goes on as it was left; harmless where it is active.

    \b
    Example:
      convo reopen c-1
    """
    send(client, writing, named, "reopen", given(reason=reason), what="reopened")


@click.command()
@conversation_argument
@click.option("--reason", help="Why, for whoever reads the record.")
@click.option("--legal-basis", metavar="BASIS", help="By what right, as GDPR Art. 17.")
@write_options
def erase(client: Client, writing: Writing, *, named: Named, **fields: Any) -> None:
    """Erase a conversation from every view, for good.

    It takes nothing ever again. The stored events keep what was said.

    \b
    Example:
      convo erase c-1 --reason "asked for" --legal-basis "GDPR Art. 17"
    """
    send(client, writing, named, "erase", given(**fields), what="erased")
