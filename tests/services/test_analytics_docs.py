"""The page on analytics is true: each of its questions has the answer that it shows."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from pydantic_core import from_json, to_json

from infra.server import EmbeddedServer
from infra.settings import Settings
from projections.analytics.rows import CONVERSATIONS, EVENTS, MESSAGES, USAGE
from projections.analytics.schema import VIEWS
from services.bootstrap import running
from services.cli.analytics import table
from tests.services.rigs import included

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/analytics.md").read_text(encoding="utf-8")
QUESTION = re.compile(r"### \d+\. ([^\n]+)\n\n```sql\n(.+?)\n```\n\n```text\n(.*?)\n```", re.DOTALL)


@pytest.mark.slow
async def test_each_question_has_the_answer_that_the_page_shows(
    nats_server: EmbeddedServer, nats_client: Client, store_dir: Path
) -> None:
    questions = QUESTION.findall(PAGE)
    assert len(questions) == 10
    services = ("commands", "queries", "analytics")
    async with running(Settings(data_dir=store_dir), services, url=nats_server.url):
        for path in sorted((ROOT / "docs/samples").glob("*.jsonl.gz")):
            tenant = path.name.partition(".")[0]
            argv = ["import", str(path), "--tenant", tenant, "--nats", nats_server.url]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "services.cli", *argv),
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            assert await process.wait() == 0
        head = from_json(
            (await nats_client.request("$JS.API.STREAM.INFO.CONVO-EVENTS-0", timeout=10)).data
        )["state"]["last_seq"]
        for question, sql, answer in questions:
            reply = await included(partial(ask, nats_client, sql, head))
            assert reply["ok"], (question, reply)
            assert "\n".join(list(table(reply))[:-1]) == answer, question


async def ask(nats: Client, sql: str, min_seq: int) -> Any:
    message = await nats.request(
        "convo.sql",
        to_json({"sql": sql}),
        timeout=30,
        headers={"Convo-Min-Seq": str(min_seq)},
    )
    return from_json(message.data)


def test_the_page_names_every_column_and_view() -> None:
    for name, columns in (
        ("events", EVENTS),
        ("messages", MESSAGES),
        ("usage", USAGE),
        ("conversations", CONVERSATIONS),
    ):
        (row,) = re.findall(rf"^\| `{name}` \| (.+) \|$", PAGE, re.MULTILINE)
        shown = [column.replace(" (JSON)", "") for column in row.split(", ")]
        assert ["tenant_id", "conversation_id", *shown] == list(columns)
    for view in VIEWS:
        assert f"`{view}`" in PAGE
