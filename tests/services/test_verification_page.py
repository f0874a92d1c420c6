"""docs/verification.md: its script, run as it stands there, and the same with hashlib alone.

Nothing of this project takes part in the checking: the script's `nats` is a stand-in that speaks
the protocol itself, because the test machine need not have the real one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client

from infra.server import EmbeddedServer
from tests.services.auditing import Ledger, ledger_on

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verification.md"

STAND_IN = """#!{python} -IS
# `nats req --raw SUBJECT BODY`, without a client library.
import socket, sys
req, raw, subject, body = sys.argv[1:]
assert (req, raw) == ("req", "--raw")
connection = socket.create_connection(("127.0.0.1", {port}), 10)
reader = connection.makefile("rb")
reader.readline()
connection.sendall(
    b'CONNECT {{"verbose":false,"headers":true}}\\r\\nSUB _INBOX.1 1\\r\\n'
    + f"PUB {{subject}} _INBOX.1 {{len(body.encode())}}\\r\\n{{body}}\\r\\n".encode()
)
while not (line := reader.readline()).startswith((b"MSG", b"HMSG")):
    pass
sys.stdout.buffer.write(reader.read(int(line.split()[-1])))
"""


@pytest_asyncio.fixture(scope="module")
async def ledger(nats_server: EmbeddedServer) -> AsyncIterator[Ledger]:
    async with ledger_on(nats_server.url) as ledger:
        await ledger.talk("c-1", turns=3)
        yield ledger


async def run_script(directory: Path, port: int, subject: str) -> tuple[int, str]:
    """The exit status and what the page's first script prints."""
    for program in ("jq", "xxd", "sha256sum", "bash"):
        if shutil.which(program) is None:
            pytest.skip(f"the page's script needs {program}")
    script = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    (directory / "verify.sh").write_text(script)
    stand_in = directory / "nats"
    stand_in.write_text(STAND_IN.format(python=sys.executable, port=port))
    stand_in.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        "bash",
        str(directory / "verify.sh"),
        subject,
        env={**os.environ, "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_the_script_of_the_page_finds_the_head(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    report = await ledger.audit("c-1", "verify")

    status, output = await run_script(tmp_path, nats_server.port, "convo.evt.0.acme.c-1")

    assert output == f"valid: {report['events']} events, head {report['head_hash']}\n"
    assert status == 0


async def test_the_script_names_the_first_version_that_was_changed(
    ledger: Ledger, tmp_path: Path
) -> None:
    forged = tmp_path / "forged"
    async with EmbeddedServer(forged) as server:
        source = await nats.connect(ledger.url)
        target = await nats.connect(server.url)
        await target.request(
            "$JS.API.STREAM.CREATE.CONVO-EVENTS-0",
            json.dumps({"name": "CONVO-EVENTS-0", "subjects": ["convo.evt.>"]}).encode(),
            timeout=10,
        )
        for body, headers in await stored_messages(source, "convo.evt.0.acme.c-1"):
            changed = body.replace(b"Answer 1", b"Answer 7")
            await target.request(
                "convo.evt.0.acme.c-1",
                changed,
                headers={name: value for name, value in headers.items() if name[:5] == "Event"},
                timeout=10,
            )
        await source.close()
        await target.close()

        status, output = await run_script(tmp_path, server.port, "convo.evt.0.acme.c-1")

    assert status == 1
    assert output.startswith("BAD at version 7, stream sequence 7: found version 7")


async def test_the_chain_is_recomputed_with_hashlib_alone(ledger: Ledger) -> None:
    connection = await nats.connect(ledger.url)
    head = bytes(32)
    messages = await stored_messages(connection, "convo.evt.0.acme.c-1")
    for version, (body, headers) in enumerate(messages, 1):
        head = hashlib.sha256(head + body).digest()
        assert headers["Event-Version"] == str(version)
        assert headers["Event-Hash"] == head.hex()
    await connection.close()

    assert (await ledger.audit("c-1", "verify"))["head_hash"] == head.hex()
    assert len(messages) == 11


async def stored_messages(connection: Client, subject: str) -> list[tuple[bytes, dict[str, str]]]:
    """(body, headers) of every message on the subject, by raw requests."""
    found: list[tuple[bytes, dict[str, str]]] = []
    seq = 1
    while True:
        answer = json.loads(
            (
                await connection.request(
                    "$JS.API.STREAM.MSG.GET.CONVO-EVENTS-0",
                    json.dumps({"seq": seq, "next_by_subj": subject}).encode(),
                    timeout=10,
                )
            ).data
        )
        if "error" in answer:
            assert answer["error"]["err_code"] == 10037
            return found
        message = answer["message"]
        lines = base64.b64decode(message["hdrs"]).decode().split("\r\n")[1:]
        headers = dict(line.split(": ", 1) for line in lines if line)
        found.append((base64.b64decode(message["data"]), headers))
        seq = message["seq"] + 1
