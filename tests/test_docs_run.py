"""What the documentation shows works: its commands run and print that, its server starts.

Fenced blocks say in their first line what happens with them here:

- `sh runs`, `python runs`: run, in the order of the page, against a fresh ledger; must succeed;
- `text output`: what the block before it prints, times and generated ids aside;
- `json reply`: the last line that the block before it prints has (at least) this in it; "…" stands
  for anything;
- `conf server`: together they are the configuration of a nats-server, which is started with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from infra.server import EmbeddedServer, find_program, free_port
from infra.settings import Settings
from services import endpoint
from services.bootstrap import SERVICES, running
from services.responder import running as responding
from tests.pages import CONTRACT, OPERATIONS, PAGES, ROOT, Block, blocks, named

DEFAULT_URL = "nats://127.0.0.1:4222"
SOMETIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
SOME_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder for PATH with `convo`, and `nats` as far as the pages use it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, argv in {
        "convo": ["-m", "services.cli"],
        "nats": [str(ROOT / "tests" / "nats_command.py")],
    }.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *argv])} "$@"\n')
        script.chmod(0o755)
    return folder


@asynccontextmanager
async def ledger(data_dir: Path) -> AsyncIterator[str]:
    """A fresh ledger; its URL."""
    async with (
        EmbeddedServer(data_dir) as server,
        running(Settings(data_dir=data_dir), SERVICES, url=server.url),
        responding(Settings(), url=server.url),
    ):
        yield server.url


async def run(block: Block, url: str, commands: Path) -> str:
    """Runs a block from the root of the repository; what it prints. Fails when it fails."""
    language = block.info.split()[0]
    text = block.text.replace(DEFAULT_URL, url)
    argv = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
    process = await asyncio.create_subprocess_exec(
        *argv,
        text,
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CONVO_NATS_URL": url,
            "NATS_URL": url,
        },
        stdout=PIPE,
        stderr=STDOUT,
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode == 0, f"line {block.line}: {said.decode()}"
    return said.decode()


def anyhow(text: str) -> list[str]:
    """The lines, with times and generated ids written alike."""
    return SOME_ID.sub("<id>", SOMETIME.sub("<time>", text)).strip().splitlines()


def differs(expected: Any, found: Any, place: str = "") -> str | None:
    """Where `found` lacks what `expected` has; None when it has all of it."""
    if expected == "…":
        return None
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            if key not in found:
                return f"{place}.{key} is missing"
            if problem := differs(value, found[key], f"{place}.{key}"):
                return problem
        return None
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return next((bad for n, (a, b) in pairs if (bad := differs(a, b, f"{place}[{n}]"))), None)
    return None if expected == found else f"{place}: {found!r} instead of {expected!r}"


RUNNABLE = [page for page in PAGES if any("runs" in block.info for block in blocks(page))]


def test_pages_that_should_run_do() -> None:
    assert {named(page) for page in RUNNABLE} >= {
        "README.md",
        "docs/contract.md",
        "docs/durability.md",
    }


@pytest.mark.parametrize("page", RUNNABLE, ids=named)
async def test_what_is_shown_runs_and_answers_as_shown(
    page: Path, tmp_path: Path, commands: Path
) -> None:
    said = ""
    async with ledger(tmp_path / "data") as url:
        for block in blocks(page):
            match block.info.split():
                case ["sh" | "python", "runs"]:
                    said = await run(block, url, commands)
                case ["text", "output"]:
                    assert anyhow(said) == anyhow(block.text), f"{named(page)}:{block.line}"
                case ["json", "reply"]:
                    problem = differs(json.loads(block.text), json.loads(said.splitlines()[-1]))
                    assert problem is None, f"{named(page)}:{block.line}: {problem}"


async def test_the_chain_can_be_recomputed_as_shown(tmp_path: Path, commands: Path) -> None:
    [block] = [block for block in blocks(CONTRACT) if "sha256sum" in block.text]
    async with ledger(tmp_path / "data") as url:
        *_, events = lines = (await run(block, url, commands)).splitlines()

    hashes = [line for line in lines if re.fullmatch("[0-9a-f]{64}", line)]
    assert hashes == [event["hash"] for event in json.loads(events)["events"]]
    assert len(hashes) == 3


@asynccontextmanager
async def server_as_shown(folder: Path) -> AsyncIterator[str]:
    """A nats-server with the configuration of docs/operations.md; HOST:PORT of it."""
    parts = [block.text for block in blocks(OPERATIONS) if block.info == "conf server"]
    assert len(parts) == 2
    address = f"127.0.0.1:{free_port()}"
    text = "\n".join([f"listen: {address}", *parts]).replace("/srv/nats", str(folder / "store"))
    config = folder / "server.conf"
    config.write_text(text, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        find_program(), "--config", config, stdout=PIPE, stderr=STDOUT
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while line := await process.stdout.readline():
                if b"Server is ready" in line:
                    break
            assert line, "it did not start"
        yield address
    finally:
        process.terminate()
        await process.communicate()
        shutil.rmtree(folder / "store", ignore_errors=True)


async def test_permissions_as_shown_are_enough_and_not_too_much(tmp_path: Path) -> None:
    async with server_as_shown(tmp_path) as address:
        ledger_url = f"nats://ledger:ledger-secret@{address}"
        violations: asyncio.Queue[str] = asyncio.Queue()

        async def note(error: Exception) -> None:
            violations.put_nowait(str(error))

        acme = await nats.connect(f"nats://acme:acme-secret@{address}", error_cb=note)
        service = await nats.connect(ledger_url, error_cb=note)

        async def refused(connection: Client, subject: str) -> bool:
            await connection.publish(subject, b"{}")
            await connection.flush()
            async with asyncio.timeout(10):
                return subject.lower() in await violations.get()

        async def has_snapshot() -> bool:
            api = "$JS.API.DIRECT.GET.CONVO-SNAPSHOTS.convo.snap.0.acme.c-1"
            reply = await service.request(api, b"", timeout=10)
            return "Status" not in (reply.headers or {})

        async def ask(subject: str, body: dict[str, Any]) -> dict[str, Any]:
            reply = await acme.request(subject, json.dumps(body).encode(), timeout=10)
            return cast("dict[str, Any]", json.loads(reply.data))

        async with running(Settings(data_dir=tmp_path / "data"), SERVICES, url=ledger_url):
            live = await acme.subscribe("convo.live.*.acme.>")
            assert (await ask("convo.cmd.acme.c-1.init", {"user_id": "ada"}))["ok"]
            many = [{"role": "user", "content": f"message {n}"} for n in range(100)]
            assert (await ask("convo.cmd.acme.c-1.turn", {"messages": many}))["ok"]
            for view in ("messages", "usage", "state", "history", "events"):
                assert (await ask(f"convo.get.acme.c-1.{view}", {}))["ok"]
            for audit in ("replay", "verify", "export"):
                assert (await ask(f"convo.audit.acme.c-1.{audit}", {}))["ok"]
            listed = await acme.request(
                "convo.list.acme", b"", timeout=10, headers={endpoint.MIN_SEQ: "101"}
            )
            assert len(json.loads(listed.data)["conversations"]) == 1
            assert (await ask("convo.search.acme", {"query": '"message 99"'}))["hits"]
            heard = await live.next_msg(timeout=10)
            assert heard.headers is not None
            assert heard.headers["Event-Type"] == "ConversationStarted"
            async with asyncio.timeout(30):
                while not await has_snapshot():  # noqa: ASYNC110 - written some time later
                    await asyncio.sleep(0.02)

        assert violations.empty()
        for subject in (
            "convo.cmd.other.c-1.init",
            "convo.list.other",
            "convo.evt.0.acme.c-1",
            "convo.snap.0.acme.c-1",
        ):
            assert await refused(acme, subject), subject
        for call in ("UPDATE", "DELETE", "PURGE", "RESTORE", "MSG.DELETE"):
            assert await refused(service, f"$JS.API.STREAM.{call}.CONVO-EVENTS-0"), call
        for connection in (acme, service):
            try:
                await connection.close()
            except NatsError:
                pytest.fail("the connection was lost")
