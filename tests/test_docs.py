"""The documentation is true: its commands run, its tables are the code's, its links resolve.

Fenced blocks say in their first line what happens with them here:

- `sh runs`, `python runs`: run, in the order of the page, against a fresh ledger; must succeed;
- `text output`: what the block before it prints, times and generated ids aside;
- `json reply`: the last line that the block before it prints has (at least) this in it; "…" stands
  for anything;
- `conf server`: together they are the configuration of a nats-server, which is started with it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import shlex
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import click
import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from domain.commands import COMMANDS
from domain.errors import ConversationError
from domain.events import EVENT_CLASSES, ConversationEvent
from infra.jetstream import envelope
from infra.jetstream.chain import Fault
from infra.jetstream.errors import Conflict, OutcomeUnknown, StoreUnavailable, TooLarge
from infra.jetstream.store import Store
from infra.server import EmbeddedServer, find_program, free_port
from infra.settings import Settings, variable
from services import endpoint, sql
from services.audit import AuditService
from services.bootstrap import SERVICES, running, topology
from services.cli.app import convo
from services.cli.import_format import parse_line
from services.conversations import Conversations
from services.endpoint import Outbox
from services.errors import refusal
from services.queries import (
    EventsQuery,
    HistoryQuery,
    MessagesQuery,
    Query,
    QueryService,
    StateQuery,
    UsageQuery,
)
from services.responder import running as responding

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "docs" / "samples"
CONTRACT = ROOT / "docs" / "contract.md"
OPERATIONS = ROOT / "docs" / "operations.md"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])

DEFAULT_URL = "nats://127.0.0.1:4222"
SOMETIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
SOME_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
PLANNED = re.compile(r"not there yet|to come", re.IGNORECASE)


# -- reading the pages ----------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block: what its first line says, its text, and the line it begins on."""

    info: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    found = []
    info: str | None = None
    text: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            text.append(line)
        elif info is None:
            info, text = line.removeprefix("```"), []
        else:
            found.append(Block(info, "\n".join(text), number - len(text) - 1))
            info = None
    assert info is None, f"{page}: a fenced block is not closed"
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def code(page: Path) -> list[str]:
    """The lines of fenced and indented blocks, and what stands between backticks."""
    text = prose(page)
    fenced = [line for block in blocks(page) for line in block.text.splitlines()]
    indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    return fenced + indented + re.findall(r"`([^`\n]+)`", text)


def paragraphs(page: Path) -> list[str]:
    return re.split(r"\n\s*\n", prose(page))


def table(page: Path, first_column: str) -> list[list[str]]:
    """The rows of the table whose heading begins with `first_column`, cell by cell."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def slug(heading: str) -> str:
    """The anchor that a heading gets where Markdown is shown."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


# -- links and names ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_resolve(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            broken.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", prose(there), re.MULTILINE)
            if anchor not in map(slug, headings):
                broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_exist(page: Path) -> None:
    places = re.compile(r"(?<![\w/.-])(?:domain|projections|infra|services|tests|docs)/[\w/.]*\w")
    mentioned = {place for text in code(page) for place in places.findall(text)}
    assert not [place for place in mentioned if not (ROOT / place).exists()]


def test_every_decision_is_listed() -> None:
    pages = {path.name for path in (ROOT / "docs/decisions").glob("0*.md")}
    for index in (ROOT / "docs/decisions/README.md", ROOT / "docs/architecture.md"):
        assert set(re.findall(r"(\d{4}-[\w-]+\.md)", prose(index))) == pages, index


# -- the command line -----------------------------------------------------------------------------

COMMAND = re.compile(r"(?:^|[\s/])convo ([a-z][a-z-]*)(.*)")


