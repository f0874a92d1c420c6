"""`python -m tests.benchmarks.peers NAME FOLDER`: one peer, driven by lines on standard input.

Says `{"ready": true}` or `{"not_here": "why"}` first, then answers each `PeerOrder` (JSON, one a
line) with a `Load`.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.peers.catalogue import PEERS
from tests.benchmarks.peers.driver import PeerOrder, carry_out
from tests.benchmarks.peers.peer import NotHere


def main(name: str, folder: Path) -> None:
    """Runs the peer until standard input ends."""
    folder.mkdir(parents=True)
    with ExitStack() as up:
        try:
            peer = PEERS[name].load()(folder, up)
            peer.fill()
        except (ImportError, NotHere) as error:
            _say({"not_here": str(error)})
            return
        _say({"ready": True})
        for line in sys.stdin:
            _say(asdict(carry_out(peer, PeerOrder(**json.loads(line)))))


def _say(words: dict[str, object]) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
