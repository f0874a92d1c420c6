"""Which of the ledger's micro services answer, and what each says of its state."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from nats.aio.client import Client as Connection
from nats.errors import TimeoutError as NatsTimeout

ANSWERS_WITHIN_S = 2.0
QUIET_S = 0.3
"""Services answer a broadcast side by side: after this long without one there are no more."""


async def services(connection: Connection) -> list[dict[str, Any]]:
    """A row for each instance of a `convo-*` micro service that answers `$SRV.STATS`, by name."""
    inbox = connection.new_inbox()
    answers = await connection.subscribe(inbox)
    await connection.publish("$SRV.STATS", b"", reply=inbox)
    rows = []
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            while True:
                message = await answers.next_msg(timeout=QUIET_S)
                if message.data:  # empty: nobody listens
                    rows.append(_service(json.loads(message.data)))
    except (TimeoutError, NatsTimeout):
        await answers.unsubscribe()
    return sorted(
        (row for row in rows if row["name"].startswith("convo-")),
        key=lambda row: (row["name"], row["started"]),
    )


def _service(stats: dict[str, Any]) -> dict[str, Any]:
    endpoints = stats.get("endpoints") or []
    return {
        "name": str(stats.get("name")),
        "id": stats.get("id"),
        "version": stats.get("version"),
        "started": str(stats.get("started")),
        "requests": sum(each.get("num_requests", 0) for each in endpoints),
        "errors": sum(each.get("num_errors", 0) for each in endpoints),
        **({"says": endpoints[0]["data"]} if endpoints and endpoints[0].get("data") else {}),
    }
