"""`convo status` and `convo doctor`: what runs, what is set, and what is wrong with it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nats.aio.client import Client

from infra.settings import Settings
from services.bootstrap import ANSWERING, topology
from services.cli.checkup import _agreement, streams
from tests.services.cli.conftest import Convo, answer, complaint


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory on which a `convo up` (this process) says that it runs."""
    run = tmp_path / "data" / "run"
    run.mkdir(parents=True)
    worker = {"name": "worker-1", "pid": 4711, "state": "failing", "restarts": 3}
    worker |= {"since": "2026-11-21T09:00:00+00:00", "last_exit": "exit code\x1b 1"}
    status = {"pid": os.getpid(), "processes": [worker]}
    (run / "status.json").write_text(json.dumps(status))
    return tmp_path / "data"


@pytest.fixture
def other_program() -> Iterator[int]:
    """A port on which something listens that is no NATS server."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def verdicts(checks: list[dict[str, str]]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in checks}


def texts(checks: list[dict[str, str]]) -> dict[str, str]:
    return {check["name"]: check["text"] for check in checks}


# -- status -------------------------------------------------------------------------------------


def test_status_shows_processes_services_and_streams(
    convo: Convo, ledger: str, data_dir: Path
) -> None:
    convo("init", "c-status", "ada")

    lines = convo("status", "--data", data_dir).stdout.splitlines()
    found = answer(convo("status", "--data", data_dir, "--json"))

    assert lines[0] == f"server     nats-server 2.15.1 at {ledger}"
    assert "worker-1" in lines[2]
    assert lines[2].endswith(
        "restarts 3  since 2026-11-21T09:00:00+00:00  last exit: exit code\\x1b 1"
    )
    assert found["ok"] is True
    assert found["up"]["processes"][0]["state"] == "failing"
    assert {row["name"] for row in found["services"]} == {f"convo-{name}" for name in ANSWERING}
    [stream] = found["streams"]
    assert stream["name"] == "CONVO-EVENTS-0"
    assert stream["messages"] == stream["last_seq"] >= 1


def test_status_without_a_ledger_on_the_data_directory(convo: Convo, ledger: str) -> None:
    assert "no `convo up` runs on" in convo("status").stdout


# -- doctor -------------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong_with_a_ledger_that_runs(
    convo: Convo, ledger: str, tmp_path: Path
) -> None:
    convo("init", "c-doctor", "ada")

    found = answer(convo("doctor", "--data", tmp_path, "--json"))

    assert verdicts(found["checks"]) == dict.fromkeys(
        [
            "nats-server program",
            "data directory",
            "disk",
            "clock",
            "server",
            "services",
            "stream CONVO-EVENTS-0",
            "server's clock",
            "fence",
        ],
        "ok",
    )
    assert found["versions"]["nats-server"] == "2.15.1"
    assert "not installed" not in found["versions"].values()


def test_doctor_prints_every_setting_and_its_source(
    convo: Convo, ledger: str, tmp_path: Path
) -> None:
    Path("convo.toml").write_text("window_size = 20\n")

    result = convo("doctor", "--data", tmp_path)

    rows = [row for line in result.stdout.splitlines() if (row := line.split())]
    shown = {row[0]: row[1:] for row in rows}
    assert shown["window_size"] == ["20", "convo.toml"]
    assert shown["data_dir"] == [str(tmp_path), "flag"]
    assert shown["nats_url"] == [ledger, "environment"]
    assert shown["port"] == ["4222", "default"]
    assert set(Settings.model_fields) <= shown.keys()


def test_doctor_before_the_first_up(
    convo: Convo, monkeypatch: pytest.MonkeyPatch, nowhere: str
) -> None:
    port = nowhere.rpartition(":")[2]
    monkeypatch.setenv("CONVO_PORT", port)

    found = answer(convo("doctor", "--json"))

    assert verdicts(found["checks"])["server"] == "warn"
    assert "convo up" in texts(found["checks"])["server"]
    assert texts(found["checks"])["port"] == f"{port} is free"
    assert texts(found["checks"])["data directory"].endswith("`convo up` makes it")


def test_doctor_on_a_port_that_another_program_has(
    convo: Convo, monkeypatch: pytest.MonkeyPatch, other_program: int
) -> None:
    monkeypatch.setenv("CONVO_PORT", str(other_program))

    result = convo("doctor")

    assert "1 check failed" in complaint(result, 1)
    [line] = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert line.startswith(f"FAIL  port: {other_program} cannot be taken")


def test_doctor_on_a_server_that_was_named_and_is_not_there(convo: Convo, nowhere: str) -> None:
    result = convo("doctor", "--nats", nowhere, "--json")

    complaint(result, 1)
    assert verdicts(json.loads(result.stdout)["checks"])["server"] == "FAIL"


def test_doctor_on_a_data_directory_that_is_a_file(
    convo: Convo, ledger: str, tmp_path: Path
) -> None:
    file = tmp_path / "data"
    file.write_text("")

    result = convo("doctor", "--data", file)

    complaint(result, 1)
    assert "FAIL  data directory: " in result.stdout
    assert "take another with --data DIR" in result.stdout


async def test_doctor_names_the_promises_that_a_stream_breaks(nats_client: Client) -> None:
    """A stream of another partition number, made by hand, where the ledger's own should be."""
    settings = Settings(partitions=2)
    wanted = topology(settings).events_config(1)
    wanted |= {"deny_purge": False, "allow_atomic": False}
    await nats_client.request(
        "$JS.API.STREAM.CREATE.CONVO-EVENTS-1", json.dumps(wanted).encode(), timeout=10
    )

    [*_, check] = await streams(nats_client, settings, 5.0)

    assert check.verdict == "FAIL"
    assert "allow_atomic: is not set, has to be true" in check.text
    await nats_client.request("$JS.API.STREAM.DELETE.CONVO-EVENTS-1", timeout=10)


@pytest.mark.parametrize(
    ("told_at", "verdict"), [(-5, "warn"), (0, "ok"), (20, "ok"), (40, "ok"), (45, "warn")]
)
def test_a_servers_clock_agrees_when_what_it_told_lies_between_question_and_answer(
    told_at: int, verdict: str
) -> None:
    asked = datetime(2026, 11, 21, 9, 0, 0, tzinfo=UTC)
    told = (asked + timedelta(seconds=told_at)).isoformat()
    assert _agreement(told, asked, asked + timedelta(seconds=40)).verdict == verdict


# -- bench --------------------------------------------------------------------------------------


def test_bench_measures_the_running_ledger_and_leaves_what_it_wrote(
    convo: Convo, ledger: str
) -> None:
    found = answer(convo("bench", "--writers", 2, "--seconds", 0.2, "--json"))

    appends, reads = found["figures"]
    assert (appends["operation"], reads["operation"]) == ("append", "messages")
    assert all(
        each["per_s"] > 0 and each["p99_ms"] >= each["p50_ms"] > 0 for each in (appends, reads)
    )
    stop_at = time.monotonic() + 30
    counted = -1
    while counted < appends["requests"] and time.monotonic() < stop_at:  # the directory follows
        listed = answer(convo("list", "--tenant", "bench", "--json"))["conversations"]
        counted = sum(each["message_count"] for each in listed)
    assert counted == appends["requests"]


def test_bench_says_one_line_where_nobody_answers(convo: Convo, other_program: int) -> None:
    result = convo("bench", "--nats", f"nats://127.0.0.1:{other_program}")

    assert f"127.0.0.1:{other_program}" in complaint(result, 1)
