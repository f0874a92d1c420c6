"""`convo import` against the ledger's own services: everything goes in, and nothing twice."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.services.cli.conftest import Convo, Write, a_line, answer

Lines = list[dict[str, Any] | bytes]


@pytest.fixture
def tenant() -> str:
    """A tenant that no other test writes to."""
    return f"t-{uuid4()}"


def events(convo: Convo, name: str) -> list[dict[str, Any]]:
    pages = convo("events", name, "--all", "--json").stdout.splitlines()
    return [event for page in pages for event in json.loads(page)["events"]]


def said(convo: Convo, name: str) -> list[str]:
    found = events(convo, name)
    return [event["data"]["content"] for event in found if event["type"] == "MessageAppended"]


@pytest.mark.parametrize("name", ["file.jsonl", "file.jsonl.gz", "misnamed.txt.gz"])
def test_conversations_go_in_in_order(
    convo: Convo, ledger: str, write: Write, tenant: str, name: str
) -> None:
    file = write(a_line("a", 1203), b"", a_line("b", 0), a_line("c"), name=name)

    summary = answer(convo("import", file, "--tenant", tenant, "--json"))

    assert summary["ok"] is True
    assert (summary["conversations"], summary["messages"]) == (3, 1206)
    assert said(convo, f"{tenant}/a") == [f"a {n}" for n in range(1203)]
    assert said(convo, f"{tenant}/c") == ["c 0", "c 1", "c 2"]
    assert [event["type"] for event in events(convo, f"{tenant}/b")] == ["ConversationStarted"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input_is_read_plain_or_packed(
    convo: Convo, ledger: str, tenant: str, pack: Callable[[bytes], bytes]
) -> None:
    lines = b"\xef\xbb\xbf" + json.dumps(a_line("a")).encode() + b"\r\n"
    lines += json.dumps(a_line("b")).encode()  # no line break at the end

    result = convo("import", "-", "--tenant", tenant, "--json", input=pack(lines))

    assert answer(result)["messages"] == 6


def test_the_same_file_again_writes_nothing(
    convo: Convo, ledger: str, write: Write, tenant: str
) -> None:
    used = [{"message_index": 1, "input_tokens": 2, "output_tokens": 1}] * 3
    file = write(a_line("a", 700, usage=used), a_line("b"))
    first = answer(convo("import", file, "--tenant", tenant, "--json"))
    before = events(convo, f"{tenant}/a")

    again = convo("import", file, "--tenant", tenant)

    assert (first["conversations"], first["messages"], first["usage"]) == (2, 703, 3)
    assert again.exit_code == 0
    assert "imported 0 conversations, 0 messages (" in again.stdout
    assert "already there: 2 conversations, 703 messages, 3 usage records" in again.stdout
    assert events(convo, f"{tenant}/a") == before


def test_a_conversation_beyond_the_ledgers_memory_of_ids_is_not_doubled(
    convo: Convo, ledger: str, write: Write, tenant: str
) -> None:
    """More than 1,000 commands: the ledger itself no longer knows the first of them."""
    used = [{"input_tokens": 1, "output_tokens": 0}] * 1010
    file = write(a_line("a", 2, usage=used))
    answer(convo("import", file, "--tenant", tenant, "--json"))

    again = answer(convo("import", file, "--tenant", tenant, "--json"))

    assert (again["messages"], again["usage"]) == (0, 0)
    totals = answer(convo("usage-totals", f"{tenant}/a", "--json"))
    assert totals["lifetime"]["prompt"] == 1010


def test_a_file_that_has_grown_adds_what_is_new(
    convo: Convo, ledger: str, write: Write, tenant: str
) -> None:
    answer(convo("import", write(a_line("a", 3)), "--tenant", tenant, "--json"))

    summary = answer(convo("import", write(a_line("a", 5)), "--tenant", tenant, "--json"))

    assert (summary["messages"], summary["already_there"]["messages"]) == (2, 3)
    assert said(convo, f"{tenant}/a") == [f"a {n}" for n in range(5)]


def test_another_conversation_of_the_same_name_is_not_mixed_in(
    convo: Convo, ledger: str, write: Write, tenant: str
) -> None:
    other = {"id": "a", "messages": [{"role": "user", "content": "something else"}] * 4}
    answer(convo("import", write(a_line("a", 3)), "--tenant", tenant, "--json"))

    result = convo("import", write(other), "--tenant", tenant)

    assert result.exit_code == 1
    assert f"line 1 ({tenant}/a): the conversation exists with other messages" in result.stderr
    assert said(convo, f"{tenant}/a") == ["a 0", "a 1", "a 2"]


def test_two_lines_of_one_name(convo: Convo, ledger: str, write: Write, tenant: str) -> None:
    result = convo(
        "import", write(a_line("a"), a_line("a"), a_line("a", 2)), "--tenant", tenant, "--json"
    )

    summary = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (summary["messages"], summary["already_there"]["messages"]) == (3, 3)
    assert summary["problems"] == [
        {
            "line": 3,
            "conversation": f"{tenant}/a",
            "reason": "line 1 is another conversation of the same id",
        }
    ]


def test_lines_that_cannot_be_imported_are_told_and_the_others_go_in(
    convo: Convo, ledger: str, write: Write, tenant: str
) -> None:
    too_large = a_line("large", 2)
    too_large["messages"][1]["content"] = "x" * 262_145
    lines: Lines = [b"{", a_line("a"), a_line(""), too_large, b'{"id": "r"}', a_line("b")]

    result = convo("import", write(*lines), "--tenant", tenant)

    assert result.exit_code == 1
    *told, last = result.stderr.splitlines()
    assert [each.partition(":")[0] for each in sorted(told)] == [
        "line 1",
        "line 3",
        f"line 4 ({tenant}/large)",
        f"line 5 ({tenant}/r)",
    ]
    assert any("message 1: the content is 262145 bytes" in each for each in told)
    assert last == "convo: 4 lines were not imported (see above): correct and import again"
    assert "imported 2 conversations, 6 messages" in result.stdout
    assert said(convo, f"{tenant}/a") == ["a 0", "a 1", "a 2"]


def test_a_damaged_file_goes_in_up_to_the_damage(
    convo: Convo, ledger: str, tmp_path: Path, tenant: str
) -> None:
    file = tmp_path / "cut.jsonl.gz"
    packed = gzip.compress("".join(json.dumps(a_line(str(n))) + "\n" for n in range(300)).encode())
    file.write_bytes(packed[: len(packed) * 3 // 4])

    result = convo("import", file, "--tenant", tenant, "--json")

    line = result.stderr.strip()
    assert result.exit_code == 1
    assert line.startswith("convo: stopped: the file is damaged or cut off")
    count = json.loads(result.stdout)["conversations"]
    assert 0 < count < 300
    assert said(convo, f"{tenant}/{count - 1}")


def test_usage_names_the_message_that_it_was_for(
    convo: Convo, ledger: str, write: Write, tenant: str
) -> None:
    file = write(a_line("a", usage=[{"message_index": 1, "input_tokens": 2, "output_tokens": 1}]))
    answer(convo("import", file, "--tenant", tenant, "--json"))

    found = events(convo, f"{tenant}/a")
    [message] = [e for e in found if e["data"].get("content") == "a 1"]
    assert found[-1]["data"]["message_id"] == message["data"]["message_id"]
    assert message["data"]["metadata"] == {"timestamp": "NaT"}


@pytest.fixture
def slow_import(ledger: str, tenant: str) -> Iterator[subprocess.Popen[bytes]]:
    """An import of standard input, of which one conversation is in and no end in sight."""
    command = [sys.executable, "-m", "services.cli", "import", "-", "--nats", ledger]
    with subprocess.Popen(
        [*command, "--tenant", tenant],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as process:
        assert process.stdin
        process.stdin.write(json.dumps(a_line("a", 600)).encode() + b"\n")
        process.stdin.flush()
        yield process
        process.kill()


def test_ctrl_c_ends_an_import_that_can_be_repeated(
    convo: Convo,
    ledger: str,
    slow_import: subprocess.Popen[bytes],
    write: Write,
    tenant: str,
) -> None:
    tail = convo("tail", f"{tenant}/a", "--from-version", "1", "--limit", "602")
    assert tail.exit_code == 0  # the first conversation is in; the pipe stays open

    slow_import.send_signal(signal.SIGINT)
    out, err = slow_import.communicate(timeout=30)

    assert slow_import.returncode == 130
    assert out.startswith(b"imported ")
    assert err.strip().startswith(b"convo: interrupted; repeat the same command")
    assert b"Traceback" not in err
    again = answer(
        convo("import", write(a_line("a", 600), a_line("b")), "--tenant", tenant, "--json")
    )
    assert (again["messages"], again["already_there"]["messages"]) == (3, 600)
    assert said(convo, f"{tenant}/a") == [f"a {n}" for n in range(600)]
