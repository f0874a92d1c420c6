"""`make demo`: real conversations through a ledger of their own, whose server is killed on the way.

Runs `convo up` in a temporary directory, on a free port, and is a client of it like any other:
what it shows it has read back over NATS. Nothing is left behind, however it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from nats.aio.client import Client

from domain.identity import ConversationId, new_id
from infra.loop import run
from infra.settings import PREFIX, Settings, variable
from infra.supervision import Child, Program, State, Supervisor, read_status
from services.cli.errors import FAILED, INTERRUPTED, CommandFailed
from services.cli.importer import Importer, Tally
from services.cli.importing import CONVERSATIONS_IN_FLIGHT
from services.cli.line_reader import Line
from services.cli.output import content_text, one_line, totals
from services.cli.requests import Patience, ask, connected, encode
from services.endpoint import COMMAND_ID

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "docs" / "samples"

PATIENCE = Patience(timeout_s=2.0, retries=None, deadline_s=60.0)
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 40.0
POLL_S = 0.002
KILL_AFTER = 200  # messages of the last file
WIDTH = 90

QUESTION = "Did this arrive?"

Json = dict[str, Any]


class DemoFailed(Exception):
    """The demonstration did not show what it should; the message says why."""


class Source(NamedTuple):
    """A file of conversations (the format of `convo import`), imported as a tenant of its own."""

    path: Path
    tenant: str


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration; returns the exit status.

    0 when everything was as it should be (or nobody reads on), 1 with one line on standard error,
    130 after Ctrl-C.
    """
    options = _options(argv)
    sources = [Source(path.absolute(), path.name.partition(".")[0]) for path in options.files]
    _forget_settings()
    try:
        with _directory(options.data) as data_dir:
            return run(_guarded(data_dir, sources))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CommandFailed, DemoFailed, OSError) as error:
        click.echo(f"demo: {error}", err=True)
        return FAILED


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.demo", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep the ledger there afterwards")
    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE",
        default=sorted(SAMPLES.glob("*.jsonl.gz"), reverse=True),
        help="conversations to import, JSON lines, plain or gzip (default: docs/samples)",
    )
    options = parser.parse_args(argv)
    if not options.files:
        parser.error(f"no conversations in {SAMPLES}: name a FILE")
    for path in options.files:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    return options


