"""One request to the services and its answer, asked again under the same command id when it may.

A client of NATS like any other: `convo.cmd.<tenant>.<conversation>.<verb>` writes and
`convo.get.<tenant>.<conversation>.<view>` reads (contract sections 3 and 4). A write always carries
`Convo-Command-Id`, so that asking again can never write twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from nats.errors import Error as NatsError
from nats.errors import (
    MaxPayloadError,
    NoRespondersError,
    OutboundBufferLimitError,
)
from nats.errors import TimeoutError as NatsTimeout

from domain.errors import InvalidRequest
from domain.identity import ConversationId, encode_token, new_id
from infra.connection import ConnectionRefused, ServerUnreachable, connect
from infra.settings import Settings, SettingsError, without_password
from services.cli.errors import CommandFailed, Refused, Unanswered
from services.cli.options import Client, Named, Reading, Writing
from services.endpoint import ACTOR, COMMAND_ID, CONSISTENCY, EXPECTED_VERSION, MIN_SEQ

if TYPE_CHECKING:
    from nats.aio.client import Client as Connection

CONNECT_WITHIN_S = 2.0

HEADROOM_BYTES = 4096
"""Bytes of a request's payload limit that are left to its subject and headers."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long one request is tried, in seconds.

    `retries` None: as often as the deadline allows. Without a deadline a refusal that names a time
    to come back is waited for when that is no longer than one answer may take.
    """

    timeout_s: float
    retries: int | None = 3
    first_pause_s: float = 0.1
    longest_pause_s: float = 2.0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply that says ok: the bytes as they were on NATS, and what they hold."""

    raw: bytes
    reply: dict[str, Any]


def settings_of(nats: str | None, **flags: Any) -> Settings:
    """The settings in force, `--nats` over the environment; `CommandFailed` with the first line."""
    try:
        return Settings(nats_url=nats, **flags)
    except SettingsError as error:
        raise CommandFailed("; ".join(str(error).splitlines())) from None


def server_url(settings: Settings) -> str:
    """Where the ledger's NATS server is: the setting, or the embedded one's place."""
    return settings.nats_url or f"nats://127.0.0.1:{settings.port}"


def conversation(named: Named) -> ConversationId:
    """The name of a conversation; a usage error when an id is not legal."""
    try:
        return ConversationId.parse(named.tenant_id, named.conversation_id)
    except InvalidRequest as error:
        raise click.UsageError(error.message) from None


@asynccontextmanager
async def connected(settings: Settings, name: str = "convo") -> AsyncIterator[Connection]:
    """A connection for the time of a command; `CommandFailed` when no server answers."""
    logging.getLogger().addHandler(logging.NullHandler())  # a failure is told once, by us
    url = server_url(settings)
    try:
        connection = await connect(url, name=name, settings=settings, within=CONNECT_WITHIN_S)
    except ServerUnreachable as error:
        if settings.nats_url is not None:
            raise Unanswered(str(error)) from None
        shown = without_password(url)
        raise Unanswered(
            f"no server answers at {shown}: start one with `convo up`, or name one with --nats"
        ) from None
    except ConnectionRefused as error:
        raise CommandFailed(str(error)) from None
    try:
        yield connection
    finally:
        await connection.close()


async def ask(
    connection: Connection,
    subject: str,
    body: bytes,
    headers: dict[str, str] | None,
    patience: Patience,
) -> Answer:
    """Asks until there is an answer, and returns it when it says ok.

    `Refused` carries the contract's error; `Unanswered` says that nobody answered in time.
    """
    started = time.monotonic()
    pause_s = patience.first_pause_s
    unknown = False
    attempt = 0
    while True:
        wait_s = pause_s
        try:
            message = await connection.request(
                subject, body, timeout=patience.timeout_s, headers=headers
            )
            return read_answer(message.data)
        except Refused as error:
            failure: CommandFailed = error
            if not (error.retryable or error.code == "outcome_unknown"):
                raise
            unknown = unknown or error.code == "outcome_unknown"
            wait_s = max(pause_s, error.retry_after_s)
        except NoRespondersError:
            failure = Unanswered(_nobody(subject))
        except (NatsTimeout, OutboundBufferLimitError) as error:
            unknown = unknown or isinstance(error, NatsTimeout)
            failure = Unanswered(_silence(error, patience.timeout_s))
        except MaxPayloadError:
            raise CommandFailed(
                f"the request has {len(body):,} bytes and the server takes"
                f" {connection.max_payload:,}: send less in one command"
            ) from None
        except NatsError as error:
            raise Unanswered(f"the connection to the server failed ({error}): try again") from None
        attempt += 1
        out_of_tries = patience.retries is not None and attempt > patience.retries
        too_late = (
            wait_s > max(pause_s, patience.timeout_s)
            if patience.deadline_s is None
            else time.monotonic() - started + wait_s > patience.deadline_s
        )
        if out_of_tries or too_late:
            failure.unknown = unknown
            raise failure
        await asyncio.sleep(wait_s)
        pause_s = min(pause_s * 2, patience.longest_pause_s)


