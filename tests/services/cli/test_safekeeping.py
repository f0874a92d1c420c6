"""`convo backup`, `convo restore` and `convo fence`, as an operator types them."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
from pathlib import Path

import pytest

from infra.connection import connect
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.bootstrap import running
from tests.services.cli.conftest import Convo, answer, beside, complaint


@pytest.fixture
def copy(convo: Convo, ledger: str, tmp_path: Path) -> Path:
    """A backup of a ledger with a conversation in it."""
    convo("init", "c-1", "ada")
    convo("append", "c-1", "user", "Where is my order?")
    assert convo("backup", tmp_path / "copy").exit_code == 0
    return tmp_path / "copy"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is named any more: commands that need one start it."""
    monkeypatch.delenv("CONVO_NATS_URL")


def test_backup_says_what_is_new(convo: Convo, ledger: str, copy: Path) -> None:
    convo("append", "c-1", "assistant", "It ships today.")

    found = answer(convo("backup", copy, "--json"))
    told = convo("backup", copy)

    [events] = [each for each in found["streams"] if each["stream"] == "CONVO-EVENTS-0"]
    assert events["added"] == 1
    assert found["positions"] == {"0": events["last_seq"]}
    assert "CONVO-EVENTS-0   0 new (0 bytes), up to sequence" in told.stdout


def test_restore_into_a_data_directory(
    convo: Convo, copy: Path, alone: None, tmp_path: Path
) -> None:
    result = convo("restore", copy, "--data", tmp_path / "new")

    assert result.exit_code == 0, result.output
    assert "restored and verified" in result.stdout
    assert "valid: CONVO-EVENTS-0" in result.stdout
    again = answer(convo("restore", copy, "--check", "--json"))
    assert again["valid"] is True


def test_restore_into_a_server_that_was_named(
    convo: Convo, copy: Path, alone: None, tmp_path: Path
) -> None:
    server = EmbeddedServer(tmp_path / "new")
    with beside(server):
        assert convo("restore", copy, "--nats", server.url).exit_code == 0
        assert convo("verify", "--all", "--nats", server.url).exit_code == 0
        again = complaint(convo("restore", copy, "--nats", server.url), 1)
        with beside(running(Settings(data_dir=tmp_path), ("queries",), url=server.url)):
            shown = convo("messages", "c-1", "--nats", server.url)
    assert "a restore never writes over one" in again
    assert "Where is my order?" in shown.stdout


def test_restore_where_services_answer_is_refused(convo: Convo, ledger: str, copy: Path) -> None:
    said = complaint(convo("restore", copy), 1)

    assert "services answer on this server (convo-analytics" in said
    assert "stop them" in said


@pytest.fixture
def damaged(copy: Path) -> Path:
    """The same backup with one bit turned."""
    file = copy / "CONVO-EVENTS-0" / "000000000000001.jsonl.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    return copy


def test_a_damaged_backup_is_refused_before_anything_is_made(
    convo: Convo, damaged: Path, alone: None, tmp_path: Path
) -> None:
    said = complaint(convo("restore", damaged, "--data", tmp_path / "new"), 1)

    assert "the bytes of CONVO-EVENTS-0/000000000000001.jsonl.gz have been changed" in said
    assert not (tmp_path / "new").exists()


