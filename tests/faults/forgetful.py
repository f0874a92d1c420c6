"""`convo` with a ledger that is in the server's memory: the control of the kills.

Everything else is as it is. What it acknowledges does not outlive the server, and a program that
claims to notice a lost event has to notice that.

    python -m tests.faults.forgetful ...     as `convo ...`
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from infra.jetstream.topology import Topology

_kept_on_disk = Topology.events_config


def in_memory(topology: Topology, partition: int) -> dict[str, Any]:
    """The configuration of an events stream, but for where it is kept."""
    config = {**_kept_on_disk(topology, partition), "storage": "memory"}
    del config["compression"]
    return config


FAULT = patch.object(Topology, "events_config", in_memory)

if __name__ == "__main__":
    from services.cli import main

    with FAULT:
        main()
