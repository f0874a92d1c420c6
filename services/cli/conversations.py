"""The commands that write to one conversation: init, append, usage, turn, reset, update."""

from __future__ import annotations

import json
from typing import IO, Any

import click

from services.cli import output
from services.cli.options import (
    LIST,
    OBJECT,
    Client,
    Named,
    Writing,
    conversation_argument,
    given,
    text_or_stdin,
    write_options,
)


@click.command()
@conversation_argument
@click.argument("place_user_id", metavar="USER_ID", required=False)
@click.option("--user-id", metavar="ID", help="Whose conversation it is; the same as USER_ID.")
@click.option("--title", help="A title; without one the first user message gives it.")
@click.option("--model", help="The model that answers in it.")
@click.option("--context", type=OBJECT, help="An object for the application's own use.")
@click.option("--metadata", type=OBJECT, help="An object kept with the conversation.")
@write_options
def init(
    client: Client,
    writing: Writing,
    *,
    named: Named,
    place_user_id: str | None,
    user_id: str | None,
    **fields: Any,
) -> None:
    """Start a conversation.

    Repeating it is harmless and answers the present state.

    \b
    Example:
      convo init c-1 ada --title "Travel plans"
      convo init acme/c-1 --user-id ada --metadata '{"channel": "web"}'
    """
    if place_user_id is not None and user_id is not None:
        raise click.UsageError("USER_ID is given twice: in its place and as --user-id")
    user_id = user_id if place_user_id is None else place_user_id
    if user_id is None:
        raise click.UsageError("Missing argument 'USER_ID' (or the option --user-id)")
    body = given(user_id=user_id, **fields)
    send(client, writing, named, "init", body, what=f"conversation of {user_id}")


@click.command()
@conversation_argument
@click.argument("place_role", metavar="ROLE", required=False)
@click.argument("place_content", metavar="CONTENT", required=False)
@click.option("--role", help="user, assistant, system, developer or tool; the same as ROLE.")
@click.option("--content", help="The text, `-` for standard input; the same as CONTENT.")
@click.option("--content-json", type=LIST, help="The content as a list of typed parts instead.")
@click.option("--message-id", metavar="ID", help="The message's id. [default: a new UUIDv7]")
@click.option("--name", "author", metavar="NAME", help="Who speaks, or the function of a result.")
@click.option("--tool-calls", type=LIST, help="The calls; the content may then be absent.")
@click.option("--tool-call-id", metavar="ID", help="The call that this message answers.")
@click.option("--created-at", metavar="TIME", help="The original time, RFC 3339 with its zone.")
@click.option("--metadata", type=OBJECT, help="An object kept with the message.")
@write_options
def append(
    client: Client,
    writing: Writing,
    *,
    named: Named,
    place_role: str | None,
    place_content: str | None,
    role: str | None,
    content: str | None,
    content_json: list[Any] | None,
    author: str | None,
    **fields: Any,
) -> None:
    """Append one message.

    CONTENT `-` reads it from standard input, as it is. Put `--` before a CONTENT that begins
    with a dash, or give it as --content.

    \b
    Example:
      convo append c-1 user "Where is my order?"
      convo append c-1 assistant - < answer.txt
    """
    if role is not None and place_role is not None and place_content is None:
        place_role, place_content = None, place_role  # --role given: the one place is CONTENT
    role = _once("ROLE", "--role", place_role, role)
    content = _once("CONTENT", "--content", place_content, content)
    if role is None:
        raise click.UsageError("Missing argument 'ROLE' (or the option --role)")
    if content is not None and content_json is not None:
        raise click.UsageError("the content is given twice: as text and as --content-json")
    if content is None and content_json is None and fields.get("tool_calls") is None:
        raise click.UsageError("Missing argument 'CONTENT' (or --content, `-` for standard input)")
    text = None if content is None else text_or_stdin(content)
    body = {
        "role": role,
        "content": text if content_json is None else content_json,
        **given(name=author, **fields),
    }
    send(client, writing, named, "append", body, what=f"message of {role}")


@click.command()
@conversation_argument
@click.option("--prompt-tokens", type=int, metavar="N", required=True, help="All input tokens.")
@click.option(
    "--completion-tokens", type=int, metavar="N", required=True, help="All output tokens."
)
@click.option("--cached-tokens", type=int, metavar="N", help="Of the prompt: read from a cache.")
@click.option("--cache-write-tokens", type=int, metavar="N", help="Of the prompt: put in a cache.")
@click.option("--reasoning-tokens", type=int, metavar="N", help="Of the completion: reasoning.")
@click.option("--model", help="The model that used them.")
@click.option("--provider", help="Who ran the model.")
@click.option("--message-id", metavar="ID", help="The message that they were used for.")
@click.option("--cost-usd", metavar="DECIMAL", help="What they cost, as 0.0123.")
@click.option("--metadata", type=OBJECT, help="An object kept with the record.")
@write_options
def usage(client: Client, writing: Writing, *, named: Named, **fields: Any) -> None:
    """Record the tokens that one answer used.

    \b
    Example:
      convo usage c-1 --prompt-tokens 1200 --completion-tokens 80 --model gpt-4o
    """
    body = given(**fields)
    what = f"{body['prompt_tokens']} + {body['completion_tokens']} tokens"
    send(client, writing, named, "usage", body, what=what)


