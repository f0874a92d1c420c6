"""What a person reads is plain text, whatever a message holds."""

from __future__ import annotations

import pytest

from services.cli import output

MESSAGE = {
    "message_id": "m-1",
    "role": "user",
    "content": "Hello",
    "timestamp": "2026-11-21T09:00:00Z",
    "version": 2,
    "metadata": {},
}


def test_terminal_controls_in_a_text_are_written_out() -> None:
    assert output.printable("a\x1b[31mb\x9bc\x7f\r\n\td") == "a\\x1b[31mb\\x9bc\\x7f\\x0d\n\td"


def test_one_line_has_no_line_break_and_is_cut() -> None:
    assert output.one_line("a \n\n b\u2028c\x00") == "a b c\\x00"
    assert output.one_line("x" * 300, 10) == "x" * 9 + "…"


def test_text_in_any_language_is_shown_as_it_is() -> None:
    assert output.one_line("您客气了 😀 é") == "您客气了 😀 é"


def test_a_message_is_a_heading_and_its_text() -> None:
    [heading, text] = output.messages([{**MESSAGE, "name": "ada", "edited": True}])

    assert heading == "2  2026-11-21T09:00:00Z  user (ada) [edited]  m-1"
    assert text == "    Hello"


def test_a_reply_that_was_ended_says_why() -> None:
    [heading, _] = output.messages([{**MESSAGE, "aborted": "the model\nfailed"}])

    assert heading == "2  2026-11-21T09:00:00Z  user [aborted: the model failed]  m-1"


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("", []),
        (None, []),
        ("a\nb", ["    a", "    b"]),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}], ["    a", "    [image_url]"]),
    ],
)
def test_content_of_every_kind_is_shown(content: object, shown: list[str]) -> None:
    assert list(output.messages([{**MESSAGE, "content": content}]))[1:] == shown


def test_tool_calls_are_shown_with_their_arguments() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"a":\n1}'}}

    lines = list(output.messages([{**MESSAGE, "content": None, "tool_calls": [call, {"odd": 1}]}]))

    assert lines[1:] == ['    -> find({"a": 1})', '    -> {"odd": 1}']


@pytest.mark.parametrize(
    ("type", "data", "about"),
    [
        ("ConversationStarted", {"user_id": "ada", "title": "T"}, "user ada: T"),
        ("MessageAppended", {"role": "user", "content": "a\nb"}, "user: a b"),
        (
            "UsageRecorded",
            {"prompt_tokens": 1, "completion_tokens": 2, "model": "m"},
            "1 + 2 tokens (m)",
        ),
        ("ConversationTitled", {"title": "T", "source": "auto"}, "T"),
        ("SomethingNew", {"a": 1}, '{"a": 1}'),
        ("SessionReset", {}, ""),
    ],
)
def test_an_event_is_one_line(type: str, data: dict[str, object], about: str) -> None:
    event = {
        "type": type,
        "tenant_id": "acme",
        "conversation_id": "a/b",
        "version": 3,
        "time": "2026-11-21T09:00:00Z",
        "data": data,
    }

    line = output.event(event)

    assert line == f"2026-11-21T09:00:00Z  acme/a/b  3  {type}" + (f"  {about}" if about else "")


def test_what_a_repeated_command_wrote_is_told_apart() -> None:
    reply = {"tenant_id": "t", "conversation_id": "c", "version": 2, "seq": 9, "events": [{}]}

    assert output.written(reply, "message") == "message, t/c at version 2 (seq 9)"
    assert output.written({**reply, "duplicate": True}, "message").startswith("already written: ")
    assert output.written({**reply, "events": []}, "x").startswith("nothing to write, t/c")
