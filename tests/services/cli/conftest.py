"""The ledger's services running beside the tests, a scripted one that misbehaves, and `convo`."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.connection import connect
from infra.server import EmbeddedServer, free_port
from infra.settings import Settings
from services.bootstrap import SERVICES, running
from services.cli.app import convo as command
from services.responder import running as responding

Convo = Callable[..., Result]
Write = Callable[..., Path]


@contextlib.contextmanager
def beside(work: AbstractAsyncContextManager[Any]) -> Iterator[None]:
    """Keeps an async context open in a thread of its own while the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(work.__aenter__(), loop).result()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(work.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def server_url(nats_server: EmbeddedServer) -> str:
    return nats_server.url


@pytest.fixture(scope="module")
def ledger(server_url: str, store_dir: Path) -> Iterator[str]:
    """The URL of a server on which every service answers."""
    settings = Settings(data_dir=store_dir, checkpoint_every="1s")
    with (
        beside(running(settings, SERVICES, url=server_url)),
        beside(responding(settings, url=server_url)),
    ):
        yield server_url


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the developer's: no CONVO_ variables, an empty working directory."""
    for field in Settings.model_fields:
        monkeypatch.delenv(f"CONVO_{field.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def convo(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Convo:
    """Runs one command line; against the ledger of the module when the test asks for one."""
    for fixture in ("ledger", "script"):
        if fixture in request.fixturenames:
            found = request.getfixturevalue(fixture)
            monkeypatch.setenv("CONVO_NATS_URL", getattr(found, "url", found))

    def run(*arguments: object, input: str | bytes | None = None) -> Result:  # noqa: A002 - click's name
        return CliRunner().invoke(command, [str(each) for each in arguments], input=input)

    return run


def answer(result: Result) -> Any:
    """The JSON that a command printed."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def complaint(result: Result, exit_code: int) -> str:
    """The one line that a failed command leaves on standard error."""
    assert result.exit_code == exit_code, result.output
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("convo: ")
    assert "Traceback" not in result.output
    return line.removeprefix("convo: ")


class Script:
    """A service that answers as it is told. `replies` are given one after the other, the last one
    for ever; None leaves a request unanswered. `requests` are those that came."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.replies: list[dict[str, Any] | bytes | None] = [{"ok": True}]
        self.requests: list[Msg] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Client]:
        """Answers commands and queries inside the block."""
        client = await connect(self.url, name="script", settings=Settings())
        try:
            for subject in ("convo.cmd.>", "convo.get.>", "convo.audit.>"):
                await client.subscribe(subject, cb=self._answer)
            await client.flush()
            yield client
        finally:
            await client.close()

    async def _answer(self, message: Msg) -> None:
        self.requests.append(message)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply is not None:
            await message.respond(reply if isinstance(reply, bytes) else json.dumps(reply).encode())

    @property
    def ids(self) -> list[str]:
        """The command ids of the requests, in order."""
        return [(message.headers or {})["Convo-Command-Id"] for message in self.requests]


def error(code: str, message: str = "that was refused", **more: Any) -> dict[str, Any]:
    """A reply that refuses."""
    return {"ok": False, "error": {"code": code, "message": message, "retryable": False, **more}}


@pytest.fixture
def script(server_url: str) -> Iterator[Script]:
    """A scripted service in the place of the ledger's."""
    script = Script(server_url)
    with beside(script.listening()):
        yield script


@pytest.fixture
def nowhere() -> str:
    """The URL of a server that is not there."""
    return f"nats://127.0.0.1:{free_port()}"


def a_line(id: str, count: int = 3, **fields: Any) -> dict[str, Any]:
    """One conversation of `count` messages with timestamps that cannot be read."""
    messages = [
        {"role": ("user", "assistant")[n % 2], "content": f"{id} {n}", "timestamp": "NaT"}
        for n in range(count)
    ]
    return {"id": id, "messages": messages, **fields}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an import file."""

    def write(*lines: dict[str, Any] | bytes, name: str = "file.jsonl") -> Path:
        texts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines]
        path = tmp_path / name
        data = b"".join(text + b"\n" for text in texts)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write
