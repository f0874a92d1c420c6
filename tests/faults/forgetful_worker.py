"""A worker whose ledger is in the server's memory: the control of the kill tests.

Everything else is as in `convo serve commands queries`. What it acknowledges does not outlive the
server, and a test that claims to notice a lost event has to notice that.

    python -m tests.faults.forgetful_worker NATS_URL
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any
from unittest.mock import patch

from infra.jetstream.topology import Topology
from infra.settings import Settings
from services.bootstrap import serve

_kept_on_disk = Topology.events_config


def in_memory(topology: Topology, partition: int) -> dict[str, Any]:
    """The configuration of an events stream, but for where it is kept."""
    config = {**_kept_on_disk(topology, partition), "storage": "memory"}
    del config["compression"]
    return config


if __name__ == "__main__":
    with patch.object(Topology, "events_config", in_memory):
        asyncio.run(serve(Settings(), ("commands", "queries"), url=sys.argv[1]))
