"""Child processes kept alive: restarted with a growing pause, stopped in good order, shown in a
status file. None of them outlives this process (Linux; see `infra.tether`).

Children run in sessions of their own, so that a Ctrl-C at the terminal reaches only their parent,
which decides in which order they stop. They must be started from the main thread: the kernel ties
a child to the thread that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

TETHER = Path(__file__).with_name("tether.py")
STATUS_FILE = Path("run/status.json")
"""Within the data directory."""


class State(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    FAILING = "failing"
    """Died several times in a row; still restarted, at the longest pause in the end."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Patience:
    """When to restart: the pause doubles from `first_s` to `longest_s`, and starts anew after the
    child has lived for `settled_s`; `failing_after` deaths in a row make it failing."""

    first_s: float = 0.1
    longest_s: float = 10.0
    settled_s: float = 30.0
    failing_after: int = 5

    def pause_s(self, deaths: int) -> float:
        """The pause after that many deaths in a row (1 for the first)."""
        return float(min(self.longest_s, self.first_s * 2 ** min(deaths - 1, 30)))


@dataclass(frozen=True, slots=True)
class Program:
    """What a child runs. `env` replaces the environment (None inherits it); `output` is a file that
    its output is appended to (None: the child writes where we do); `keep_fds` stay open in it;
    `stdin` is what it reads (nothing, if not given); `prepare` is called before each start."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    output: Path | None = None
    keep_fds: tuple[int, ...] = ()
    stdin: int = asyncio.subprocess.DEVNULL
    prepare: Callable[[], None] | None = None


class Child:
    """One program kept running. Read-only for everybody but its supervisor."""

    def __init__(
        self, program: Program, patience: Patience, changed: Callable[[], None], *, keep: bool
    ) -> None:
        self.program = program
        self.keep = keep
        """Restart it when it ends; a first end may be waited for before this is set."""
        self.state = State.STARTING
        self.pid: int | None = None
        self.restarts = 0
        self.since = datetime.now(UTC)
        """When it came into its present state."""
        self.last_exit: str | None = None
        self._patience = patience
        self._changed = changed
        self._stopping = asyncio.Event()
        self._wanted = False  # the end that is to come
        self._keeping = asyncio.ensure_future(self._keep())

    @property
    def name(self) -> str:
        return self.program.name

    def as_row(self) -> dict[str, Any]:
        """The child's line in the status file."""
        return {
            "name": self.name,
            "pid": self.pid,
            "state": self.state.value,
            "restarts": self.restarts,
            "since": self.since.isoformat(timespec="milliseconds"),
            "last_exit": self.last_exit,
        }

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process there is now; nothing when there is none."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def restart(self) -> None:
        """SIGKILL, and started again without a pause: a death that was asked for is none of those
        in a row. Nothing when there is no process now."""
        if self.pid is not None:
            self._wanted = True
            self.signal(signal.SIGKILL)

    def ask_to_stop(self) -> None:
        """SIGTERM, and no restart any more."""
        self._stopping.set()
        self.signal(signal.SIGTERM)

    async def stopped(self) -> None:
        """Returns once it is gone for good."""
        await asyncio.shield(self._keeping)

    async def _keep(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            ending = await self._run_once()
            if self._stopping.is_set() or not self.keep:
                break
            pause_s = 0.0
            if not self._wanted:
                settled = time.monotonic() - started >= self._patience.settled_s
                deaths = 1 if settled else deaths + 1
                pause_s = self._patience.pause_s(deaths)
            self._wanted = False
            failing = deaths >= self._patience.failing_after
            self.restarts += 1
            self._enter(State.FAILING if failing else State.RESTARTING)
            log.warning("%s ended (%s); again in %.1f s", self.name, ending, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
        self._enter(State.STOPPED)

    async def _run_once(self) -> str:
        """Starts it and waits for its end; how it ended, in words."""
        program = self.program
        if program.prepare:
            program.prepare()
        argv = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), *program.argv]
        with contextlib.ExitStack() as files:
            output = files.enter_context(program.output.open("ab")) if program.output else None
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    env=program.env,
                    stdin=program.stdin,
                    stdout=output,
                    stderr=output,
                    pass_fds=program.keep_fds,
                    start_new_session=True,
                )
            except OSError as error:
                self.last_exit = f"could not be started: {error.strerror}"
                return self.last_exit
        self.pid = process.pid
        if self._stopping.is_set():  # asked while it was being started
            self.signal(signal.SIGTERM)
        if self.state is not State.FAILING:
            self._enter(State.RUNNING)
        else:
            self._changed()
        settling = asyncio.ensure_future(self._settle())
        try:
            code = await process.wait()
        finally:
            settling.cancel()
        self.pid = None
        self.last_exit = exit_in_words(code)
        return self.last_exit

    async def _settle(self) -> None:
        """A failing child that lives long enough is running again."""
        await asyncio.sleep(self._patience.settled_s)
        if self.state is State.FAILING:
            self._enter(State.RUNNING)

    def _enter(self, state: State) -> None:
        self.state = state
        self.since = datetime.now(UTC)
        self._changed()


@dataclass(slots=True)
class Supervisor:
    """The children of this process. `status_file` (None: none is written) is replaced at each
    change; `facts` are written into it beside the children."""

    status_file: Path | None = None
    patience: Patience = field(default_factory=Patience)
    facts: dict[str, Any] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)

    def start(self, program: Program, *, keep: bool = True) -> Child:
        """Starts the program and keeps it running (from now on, or once `child.keep` is set); its
        name must be free."""
        assert program.name not in self.children, f"{program.name} is there already"
        child = Child(program, self.patience, self.write_status, keep=keep)
        self.children[program.name] = child
        return child

    async def stop(
        self,
        names: Iterable[str] | None = None,
        *,
        within: float = 30.0,
        hurry: asyncio.Event | None = None,
    ) -> None:
        """SIGTERM to the named children (None: all), SIGKILL to what is left after `within`
        seconds, or at once when `hurry` is set meanwhile. Returns when they are gone."""
        children = [
            child for name, child in self.children.items() if names is None or name in set(names)
        ]
        for child in children:
            child.ask_to_stop()
        gone: asyncio.Future[Any] = asyncio.gather(*(child.stopped() for child in children))
        hurried: asyncio.Future[Any] = asyncio.ensure_future((hurry or asyncio.Event()).wait())
        await asyncio.wait({gone, hurried}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        for child in children:
            if child.pid is not None:
                log.warning("%s did not stop in time and is killed", child.name)
                child.signal(signal.SIGKILL)
        await gone
        for child in children:
            self.children.pop(child.name, None)

    def write_status(self) -> None:
        """Replaces the status file in one step; a disk that refuses costs a log line only."""
        if self.status_file is None:
            return
        status = {
            "pid": os.getpid(),
            "updated": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **self.facts,
            "processes": [child.as_row() for child in self.children.values()],
        }
        try:
            self.status_file.parent.mkdir(parents=True, exist_ok=True)
            written = self.status_file.with_suffix(".new")
            written.write_text(json.dumps(status, indent=1) + "\n", encoding="utf-8")
            written.replace(self.status_file)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.status_file, error.strerror)


def read_status(data_dir: Path) -> dict[str, Any] | None:
    """What the `convo up` on this data directory last wrote about itself: pid, updated, its facts,
    processes[] (name, pid, state, restarts, since, last_exit). None when none is running there."""
    try:
        status = json.loads((data_dir / STATUS_FILE).read_text(encoding="utf-8"))
        os.kill(status["pid"], 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(status)


def exit_in_words(code: int) -> str:
    """ "exit code 1", or "SIGKILL" for a process that a signal ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
