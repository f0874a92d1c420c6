"""`convo import` when the ledger is slow, busy or gone: the same commands again, or a clear end."""

from __future__ import annotations

import pytest

from tests.services.cli.conftest import Convo, Script, Write, a_line, answer, complaint, error


def test_the_ids_of_a_repeated_import_are_the_same(
    convo: Convo, script: Script, write: Write
) -> None:
    script.replies = [{"ok": True, "events": [{}]}]
    file = write(a_line("a", 600, usage={"prompt_tokens": 1, "completion_tokens": 1}))

    convo("import", file)
    convo("import", file)

    assert len(script.ids) == 8
    assert script.ids[:4] == script.ids[4:]
    assert len(set(script.ids)) == 4
    verbs = [message.subject.rpartition(".")[2] for message in script.requests[:4]]
    assert verbs == ["init", "import", "import", "usage"]


def test_a_command_without_an_answer_is_repeated_under_its_id(
    convo: Convo, script: Script, write: Write
) -> None:
    wrote = {"ok": True, "events": [{}]}
    busy = error("storage_unavailable", retryable=True)
    script.replies = [wrote, None, busy, {**wrote, "duplicate": True}]

    summary = answer(convo("import", write(a_line("a")), "--timeout", "2", "--json"))

    assert len(set(script.ids)) == 2
    assert script.ids[1:] == [script.ids[1]] * 3
    assert (summary["conversations"], summary["already_there"]["messages"]) == (1, 3)


def test_an_import_stops_when_the_ledger_does_not_come_back(
    convo: Convo, script: Script, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli.importing.DEADLINE_S", 0.3)
    script.replies = [None]

    result = convo("import", write(a_line("a"), a_line("b")), "--timeout", "0.1")

    line = complaint(result, 1)
    assert line.startswith("stopped: no answer within 0.1 s")
    assert line.endswith("repeat the same command to go on: what is there is not written again")
    assert "imported 0 conversations" in result.stdout


def test_an_import_without_a_server_says_how_to_start_one(
    convo: Convo, write: Write, nowhere: str
) -> None:
    assert "convo up" in complaint(convo("import", write(a_line("a")), "--nats", nowhere), 1)
