"""Many viewers of one answer, half of them coming and going, two gateways, one of which is killed.

Every viewer has to end with the exact text. `python -m tests.services.gateway.crowd` runs it with
500 viewers and 2,000 pieces and prints what it saw; a test runs a smaller one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.model_server import said
from tests.services.gateway.site import GatewayProcess, Site
from tests.services.gateway.talking import ModelProcess, Talking

STAYS_S = (0.1, 3.0)
"""How long a restless viewer stays, at random."""

BACK_IN_S = (0.01, 0.5)
OPEN_WITHIN_S = 30.0


class Crowd:
    """The viewers of one answer, and what happened to them."""

    def __init__(
        self, gateways: list[GatewayProcess], model: ModelProcess, pieces: int, pause_s: float
    ) -> None:
        self.gateways = gateways
        self.model = model
        self.id = f"crowd-{uuid4()}"
        self.whole = said(pieces)
        self.half = said(pieces // 2)
        self.prompt = f"say {pieces} every {pause_s} hold {pieces // 2} {self.id}"
        self.connections = 0
        self.closings: Counter[int] = Counter()
        self.furthest = 0
        self.ended_at = 0.0
        self.last_s: list[float] = []
        """How long after the first viewer each of them had the whole text."""

    async def run(self, viewers: int) -> list[str]:
        """What each viewer ended with. Half of them are restless."""
        async with connect(self._url(self.gateways[-1])) as asker:
            await asker.recv()
            tasks = [
                asyncio.ensure_future(self._view(random.Random(number), restless=number % 2 == 0))
                for number in range(viewers)
            ]
            await asker.send(json.dumps({"type": "start_chat", "prompt": self.prompt}))
            killing = asyncio.ensure_future(self._kill())
            texts = await asyncio.gather(*tasks)
            await killing
        return texts

    async def _kill(self) -> None:
        """Half of the answer is seen; the model goes on when a gateway is gone."""
        while self.furthest < len(self.half):  # noqa: ASYNC110 - it is elsewhere
            await asyncio.sleep(0.01)
        self.gateways[0].kill()
        self.model.go(self.id)

    async def _view(self, dice: random.Random, *, restless: bool) -> str:
        """One viewer, through all its connections; the text that it ends with."""
        while True:
            try:
                async with connect(
                    self._url(dice.choice(self.gateways)),
                    open_timeout=OPEN_WITHIN_S,
                    max_size=None,
                    compression=None,
                ) as socket:
                    self.connections += 1
                    stay_s = dice.uniform(*STAYS_S) if restless else None
                    try:
                        async with asyncio.timeout(stay_s):
                            return await self._watch(socket)
                    except TimeoutError:
                        pass
            except ConnectionClosed as closed:
                self.closings[closed.rcvd.code if closed.rcvd else 1006] += 1
            except (OSError, InvalidHandshake, TimeoutError):
                self.closings[0] += 1
            await asyncio.sleep(dice.uniform(*BACK_IN_S))

    async def _watch(self, socket: ClientConnection) -> str:
        """What is seen over one connection, to the end of the answer."""
        text = ""
        async for message in socket:
            frame: dict[str, Any] = json.loads(message)
            match frame["type"]:
                case "catchup":
                    answers = [m for m in frame["messages"] if m["role"] == "assistant"]
                    text = answers[-1]["content"] if answers else ""
                    self.furthest = max(self.furthest, len(text))
                    if answers and not frame["hasActiveStream"]:
                        return self._end(text)
                case "text":
                    text += frame["content"]
                    self.furthest = max(self.furthest, len(text))
                case "done" | "error":
                    return self._end(text)
        await socket.wait_closed()
        raise ConnectionClosed(None, None)

    def _end(self, text: str) -> str:
        self.ended_at = self.ended_at or time.monotonic()
        self.last_s.append(time.monotonic() - self.ended_at)
        return text

    def _url(self, gateway: GatewayProcess) -> str:
        return f"{gateway.ws}/ws?conversationId={self.id}"


async def _run(viewers: int, pieces: int, pause_s: float) -> None:
    with tempfile.TemporaryDirectory() as place:
        site = Site(Path(place))
        talking = Talking(site.server, Path(place) / "talking")
        try:
            site.start()
            talking.start()
            crowd = Crowd([site.gateway(), site.gateway()], talking.model, pieces, pause_s)
            began = time.monotonic()
            texts = await crowd.run(viewers)
            took_s = time.monotonic() - began
        finally:
            talking.stop()
            site.stop()
    exact = sum(text == crowd.whole for text in texts)
    last = sorted(crowd.last_s)
    print(f"{viewers} viewers of {pieces:,} pieces ({len(crowd.whole):,} characters)")  # noqa: T201
    print(f"  exact text        {exact} of {viewers}")  # noqa: T201
    print(f"  connections made  {crowd.connections:,}")  # noqa: T201
    print(f"  closed by others  {dict(crowd.closings)} (0: refused, 1006: killed)")  # noqa: T201
    print(f"  took              {took_s:.1f} s")  # noqa: T201
    print(  # noqa: T201
        f"  after the first   p50 {last[len(last) // 2]:.3f} s, "
        f"p99 {last[len(last) * 99 // 100]:.3f} s, last {last[-1]:.3f} s"
    )
    assert exact == viewers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viewers", type=int, default=500)
    parser.add_argument("--pieces", type=int, default=2_000)
    parser.add_argument("--pause-s", type=float, default=0.015)
    chosen = parser.parse_args()
    asyncio.run(_run(chosen.viewers, chosen.pieces, chosen.pause_s))
