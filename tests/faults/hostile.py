"""Requests that nobody means well by, to every endpoint there is, and clients that behave badly.

`requests` mutates requests that are nearly right: subjects, header blocks, bodies, SQL. Each has to
be answered with an object that says ok or with an error of the contract, and never `internal`; what
is asked behind it is answered as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import nats
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from domain.commands import COMMANDS
from tests.acceptance.client import STATUS
from tests.acceptance.raw import Delivered, RawConnection
from tests.benchmarks import metering
from tests.faults.history import quiet
from tests.faults.load import Load
from tests.faults.result import Result
from tests.faults.rig import SERVER, Ledger

ANSWER_WITHIN_S = 20.0
PATIENCE_S = 40.0
"""Of the good clients beside them: longer than any answer may take."""

WRITERS = 6
VIEWS = ("messages", "usage", "state", "history", "events")
AUDITS = ("replay", "verify", "export", "diff")

# -- requests that are nearly right ----------------------------------------------------------------


class Hostile(NamedTuple):
    """One request as bytes."""

    subject: bytes
    header: bytes | None
    body: bytes


text = st.text(max_size=20)
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 2**53, 2**63, 2**64, 10**400])
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
FIELDS = sorted(
    {name for command in COMMANDS.values() for name in command.model_fields}
    | {"limit", "at_version", "at", "after_version", "before_version", "include_reset", "cursor"}
    | {"from_version", "to_version", "query", "status", "sql", "params", "format", "max_rows"}
    | {"timeout_ms", "tenant_id", "from", "to"}
)
WORDS = ("user", "assistant", "Hello", "", "json", "csv", "append", "active", "SELECT 1", "a" * 300)
likely = st.sampled_from([*WORDS, 0, 1, 2, 50, 1_000, "2026-11-21T09:00:00Z"]) | st.builds(
    lambda: [{"role": "user", "content": "x"}]
)
objects = st.dictionaries(st.sampled_from(FIELDS), likely | values, max_size=6)

SQL_WORDS = (
    *("SELECT", "*", "FROM", "events", "messages", "WHERE", "tenant_id", "=", "'faults'", "(", ")"),
    *(",", ";", "--", "/*", "*/", "'", '"', "$1", "?", "1", "NULL", "UNION", "WITH", "RECURSIVE"),
    *("ATTACH", "COPY", "PRAGMA", "SET", "read_csv('/etc/passwd')", "getenv('HOME')", "INSTALL"),
    *(
        "range(1000000000)",
        "INSERT INTO",
        "DELETE",
        "DROP TABLE",
        "EXPLAIN",
        "x",
        "\x00",
        "é",
        "LIMIT",
    ),
)
statements = st.lists(st.sampled_from(SQL_WORDS), max_size=14).map(" ".join) | text
queries = st.fixed_dictionaries(
    {"sql": statements, "timeout_ms": st.just(500)}, optional={"format": likely, "params": values}
)


@st.composite
def bodies(draw: st.DrawFn, content: st.SearchStrategy[object]) -> bytes:
    """JSON, and now and then JSON with a few bytes changed, cut off or added."""
    body = bytearray(json.dumps(draw(content)).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        place = draw(st.integers(0, len(body)))
        body[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(body)


HEADER_NAMES = (
    *("Convo-Command-Id", "Convo-Expected-Version", "Convo-Actor", "Convo-Min-Seq", "Convo-User"),
    *("Convo-Consistency", "traceparent", "Nats-Msg-Id", "Nats-Expected-Last-Sequence", "X"),
)
header_values = st.sampled_from([b"", b"1", b"-1", b"strong", b"x" * 200]) | st.binary(max_size=12)


@st.composite
def headers(draw: st.DrawFn) -> bytes | None:
    """A header block, mostly well formed; None for none."""
    if draw(st.booleans()):
        return None
    lines = draw(st.lists(st.tuples(st.sampled_from(HEADER_NAMES), header_values), max_size=4))
    block = b"NATS/1.0\r\n" + b"".join(b"%b: %b\r\n" % (n.encode(), v) for n, v in lines) + b"\r\n"
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(min_size=1, max_size=60))
    return block


tokens = st.sampled_from([b"acme", b"c-1", b"a%2Eb", b"%FF", b"%", b"a%2eb", b"x" * 250]) | (
    st.binary(min_size=1, max_size=8).filter(lambda each: not set(each) & set(b" \t\r\n.*>"))
)


def _endpoints(tenant: bytes, conversation: bytes) -> dict[bytes, st.SearchStrategy[object]]:
    """Every subject that something listens on, and what its bodies are like."""
    place = b"%b.%b" % (tenant, conversation)
    words = {b"cmd": [*COMMANDS, "nothing"], b"get": [*VIEWS, "nothing"], b"audit": [*AUDITS, "no"]}
    found: dict[bytes, st.SearchStrategy[object]] = {
        b"convo.%b.%b.%b" % (kind, place, word.encode()): objects | values
        for kind, names in words.items()
        for word in names
    }
    found[b"convo.list." + tenant] = objects | values
    found[b"convo.search." + tenant] = objects | values
    found[b"convo.sql"] = queries | objects | values
    for verb in (b"PING", b"INFO", b"STATS"):
        found[b"$SRV.%b.convo-commands" % verb] = values
    return found


@st.composite
def requests(draw: st.DrawFn) -> Hostile:
    """Any request to any endpoint."""
    endpoints = _endpoints(draw(tokens), draw(tokens))
    subject = draw(st.sampled_from(sorted(endpoints)))
    return Hostile(subject, draw(headers()), draw(bodies(endpoints[subject])))


def problem_of(hostile: Hostile, answer: Delivered) -> str:
    """Why an answer is none of the contract's; empty when it is one."""
    if hostile.subject.startswith(b"$SRV") or b"Convo-Row-Count" in answer.header:
        return ""
    if answer.no_responders:
        return f"nobody answers: {hostile}"
    try:
        reply = answer.json()
    except ValueError:
        return f"no JSON: {hostile}: {answer.body[:200]!r}"
    if reply.get("ok") is True:
        return ""
    code = reply.get("error", {}).get("code")
    if code not in STATUS or code == "internal":
        return f"{code}: {hostile}: {reply}"
    return ""


