"""convo list and convo search where no directory runs."""

from __future__ import annotations

from tests.services.cli.conftest import Convo, Script, complaint


def test_it_says_what_to_start(convo: Convo, script: Script) -> None:
    for arguments in (["search", "x"], ["list", "a.b"]):
        line = complaint(convo(*arguments, "--timeout", 1), 1)
        assert "convo serve directory" in line
    assert not script.requests
