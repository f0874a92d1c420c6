"""UmaDB: an event store in Rust with group commit; its wheel carries the server."""

from __future__ import annotations

import json
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import servers
from tests.benchmarks.peers.peer import (
    BODY,
    CONVERSATIONS,
    MESSAGE,
    READ_OF,
    WINDOW,
    Call,
    NotHere,
    Rotor,
    ThreadedPeer,
    read_name,
)

CLIENTS = 4


class UmaDB(ThreadedPeer):
    """Four connections; each append on the condition that nobody was faster, as ours."""

    def fill(self) -> None:
        import umadb

        self._umadb: Any = umadb
        program = Path(sys.executable).with_name("umadb")
        if not program.exists():
            raise NotHere("the umadb package brought no server for this platform")
        port = servers.free_port()
        pid = servers.start(
            self.up,
            [str(program), "--listen", f"127.0.0.1:{port}", "--db-path", str(self.folder / "db")],
            port=port,
            log=self.folder / "umadb.log",
            stop_by=signal.SIGINT,
        )
        self.servers.append(pid)
        self._clients = [umadb.Client(f"http://127.0.0.1:{port}") for _ in range(CLIENTS)]
        for number in range(CONVERSATIONS):
            tag = read_name(number)
            event = umadb.Event("MessageAppended", BODY, [tag])
            self._clients[0].append([event] * READ_OF)

    def writer(self, number: int) -> Call:
        umadb, client = self._umadb, self._clients[number % CLIENTS]
        rotor = Rotor(lambda: uuid.uuid4().hex)
        last: dict[str, int] = {}

        def append() -> object:
            tag = rotor()
            query = umadb.Query([umadb.QueryItem(tags=[tag])])
            event = umadb.Event("MessageAppended", json.dumps(MESSAGE).encode(), [tag])
            condition = umadb.AppendCondition(query, last.get(tag))
            last.clear()
            last[tag] = client.append([event], condition)
            return last[tag]

        return append

    def reader(self, number: int) -> Call:
        umadb, client = self._umadb, self._clients[number % CLIENTS]
        query = umadb.Query([umadb.QueryItem(tags=[read_name(number)])])

        def read() -> object:
            found = client.read(query, backwards=True, limit=WINDOW)
            return len([json.loads(bytes(each.event.data)) for each in found])

        return read
