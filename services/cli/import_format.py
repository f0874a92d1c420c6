r"""One line of an import file as commands: pure, so that the same line always asks for the same.

The format is contract section 7. What goes where:

| in the line | in the ledger |
|---|---|
| id, tenant_id, user_id, title, model, context | the conversation's own fields |
| metadata (an object), and any other field of the line | the conversation's metadata |
| role, content, name, tool_calls, tool_call_id, message_id, metadata of a message | the same |
| timestamp (or created_at) of a message, RFC 3339 with a zone | created_at, verbatim |
| any other timestamp: without a zone (no instant), a number, `NaT` | metadata.timestamp, verbatim |
| content null or absent without tool_calls | "" (and metadata.content null where it was given) |
| any other field, or one whose value does not fit its place | the message's metadata |
| usage: prompt_tokens, completion_tokens, and the counts in their `_details` (OpenAI) | the same |
| usage: cache_creation_input_tokens, cache_read_input_tokens (Anthropic) | cache_write_tokens,\
 cached_tokens; with input_tokens their sum is prompt_tokens |
| usage: message_index | message_id of that message |

A field that is null has nothing to keep and counts as absent where it has a place. A name that is
taken in the metadata gets an underscore behind it. Every message without an id of its own gets one
made from the conversation and its place, and every command an id made the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from domain.commands import (
    ID_CHARS_MAX,
    MESSAGES_PER_IMPORT_MAX,
    Cost,
    Time,
    parse_command,
    parse_object,
)
from domain.errors import InvalidRequest
from domain.identity import ConversationId
from services.cli.options import DEFAULT_TENANT

USER_ID = "import"
"""Whose a conversation is when neither the line nor --user-id says."""

REQUEST_BYTES = 524_288
"""Messages gathered into one request, in bytes of JSON; a larger message goes alone. The same
everywhere, so that a repeated import asks for the same commands."""

_NAMESPACE = UUID("5d5eb1f6-4c1c-5b0e-9a2f-0d3f6f0c7a11")

_ENVELOPE = b'{"mode":"append","messages":['


class LineRefused(Exception):
    """A line that cannot be imported; the message says why, `conversation` names it when known."""

    def __init__(self, reason: str, conversation: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.conversation = conversation


@dataclass(frozen=True, slots=True)
class PlannedCommand:
    """One command to send. `first` is the place of its first message or of its usage entry."""

    verb: str
    command_id: str
    body: bytes
    first: int = 0
    messages: int = 0


@dataclass(frozen=True, slots=True)
class PlannedMessage:
    """One message: its id, what it says (role and content), and its JSON in a request."""

    message_id: str
    said: tuple[Any, Any]
    json: bytes


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """Everything that one line asks for."""

    conversation: ConversationId
    init: PlannedCommand
    messages: tuple[PlannedMessage, ...]
    usage: tuple[PlannedCommand, ...]

    @property
    def name(self) -> str:
        """tenant/conversation."""
        return "/".join(self.conversation)

    def writes(
        self, there: Collection[str] = (), request_bytes: int = REQUEST_BYTES
    ) -> Iterator[PlannedCommand]:
        """Yields the commands after `init`, in order: messages, then usage.

        `there` holds ids of messages and of usage commands that the ledger has: they are left out.
        """
        for first, group in _groups(self.messages, request_bytes):
            missing = [each for each in group if each.message_id not in there]
            if missing:
                place = f"messages {first + group.index(missing[0])}+{len(missing)}"
                yield PlannedCommand(
                    verb="import",
                    command_id=_id(self.conversation, place),
                    body=_ENVELOPE + b",".join(each.json for each in missing) + b"]}",
                    first=first + group.index(missing[0]),
                    messages=len(missing),
                )
        yield from (each for each in self.usage if each.command_id not in there)


def parse_line(line: bytes, *, tenant: str | None = None, user_id: str = USER_ID) -> ImportPlan:
    """Returns what one line asks for; `LineRefused` when it cannot be imported.

    `tenant` takes the place of the line's own tenant_id, `user_id` only that of a missing user_id.
    """
    try:
        return _plan(parse_object(line), tenant, user_id)
    except InvalidRequest as error:
        raise LineRefused(error.message.replace("the body", "the line")) from None


def _plan(found: dict[str, Any], tenant: str | None, user_id: str) -> ImportPlan:
    line = Fields(found)
    id = line.take("id", _is_text)
    if id is None:
        raise LineRefused("the line has no `id` that is a string, which names its conversation")
    named = None if tenant is not None else line.take("tenant_id", _is_text)
    try:
        conversation = ConversationId.parse(tenant or named or DEFAULT_TENANT, id)
    except InvalidRequest as error:
        raise LineRefused(error.message, id) from None
    name = f"{conversation.tenant_id}/{id}"
    entries = line.take("messages", _is_list)
    if entries is None:
        raise LineRefused("the line has no `messages`, a list of objects", name)
    usage = line.take("usage", _is_list_or_object) or []
    try:
        messages = _messages(conversation, entries)
        return ImportPlan(
            conversation=conversation,
            init=_init(conversation, line, user_id),
            messages=messages,
            usage=tuple(
                _usage(conversation, place, entry, messages)
                for place, entry in enumerate([usage] if isinstance(usage, dict) else usage)
            ),
        )
    except LineRefused as error:
        raise LineRefused(error.reason, name) from None


def _init(conversation: ConversationId, line: Fields, user_id: str) -> PlannedCommand:
    body: dict[str, Any] = {"user_id": line.take("user_id", _is_filled_text) or user_id}
    for field, fits in (("title", _is_text), ("model", _is_text), ("context", _is_object)):
        if (value := line.take(field, fits)) is not None:
            body[field] = value
    body["metadata"] = line.metadata()
    command = PlannedCommand("init", _id(conversation, "init"), _json(body))
    _check(command)
    return command


def _messages(conversation: ConversationId, entries: list[Any]) -> tuple[PlannedMessage, ...]:
    own_ids: set[str] = set()
    messages = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise LineRefused(f"message {place} is not an object")
        body = _message(Fields(entry), own_ids)
        message_id = body.setdefault("message_id", _id(conversation, f"message {place}"))
        said = (body.get("role"), body["content"])
        messages.append(PlannedMessage(message_id, said, _json(body)))
    planned = tuple(messages)
    for first, group in _groups(planned, REQUEST_BYTES):
        request = _ENVELOPE + b",".join(each.json for each in group) + b"]}"
        _check(PlannedCommand("import", "", request, first))
    return planned


def _message(fields: Fields, own_ids: set[str]) -> dict[str, Any]:
    """The body of one message; `own_ids` are the ids that earlier ones brought along."""
    body: dict[str, Any] = {"role": fields.take("role", _is_anything)}
    calls = fields.take("tool_calls", _is_list_of_objects)
    body["content"] = fields.take("content", _is_content)
    if body["content"] is None and calls is None:
        body["content"] = ""
        if "content" in fields.null:
            fields.keep("content", None)
    if calls is not None:
        body["tool_calls"] = calls
    for field in ("name", "tool_call_id"):
        if (text := fields.take(field, _is_text)) is not None:
            body[field] = text
    own_id = fields.take("message_id", lambda value: _is_id(value) and value not in own_ids)
    if own_id is not None:
        own_ids.add(own_id)
        body["message_id"] = own_id
    created_at = fields.take("timestamp", _is_time) or fields.take("created_at", _is_time)
    if created_at is not None:
        body["created_at"] = created_at
    if metadata := fields.metadata():
        body["metadata"] = metadata
    return body


def _usage(
    conversation: ConversationId, place: int, entry: Any, messages: tuple[PlannedMessage, ...]
) -> PlannedCommand:
    if not isinstance(entry, dict):
        raise LineRefused(f"usage entry {place} is not an object")
    fields = Fields(entry)
    body = _tokens(fields)
    for field, fits in (
        ("cached_tokens", _is_whole),
        ("cache_write_tokens", _is_whole),
        ("reasoning_tokens", _is_whole),
        ("model", _is_text),
        ("provider", _is_text),
        ("cost_usd", _is_cost),
    ):
        if field not in body and (value := fields.take(field, fits)) is not None:
            body[field] = value
    index = fields.take("message_index", lambda value: _is_place(value, messages))
    own_id = fields.take("message_id", _is_id) if index is None else messages[index].message_id
    if own_id is not None:
        body["message_id"] = own_id
    if metadata := fields.metadata():
        body["metadata"] = metadata
    command = PlannedCommand("usage", _id(conversation, f"usage {place}"), _json(body), place)
    _check(command)
    return command


def _tokens(fields: Fields) -> dict[str, Any]:
    """prompt_tokens, completion_tokens and their parts, from whichever names the entry uses."""
    body: dict[str, Any] = {}
    prompt = fields.take("prompt_tokens", _is_whole)
    details = "prompt_tokens_details"
    if prompt is None:
        details = "input_tokens_details"  # OpenAI's newer name: the input then includes its parts
        prompt = fields.take("input_tokens", _is_whole)
        written = fields.take("cache_creation_input_tokens", _is_whole)
        read = fields.take("cache_read_input_tokens", _is_whole)
        if written is not None:
            body["cache_write_tokens"] = written
        if read is not None:
            body["cached_tokens"] = read
        if prompt is not None:
            prompt += (written or 0) + (read or 0)
    completion = fields.take("completion_tokens", _is_whole)
    further = "completion_tokens_details"
    if completion is None:
        further = "output_tokens_details"
        completion = fields.take("output_tokens", _is_whole)
    for name, part in ((details, "cached_tokens"), (further, "reasoning_tokens")):
        value = fields.take_within(name, part) if part not in body else None
        if value is not None:
            body[part] = value
    if prompt is not None:
        body["prompt_tokens"] = prompt
    if completion is not None:
        body["completion_tokens"] = completion
    total = (prompt or 0) + (completion or 0)
    fields.take("total_tokens", lambda value: value == total)  # says nothing that the parts do not
    return body


class Fields:
    """The fields of one object, taken one by one; those left over are metadata."""

    def __init__(self, found: dict[str, Any]) -> None:
        self._left = dict(found)
        self._kept: dict[str, Any] = {}
        self.null: set[str] = set()

    def take(self, field: str, fits: Callable[[Any], bool]) -> Any:
        """The field's value, which then counts as placed; None when absent, null or not fitting."""
        value = self._left.get(field)
        if value is None:
            if field in self._left:
                del self._left[field]
                self.null.add(field)
            return None
        return self._left.pop(field) if fits(value) else None

    def take_within(self, field: str, part: str) -> int | None:
        """A count inside the object `field`; what else that object holds stays."""
        value = self._left.get(field)
        if not isinstance(value, dict) or not _is_whole(value.get(part)):
            return None
        rest = {name: each for name, each in value.items() if name != part}
        if rest:
            self._left[field] = rest
        else:
            del self._left[field]
        count: int = value[part]
        return count

    def keep(self, field: str, value: Any) -> None:
        """Has the metadata hold a value of a field that was taken."""
        self._kept[field] = value

    def metadata(self) -> dict[str, Any]:
        """The object's own metadata and every field that was not taken, none over another."""
        own = self._left.pop("metadata", None)
        gathered = dict(own) if isinstance(own, dict) else {}
        if own is not None and not isinstance(own, dict):
            gathered["metadata"] = own
        for field, value in (*self._left.items(), *self._kept.items()):
            name = field
            while name in gathered and gathered[name] != value:
                name += "_"
            gathered[name] = value
        return gathered


