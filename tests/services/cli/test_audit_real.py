"""The state that a replay shows, beside a fold written down here in the plainest way.

Two hundred real conversations from docs/samples, imported by the command line. What is folded here
is the raw events, read from the stream by bare requests; nothing of this project folds them.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import nats
import pytest

from tests.services.cli.conftest import Convo

SAMPLES = Path(__file__).resolve().parents[3] / "docs" / "samples"
WANTED = 200
WINDOW = 50

JSON = dict[str, Any]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first fifty and more of each sample."""
    lines = []
    for sample in sorted(SAMPLES.glob("*.jsonl.gz")):
        with gzip.open(sample, "rb") as content:
            lines += list(itertools.islice(content, 90))
    path = tmp_path_factory.mktemp("samples") / "real.jsonl"
    path.write_bytes(b"".join(lines[:WANTED]))
    assert len(lines) >= WANTED
    return path


@pytest.mark.slow
def test_the_state_at_every_version_of_two_hundred_real_conversations(
    ledger: str, convo: Convo, file: Path
) -> None:
    assert convo("import", file).exit_code == 0
    versions = asyncio.run(compare_all(ledger))

    assert versions > 2_000
    result = convo("verify", "--all")
    assert result.exit_code == 0, result.output
    assert f"of {WANTED} conversations" in result.stdout


async def compare_all(url: str) -> int:
    """Compares every conversation on the server; returns how many versions there were."""
    connection = await nats.connect(url)
    streams: dict[str, list[JSON]] = {}
    info = json.loads(
        (await connection.request("$JS.API.STREAM.INFO.CONVO-EVENTS-0", timeout=10)).data
    )
    for seq in range(1, info["state"]["last_seq"] + 1):
        answer = await connection.request(
            "$JS.API.STREAM.MSG.GET.CONVO-EVENTS-0", json.dumps({"seq": seq}).encode(), timeout=10
        )
        message = json.loads(answer.data)["message"]
        event = json.loads(base64.b64decode(message["data"]))
        streams.setdefault(message["subject"].split(".", 3)[3], []).append(event)
    assert len(streams) == WANTED
    versions = 0
    for key, events in streams.items():
        shown = [entry["state"] async for entry in replayed(connection, key)]
        assert shown == list(folded(events)), key
        versions += len(shown)
    await connection.close()
    return versions


async def replayed(connection: Any, key: str) -> Any:
    """The entries of a replay, page by page."""
    from_version = 1
    while True:
        answer = await connection.request(
            f"convo.audit.{key}.replay",
            json.dumps({"from_version": from_version, "limit": 300}).encode(),
            timeout=30,
        )
        page = json.loads(answer.data)
        assert page["ok"], page
        for entry in page["entries"]:
            yield entry
        if "next" not in page:
            return
        from_version = page["next"]


def folded(events: list[JSON]) -> Any:
    """The state after each event: nothing but the contract's words."""
    title, count = None, 0
    used, lifetime = [0, 0], [0, 0]
    window: list[JSON] = []
    for event in events:
        data = event["data"]
        match event["type"]:
            case "ConversationStarted":
                title = data.get("title")
            case "ConversationTitled":
                title = data["title"]
            case "MessageAppended":
                count += 1
                message = {
                    "message_id": data["message_id"],
                    "role": data["role"],
                    "content": data["content"],
                    "timestamp": data.get("created_at", event["time"]),
                    "version": event["version"],
                    "metadata": data["metadata"],
                }
                for name in ("name", "tool_calls", "tool_call_id"):
                    if name in data:
                        message[name] = data[name]
                window = [*window, message][-WINDOW:]
            case "UsageRecorded":
                for sums in (used, lifetime):
                    sums[0] += data["prompt_tokens"]
                    sums[1] += data["completion_tokens"]
            case "SessionReset":
                window, used = [], [0, 0]
            case other:
                raise AssertionError(other)
        lines = "".join(
            json.dumps(each, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n"
            for each in window
        )
        yield {
            "version": event["version"],
            "status": "active",
            "title": title,
            "message_count": count,
            "tokens_used": tokens(used),
            "lifetime_tokens": tokens(lifetime),
            "window": [each["message_id"] for each in window],
            "window_digest": hashlib.sha256(lines.encode()).hexdigest(),
        }


def tokens(sums: list[int]) -> JSON:
    return {"prompt": sums[0], "completion": sums[1], "total": sum(sums)}
