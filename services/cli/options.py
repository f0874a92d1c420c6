"""Arguments and flags that several commands share, and how `[TENANT/]CONVERSATION` is read."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypeVar

import click

DEFAULT_TENANT = "default"

Function = TypeVar("Function", bound=Callable[..., Any])


class Named(NamedTuple):
    """A conversation as the command line names it; whether the ids are legal is not settled."""

    tenant_id: str
    conversation_id: str


@dataclass(frozen=True, slots=True)
class Client:
    """How to reach the ledger and how to answer: what every client command takes."""

    nats: str | None
    as_json: bool
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Writing:
    """The request headers of a write."""

    command_id: str | None
    expected_version: int | None
    actor: str | None


@dataclass(frozen=True, slots=True)
class Reading:
    """The request headers of a read."""

    min_seq: int | None
    consistency: str | None


def split_name(name: str, tenant: str | None) -> Named:
    """Reads `[TENANT/]CONVERSATION`.

    The tenant stands before the first slash; without one it is `default`. With `tenant` (the flag)
    the whole name is the conversation's id, slashes included.
    """
    if tenant is not None:
        return Named(tenant, name)
    before, slash, after = name.partition("/")
    return Named(before, after) if slash else Named(DEFAULT_TENANT, name)


class JsonValue(click.ParamType[Any]):
    """A flag that holds JSON of one kind: an object or a list."""

    def __init__(self, kind: type[dict[str, Any] | list[Any]]) -> None:
        self.kind = kind
        self.name = "object" if kind is dict else "list"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """JSON, as the contract's pages write it."""
        return "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value read; a refusal says what JSON was expected."""
        if not isinstance(value, str):
            return value
        try:
            read = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            self.fail(f"is not JSON: {error}", param, ctx)
        if not isinstance(read, self.kind):
            example = '{"key": "value"}' if self.kind is dict else '[{"type": "text", "text": "…"}]'
            self.fail(f"must be a JSON {self.name}, as {example}", param, ctx)
        return read


def _no_constant(word: str) -> float:
    msg = f"{word} is no JSON number"
    raise ValueError(msg)


OBJECT = JsonValue(dict)
LIST = JsonValue(list)


def conversation_argument(function: Function) -> Function:
    """`[TENANT/]CONVERSATION` and `--tenant`: the command gets them as `named`."""

    @click.argument("name", metavar="[TENANT/]CONVERSATION")
    @click.option(
        "--tenant", metavar="TENANT", help="The tenant; CONVERSATION is then taken whole."
    )
    @functools.wraps(function)
    def command(*args: Any, name: str, tenant: str | None, **options: Any) -> Any:
        return function(*args, named=split_name(name, tenant), **options)

    return command  # type: ignore[return-value]  # the wrapper stands where the function stood


def client_options(function: Function) -> Function:
    """`--nats`, `--timeout` and `--json`, gathered into `client`."""

    @click.option(
        "--nats",
        metavar="URL",
        help="The NATS server. [default: $CONVO_NATS_URL, or 127.0.0.1 at $CONVO_PORT]",
    )
    @click.option(
        "--timeout",
        "timeout_s",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True, max=3600),
        default=10.0,
        show_default=True,
        help="How long to wait for one answer.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print the reply as it is on NATS.")
    @functools.wraps(function)
    def command(
        *args: Any, nats: str | None, timeout_s: float, as_json: bool, **options: Any
    ) -> Any:
        if math.isnan(timeout_s):
            msg = "--timeout is a number of seconds"
            raise click.UsageError(msg)
        client = Client(nats=nats, as_json=as_json, timeout_s=timeout_s)
        return function(*args, client=client, **options)

    return command  # type: ignore[return-value]  # the wrapper stands where the function stood


def write_options(function: Function) -> Function:
    """The headers of a write, gathered into `writing`, and the client's options."""

    @click.option(
        "--command-id",
        metavar="ID",
        help="Idempotency key: repeating the same ID writes nothing. [default: a new UUIDv7]",
    )
    @click.option(
        "--expected-version",
        type=click.IntRange(min=0),
        metavar="N",
        help="Refuse unless the conversation is at version N.",
    )
    @click.option("--actor", metavar="WHO", help="Who does it; kept in every event.")
    @functools.wraps(function)
    def command(
        *args: Any,
        command_id: str | None,
        expected_version: int | None,
        actor: str | None,
        **options: Any,
    ) -> Any:
        writing = Writing(command_id=command_id, expected_version=expected_version, actor=actor)
        return function(*args, writing=writing, **options)

    return client_options(command)  # type: ignore[return-value]  # as above


def read_options(function: Function) -> Function:
    """The headers of a read, gathered into `reading`, and the client's options."""

    @click.option(
        "--min-seq",
        type=click.IntRange(min=0),
        metavar="N",
        help="Answer only with event seq N included (the `seq` of a reply about it).",
    )
    @click.option(
        "--consistency",
        type=click.Choice(["strong"]),
        help="strong: include every event acknowledged before this request.",
    )
    @functools.wraps(function)
    def command(*args: Any, min_seq: int | None, consistency: str | None, **options: Any) -> Any:
        reading = Reading(min_seq=min_seq, consistency=consistency)
        return function(*args, reading=reading, **options)

    return client_options(command)  # type: ignore[return-value]  # as above


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were given (not None): absent ones stay out of a request's body."""
    return {field: value for field, value in fields.items() if value is not None}


def text_or_stdin(value: str) -> str:
    """The value, or all of standard input, byte for byte as UTF-8, where it is `-`."""
    if value != "-":
        return value
    try:
        return stdin().read().decode()
    except UnicodeDecodeError as error:
        msg = f"standard input is not UTF-8 (byte {error.start}): convert it first"
        raise click.UsageError(msg) from None


def stdin() -> BinaryIO:
    """Standard input, as bytes; a usage error when the shell has closed it."""
    if sys.stdin is None:
        raise click.UsageError("`-` reads standard input, which is closed")
    return sys.stdin.buffer
