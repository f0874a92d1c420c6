"""The AI SDK's `useChat`, and the page in Chromium, against a ledger. Needs `make test-clients`.

The scenarios are in chat.mjs and page.mjs.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from services.gateway.keys import KeyFile
from tests.services.gateway.site import GatewayProcess, Site
from tests.services.gateway.talking import Talking

HERE = Path(__file__).parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = pytest.mark.clients


def scenarios(program: str) -> list[str]:
    """What a program can do, as its text says."""
    text, _, _ = (HERE / program).read_text().partition("const withKeys")
    return re.findall(r"^  async (\w+)\(\)", text, re.MULTILINE)


async def run(gateway: GatewayProcess, program: str, *arguments: str) -> None:
    """Runs a scenario to its end, doing what it asks for."""
    process = await asyncio.create_subprocess_exec(
        *("node", program, *arguments),
        cwd=HERE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdin is not None
    complaint = asyncio.ensure_future(process.stderr.read())
    try:
        async with asyncio.timeout(90):
            async for wish in process.stdout:
                match wish.strip():
                    case b"kill the gateway":
                        gateway.kill()
                    case b"start it again":
                        gateway.start()  # not in a thread: it would die with that
                process.stdin.write(b"done\n")
            status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        said = (await complaint).decode()
    assert status == 0, said


@pytest.mark.parametrize("scenario", scenarios("chat.mjs"))
async def test_use_chat(gateway: GatewayProcess, talking: Talking, scenario: str) -> None:
    await run(gateway, "chat.mjs", scenario, gateway.http, talking.model.http)


@pytest.mark.parametrize("scenario", scenarios("page.mjs"))
async def test_the_page(gateway: GatewayProcess, talking: Talking, scenario: str) -> None:
    await run(gateway, "page.mjs", scenario, gateway.http, talking.model.http, CHROMIUM)


async def test_the_page_asks_for_a_key(site: Site, talking: Talking, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("ada", "acme", "ada")
    keyed = site.gateway(auth="keys", keys_file=keys.path)
    await run(keyed, "page.mjs", "signs_in", keyed.http, talking.model.http, CHROMIUM, key)
