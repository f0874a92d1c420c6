"""Reading a stream from the command line: on the faster event loop, and with its progress on a
terminal, a bar when it takes longer than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from nats.aio.client import Client as Connection
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from infra.jetstream.topology import Topology
    from infra.settings import Settings

FIRST_SHOWN_S = 1.0
REFRESH_S = 0.2


async def topology_of(connection: Connection, settings: Settings) -> Topology:
    """The streams that the ledger was created with, whatever number of partitions is set here.

    `CommandFailed` when there is no ledger.
    """
    from infra.jetstream.errors import StoreUnavailable
    from infra.jetstream.topology import call
    from services.bootstrap import topology
    from services.cli.errors import CommandFailed

    first = topology(settings).stream_name(0)
    try:
        answer = await call(connection, f"STREAM.INFO.{first}", {})
    except StoreUnavailable as error:
        raise CommandFailed(str(error)) from None
    if "error" in answer:
        raise CommandFailed(
            f"{first} cannot be read ({answer['error'].get('description')}): is this the server "
            "of the ledger?"
        )
    partitions = answer["config"].get("metadata", {}).get("ledger.partitions", "")
    if partitions.isdigit():
        settings = settings.model_copy(update={"partitions": int(partitions)})
    return topology(settings)


class Counting:
    """Shows on standard error how many of how many, while it is entered."""

    def __init__(self, words: str, *, wanted: bool, what: str = "events") -> None:
        self._words = words
        self._what = what
        self._wanted = wanted and sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown = 0.0
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def at(self, done: int, total: int) -> None:
        """Hears how far it has come; `total` 0 when nobody knows."""
        now = time.monotonic()
        if not self._wanted or now - self._began < FIRST_SHOWN_S or now - self._shown < REFRESH_S:
            return
        self._shown = now
        if self._bar is None:
            self._bar = self._start()
        rate = done / (now - self._began)
        of_all = f" of {total:,}" if total else ""
        words = f"{self._words}: {done:,}{of_all} {self._what}, {rate:,.0f}/s"
        if self._task is None:
            self._task = self._bar.add_task(words, total=total or None)
        self._bar.update(self._task, completed=done, total=total or None, description=words)
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _start(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        bar = Bar(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        bar.start()
        return bar