def _nobody(subject: str) -> str:
    services = {
        "cmd": "commands",
        "audit": "audit",
        "list": "directory",
        "search": "directory",
    }
    service = services.get(subject.split(".")[1], "queries")
    return (
        f"the server is there, but no service answers {service}:"
        f" start them with `convo up` or `convo serve {service}`"
    )


def _silence(error: NatsError, timeout_s: float) -> str:
    if isinstance(error, OutboundBufferLimitError):
        return "the connection to the server is lost: look at `convo status`, then try again"
    return f"no answer within {timeout_s:g} s: look at `convo status`, or raise --timeout"


def read_answer(data: bytes) -> Answer:
    """The reply when it says ok; `Refused` when it is the contract's error."""
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict) or "ok" not in reply:
        msg = "the answer is not one of the ledger's: another service listens on its subjects"
        raise CommandFailed(msg)
    if reply["ok"] is not True:
        error = reply.get("error")
        raise Refused(error if isinstance(error, dict) else {}, data)
    return Answer(data, reply)


def encode(body: dict[str, Any]) -> bytes:
    """The body as JSON; a usage error when a text in it is no Unicode (stray bytes on the line)."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise click.UsageError("the text is not UTF-8: check what the shell passes") from None


def write_headers(writing: Writing) -> dict[str, str]:
    """The headers of a write; a new command id when none was given."""
    headers = {COMMAND_ID: new_id() if writing.command_id is None else writing.command_id}
    if writing.expected_version is not None:
        headers[EXPECTED_VERSION] = str(writing.expected_version)
    if writing.actor is not None:
        headers[ACTOR] = writing.actor
    return _checked(headers)


def read_headers(reading: Reading) -> dict[str, str] | None:
    """The headers of a read, or None."""
    headers = {}
    if reading.min_seq is not None:
        headers[MIN_SEQ] = str(reading.min_seq)
    if reading.consistency is not None:
        headers[CONSISTENCY] = reading.consistency
    return _checked(headers) or None


def _checked(headers: dict[str, str]) -> dict[str, str]:
    """A header is one line of text; nats-py would mend a broken one without a word."""
    for header, value in headers.items():
        flag = "--" + header.removeprefix("Convo-").lower()
        if not value or value != value.strip() or not value.isprintable():
            msg = f"{flag} must be one line of text, without blanks around it"
            raise click.UsageError(msg)
    return headers


def write(client: Client, writing: Writing, named: Named, verb: str, body: bytes) -> Answer:
    """Sends one command and returns its answer.

    A failure that leaves it open whether it was written names the id to repeat it with.
    """
    subject = f"convo.cmd.{conversation(named).key}.{verb}"
    headers = write_headers(writing)
    try:
        return asyncio.run(_once(client, subject, body, headers))
    except CommandFailed as error:
        if error.unknown:
            error.message += f"; to repeat it safely: --command-id {headers[COMMAND_ID]}"
        raise


def read(client: Client, reading: Reading, named: Named, view: str, body: dict[str, Any]) -> Answer:
    """Sends one query and returns its answer."""
    subject = f"convo.get.{conversation(named).key}.{view}"
    return asyncio.run(_once(client, subject, encode(body), read_headers(reading)))


def audit(client: Client, named: Named, what: str, body: dict[str, Any]) -> Answer:
    """Sends one request to the audit service and returns its answer."""
    subject = f"convo.audit.{conversation(named).key}.{what}"
    return asyncio.run(_once(client, subject, encode(body), None))


def tenant_wide(
    client: Client, what: str, tenant_id: str, body: dict[str, Any], min_seq: int | None
) -> Answer:
    """Sends one request about all of a tenant (`list`, `search`) and returns its answer."""
    id = conversation(Named(tenant_id, "any"))
    subject = f"convo.{what}.{encode_token(id.tenant_id)}"
    headers = None if min_seq is None else {MIN_SEQ: str(min_seq)}
    return asyncio.run(_once(client, subject, encode(body), headers))


async def _once(
    client: Client, subject: str, body: bytes, headers: dict[str, str] | None
) -> Answer:
    async with connected(settings_of(client.nats)) as connection:
        return await ask(connection, subject, body, headers, Patience(client.timeout_s))
