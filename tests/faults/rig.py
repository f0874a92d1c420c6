"""What the faults are done to: `convo up` as a process of its own, with everything below it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nats
from nats.errors import Error as NatsError

from infra.server import HOST, free_port
from infra.startable import Startable
from infra.supervision import TETHER, read_status
from tests.acceptance.deployment import REPOSITORY
from tests.faults.history import Event, Row, quiet, read_stream

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
CAUGHT_UP_TIMEOUT_S = 60.0
SETTLED_TIMEOUT_S = 240.0
POLL_S = 0.01

SERVER = "nats-server"
TABLES = ("analytics", "directory")
SERVICES = ("convo-commands", "convo-queries", "convo-audit", "convo-analytics", "convo-directory")


class NotUp(AssertionError):
    """`convo up` ended or does not come up; the message is what it said."""


class Ledger(Startable):
    """One `convo up`: the embedded server (or one elsewhere, with `nats`), workers, analytics,
    audit and directory. Killed and started again it has the same port and data.

    `program`: the module that its services run. Settings are given by name: `replicas=3` is
    CONVO_REPLICAS=3.
    """

    def __init__(
        self,
        directory: Path,
        *,
        data_dir: Path | None = None,
        workers: int = 1,
        nats: str | None = None,
        program: str = "services.cli",
        **settings: object,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir or directory / "data"
        self.workers = [f"worker-{number + 1}" for number in range(workers)]
        self.log_file = directory / "up.log"
        self.port = free_port()
        self.url = nats or f"nats://{HOST}:{self.port}"
        settings |= {"data_dir": self.data_dir, "port": self.port}
        if nats:
            settings["nats_url"] = nats
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CONVO_")},
            "PYTHONPATH": str(REPOSITORY),
            **{f"CONVO_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._command = [sys.executable, "-P", "-m", "tests.faults.run_up"]
        self._command += [str(workers), program]
        self._process: asyncio.subprocess.Process | None = None
        self._read = 0

    # -- life --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns once commands and queries are answered. `NotUp` with its last words."""
        with self.log_file.open("ab") as log:
            said = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *self._command],
                env=self._environment,
                cwd=self.log_file.parent,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while "Ctrl-C stops it" not in (words := self.log[said:]):
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise NotUp(words[-2_000:])
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Lets it finish in good order; harmless to repeat."""
        if self._process is not None and self._process.returncode is None:
            for pid in self.pids().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)  # where a scenario left it frozen
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                await self.kill_everything()
                raise

    # -- faults ------------------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """The processes there are now, by name."""
        status = read_status(self.data_dir) or {"processes": []}
        return {row["name"]: row["pid"] for row in status["processes"] if row["pid"]}

    async def pid(self, name: str) -> int:
        """The process of that name, once there is one."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                pid = self.pids().get(name)
                if pid is not None and _alive(pid):
                    return pid
                await asyncio.sleep(POLL_S)

    async def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to the process of that name, once there is one."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(await self.pid(name), number)

    async def kill(self, name: str) -> None:
        """SIGKILL; the supervisor starts it again."""
        pid = await self.pid(name)
        os.kill(pid, signal.SIGKILL)
        await _gone([pid])

    def freeze_everything(self) -> None:
        """SIGSTOP to all processes at once, or nearly: from here on none does anything."""
        assert self._process is not None
        # The server first: what it does not acknowledge any more nobody passes on.
        found = self.pids()
        for pid in (found.pop(SERVER, None), self._process.pid, *found.values()):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)

    async def kill_everything(self) -> None:
        """SIGKILL to `convo up`, which takes all with it; returns once they are gone."""
        assert self._process is not None
        pids = list(self.pids().values())
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await _gone(pids)

    # -- what it says ------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """All that its processes have said."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def complaints(self) -> list[str]:
        """Lines since the last call that nobody should have to read, whatever fails."""
        new = self.log[self._read :]
        self._read += len(new)
        return [
            f"complaint: {line[:300]}"
            for line in new.splitlines()
            if re.search(r"Traceback|\bCRITICAL\b", line)
        ]

    async def settled(self) -> tuple[list[Event], dict[str, dict[str, Row]]]:
        """Everything on the stream, and what the tables say of each conversation, once nothing is
        on its way any more: what nobody has waited for may still be written."""
        async with asyncio.timeout(SETTLED_TIMEOUT_S):
            while True:
                events = await read_stream(self.url)
                tables = await self._tables(events[-1].seq)
                if len(await read_stream(self.url)) == len(events):
                    return events, tables

    async def answering(self) -> None:
        """Returns once every service answers, those beside the workers too."""
        client = await nats.connect(self.url.split(","), error_cb=quiet)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                for service in SERVICES:
                    while True:
                        with contextlib.suppress(NatsError):
                            await client.request(f"$SRV.PING.{service}", timeout=1)
                            break
                        await asyncio.sleep(POLL_S)
        finally:
            await client.close()

    async def _tables(self, seq: int) -> dict[str, dict[str, Row]]:
        client = await nats.connect(
            self.url.split(","), max_reconnect_attempts=-1, error_cb=quiet, pending_size=0
        )
        try:
            async with asyncio.timeout(CAUGHT_UP_TIMEOUT_S):
                return {
                    "analytics": await self._analytics(client, seq),
                    "directory": await self._directory(client, seq),
                }
        finally:
            await client.close()

    async def _analytics(self, client: Any, seq: int) -> dict[str, Row]:
        sql = (
            "SELECT conversation_id, version, message_count, total_tokens::BIGINT, "
            "(SELECT count(*) FROM events e WHERE e.conversation_id = c.conversation_id) "
            "FROM conversations c WHERE tenant_id = 'faults'"
        )
        answer = await _answered(client, "convo.sql", {"sql": sql}, seq)
        found = {}
        for id, version, messages, tokens, events in answer["rows"]:
            assert events == version, f"the table of events has {events} of {id}, not {version}"
            found[f"faults.{id}"] = Row(version, messages, tokens)
        return found

    async def _directory(self, client: Any, seq: int) -> dict[str, Row]:
        answer = await _answered(client, "convo.list.faults", {"limit": 100}, seq)
        return {
            f"faults.{each['conversation_id']}": Row(
                each["version"], each["message_count"], each["tokens_used"]["total"]
            )
            for each in answer["conversations"]
        }


async def _answered(client: Any, subject: str, body: dict[str, Any], seq: int) -> dict[str, Any]:
    """The answer, once one comes that takes the event at `seq` into account."""
    headers = {"Convo-Min-Seq": str(seq)}
    while True:
        with contextlib.suppress(NatsError):
            answer = await client.request(
                subject, json.dumps(body).encode(), timeout=10, headers=headers
            )
            reply: dict[str, Any] = json.loads(answer.data)
            if reply["ok"]:
                return reply
        await asyncio.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def _gone(pids: list[int]) -> None:
    async with asyncio.timeout(STOP_TIMEOUT_S):
        while any(map(_alive, pids)):  # noqa: ASYNC110 - children of others tell us nothing
            await asyncio.sleep(POLL_S)


def run(*command: str) -> str:
    """The output of a system's command; `CalledProcessError` when it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
