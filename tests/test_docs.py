"""The documentation is true: its links resolve, and its tables and commands are the code's."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import click
import pytest
from nats.aio.client import Client

from domain.commands import COMMANDS
from domain.errors import ConversationError
from domain.events import EVENT_CLASSES, ConversationEvent
from infra.jetstream import envelope
from infra.jetstream.chain import Fault
from infra.jetstream.errors import Conflict, OutcomeUnknown, StoreUnavailable, TooLarge
from infra.jetstream.store import Store
from infra.settings import Settings, variable
from services import endpoint, sql
from services.audit import AuditService
from services.bootstrap import topology
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
from tests.pages import (
    CONTRACT,
    OPERATIONS,
    PAGES,
    ROOT,
    SAMPLES,
    blocks,
    code,
    named,
    paragraphs,
    prose,
    slug,
    table,
)

PLANNED = re.compile(r"not there yet|to come", re.IGNORECASE)


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
