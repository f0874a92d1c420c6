"""What is started and stopped, and may as well be there for the length of a block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Startable(ABC):
    """`async with` starts it and stops it, whatever happens between."""

    @abstractmethod
    async def start(self) -> None:
        """Returns once it is there."""

    @abstractmethod
    async def stop(self) -> None:
        """Returns once it is gone; harmless to repeat."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