def _forget_settings() -> None:
    """The demonstration is the same whatever this shell is set up for."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]


@contextlib.contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    """A directory for the ledger: the one wanted, kept, or a new one that is removed at the end.

    It is the working directory meanwhile, so that a convo.toml elsewhere has no say.
    """
    with contextlib.ExitStack() as stack:
        if wanted is None:
            new = tempfile.TemporaryDirectory(prefix="convo-demo-", ignore_cleanup_errors=True)
            path = Path(stack.enter_context(new))
        else:
            path = wanted.absolute()
            path.mkdir(parents=True, exist_ok=True)
        stack.enter_context(contextlib.chdir(path))
        yield path


async def _guarded(data_dir: Path, sources: Sequence[Source]) -> int:
    """The demonstration, which a first signal ends in good order and a second one at once."""
    loop = asyncio.get_running_loop()
    hurry = asyncio.Event()
    showing = asyncio.ensure_future(_with_ledger(data_dir, sources, hurry))

    def end() -> None:
        if not showing.cancel() or showing.cancelling() > 1:
            hurry.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    try:
        await showing
    except asyncio.CancelledError:
        click.echo("\nInterrupted.", err=True)
        return INTERRUPTED
    return 0


async def _with_ledger(data_dir: Path, sources: Sequence[Source], hurry: asyncio.Event) -> None:
    supervisor = Supervisor()
    log = data_dir / "convo-up.log"
    argv = [sys.executable, "-m", "services.cli", "up", "--data", str(data_dir), "--port", "0"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, variable("gateway_port"): "0"}
    program = Program("convo up", argv, env=environment, output=log)
    began = time.monotonic()
    child = supervisor.start(program, keep=False)
    try:
        url = await _ready(child, data_dir, log)
        _title("A ledger of its own")
        _say(f"convo up --data {data_dir} --port 0")
        _say(f"ready after {time.monotonic() - began:.1f} s at {url}")
        async with connected(Settings(nats_url=url), "convo demo") as connection:
            await Demo(connection, data_dir, sources).show()
    finally:
        stopping = asyncio.ensure_future(supervisor.stop(within=STOP_WITHIN_S, hurry=hurry))
        while not stopping.done():  # a second Ctrl-C hurries it on, and must not leave it behind
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(stopping)


async def _ready(child: Child, data_dir: Path, log: Path) -> str:
    """Waits until the ledger says that it answers; its URL. `DemoFailed` when it will not."""
    start = log.stat().st_size if log.exists() else 0
    give_up_at = time.monotonic() + READY_WITHIN_S
    while True:
        said = log.read_bytes()[start:].decode() if log.exists() else ""
        if "is ready" in said and (status := read_status(data_dir)):
            return str(status["url"])
        if child.state is State.STOPPED or time.monotonic() > give_up_at:
            last = said.strip().splitlines()[-1:] or ["it said nothing"]
            raise DemoFailed(f"`convo up` did not start: {last[0]}")
        await asyncio.sleep(POLL_S)


class Demo:
    """What is shown, one step after the other, against one running ledger."""

    def __init__(self, connection: Client, data_dir: Path, sources: Sequence[Source]) -> None:
        self.connection = connection
        self.data_dir = data_dir
        self.sources = sources
        self.refused: dict[Path, set[int]] = {}

    async def show(self) -> None:
        """All of it. `DemoFailed` when the ledger does not keep what it promises."""
        *first, last = self.sources
        if first:
            await self._import(first)
        await self._kill_while_importing(last)
        longest = await self._read_back()
        await self._window_and_totals(longest)
        await self._reset_and_look_back(longest)
        await self._repeat_a_command(longest)
        self._invite()

    # -- the steps -----------------------------------------------------------------------------

    async def _import(self, sources: Sequence[Source]) -> None:
        _title("Real conversations go in")
        everything = Tally()
        for source in sources:
            tally = await self._import_one(source)
            counts = f"{tally.conversations:>5,} conversations {tally.messages:>7,} messages"
            _say(f"{source.path.name:<30}{counts}")
            everything.messages += _messages(tally)
        pace = everything.messages / everything.seconds
        _say(f"{pace:,.0f} messages/s, each on disk (fsync) before it was answered")

    async def _kill_while_importing(self, source: Source) -> None:
        _title("kill -9 in the middle")
        tally = Tally()
        importing = asyncio.ensure_future(self._import_one(source, tally))
        try:
            await _until(lambda: importing.done() or _messages(tally) >= KILL_AFTER)
            pid, answered = await self._nats_server_pid(), tally.messages
            os.kill(pid, signal.SIGKILL)
            _say(f"{source.path.name}: the first {answered:,} messages are in")
            _say(f"nats-server (pid {pid}) is killed, without a warning")
            await importing
        finally:
            importing.cancel()
            await asyncio.gather(importing, return_exceptions=True)
        _say(f"it came back as pid {await self._nats_server_pid(other_than=pid)}, by itself")
        _say(f"what was not answered was sent again; all in after {tally.seconds:.1f} s")

    async def _read_back(self) -> ConversationId:
        """Compares every conversation with its file; returns the longest one with usage."""
        gate = asyncio.Semaphore(CONVERSATIONS_IN_FLIGHT)

        async def missing(id: ConversationId, wanted: list[tuple[str, Any]]) -> str | None:
            async with gate:
                found = await self._history(id)
                ours = found[len(wanted) :]  # of an earlier demonstration in the same directory
                same = found[: len(wanted)] == wanted and all(
                    each == ("user", QUESTION) for each in ours
                )
                return None if same else "/".join(id)

        longest: tuple[tuple[bool, int], ConversationId] | None = None
        checks = []
        messages = 0
        for source in self.sources:
            for id, has_usage, wanted in _conversations(source, self.refused[source.path]):
                checks.append(missing(id, wanted))
                messages += len(wanted)
                longest = max(filter(None, [longest, ((has_usage, len(wanted)), id)]))
        different = [name for name in await asyncio.gather(*checks) if name]
        if different or longest is None:
            raise DemoFailed(
                f"not as in the files: {', '.join(different[:5]) or 'no conversation'}"
            )
        _say(f"read back: {messages:,} messages of {len(checks):,} conversations,")
        _say("as they are in the files: none missing, none twice, all in order")
        return longest[1]

    async def _window_and_totals(self, id: ConversationId) -> None:
        _title(f"The recent window and the totals of {'/'.join(id)}")
        messages = (await self._get(id, "messages"))["messages"]
        for message in [each for each in messages if each["role"] != "tool"][-4:]:
            _say(_spoken(message))
        count = (await self._get(id, "state"))["state"]["message_count"]
        _say(f"... the last of {len(messages)} messages in the window, of {count:,} in the history")
        for line in totals(await self._get(id, "usage")):
            _say(line)

    async def _reset_and_look_back(self, id: ConversationId) -> None:
        _title("A reset, and the state before it")
        before = (await self._get(id, "usage"))["version"]
        now = (await self._do(id, "reset", {"reason": "new topic"}))["version"]
        columns = ("version", "window", "messages", "tokens since reset", "tokens in all")
        _say("   ".join(columns))
        for version in (now, before, min(20, before)):
            state = (await self._get(id, "state", {"at_version": version}))["state"]
            row = (
                state["version"],
                len(state["recent_messages"]),
                state["message_count"],
                state["tokens_used"]["total"],
                state["lifetime_tokens"]["total"],
            )
            cells = (f"{cell:>{len(name)},}" for cell, name in zip(row, columns, strict=True))
            _say("   ".join(cells))

    async def _repeat_a_command(self, id: ConversationId) -> None:
        _title("The same command twice")
        command_id = new_id()
        message = {"role": "user", "content": QUESTION}
        replies = [await self._do(id, "append", message, command_id) for _ in range(2)]
        _say(f"append under Convo-Command-Id {command_id}")
        for reply in replies:
            shown = {name: reply[name] for name in ("ok", "version", "seq", "duplicate")}
            _say(json.dumps(shown))
        window = (await self._get(id, "messages"))["messages"]
        arrived = [each for each in window if each["message_id"] == replies[0]["message_id"]]
        if [reply["duplicate"] for reply in replies] != [False, True] or len(arrived) != 1:
            raise DemoFailed("a repeated command was not answered as the first time")

    def _invite(self) -> None:
        _title("Now you")
        _say("make run                              a ledger in ./data, until Ctrl-C")
        _say(".venv/bin/convo init demo ada         and from another terminal, a conversation")
        _say('.venv/bin/convo append demo user "Hello!"')
        _say(".venv/bin/convo import docs/samples/crosswoz_zh.jsonl.gz --tenant crosswoz")
        _say("README.md goes on from there.")

    # -- the ledger ----------------------------------------------------------------------------

    async def _import_one(self, source: Source, tally: Tally | None = None) -> Tally:
        """Imports a file as `convo import` does; `DemoFailed` when it stopped before its end."""
        tally = tally or Tally()
        importer = Importer(self.connection, PATIENCE, tally, report=_say, tenant=source.tenant)
        await importer.run(_lines(source), CONVERSATIONS_IN_FLIGHT)
        if tally.interrupted:
            raise asyncio.CancelledError
        if tally.stopped:
            raise DemoFailed(f"the import of {source.path.name} stopped: {tally.stopped}")
        self.refused[source.path] = {problem["line"] for problem in tally.problems}
        return tally

    async def _history(self, id: ConversationId) -> list[tuple[str, Any]]:
        """Role and content of every message there is, oldest first."""
        found: list[tuple[str, Any]] = []
        body: Json = {"limit": 1000, "include_reset": True}
        while True:
            page = await self._get(id, "history", body)
            found += [(each["role"], each["content"] or "") for each in page["messages"]]
            if "next" not in page:
                return found
            body["after_version"] = page["next"]

    async def _get(self, id: ConversationId, view: str, body: Json | None = None) -> Json:
        subject = f"convo.get.{id.key}.{view}"
        return (await ask(self.connection, subject, encode(body or {}), None, PATIENCE)).reply

    async def _do(
        self, id: ConversationId, verb: str, body: Json, command_id: str | None = None
    ) -> Json:
        headers = {COMMAND_ID: command_id or new_id()}
        subject = f"convo.cmd.{id.key}.{verb}"
        return (await ask(self.connection, subject, encode(body), headers, PATIENCE)).reply

    async def _nats_server_pid(self, other_than: int | None = None) -> int:
        """The process that `convo up` says its server is, once it is another one."""
        while True:
            status = read_status(self.data_dir)
            if status is None:
                raise DemoFailed("`convo up` has ended")
            for row in status["processes"]:
                if row["name"] == "nats-server" and row["pid"] not in {None, other_than}:
                    return int(row["pid"])
            await asyncio.sleep(POLL_S)


def _conversations(
    source: Source, without: set[int] | None = None
) -> Iterator[tuple[ConversationId, bool, list[tuple[str, Any]]]]:
    """Yields (id, whether it has usage, role and content of each message) of every line."""
    for number, line in _texts(source):
        if not line.strip() or number in (without or ()):
            continue
        found = json.loads(line)
        said = [(each["role"], each.get("content") or "") for each in found["messages"]]
        yield ConversationId.parse(source.tenant, found["id"]), bool(found.get("usage")), said


async def _lines(source: Source) -> AsyncIterator[Line]:
    """The lines as the importer takes them."""
    for number, text in _texts(source):
        yield Line(number, text, 0)


def _texts(source: Source) -> Iterator[tuple[int, bytes]]:
    open_ = gzip.open if source.path.suffix == ".gz" else open
    with open_(source.path, "rb") as file:
        yield from enumerate(file, 1)


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - a count that tells nobody when it changes
        await asyncio.sleep(POLL_S)


def _messages(tally: Tally) -> int:
    return tally.messages + tally.messages_there


def _spoken(message: Json) -> str:
    """A message on one line."""
    text = content_text(message["content"])
    for call in message.get("tool_calls") or ():
        text += f" -> {call.get('function', {}).get('name')}(…)"
    return one_line(f"{message['version']:>4}  {message['role']}: {text}", WIDTH)


def _title(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _say(text: str) -> None:
    click.echo(f"  {text}")


if __name__ == "__main__":
    sys.exit(main())