def _is_anything(value: Any) -> bool:
    return value is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_filled_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= ID_CHARS_MAX


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_list_or_object(value: Any) -> bool:
    return isinstance(value, list | dict)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_object, value))


def _is_content(value: Any) -> bool:
    return value is not None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_place(value: Any, messages: tuple[PlannedMessage, ...]) -> bool:
    return _is_whole(value) and 0 <= value < len(messages)


def _is_time(value: Any) -> bool:
    return _holds(_TIME, value)


def _is_cost(value: Any) -> bool:
    return _holds(_COST, value)


_TIME: TypeAdapter[str] = TypeAdapter(Time)
_COST: TypeAdapter[str] = TypeAdapter(Cost)


def _holds(rule: TypeAdapter[str], value: Any) -> bool:
    """Says whether the domain itself takes this value."""
    try:
        rule.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _groups(
    messages: tuple[PlannedMessage, ...], request_bytes: int
) -> Iterator[tuple[int, tuple[PlannedMessage, ...]]]:
    """Yields (place of the first, messages) of each request: at most 500, and within the bytes."""
    first, size = 0, 0
    for place, message in enumerate(messages):
        too_many = place - first == MESSAGES_PER_IMPORT_MAX
        if place > first and (too_many or size + len(message.json) + 1 > request_bytes):
            yield first, messages[first:place]
            first, size = place, 0
        size += len(message.json) + 1
    if first < len(messages):
        yield first, messages[first:]


