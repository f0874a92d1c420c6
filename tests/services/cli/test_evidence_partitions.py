"""A ledger of several partitions is checked whole, whatever number is set where it is checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import Settings
from services.bootstrap import running
from tests.services.cli.conftest import Convo, answer, beside


@pytest.fixture(scope="module")
def ledger(server_url: str, store_dir: Path) -> Iterator[str]:
    settings = Settings(data_dir=store_dir, partitions=3)
    with beside(running(settings, ("commands", "queries", "audit"), url=server_url)):
        yield server_url


def test_every_partition_is_checked(ledger: str, convo: Convo) -> None:
    for number in range(9):
        assert convo("init", f"c-{number}", "ada").exit_code == 0

    report = answer(convo("verify", "--all", "--json"))

    assert [each["partition"] for each in report["partitions"]] == [0, 1, 2]
    assert sum(each["events"] for each in report["partitions"]) == 9
    assert all(each["events"] for each in report["partitions"])
    for number in range(9):
        assert convo("export", f"c-{number}").exit_code == 0
        assert convo("verify", f"c-{number}.evidence.jsonl").exit_code == 0
    assert answer(convo("verify", "--projections", "--json"))["conversations"] == 9
