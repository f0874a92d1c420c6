"""Commands on a server on which no service answers, and settings that cannot be used."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from infra.settings import Settings
from services.cli import logs
from tests.services.cli.conftest import Convo, complaint


def test_status_fails_when_commands_are_not_answered(convo: Convo, server_url: str) -> None:
    result = convo("status", "--nats", server_url)

    assert "convo serve commands" in complaint(result, 1)
    assert "services   none answers" in result.stdout
    assert "streams    none yet" in result.stdout


def test_doctor_warns_of_what_is_not_there_yet(convo: Convo, server_url: str) -> None:
    result = convo("doctor", "--nats", server_url)

    assert result.exit_code == 0
    warnings = [line for line in result.stdout.splitlines() if line.startswith("warn")]
    assert "nobody answers commands and queries" in warnings[0]
    assert warnings[1].startswith("warn  stream CONVO-EVENTS-0: stream not found")


@pytest.mark.parametrize("command", [["state", "c"], ["up"], ["serve", "queries"], ["doctor"]])
def test_a_setting_that_cannot_be_used_is_one_line(
    convo: Convo, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("CONVO_PORT", "many")

    assert complaint(convo(*command), 1).startswith("CONVO_PORT = many: ")


def test_serve_without_a_server_says_how_to_start_one(convo: Convo, nowhere: str) -> None:
    assert "convo up" in complaint(convo("serve", "queries", "--nats", nowhere), 1)


def test_up_on_a_data_directory_that_is_a_file(convo: Convo, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("")

    result = convo("up", "--data", file, "--port", "0")

    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.output


def a_record(fault: bool) -> logging.LogRecord:
    try:
        raise ValueError("broken")
    except ValueError:
        found = sys.exc_info() if fault else None
    return logging.LogRecord("a.b", logging.WARNING, "f.py", 1, "said %s\nthat", ("x",), found)


def test_a_log_line_is_one_line_even_of_a_fault() -> None:
    line = logs.TextLines().format(a_record(fault=True))

    assert "\n" not in line
    assert " WARNING a.b: said x\\nthat | Traceback" in line


def test_a_log_line_in_json_has_the_same_facts() -> None:
    line = json.loads(logs.JsonLines().format(a_record(fault=False)))

    assert {key: line[key] for key in ("level", "logger", "message")} == {
        "level": "warning",
        "logger": "a.b",
        "message": "said x\nthat",
    }
    assert line["time"].endswith("+00:00")
    assert "traceback" in json.loads(logs.JsonLines().format(a_record(fault=True)))


def test_the_settings_decide_the_form_of_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.configure(Settings(log="json", log_level="warning"))
        logging.getLogger("a").info("not this")
        logging.getLogger("a").warning("but this")
    finally:
        root.handlers[:] = before
        root.setLevel(level)

    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "but this"