def test_what_is_no_backup(convo: Convo, ledger: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    assert "holds no backup" in complaint(convo("restore", tmp_path, "--check"), 1)
    assert "holds files, and no backup" in complaint(convo("backup", tmp_path), 1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_notarys_key_goes_along_where_that_is_asked_for(
    convo: Convo, ledger: str, store_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    convo("init", "c-keys", "ada")
    key = (store_dir / "notary" / "notary.key").read_bytes()
    convo("backup", tmp_path / "without", "--data", store_dir)
    convo("backup", tmp_path / "with", "--keys", "--data", store_dir)
    monkeypatch.delenv("CONVO_NATS_URL")

    assert convo("restore", tmp_path / "with", "--data", tmp_path / "new").exit_code == 0

    assert not (tmp_path / "without" / "notary").exists()
    restored = tmp_path / "new" / "notary" / "notary.key"
    assert restored.read_bytes() == key
    for path in (restored, tmp_path / "with" / "notary" / "notary.key"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_every_line_of_a_backup_is_readable_json(copy: Path) -> None:
    with gzip.open(copy / "CONVO-EVENTS-0" / "000000000000001.jsonl.gz") as lines:
        first = json.loads(next(iter(lines)))
    assert set(first) == {"seq", "subject", "time", "headers", "body"}
    assert json.loads(first["body"])["type"] == "ConversationStarted"


# -- the fence -------------------------------------------------------------------------------------


@pytest.fixture
def gone_back(convo: Convo, copy: Path, alone: None, tmp_path: Path) -> Path:
    """A data directory that has seen more than the ledger in it has."""
    data = tmp_path / "new"
    convo("restore", copy, "--data", data)
    path = data / "fence" / "CONVO-EVENTS-0.json"
    witness = json.loads(path.read_text())
    path.write_text(json.dumps({**witness, "seq": witness["seq"] + 5}))
    return data


def test_fence_says_what_is_the_matter_and_accepts_it_when_told_to(
    convo: Convo, gone_back: Path
) -> None:
    refused = convo("fence", "--data", gone_back)
    accepted = convo("fence", "--data", gone_back, "--accept-loss")
    now = answer(convo("fence", "--data", gone_back, "--json"))

    assert "--accept-loss" in complaint(refused, 1)
    assert "it ends at sequence" in refused.stdout
    assert "accepted" in accepted.stdout
    assert now["valid"] is True
    [stream] = now["streams"]
    assert stream["seen_seq"] == stream["last_seq"] > 0


def test_up_refuses_a_ledger_that_went_back(convo: Convo, gone_back: Path) -> None:
    result = convo("up", "--data", gone_back, "--port", 0)

    assert result.exit_code == 1
    said = result.stderr
    assert "convo up: CONVO-EVENTS-0 is not what it was: it ends at sequence" in said
    assert "convo fence --accept-loss" in said


def test_a_backup_that_ends_before_what_was_seen_is_restored_only_where_that_is_accepted(
    convo: Convo, gone_back: Path, copy: Path
) -> None:
    shutil.rmtree(gone_back / "nats")

    refused = convo("restore", copy, "--data", gone_back)
    done = convo("restore", copy, "--data", gone_back, "--accept-loss")

    assert "what is between would be lost" in complaint(refused, 1)
    assert done.exit_code == 0, done.output
    assert convo("fence", "--data", gone_back).exit_code == 0


# -- scrub -----------------------------------------------------------------------------------------


def test_scrub_reads_everything(convo: Convo, copy: Path, alone: None, tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "new")
    convo("restore", copy, "--data", tmp_path / "new")
    with beside(server):
        found = answer(convo("scrub", "--json", "--rate", "5MB", "--nats", server.url))
        beside_it = answer(convo("verify", "--all", "--json", "--nats", server.url))

    assert found == beside_it
    [partition] = found["partitions"]
    assert partition["events"] == partition["last_seq"] > 0
    assert partition["first_bad_seq"] is None


def test_scrub_goes_on_behind_a_fault_and_names_the_first_bad_sequence(
    convo: Convo, copy: Path, alone: None, tmp_path: Path
) -> None:
    server = EmbeddedServer(tmp_path / "new")
    convo("restore", copy, "--data", tmp_path / "new")
    with beside(server):
        last = answer(convo("scrub", "--json", "--nats", server.url))["partitions"][0]["last_seq"]
        forged = "convo.evt.0.default.c-forged"
        for _ in range(2):
            asyncio.run(published(server.url, forged))
        result = convo("scrub", "--nats", server.url)

    complaint(result, 1)
    assert f"first bad sequence: {last + 1}" in result.stdout
    assert f"{last + 2:,} events" in result.stdout


async def published(url: str, subject: str) -> None:
    client = await connect(url, name="test", settings=Settings())
    await client.request(subject, b"{}", timeout=10)
    await client.close()


def test_scrub_at_no_rate(convo: Convo, ledger: str) -> None:
    assert "write it as 5000" in complaint(convo("scrub", "--rate", "fast"), 2)