def fuzz(url: str, examples: int, number: int) -> list[str]:
    """Sends so many requests; what was wrong with the first bad answer, made small. Empty: nothing.

    The same number sends the same requests.
    """
    with RawConnection(url, timeout=ANSWER_WITHIN_S) as connection:

        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(requests())
        def answered(hostile: Hostile) -> None:
            answer = connection.request(hostile.subject, hostile.body, header=hostile.header)
            assert not (problem := problem_of(hostile, answer)), problem

        try:
            answered()
        except (AssertionError, OSError) as error:
            return [f"wrong: {str(error)[:600] or type(error).__name__}"]
    return []


async def requests_run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many hostile requests beside a load that must not notice."""
    result = Result("hostile requests", rounds=rounds)
    async with Ledger(directory / "ledger", workers=2) as ledger:
        load = Load(ledger.url, WRITERS, rng, patience_s=PATIENCE_S)
        await load.start()
        await ledger.answering()
        result.blame(await asyncio.to_thread(fuzz, ledger.url, rounds, rng.randrange(2**32)))
        await load.further(20)
        await load.stop()
        events, tables = await ledger.settled()
        own = [event for event in events if event.tokens.startswith("faults.")]
        result.judge(load, own, tables)
        if load.unanswered:
            result.blame([f"unanswered: {load.unanswered} good requests beside them"])
        result.blame(ledger.complaints())
    return result.end()


# -- clients that behave badly ---------------------------------------------------------------------


async def crowd(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many idle clients (or as many as the limit of open files lets), some that ask and never
    read, one that reads too slowly, and a load."""
    result = Result("idle, deaf and slow clients", rounds=rounds)
    idle = min(rounds, _room_for_sockets())
    async with Ledger(directory / "ledger", workers=2) as ledger:
        load = Load(ledger.url, WRITERS, rng, patience_s=PATIENCE_S)
        await load.start()
        with contextlib.ExitStack() as open_sockets:
            for number in range(idle):
                open_sockets.enter_context(_idle(ledger.url, subscribes=number % 10 == 0))
                if number % 50 == 0:
                    await asyncio.sleep(0)
            deaf = [open_sockets.enter_context(RawConnection(ledger.url)) for _ in range(4)]
            await asyncio.gather(*(asyncio.to_thread(_shout, each) for each in deaf))
            async with _slow_reader(ledger.url):
                await load.further(300)
            peak_mb = metering.peak_memory_mb(await ledger.pid(SERVER))
        await load.further(20)
        await load.stop()
        events, tables = await ledger.settled()
        own = [event for event in events if event.tokens.startswith("faults.")]
        result.judge(load, own, tables)
        if load.unanswered:
            result.blame([f"unanswered: {load.unanswered} good requests beside them"])
        result.blame(ledger.complaints())
    result.notes.append(
        f"{idle:,} idle clients; slowest answer to anybody else {load.slowest_s:.2f} s, "
        f"nats-server took {peak_mb:,.0f} MB at most"
    )
    return result.end()


def _room_for_sockets() -> int:
    """How many connections we may open: nats-server has as many to take, under the same limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft - 500


def _idle(url: str, *, subscribes: bool) -> socket.socket:
    """A client that connects, perhaps subscribes to what happens, and does nothing more."""
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname, place.port), ANSWER_WITHIN_S)
    connection.sendall(b'CONNECT {"verbose":false}\r\n')
    if subscribes:
        connection.sendall(b"SUB convo.live.*.faults.nobody 1\r\n")
    return connection


def _shout(connection: RawConnection) -> None:
    """Asks for the largest answers, again and again, and never reads one."""
    connection.subscribe(b"_INBOX.deaf")
    with contextlib.suppress(OSError):  # the server may well hang up on such a client
        for _ in range(2_000):
            connection.publish(b"convo.get.faults.shared.events", b"{}", reply=b"_INBOX.deaf")
            connection.publish(b"convo.get.faults.shared.state", b"{}", reply=b"_INBOX.deaf")


@contextlib.asynccontextmanager
async def _slow_reader(url: str) -> AsyncIterator[None]:
    """A client that hears everything that is written, and takes its time with each event."""
    client = await nats.connect(url, error_cb=quiet, pending_size=0)

    async def slowly(_: object) -> None:
        await asyncio.sleep(0.5)

    await client.subscribe("convo.live.>", cb=slowly, pending_msgs_limit=10)
    try:
        yield
    finally:
        await client.close()