def command_lines(page: Path, *, planned: bool) -> Iterator[tuple[str, str]]:
    """Yields (command, arguments) of each `convo COMMAND` that is shown as code.

    With `planned`, those of paragraphs that say that they are not there yet; else the others.
    """
    promised = [text for text in paragraphs(page) if PLANNED.search(text)]
    later = {span for text in promised for span in re.findall(r"`([^`\n]+)`", text)}
    for line in code(page):
        if (line in later) == planned and (found := COMMAND.search(line)):
            yield found[1], found[2]


def flags_of(command: click.Command) -> set[str]:
    """The flags of a command, of a group those of all that is in it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return {"--help"}.union(*map(flags_of, below)) | {
        flag
        for each in command.params
        if isinstance(each, click.Option)
        for flag in each.opts + each.secondary_opts
    }


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_flags_exist(page: Path) -> None:
    for name, arguments in command_lines(page, planned=False):
        assert name in convo.commands, f"convo {name}"
        unknown = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", arguments)) - flags_of(
            convo.commands[name]
        )
        assert not unknown, f"convo {name}{arguments}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_not_there_yet_is_not_there(page: Path) -> None:
    assert not [name for name, _ in command_lines(page, planned=True) if name in convo.commands]
    for text in paragraphs(page):
        if text.startswith("Not there yet: `reply"):
            assert not set(re.findall(r"`([a-z.]+)`", text)) & set(COMMANDS)


def test_every_command_is_in_the_contract() -> None:
    listed = [row[0] for row in table(CONTRACT, "command")]
    assert sorted(listed) == sorted(f"convo {name}" for name in convo.commands)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert not [name for name in convo.commands if not re.search(rf"\b{name}\b", changes)]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    mentioned = {
        name
        for page in PAGES
        for line in code(page)
        for name in re.findall(r"\bmake ([a-z-]+)", line)
    }
    assert mentioned <= targets
    listed = {row[0].split()[1].strip("`;") for row in table(CONTRACT, "target")}
    assert listed == targets - {"help"}


# -- the contract's tables ------------------------------------------------------------------------


def with_question_mark(name: str, *, optional: bool) -> str:
    return f"{name}?" if optional else name


def test_event_types_and_their_data() -> None:
    common = {each.name for each in fields(ConversationEvent)} | {"originator_topic"}
    expected = [
        [
            name,
            ", ".join(
                with_question_mark(each.name, optional=each.default is not MISSING)
                for each in fields(event_class)
                if each.name not in common
            ),
        ]
        for name, event_class in EVENT_CLASSES.items()
        if event_class.__module__ == "domain.events"  # tests register types of their own
    ]
    assert table(CONTRACT, "type") == expected


def test_verbs_and_their_bodies() -> None:
    expected = {
        verb: {
            with_question_mark(name, optional=not field.is_required())
            for name, field in model.model_fields.items()
            if name != "command_id"
        }
        for verb, model in COMMANDS.items()
    }
    listed = {
        verb: set(re.sub(r"\s*\([^)]*\)", "", body).split(", "))
        for verb, body, _ in table(CONTRACT, "verb")
        if verb in COMMANDS
    }
    assert listed == expected
    assert {row[0] for row in table(CONTRACT, "verb") if len(row) == 3} == set(COMMANDS)


def test_views_and_their_bodies() -> None:
    models: dict[str, type[Query]] = {
        "messages": MessagesQuery,
        "usage": UsageQuery,
        "state": StateQuery,
        "history": HistoryQuery,
        "events": EventsQuery,
    }
    service = QueryService(cast("Conversations", SimpleNamespace(store=None)), cast("Outbox", None))
    assert set(service._views) == set(models)
    listed = {view: set(re.findall(r"(\w+)\?", body)) for view, body, _ in table(CONTRACT, "view")}
    assert listed == {view: set(model.model_fields) for view, model in models.items()}


def test_audits_and_their_bodies() -> None:
    service = AuditService(
        cast("Store", None), cast("Client", None), cast("Outbox", None), window_size=1
    )
    listed = {what: set(re.findall(r"(\w+)\?", body)) for what, body, _ in table(CONTRACT, "what")}
    assert f"{{{', '.join(Fault._fields)}}}" in CONTRACT.read_text(encoding="utf-8")
    assert listed == {
        what: set(model.model_fields) for what, (model, _) in service._answers.items()
    }


def test_error_codes() -> None:
    def below(error: type[ConversationError]) -> Iterator[type[ConversationError]]:
        for each in error.__subclasses__():
            yield each
            yield from below(each)

    told = [refusal(each("…")) for each in below(ConversationError)]
    told += [refusal(StoreUnavailable("…")), refusal(OutcomeUnknown("…"))]
    told += [refusal(TooLarge("…")), refusal(RuntimeError("…"))]
    codes = {(each.code, str(each.status), "yes" if each.retryable else "no") for each in told}
    listed = [tuple(row[:3]) for row in table(CONTRACT, "code")]

    assert len(listed) == len(set(listed))
    assert set(listed) == codes
    assert refusal(Conflict("…", 1)).code == "version_conflict"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_headers_exist(page: Path) -> None:
    ours = {value for value in vars(endpoint).values() if isinstance(value, str)}
    ours |= {value for value in vars(envelope).values() if isinstance(value, str)}
    ours |= {sql.ROW_COUNT, sql.TRUNCATED, sql.POSITION}
    mentioned = {
        header
        for text in code(page)
        for header in re.findall(r"\b(?:Convo|Event)-[A-Z][A-Za-z]*(?:-[A-Z][a-z]*)*", text)
    }
    assert not mentioned - ours


def test_every_header_is_in_the_contract() -> None:
    text = CONTRACT.read_text(encoding="utf-8")
    for header in (
        endpoint.COMMAND_ID,
        endpoint.EXPECTED_VERSION,
        endpoint.ACTOR,
        endpoint.MIN_SEQ,
        endpoint.CONSISTENCY,
        endpoint.ERROR,
        endpoint.ERROR_CODE,
        envelope.EVENT_TYPE,
        envelope.EVENT_VERSION,
        envelope.EVENT_HASH,
        envelope.WRITE_ID,
    ):
        assert f"`{header}" in text, header


def test_settings_of_the_streams() -> None:
    config = topology(Settings()).events_config(0)
    text = "\n".join(" ".join(row) for row in table(CONTRACT, "setting of the stream"))
    for name in ("deny_delete", "deny_purge", "allow_atomic", "allow_direct"):
        assert config[name] is True
        assert name in text
    assert f"{config['max_msg_size']:,}" in text
    assert config["republish"] == {"src": "convo.evt.>", "dest": "convo.live.>"}


def test_settings_and_their_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    listed = {name: default.strip("`") for name, default, _ in table(OPERATIONS, "variable")}

    assert set(listed) == {variable(name) for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        shown = listed[variable(name)]
        if field.default is None:
            assert shown == "unset", name
        else:
            monkeypatch.setenv(variable(name), shown)
    assert Settings().model_dump() == Settings.model_construct().model_dump()


# -- the samples ----------------------------------------------------------------------------------


def test_samples_are_as_described_and_can_be_imported() -> None:
    rows = {row[0]: (row[4], row[5]) for row in table(SAMPLES / "README.md", "file")}
    assert set(rows) == {path.name for path in SAMPLES.glob("*.gz")}
    for name, (conversations, messages) in rows.items():
        plans = [
            parse_line(line) for line in gzip.decompress((SAMPLES / name).read_bytes()).splitlines()
        ]
        assert f"{len(plans):,}" == conversations
        assert f"{sum(len(plan.messages) for plan in plans):,}" == messages


def test_every_licence_of_the_samples_is_referred_to() -> None:
    text = (SAMPLES / "README.md").read_text(encoding="utf-8")
    for path in (SAMPLES / "licenses").iterdir():
        assert f"licenses/{path.name}" in text


# -- what runs ------------------------------------------------------------------------------------


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder for PATH with `convo`, and `nats` as far as the pages use it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, argv in {
        "convo": ["-m", "services.cli"],
        "nats": [str(ROOT / "tests" / "nats_command.py")],
    }.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *argv])} "$@"\n')
        script.chmod(0o755)
    return folder


@asynccontextmanager
async def ledger(data_dir: Path) -> AsyncIterator[str]:
    """A fresh ledger; its URL."""
    async with (
        EmbeddedServer(data_dir) as server,
        running(Settings(data_dir=data_dir), SERVICES, url=server.url),
        responding(Settings(), url=server.url),
    ):
        yield server.url


async def run(block: Block, url: str, commands: Path) -> str:
    """Runs a block from the root of the repository; what it prints. Fails when it fails."""
    language = block.info.split()[0]
    text = block.text.replace(DEFAULT_URL, url)
    argv = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
    process = await asyncio.create_subprocess_exec(
        *argv,
        text,
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CONVO_NATS_URL": url,
            "NATS_URL": url,
        },
        stdout=PIPE,
        stderr=STDOUT,
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode == 0, f"line {block.line}: {said.decode()}"
    return said.decode()


def anyhow(text: str) -> list[str]:
    """The lines, with times and generated ids written alike."""
    return SOME_ID.sub("<id>", SOMETIME.sub("<time>", text)).strip().splitlines()


def differs(expected: Any, found: Any, place: str = "") -> str | None:
    """Where `found` lacks what `expected` has; None when it has all of it."""
    if expected == "…":
        return None
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            if key not in found:
                return f"{place}.{key} is missing"
            if problem := differs(value, found[key], f"{place}.{key}"):
                return problem
        return None
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return next((bad for n, (a, b) in pairs if (bad := differs(a, b, f"{place}[{n}]"))), None)
    return None if expected == found else f"{place}: {found!r} instead of {expected!r}"


RUNNABLE = [page for page in PAGES if any("runs" in block.info for block in blocks(page))]


def test_pages_that_should_run_do() -> None:
    assert {named(page) for page in RUNNABLE} >= {
        "README.md",
        "docs/contract.md",
        "docs/durability.md",
    }


@pytest.mark.parametrize("page", RUNNABLE, ids=named)
async def test_what_is_shown_runs_and_answers_as_shown(
    page: Path, tmp_path: Path, commands: Path
) -> None:
    said = ""
    async with ledger(tmp_path / "data") as url:
        for block in blocks(page):
            match block.info.split():
                case ["sh" | "python", "runs"]:
                    said = await run(block, url, commands)
                case ["text", "output"]:
                    assert anyhow(said) == anyhow(block.text), f"{named(page)}:{block.line}"
                case ["json", "reply"]:
                    problem = differs(json.loads(block.text), json.loads(said.splitlines()[-1]))
                    assert problem is None, f"{named(page)}:{block.line}: {problem}"


async def test_the_chain_can_be_recomputed_as_shown(tmp_path: Path, commands: Path) -> None:
    [block] = [block for block in blocks(CONTRACT) if "sha256sum" in block.text]
    async with ledger(tmp_path / "data") as url:
        *_, events = lines = (await run(block, url, commands)).splitlines()

    hashes = [line for line in lines if re.fullmatch("[0-9a-f]{64}", line)]
    assert hashes == [event["hash"] for event in json.loads(events)["events"]]
    assert len(hashes) == 3


def test_the_event_that_is_shown_has_the_keys_of_one() -> None:
    [block] = [block for block in blocks(CONTRACT) if block.info == "json"]
    assert list(json.loads(block.text)) == [
        "type",
        "schema",
        "tenant_id",
        "conversation_id",
        "version",
        "time",
        "actor",
        "command_id",
        "verb",
        "data",
    ]


@asynccontextmanager
async def server_as_shown(folder: Path) -> AsyncIterator[str]:
    """A nats-server with the configuration of docs/operations.md; HOST:PORT of it."""
    parts = [block.text for block in blocks(OPERATIONS) if block.info == "conf server"]
    assert len(parts) == 2
    address = f"127.0.0.1:{free_port()}"
    text = "\n".join([f"listen: {address}", *parts]).replace("/srv/nats", str(folder / "store"))
    config = folder / "server.conf"
    config.write_text(text, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        find_program(), "--config", config, stdout=PIPE, stderr=STDOUT
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while line := await process.stdout.readline():
                if b"Server is ready" in line:
                    break
            assert line, "it did not start"
        yield address
    finally:
        process.terminate()
        await process.communicate()
        shutil.rmtree(folder / "store", ignore_errors=True)


async def test_permissions_as_shown_are_enough_and_not_too_much(tmp_path: Path) -> None:
    async with server_as_shown(tmp_path) as address:
        ledger_url = f"nats://ledger:ledger-secret@{address}"
        violations: asyncio.Queue[str] = asyncio.Queue()

        async def note(error: Exception) -> None:
            violations.put_nowait(str(error))

        acme = await nats.connect(f"nats://acme:acme-secret@{address}", error_cb=note)
        service = await nats.connect(ledger_url, error_cb=note)

        async def refused(connection: Client, subject: str) -> bool:
            await connection.publish(subject, b"{}")
            await connection.flush()
            async with asyncio.timeout(10):
                return subject.lower() in await violations.get()

        async def has_snapshot() -> bool:
            api = "$JS.API.DIRECT.GET.CONVO-SNAPSHOTS.convo.snap.0.acme.c-1"
            reply = await service.request(api, b"", timeout=10)
            return "Status" not in (reply.headers or {})

        async def ask(subject: str, body: dict[str, Any]) -> dict[str, Any]:
            reply = await acme.request(subject, json.dumps(body).encode(), timeout=10)
            return cast("dict[str, Any]", json.loads(reply.data))

        async with running(Settings(data_dir=tmp_path / "data"), SERVICES, url=ledger_url):
            live = await acme.subscribe("convo.live.*.acme.>")
            assert (await ask("convo.cmd.acme.c-1.init", {"user_id": "ada"}))["ok"]
            many = [{"role": "user", "content": f"message {n}"} for n in range(100)]
            assert (await ask("convo.cmd.acme.c-1.turn", {"messages": many}))["ok"]
            for view in ("messages", "usage", "state", "history", "events"):
                assert (await ask(f"convo.get.acme.c-1.{view}", {}))["ok"]
            for audit in ("replay", "verify", "export"):
                assert (await ask(f"convo.audit.acme.c-1.{audit}", {}))["ok"]
            listed = await acme.request(
                "convo.list.acme", b"", timeout=10, headers={endpoint.MIN_SEQ: "101"}
            )
            assert len(json.loads(listed.data)["conversations"]) == 1
            assert (await ask("convo.search.acme", {"query": '"message 99"'}))["hits"]
            heard = await live.next_msg(timeout=10)
            assert heard.headers is not None
            assert heard.headers["Event-Type"] == "ConversationStarted"
            async with asyncio.timeout(30):
                while not await has_snapshot():  # noqa: ASYNC110 - written some time later
                    await asyncio.sleep(0.02)

        assert violations.empty()
        for subject in (
            "convo.cmd.other.c-1.init",
            "convo.list.other",
            "convo.evt.0.acme.c-1",
            "convo.snap.0.acme.c-1",
        ):
            assert await refused(acme, subject), subject
        for call in ("UPDATE", "DELETE", "PURGE", "RESTORE", "MSG.DELETE"):
            assert await refused(service, f"$JS.API.STREAM.{call}.CONVO-EVENTS-0"), call
        for connection in (acme, service):
            try:
                await connection.close()
            except NatsError:
                pytest.fail("the connection was lost")
