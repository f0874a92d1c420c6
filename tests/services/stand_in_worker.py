"""A worker of `convo up` for its tests: the two micro services and one endpoint, nothing behind.

`stand_in_worker.py FOLDER [PLAN]`: FOLDER gets a file `serving-PID`, and `drained-PID` once it has
stopped as asked.
PLAN `second-dies` ends every worker but the first that comes; `all-die` ends each of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import nats
from nats.micro import add_service
from nats.micro.request import Request


async def main(folder: Path, plan: str) -> int:
    if plan == "all-die":
        return 3
    if plan == "second-dies":
        try:
            (folder / "first").touch(exist_ok=False)
        except FileExistsError:
            return 3
    sys.stdin.read()  # as the real one, which has loaded its program by now
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    client = await nats.connect(os.environ["CONVO_NATS_URL"], max_reconnect_attempts=-1)

    async def echo(request: Request) -> None:
        await request.respond(request.data)

    for name in ("convo-commands", "convo-queries"):
        service = await add_service(client, name=name, version="0.0.1")
        await service.add_endpoint(name="echo", subject=f"echo.{name}", handler=echo)
    (folder / f"serving-{os.getpid()}").touch()
    await asked.wait()
    await client.drain()
    (folder / f"drained-{os.getpid()}").touch()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]), (*sys.argv[2:], "")[0])))
