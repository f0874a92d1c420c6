"""`convo` as a user runs it: each command a process of its own, beside the same over NATS."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger
from tests.acceptance.deployment import REPOSITORY, Deployment

LINES = [
    {
        "id": "im.port ed",
        "messages": [
            {"role": "user", "content": "Hello?", "timestamp": "2020-01-01T00:00:00Z", "mood": 1},
            {"role": "assistant", "content": "Hello!"},
        ],
        "usage": [{"message_index": 1, "model": "m", "prompt_tokens": 5, "completion_tokens": 2}],
        "user_id": "bob",
    },
    {"id": "broken", "messages": [{"role": "nobody", "content": "x"}]},
    {"id": "other", "tenant_id": "elsewhere", "messages": [{"role": "user", "content": "x"}]},
]


class Ended:
    """What a command left behind."""

    def __init__(self, status: int, output: str, errors: str) -> None:
        self.status = status
        self.output = output
        self.errors = errors

    @property
    def reply(self) -> dict[str, Any]:
        """The JSON object that it printed."""
        found: dict[str, Any] = json.loads(self.output)
        return found


class CommandLine:
    """Runs `convo` against one ledger."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder

    async def __call__(self, *arguments: str, stdin: str = "") -> Ended:
        """Runs one command to its end; no traceback may be seen."""
        command = [sys.executable, "-P", "-m", "services.cli", *arguments, "--nats", self.url]
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            cwd=self.folder,
            env={"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8", "COLUMNS": "200"},
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def convo(deployment: Deployment, tmp_path: Path) -> CommandLine:
    return CommandLine(deployment.url, tmp_path)


async def test_a_conversation_from_the_command_line(ledger: Ledger, convo: CommandLine) -> None:
    conversation = ledger.conversation("c li.1", tenant_id="te/nant ü")
    name = ["c li.1", "--tenant", "te/nant ü"]
    assert (await convo("init", *name, "ada", "--title", "T", "--json")).reply["version"] == 1
    assert (await convo("append", *name, "user", "Hello")).status == 0
    reply = (
        await convo("append", *name, "assistant", "-", "--command-id", "k", "--json", stdin="Hi ü!")
    ).reply
    assert await conversation.contents() == ["Hello", "Hi ü!"]
    again = await convo("append", *name, "assistant", "x", "--command-id", "k", "--json")
    assert again.reply == {**reply, "duplicate": True}
    used = await convo("usage", *name, "--prompt-tokens", "9", "--completion-tokens", "1", "--json")
    assert used.reply["usage"]["total"] == 10
    turn = ["--message", "user:More?", "--message", "assistant:No."]
    assert (await convo("turn", *name, *turn, "--actor", "user:ada", "--json")).reply[
        "version"
    ] == 6
    assert (await convo("update", *name, "--title", "U", "--json")).status == 0
    for view, command in (
        ("messages", "messages"),
        ("usage", "usage-totals"),
        ("state", "state"),
        ("history", "history"),
        ("events", "events"),
    ):
        assert (await convo(command, *name, "--json")).reply == await conversation.get(view)
        assert (await convo(command, *name)).output.strip()
    assert (await convo("reset", *name, "--json")).reply["version"] == 8
    assert await conversation.contents() == []


async def test_a_refusal_is_one_line_and_a_status(convo: CommandLine, ledger: Ledger) -> None:
    conversation = await ledger.begun()
    name = [conversation.conversation_id, "--tenant", "acme"]
    for arguments in (
        ["append", *name, "narrator", "x"],
        ["append", *name, "user", "x", "--expected-version", "7"],
        ["append", "unknown", "user", "x"],
        ["messages", *name, "--limit", "51"],
        ["init", "x" * 201, "ada"],
    ):
        ended = await convo(*arguments)
        assert ended.status in {1, 2}
        assert len(ended.errors.strip().splitlines()) == 1
        assert ended.errors.startswith("convo: ")
    refused = await convo("append", "unknown", "user", "x", "--json")
    assert refused.status == 1
    assert refused.reply["error"]["code"] == "conversation_not_initialized"


async def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    nowhere = CommandLine("nats://127.0.0.1:1", tmp_path)
    ended = await nowhere("state", "c", "--timeout", "1")
    assert ended.status == 1
    assert len(ended.errors.strip().splitlines()) == 1


async def test_a_file_is_imported_once_and_its_bad_lines_are_told(
    convo: CommandLine, ledger: Ledger
) -> None:
    file = convo.folder / "conversations.jsonl"
    lines = [json.dumps(line) for line in LINES]
    file.write_text("\n".join([*lines, "no JSON", ""]), encoding="utf-8")
    first = await convo("import", str(file))
    assert first.status == 1, "two lines cannot be imported"
    assert "2" in first.output + first.errors
    imported = ledger.conversation("im.port ed", tenant_id="default")
    other = ledger.conversation("other", tenant_id="elsewhere")
    state = await imported.state()
    assert (state["user_id"], state["title"]) == ("bob", "Hello?")
    assert state["lifetime_tokens"]["total"] == 7
    one, two = state["recent_messages"]
    assert one["timestamp"] == "2020-01-01T00:00:00Z"
    assert one["metadata"] == {"mood": 1}
    assert two["content"] == "Hello!"
    assert await other.contents() == ["x"]
    before = await events_of(imported, other)
    assert (await convo("import", str(file))).status == 1
    assert await events_of(imported, other) == before


async def events_of(*conversations: Conversation) -> list[list[dict[str, Any]]]:
    """All events of each of them."""
    return [await conversation.events() for conversation in conversations]
