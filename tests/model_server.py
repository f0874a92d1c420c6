"""A language model to test against: an OpenAI-compatible server on loopback that does what the last
user message tells it.

    say 5                 five pieces ("0 ", "1 " …), then usage and the end
    say 200 every 0.01    a piece every so many seconds
    say 60 hold 20 x      twenty pieces; the others once `POST /go/x` was sent here
    say 60 every 0.01 hold 20 x
    say 30 of 1000        pieces of so many characters
    stall after 3         three pieces, then nothing more; the connection stays open
    break after 3         three pieces, then the connection is cut
    end after 3           three pieces, then the end of the stream without a word
    error after 3         three pieces, then an error in the stream
    refuse 429            this status, and no stream
    garbage               what is no JSON

Anything else is said back in one piece. `python -m tests.model_server` runs it by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, Self

CACHED, REASONING = 3, 1

JSON = dict[str, Any]


class ModelServer:
    """The server; `requests` are the bodies it was sent, `gone` counts callers that left early."""

    def __init__(self) -> None:
        self.requests: list[JSON] = []
        self.headers: list[str] = []
        self.gone = 0
        self._go: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """What CONVO_MODEL_URL has to be."""
        assert self._server is not None, "not started"
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (
                    int(line.split(":")[1])
                    for line in head.splitlines()
                    if line.lower().startswith("content-length:")
                ),
                0,
            )
            if head.startswith("POST /go/"):
                self._go[head.split()[1].removeprefix("/go/")].set()
                writer.write(b"HTTP/1.1 204 Gone on\r\nconnection: close\r\n\r\n")
                await writer.drain()
                writer.close()
                return
            if not length:
                writer.transport.abort()  # somebody looks whether we are up
                return
            body = json.loads(await reader.readexactly(length))
            self.headers.append(head)
            self.requests.append(body)
            left = asyncio.ensure_future(reader.read())
            speaking = asyncio.ensure_future(self._speak(body, writer))
            await asyncio.wait({left, speaking}, return_when=asyncio.FIRST_COMPLETED)
            if not speaking.done():
                self.gone += 1
            left.cancel()
            speaking.cancel()
            await asyncio.gather(left, speaking, return_exceptions=True)
        writer.transport.abort()

    async def _speak(self, body: JSON, writer: asyncio.StreamWriter) -> None:
        script = text_of(body["messages"][-1]["content"])
        match script.split():
            case ["refuse", status]:
                error = json.dumps({"error": {"message": "no: key sk-secret", "code": status}})
                writer.write(
                    f"HTTP/1.1 {status} No\r\ncontent-type: application/json\r\nretry-after: 0\r\n"
                    f"content-length: {len(error)}\r\nconnection: close\r\n\r\n{error}".encode()
                )
                await writer.drain()
                writer.write_eof()
                await asyncio.sleep(0.05)  # until it is read: closing is for the caller
                return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        async for event in self._events(script, body):
            data = f"data: {event}\n\n".encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
        if script.startswith("break"):
            return
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.write_eof()
        await asyncio.sleep(0.05)

    async def _events(self, script: str, body: JSON) -> AsyncIterator[str]:
        """The events of one answer, as the API streams them."""
        match script.split():
            case ["say", count, "of", size]:
                for _ in range(int(count)):
                    yield chunk("x" * int(size), body)
                yield finish(int(count), body)
            case ["say", count, *how]:
                for number in range(int(count)):
                    match how:
                        case ["every", pause, *_] if number:
                            await asyncio.sleep(float(pause))
                    match how:
                        case [*_, "hold", first, name] if number == int(first):
                            await self._go[name].wait()
                    yield chunk(f"{number} ", body)
                yield finish(int(count), body)
                yield "[DONE]"
            case ["stall" | "break" | "end" | "error" as then, "after", count]:
                for number in range(int(count)):
                    yield chunk(f"{number} ", body)
                if then == "stall":
                    await asyncio.Event().wait()
                if then == "error":
                    yield json.dumps({"error": {"message": "overloaded: key sk-secret"}})
            case ["garbage"]:
                yield "{"
            case _:
                yield chunk(script, body)
                yield finish(1, body)
                yield "[DONE]"


def said(count: int) -> str:
    """What `say N` says, whole."""
    return "".join(f"{number} " for number in range(count))


def chunk(text: str, body: JSON) -> str:
    return _event(body, [{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def finish(count: int, body: JSON) -> str:
    """The end, and the usage where it was asked for."""
    end = _event(body, [{"index": 0, "delta": {}, "finish_reason": "stop"}])
    if not (body.get("stream_options") or {}).get("include_usage"):
        return end
    usage = {
        "prompt_tokens": 10 + len(body["messages"]),
        "completion_tokens": count,
        "total_tokens": 10 + len(body["messages"]) + count,
        "prompt_tokens_details": {"cached_tokens": CACHED},
        "completion_tokens_details": {"reasoning_tokens": REASONING},
    }
    return f"{end}\n\ndata: {_event(body, [], usage=usage)}"


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _event(body: JSON, choices: list[JSON], **more: Any) -> str:
    about = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    return json.dumps({**about, "choices": choices, **more})


async def _run(port: int) -> None:
    server = ModelServer()
    await server.start(port)
    print(server.url, flush=True)  # noqa: T201 - it is asked for
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(parser.parse_args().port))