def _check(command: PlannedCommand) -> None:
    """Has the domain read the command as the service will; `LineRefused` names the place."""
    try:
        parse_command(command.verb, command.body)
    except InvalidRequest as error:
        raise LineRefused(refusal(error.message, error.details, command)) from None


def refusal(message: str, details: Any, command: PlannedCommand) -> str:
    """Why a command is refused, with places counted in the line instead of in the command."""
    problem = details[0] if isinstance(details, list) and details else {}
    path, what = str(problem.get("field", "")), str(problem.get("problem", message))
    if isinstance(details, dict) and isinstance(details.get("index"), int):
        return f"message {command.first + details['index']}: {message}"
    if command.verb == "usage":
        return f"usage entry {command.first}: {f'{path} ' if path else ''}{what}"
    if command.verb == "import" and (found := _MESSAGE_FIELD.fullmatch(path)):
        place = command.first + int(found["place"])
        field = f"{found['field']} " if found["field"] else ""
        return f"message {place}: {field}{what}"
    return f"{path} {what}" if path else message


_MESSAGE_FIELD = re.compile(r"messages\.(?P<place>\d+)(?:\.(?P<field>.*))?", re.ASCII)


def _json(body: dict[str, Any]) -> bytes:
    return to_json(body)


def _id(conversation: ConversationId, place: str) -> str:
    """An id that is always the same for this place in this conversation."""
    return str(uuid5(_NAMESPACE, f"{conversation.key} {place}"))
