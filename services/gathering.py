"""What a producer of a reply says, gathered: five chunks, or those of 200 ms, make one
`reply.chunk` (contract, section 3), so that a stream costs few events."""

from __future__ import annotations

import asyncio
from typing import Final

GATHER_S: Final = 0.2
CHUNKS_MAX: Final = 5

Pieces = asyncio.Queue[str | Exception | None]
"""Text as it comes; an exception where the source fails, None where it ends. The last of them stays
in the queue."""


async def gathered(pieces: Pieces) -> list[str]:
    """The next pieces, at most five and those of 200 ms; none at the end.

    Raises the exception that the source failed with, once what came before it is returned.
    """
    texts: list[str] = []
    loop = asyncio.get_running_loop()
    until = None
    while len(texts) < CHUNKS_MAX:
        try:
            async with asyncio.timeout_at(until):
                piece = await pieces.get()
        except TimeoutError:
            break
        if piece is None or isinstance(piece, Exception):
            pieces.put_nowait(piece)  # its place is free
            if isinstance(piece, Exception) and not texts:
                raise piece
            break
        texts.append(piece)
        until = until or loop.time() + GATHER_S
    return texts
