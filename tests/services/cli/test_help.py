"""Every command of the contract is there, and says how it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.cli.app import convo as command
from tests.services.cli.conftest import Convo, complaint

CONTRACT = [
    "up",
    "serve",
    "init",
    "append",
    "usage",
    "turn",
    "reset",
    "update",
    "reply",
    "edit",
    "redact",
    "close",
    "reopen",
    "erase",
    "messages",
    "usage-totals",
    "state",
    "history",
    "events",
    "list",
    "search",
    "import",
    "replay",
    "verify",
    "diff",
    "export",
    "prove",
    "check-proof",
    "notary",
    "keys",
    "sql",
    "report",
    "rebuild",
    "export-parquet",
    "tail",
    "backup",
    "restore",
    "fence",
    "scrub",
    "status",
    "doctor",
    "bench",
]
"""Contract section 7; `update` and `events` come with the same verbs."""

OFFLINE = ("check-proof", "notary", "keys")
"""Commands that need no server, so they take none."""

CLIENTS = [name for name in CONTRACT if name not in ("up", "serve", *OFFLINE)]


def test_the_commands_are_those_of_the_contract() -> None:
    assert list(command.commands) == CONTRACT


@pytest.mark.parametrize("name", CONTRACT)
def test_every_command_has_an_example_in_its_help(convo: Convo, name: str) -> None:
    result = convo(name, "--help")

    assert result.exit_code == 0
    assert "Example:" in result.stdout
    assert f"  convo {name}" in result.stdout or f"| convo {name}" in result.stdout
    assert "--json" in result.stdout or name in ("notary", "keys")
    assert ("--nats URL" in result.stdout) == (name not in OFFLINE)


@pytest.mark.parametrize("name", CLIENTS)
def test_every_client_command_says_how_long_it_waits(convo: Convo, name: str) -> None:
    assert "--timeout SECONDS" in convo(name, "--help").stdout


@pytest.mark.parametrize(
    "name", ["init", "append", "turn", "reset", "update", "reply", "edit", "erase"]
)
def test_every_write_takes_the_headers_of_a_command(convo: Convo, name: str) -> None:
    text = convo(name, "--help").stdout

    assert all(flag in text for flag in ("--command-id", "--expected-version", "--actor"))


@pytest.mark.parametrize("name", ["messages", "usage-totals", "state", "history", "events"])
def test_every_read_says_how_fresh_it_must_be(convo: Convo, name: str) -> None:
    text = convo(name, "--help").stdout

    assert "--min-seq" in text
    assert "--consistency" in text


def test_help_tells_how_a_conversation_is_named(convo: Convo) -> None:
    text = " ".join(convo("--help").stdout.split())

    assert "`default/a/b` is conversation `a/b`" in text


def test_the_short_help_of_no_command_is_cut_off(convo: Convo) -> None:
    _, commands = convo("--help").stdout.split("Commands:")

    assert "..." not in commands


def test_without_a_command_the_help_is_shown(convo: Convo) -> None:
    assert convo().stdout == convo("--help").stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from services.cli.app import convo;"
        "print([m for m in ('nats', 'pydantic', 'rich', 'eventsourcing') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command 'nonsense'; see `convo --help`"),
        (["append"], "Missing argument '[TENANT/]CONVERSATION'; see `convo append --help`"),
        (["append", "c"], "Missing argument 'ROLE'"),
        (["append", "c", "user"], "Missing argument 'CONTENT'"),
        (["append", "c", "user", "-dash"], "put -- before a text that begins with a dash"),
        (["append", "c", "user", "a", "--role", "user", "--content", "b"], "ROLE is given twice"),
        (["append", "c", "user", "a", "--content", "b"], "CONTENT is given twice"),
        (["append", "c", "user", "a", "--metadata", "{"], "is not JSON"),
        (["append", "c", "user", "a", "--metadata", "[]"], "must be a JSON object"),
        (["append", "c", "user", "a", "--metadata", '{"a": NaN}'], "NaN is no JSON number"),
        (["append", "c", "user", "a", "--content-json", "[]"], "the content is given twice"),
        (["append", "", "user", "a"], "conversation_id must not be empty"),
        (["append", "/c", "user", "a"], "tenant_id must not be empty"),
        (["append", "a" * 201, "user", "a"], "is 201 bytes of UTF-8 and may be at most 200"),
        (["append", "c", "user", "a", "--actor", "x\r\nNats-Rollup: all"], "one line of text"),
        (["append", "c", "user", "a", "--command-id", ""], "one line of text"),
        (["append", "c", "user", "a\udcff"], "the text is not UTF-8"),
        (["init", "c"], "Missing argument 'USER_ID'"),
        (["init", "c", "ada", "--user-id", "bob"], "USER_ID is given twice"),
        (["usage", "c"], "Missing option '--prompt-tokens'"),
        (["turn", "c"], "a turn has messages"),
        (["turn", "c", "--message", "nothing"], "has no colon"),
        (["update", "c"], "nothing to change"),
        (["state", "c", "--consistency", "weak"], "'weak' is not 'strong'"),
        (["import", "missing.jsonl"], "'missing.jsonl' does not exist"),
        (["tail", "--history", "3"], "need a CONVERSATION"),
        (["tail", "c", "--history", "3", "--from-version", "1"], "exclude each other"),
        (["serve"], "Missing argument"),
        (["serve", "everything"], "'everything' is not one of"),
        (["messages", "c", "--timeout", "nan"], "--timeout"),
    ],
)
def test_a_command_line_that_is_wrong_gets_one_line_and_status_2(
    convo: Convo, arguments: list[str], says: str
) -> None:
    assert says in complaint(convo(*arguments), 2)
