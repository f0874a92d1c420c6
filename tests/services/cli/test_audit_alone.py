"""convo replay, verify and diff before answers that the real service would rarely give."""

from __future__ import annotations

import json

from tests.services.cli.conftest import Convo, Script, complaint, error


def test_one_that_is_not_valid_names_the_version_and_fails(convo: Convo, script: Script) -> None:
    bad = {"version": 3, "seq": 9, "problem": "hash", "expected": "aa", "found": "bb"}
    script.replies = [
        {"ok": True, "valid": False, "events": 7, "head_hash": "cc", "first_bad": bad}
    ]

    result = convo("verify", "c-1")

    assert result.exit_code == 1
    assert "NOT VALID: default/c-1, first bad at version 3 (seq 9)" in result.stdout
    assert "expected aa" in result.stdout
    assert "backup" in result.stderr
    assert json.loads(convo("verify", "c-1", "--json").stdout)["first_bad"] == bad


def test_a_refusal_is_one_line(convo: Convo, script: Script) -> None:
    script.replies = [error("conversation_not_initialized", "there is no such conversation")]

    for arguments in (["replay"], ["verify"], ["diff", "--from", "1", "--to", "2"]):
        line = complaint(convo(*arguments, "nobody"), 1)
        assert line == "there is no such conversation [conversation_not_initialized]"
