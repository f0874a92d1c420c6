"""The progress of an import on a terminal: a bar when it takes longer than a second."""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from services.cli.importer import Tally
from services.cli.output import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

FIRST_SHOWN_S = 1.0
REFRESH_S = 0.2
LINE_WIDTH = 500


class Progress:
    """Shows the tally on standard error while it is entered."""

    def __init__(self, tally: Tally, size_bytes: int | None, *, wanted: bool) -> None:
        self._tally = tally
        self._size_bytes = size_bytes
        self._wanted = wanted and sys.stderr.isatty()
        self._bar: Bar | None = None
        self._ticking: asyncio.Task[None] | None = None

    def say(self, line: str) -> None:
        """Prints one line on standard error, above the bar."""
        shown = one_line(line, LINE_WIDTH)
        if self._bar is None:
            click.echo(shown, err=True)
        else:
            self._bar.console.print(shown, markup=False, highlight=False, soft_wrap=True)

    async def __aenter__(self) -> Self:
        if self._wanted:
            self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)

    async def _tick(self) -> None:
        await asyncio.sleep(FIRST_SHOWN_S)
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns: list[Any] = [TextColumn("{task.description}")]
        if self._size_bytes is not None:
            columns += [BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
        with Bar(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
            self._bar = bar
            task = bar.add_task(self._words(), total=self._size_bytes)
            try:
                while True:
                    bar.update(task, completed=self._tally.read_bytes, description=self._words())
                    bar.refresh()
                    await asyncio.sleep(REFRESH_S)
            finally:
                self._bar = None

    def _words(self) -> str:
        tally = self._tally
        done = tally.messages + tally.messages_there
        conversations = tally.conversations + tally.conversations_there
        refused = f", {tally.refused:,} refused" if tally.refused else ""
        return (
            f"{conversations:,} conversations, {done:,} messages,"
            f" {done / tally.seconds:,.0f} messages/s{refused}"
        )
