"""convo verify --all, export, verify BUNDLE, prove, check-proof and the notary's key."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from infra.connection import connect
from infra.settings import Settings
from services.notary import FOLDER
from tests.services.cli.conftest import Convo, answer, complaint
from tests.services.test_evidence import covers_of


@pytest.fixture(scope="module")
def data(store_dir: Path) -> Path:
    """The data directory of the ledger, the notary's keys in it."""
    return store_dir


def covered(url: str, size: int) -> None:
    """Returns once a checkpoint counts so many events."""

    async def wait() -> None:
        nc = await connect(url, name="waiting", settings=Settings())
        await covers_of(nc, size)
        await nc.close()

    asyncio.run(wait())


@pytest.fixture(scope="module")
def talked() -> list[int]:
    return []


@pytest.fixture
def talk(ledger: str, convo: Convo, talked: list[int]) -> str:
    """A conversation of four events, all counted; its id needs care in a file's name."""
    if not talked:
        assert convo("init", "c/7", "ada", "--tenant", "default").exit_code == 0
        for text in ("one", "two"):
            sent = answer(convo("append", "default/c/7", "user", text, "--json"))
        talked.append(sent["seq"])
        covered(ledger, sent["seq"])
    return "default/c/7"


def test_a_whole_ledger_is_checked(talk: str, convo: Convo, data: Path) -> None:
    result = convo("verify", "--all", "--key", data / FOLDER / "notary.pub")

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("valid: CONVO-EVENTS-0, 4 events of 1 conversation, ")
    report = answer(convo("verify", "--all", "--json"))
    assert report["valid"] is True
    assert report["partitions"][0]["covered_seq"] == 4


def test_another_key_is_not_believed(talk: str, convo: Convo) -> None:
    key = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"

    result = convo("verify", "--all", "--key", key)

    assert result.exit_code == 1
    assert "none of this ledger's" in result.stdout
    assert "no public key" in complaint(convo("verify", "--all", "--key", "nonsense"), 1)


def test_a_bundle_is_written_and_checked_without_a_server(
    talk: str, convo: Convo, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = convo("export", talk)
    assert result.exit_code == 0, result.output
    bundle = tmp_path / "c%2F7.evidence.jsonl"
    assert [each.name for each in tmp_path.iterdir()] == [bundle.name]

    monkeypatch.setenv("CONVO_NATS_URL", "nats://127.0.0.1:1")
    result = convo("verify", bundle.name, "--key", data / FOLDER / "notary.pub")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("valid: default/c/7, 4 events up to version 4, hash\n")
    assert answer(convo("verify", bundle, "--json"))["covered"] == 4

    bundle.write_bytes(bundle.read_bytes().replace(b"two", b"too"))
    result = convo("verify", bundle)
    assert result.exit_code == 1
    assert "NOT VALID" in result.stdout
    bundle.unlink()
    assert complaint(convo("verify", bundle), 1)


def test_an_export_to_standard_output_is_the_bundle_alone(talk: str, convo: Convo) -> None:
    result = convo("export", talk, "-o", "-")

    assert result.exit_code == 0
    assert [*json.loads(result.stdout.splitlines()[-1])] == ["manifest"]


def test_an_export_that_fails_leaves_no_file(talk: str, convo: Convo, tmp_path: Path) -> None:
    assert "does not exist" in complaint(convo("export", "nobody"), 1)
    assert list(tmp_path.iterdir()) == []


def test_one_event_is_proved(talk: str, convo: Convo, data: Path, tmp_path: Path) -> None:
    result = convo("prove", talk, 2, "-o", "two.json")
    assert result.exit_code == 0, result.output

    result = convo("check-proof", "two.json", "--key", data / FOLDER / "notary.pub")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("valid: default/c/7, version 2, hash\n")
    assert json.loads(convo("prove", talk, 2).stdout)["version"] == 2

    forged = tmp_path / "two.json"
    forged.write_text(forged.read_text().replace("one", "won"))
    assert convo("check-proof", "two.json").exit_code == 1
    assert "no version 99" in complaint(convo("prove", talk, 99), 1)


def test_the_public_key_is_printed_for_publishing(talk: str, convo: Convo, data: Path) -> None:
    result = convo("notary", "key", "--data", data)

    assert result.stdout == (data / FOLDER / "notary.pub").read_text()
    assert "data directory" in complaint(convo("notary", "key"), 1)
    assert "could be replaced" in complaint(convo("notary", "rotate"), 1)


def test_a_rotated_key_is_printed_and_taken_up(talk: str, convo: Convo, data: Path) -> None:
    following = answer(convo("notary", "rotate", "--data", data, "--json"))

    async def wait() -> None:
        async with asyncio.timeout(30):
            published = data / FOLDER / "notary.pub"
            while following["key"] not in published.read_text():  # noqa: ASYNC110 - another's work
                await asyncio.sleep(0.05)

    asyncio.run(wait())
    assert answer(convo("verify", "--all", "--key", following["key"], "--json"))["valid"]


def test_what_verify_cannot_understand(convo: Convo) -> None:
    assert "name a conversation or a bundle" in complaint(convo("verify"), 2)
    assert "takes no conversation" in complaint(convo("verify", "c-1", "--all"), 2)


def test_what_readers_are_shown_is_compared_with_the_record(talk: str, convo: Convo) -> None:
    result = convo("verify", "--projections")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "snapshots and live views of 1 conversation agree with the record\n"
        "analytics tables of 4 events agree with the record\n"
    )
    one = answer(convo("verify", talk, "--projections", "--json"))
    assert (one["valid"], one["differences"], one["tables"]["messages"]["live"][:2]) == (
        True,
        [],
        "2:",
    )


def test_a_difference_is_named(talk: str, convo: Convo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVO_WINDOW_SIZE", "1")  # so that the services show more than is due

    result = convo("verify", talk, "--projections")

    assert result.exit_code == 1
    assert "  default/c/7, messages at version 4: messages.length is 2, the record gives 1" in (
        result.stdout
    )
    assert "restart the services" in result.stderr
