"""What can be asked of a conversation: one class per verb, and the reading of requests.

`parse_command` is the boundary: what comes out is well formed, and what goes wrong is
InvalidRequest. An optional field given as null counts as absent, except in `update`, where null
removes a fact.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from itertools import islice
from math import isinf
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from .errors import InvalidRequest
from .events import ClosedReason
from .messages import Content, JSONObject, Role

MESSAGES_PER_TURN_MAX = 100
MESSAGES_PER_IMPORT_MAX = 500
CHUNKS_PER_COMMAND_MAX = 100
ID_CHARS_MAX = 128
TOKENS_MAX = 2**53
INDEX_MAX = 2**53
# How deeply a request may be nested, so that what stores or repeats it stays within every reader.
DEPTH_MAX = 64
# Keys and list items in one request, at every level: a worker reads one request at a time.
VALUES_MAX = 100_000

_PROBLEMS_MAX = 20
_FIELD_CHARS_MAX = 200


# -- values -------------------------------------------------------------------------------------

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_DECIMAL_18_9 = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)


def _time_with_zone(text: str) -> str:
    try:
        if not _RFC_3339.fullmatch(text):
            raise ValueError
        datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            "must be an RFC 3339 time with a zone, such as 2026-11-21T09:00:00Z"
        ) from None
    return text


def _decimal(text: str) -> str:
    if not _DECIMAL_18_9.fullmatch(text):
        raise ValueError(
            'must be a decimal number in a string, such as "0.0021": '
            "not negative, at most 9 digits before and 9 after the point"
        )
    return text


def _content(value: Any) -> Content:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        if value and all(map(_is_typed_part, value)):
            return value
        raise ValueError('must have at least one part, each an object with a string "type"')
    raise ValueError("must be a string, a list of parts, or null beside tool_calls")


def _is_typed_part(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _wrong(field: str, problem: str) -> PydanticCustomError:
    """Returns what a validator of a whole value raises about one of its fields."""
    return PydanticCustomError("wrong_field", "{problem}", {"field": field, "problem": problem})


def _empty_object_for_null(value: Any) -> Any:
    return {} if value is None else value


Id = Annotated[str, Field(min_length=1, max_length=ID_CHARS_MAX)]
NonEmpty = Annotated[str, Field(min_length=1)]
Object = Annotated[JSONObject, BeforeValidator(_empty_object_for_null)]
Tokens = Annotated[int, Field(ge=0, le=TOKENS_MAX)]
Time = Annotated[str, AfterValidator(_time_with_zone)]
Cost = Annotated[str, AfterValidator(_decimal)]


ModelT = TypeVar("ModelT", bound=BaseModel)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NewMessage(_Value):
    """A message as it is sent; `message_id` is made up where the caller gives none."""

    role: Role
    content: Annotated[Content, PlainValidator(_content)]
    message_id: Id | None = None
    name: str | None = None
    tool_calls: Annotated[list[JSONObject], Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    created_at: Time | None = None
    metadata: Object = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise _wrong("content", "may be null only beside tool_calls")
        return self


class TokenUse(_Value):
    """The tokens of one model call; the totals include their parts."""

    prompt_tokens: Tokens
    completion_tokens: Tokens
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    model: str | None = None
    provider: str | None = None
    message_id: Id | None = None
    cost_usd: Cost | None = None
    metadata: Object = Field(default_factory=dict)

    @model_validator(mode="after")
    def _totals_include_their_parts(self) -> Self:
        if (self.cached_tokens or 0) + (self.cache_write_tokens or 0) > self.prompt_tokens:
            raise _wrong("cached_tokens", "and cache_write_tokens may be at most prompt_tokens")
        if (self.reasoning_tokens or 0) > self.completion_tokens:
            raise _wrong("reasoning_tokens", "may be at most completion_tokens")
        return self


def _distinct(messages: tuple[NewMessage, ...]) -> tuple[NewMessage, ...]:
    seen = set()
    for message in messages:
        if message.message_id is not None:
            if message.message_id in seen:
                raise ValueError(f"have the message_id {message.message_id!r} twice")
            seen.add(message.message_id)
    return messages


Messages = Annotated[tuple[NewMessage, ...], Field(strict=False), AfterValidator(_distinct)]


# -- commands -----------------------------------------------------------------------------------


class Command(_Value):
    """One request to write. The same `command_id` again writes nothing a second time."""

    verb: ClassVar[str]

    command_id: Id | None = None


class InitConversation(Command):
    """Begin the conversation; harmless where it has begun."""

    verb = "init"

    user_id: NonEmpty
    title: str | None = None
    model: str | None = None
    context: Object = Field(default_factory=dict)
    metadata: Object = Field(default_factory=dict)


class AppendMessage(Command, NewMessage):
    """Append one message."""

    verb = "append"


class RecordUsage(Command, TokenUse):
    """Record the tokens of one model call."""

    verb = "usage"


class AppendTurn(Command):
    """Append messages and the usage they caused, all or nothing."""

    verb = "turn"

    messages: Annotated[Messages, Field(min_length=1, max_length=MESSAGES_PER_TURN_MAX)]
    usage: TokenUse | None = None


class ResetSession(Command):
    """Begin a new session: an empty window, and totals from zero."""

    verb = "reset"

    reason: str | None = None


class UpdateConversation(Command):
    """Merge facts about the conversation; a field that was not given stays as it is."""

    verb = "update"

    title: str | None = None
    model: str | None = None
    user_id: NonEmpty | None = None
    context: Object = Field(default_factory=dict)
    metadata: Object = Field(default_factory=dict)

    @property
    def changes_something(self) -> bool:
        """Says whether any fact is given, be it null."""
        named = self.model_fields_set & {"title", "model", "user_id"}
        return bool(named or self.context or self.metadata)


class ImportMessages(Command):
    """Append earlier messages, or replace those of the session with them; all or nothing."""

    verb = "import"

    messages: Annotated[Messages, Field(max_length=MESSAGES_PER_IMPORT_MAX)]
    mode: Literal["append", "replace"] = "append"


class StartReply(Command):
    """Begin a message whose text comes in chunks; an `assistant` says it unless told otherwise."""

    verb = "reply.start"

    message_id: Id | None = None
    role: Role | None = None
    model: str | None = None
    metadata: Object = Field(default_factory=dict)


class AppendChunks(Command):
    """Go on with a reply. `index` is that of the first of the `texts`, counted from 0."""

    verb = "reply.chunk"

    message_id: Id
    index: Annotated[int, Field(ge=0, le=INDEX_MAX)]
    texts: Annotated[
        tuple[str, ...], Field(strict=False, min_length=1, max_length=CHUNKS_PER_COMMAND_MAX)
    ]


class FinishReply(Command):
    """A reply is whole; with the usage that it caused, all or nothing."""

    verb = "reply.finish"

    message_id: Id
    finish_reason: str | None = None
    usage: TokenUse | None = None


class AbortReply(Command):
    """End a reply as it is."""

    verb = "reply.abort"

    message_id: Id
    reason: str | None = None


class EditMessage(Command):
    """Give a message other content."""

    verb = "edit"

    message_id: Id
    content: Annotated[Content, PlainValidator(_content)]

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None:
            raise _wrong("content", "must not be null; redact hides a message")
        return self


class RedactMessage(Command):
    """Hide a message for good."""

    verb = "redact"

    message_id: Id
    reason: str | None = None


class CloseConversation(Command):
    """Take nothing more; harmless where that is so already. The reason becomes the status."""

    verb = "close"

    reason: ClosedReason | None = None


class ReopenConversation(Command):
    """Be active again; harmless where that is so already."""

    verb = "reopen"

    reason: str | None = None


class EraseConversation(Command):
    """Show nothing of the conversation any more, for good."""

    verb = "erase"

    reason: str | None = None
    legal_basis: str | None = None


COMMANDS: Final[dict[str, type[Command]]] = {
    command.verb: command
    for command in (
        InitConversation,
        AppendMessage,
        RecordUsage,
        AppendTurn,
        ResetSession,
        UpdateConversation,
        ImportMessages,
        StartReply,
        AppendChunks,
        FinishReply,
        AbortReply,
        EditMessage,
        RedactMessage,
        CloseConversation,
        ReopenConversation,
        EraseConversation,
    )
}


_MODELS: Final[tuple[type[BaseModel], ...]] = (NewMessage, TokenUse, *COMMANDS.values())
_FIELDS: Final = frozenset({"type"}.union(*(model.model_fields for model in _MODELS)))


# -- reading ------------------------------------------------------------------------------------


def parse_command(verb: str, body: bytes) -> Command:
    """Returns the command of a request; an empty body stands for an empty object.

    Raises InvalidRequest, and nothing else whatever the bytes: for a verb that is not known, for a
    body that is not one JSON object in UTF-8 (RFC 8259, and no key twice, no number beyond a
    double, at most 64 levels deep), and for every field that is wrong, each named in `details`.
    """
    model = COMMANDS.get(verb)
    if model is None:
        raise InvalidRequest(f"unknown verb {_shortened(verb)!a}: use one of {', '.join(COMMANDS)}")
    return parse_as(model, verb, body)


def parse_as(model: type[ModelT], what: str, body: bytes) -> ModelT:
    """Returns the body of a request as an instance of `model`; `what` names it in refusals.

    Raises InvalidRequest; see `parse_command`.
    """
    request = parse_object(body)
    try:
        return model.model_validate(request)
    except ValidationError as error:
        problems = _problems(error if error.error_count() <= 100 else _fewer(model, request))
        first = problems[0]
        where = f"{what}: {first['field']}" if first["field"] else what
        raise InvalidRequest(
            f"{where} {first['problem']}; correct every field that the details name", problems
        ) from None


def parse_object(body: bytes) -> JSONObject:
    """Returns the JSON object of a request's body, `{}` for an empty body.

    Raises InvalidRequest for anything else; see `parse_command`.
    """
    if not body:
        return {}
    if len(body) > VALUES_MAX * 4 and _keys_seem_too_many(body):
        raise _too_many_values()
    try:
        request = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"the body must be one JSON object in UTF-8: {error}") from None
    if not isinstance(request, dict):
        raise InvalidRequest("the body must be a JSON object, such as {}")
    keys, _ = _counted(request, 1, VALUES_MAX)
    # A key is followed by one colon, so that as many colons as keys leave no room for a second
    # key of the same name. The fast count first: it is right unless a text holds a colon.
    if body.count(b":") != keys and len(_KEY_ENDS.findall(body)) != keys:
        _refuse_repeated_keys(body)
    return request


_KEY_ENDS = re.compile(rb'"\s*:')


def _keys_seem_too_many(body: bytes) -> bool:
    """Says so before anything is parsed. Escaped quotes, as of JSON within a text, do not count."""
    return any(count >= VALUES_MAX for count, _ in enumerate(_BARE_KEY_ENDS.finditer(body)))


# The quote first: what begins with a look behind is tried at every byte, 25 times as slowly.
_BARE_KEY_ENDS = re.compile(rb'"(?<!\\")\s*:')


def _too_many_values() -> InvalidRequest:
    return InvalidRequest(
        f"the body may have at most {VALUES_MAX:,} fields and list items, at every level together: "
        "send less at once"
    )


def _counted(value: dict[str, Any] | list[Any], depth: int, room: int) -> tuple[int, int]:
    """Returns how many keys the value has at every level, and the room that is left for more.

    Raises InvalidRequest where it is nested too deeply, has more keys and items than `room`, or
    holds a number that became infinite.
    """
    if depth > DEPTH_MAX:
        raise InvalidRequest(f"the body may be nested at most {DEPTH_MAX} levels deep")
    room -= len(value)
    if room < 0:
        raise _too_many_values()
    keys = 0
    values: Any = value
    if isinstance(value, dict):
        keys = len(value)
        values = value.values()
    for each in values:
        if isinstance(each, (dict, list)):
            within, room = _counted(each, depth + 1, room)
            keys += within
        elif isinstance(each, float) and isinf(each):
            raise InvalidRequest("a number in the body is beyond the range of a double")
    return keys, room


def _refuse_repeated_keys(body: bytes) -> None:
    def once(pairs: list[tuple[str, Any]]) -> JSONObject:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidRequest(f"the body has the key {_shortened(twice)!a} twice in one object")
        return found

    json.loads(body.decode(), object_pairs_hook=once)


def _fewer(model: type[BaseModel], request: JSONObject) -> ValidationError:
    """Returns what is wrong with a request that has very many wrong fields, but for most of them.

    To make a list of them all would hold up everybody else's requests.
    """
    try:
        model.model_validate(_pruned(request, _FIELDS.union(model.model_fields)))
    except ValidationError as error:
        return error
    raise AssertionError("a request is not right because it has fewer wrong fields")


def _pruned(value: Any, known: frozenset[str]) -> Any:
    """The same value with only the first few of the fields of each object that are not `known`."""
    if isinstance(value, list):
        return [_pruned(each, known) for each in value]
    if not isinstance(value, dict):
        return value
    kept = known.union(islice((name for name in value if name not in known), _PROBLEMS_MAX))
    return {name: _pruned(each, known) for name, each in value.items() if name in kept}


def _problems(error: ValidationError) -> list[dict[str, Any]]:
    """Returns {"field", "problem"} for each wrong field, the first 20."""
    details = error.errors(include_url=False, include_input=False)[:_PROBLEMS_MAX]
    return [{"field": _field_of(each), "problem": _problem_of(each)} for each in details]


def _field_of(error: ErrorDetails) -> str:
    steps = [str(step) for step in error["loc"]]
    if error["type"] == "wrong_field":
        steps.append(error["ctx"]["field"])
    return _shortened(".".join(steps))


def _problem_of(error: ErrorDetails) -> str:
    """Says in the words of a request what pydantic says in those of Python."""
    return _PROBLEMS.get(error["type"]) or _PYDANTIC_SUBJECT.sub(
        "must ", error["msg"].removeprefix("Value error, ")
    )


_PROBLEMS: Final = {
    "missing": "is required",
    "extra_forbidden": "is not a field that belongs here",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "dict_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
}
_PYDANTIC_SUBJECT = re.compile(r"^(Input|String|List|Tuple|Value) should ")


def _shortened(text: str) -> str:
    return text if len(text) <= _FIELD_CHARS_MAX else text[: _FIELD_CHARS_MAX - 1] + "…"


__all__ = [
    "COMMANDS",
    "AbortReply",
    "AppendChunks",
    "AppendMessage",
    "AppendTurn",
    "CloseConversation",
    "Command",
    "EditMessage",
    "EraseConversation",
    "FinishReply",
    "ImportMessages",
    "InitConversation",
    "NewMessage",
    "RecordUsage",
    "RedactMessage",
    "ReopenConversation",
    "ResetSession",
    "StartReply",
    "TokenUse",
    "UpdateConversation",
    "parse_as",
    "parse_command",
    "parse_object",
]