@click.command()
@conversation_argument
@click.option(
    "--message", "spoken", metavar="ROLE:CONTENT", multiple=True, help="A message; repeat it."
)
@click.option(
    "--body", "source", metavar="FILE", type=click.File("rb"), help="The body as JSON, `-` stdin."
)
@click.option("--prompt-tokens", type=int, metavar="N", help="All input tokens of the turn.")
@click.option("--completion-tokens", type=int, metavar="N", help="All output tokens of the turn.")
@click.option("--model", help="The model that used them.")
@write_options
def turn(
    client: Client,
    writing: Writing,
    *,
    named: Named,
    spoken: tuple[str, ...],
    source: IO[bytes] | None,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    model: str | None,
) -> None:
    """Append several messages and their usage.

    All of it or nothing. FILE holds {"messages": [...], "usage": {...}}; --message adds to its
    messages.

    \b
    Example:
      convo turn c-1 --message "user:Hello" --message "assistant:Hi!" \\
          --prompt-tokens 9 --completion-tokens 3
      convo turn c-1 --body turn.json
    """
    body = {} if source is None else _json_object(source)
    if spoken:
        before = body.get("messages", [])
        if not isinstance(before, list):
            raise click.UsageError("`messages` in the body must be a list")
        body["messages"] = [*before, *(_spoken(each) for each in spoken)]
    if not body.get("messages"):
        raise click.UsageError("a turn has messages: give --message ROLE:CONTENT or --body FILE")
    used = given(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, model=model)
    if used:
        if "usage" in body:
            raise click.UsageError("the usage is given twice: in the body and as flags")
        body["usage"] = used
    what = f"{len(body['messages'])} messages"
    send(client, writing, named, "turn", body, what=what)


@click.command()
@conversation_argument
@click.option("--reason", help="Why, for whoever reads the history.")
@write_options
def reset(client: Client, writing: Writing, *, named: Named, reason: str | None) -> None:
    """Begin a new session.

    The window and the totals start over; the history stays.

    \b
    Example:
      convo reset c-1 --reason "new topic"
    """
    send(client, writing, named, "reset", given(reason=reason), what="reset")


@click.command()
@conversation_argument
@click.option("--title", help="The new title.")
@click.option("--model", help="The new model.")
@click.option("--user-id", metavar="ID", help="The new user.")
@click.option("--context", type=OBJECT, help="Merged into the context; null removes a key.")
@click.option("--metadata", type=OBJECT, help="Merged into the metadata; null removes a key.")
@write_options
def update(client: Client, writing: Writing, *, named: Named, **fields: Any) -> None:
    """Change title, model, user, context or metadata.

    \b
    Example:
      convo update c-1 --title "Order 17" --context '{"locale": "de", "draft": null}'
    """
    body = given(**fields)
    if not body:
        raise click.UsageError(
            "nothing to change: give --title, --model, --user-id, --context or --metadata"
        )
    send(client, writing, named, "update", body, what="updated")


def send(
    client: Client,
    writing: Writing,
    named: Named,
    verb: str,
    body: dict[str, Any],
    *,
    what: str,
) -> None:
    """Sends the command and shows its answer."""
    from services.cli.requests import encode, write

    answer = write(client, writing, named, verb, encode(body))
    if client.as_json:
        output.show_json(answer.raw)
        return
    ids = [answer.reply["message_id"]] if "message_id" in answer.reply else []
    ids += [] if ids else answer.reply.get("message_ids", [])
    output.show([output.written(answer.reply, output.one_line(what)), *(f"  {id}" for id in ids)])


def _once(place: str, flag: str, in_place: str | None, as_flag: str | None) -> str | None:
    if in_place is not None and as_flag is not None:
        msg = f"{place} is given twice: in its place and as {flag}"
        raise click.UsageError(msg)
    return as_flag if in_place is None else in_place


def _spoken(text: str) -> dict[str, str]:
    role, colon, content = text.partition(":")
    if not colon:
        msg = f"--message is ROLE:CONTENT, as user:Hello; {text!r} has no colon"
        raise click.UsageError(msg)
    return {"role": role, "content": text_or_stdin(content)}


def _json_object(source: IO[bytes]) -> dict[str, Any]:
    try:
        body = json.loads(source.read())
    except (ValueError, RecursionError) as error:
        msg = f"--body is not JSON: {error}"
        raise click.UsageError(msg) from None
    if not isinstance(body, dict):
        raise click.UsageError('--body must be a JSON object, as {"messages": [...]}')
    return body
