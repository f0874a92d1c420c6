"""A stand-in for the `nats` command, as far as the documentation uses it; same flags, same output.

`nats req SUBJECT [BODY] [-H NAME:VALUE]` prints the reply; `nats sub SUBJECT --stream STREAM --all
--terminate-at-end --raw` prints the body of each message that the stream has. The server is
NATS_URL, as for the real one. An argument that the real one does not know is an error here too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

import nats
from nats.aio.client import Client


async def request(connection: Client, options: argparse.Namespace) -> None:
    headers = dict(header.split(":", 1) for header in options.header)
    reply = await connection.request(
        options.subject, options.body.encode(), timeout=30, headers=headers or None
    )
    sys.stdout.write(f"{reply.data.decode()}\n")


async def subscribe(connection: Client, options: argparse.Namespace) -> None:
    subscription = await connection.jetstream().subscribe(
        options.subject, stream=options.stream, ordered_consumer=True
    )
    left = 1
    while left:
        message = await subscription.next_msg(timeout=30)
        sys.stdout.write(f"{message.data.decode()}\n")
        left = message.metadata.num_pending


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="nats")
    commands = top.add_subparsers(required=True)
    req = commands.add_parser("req")
    req.set_defaults(work=request)
    req.add_argument("subject")
    req.add_argument("body", nargs="?", default="")
    req.add_argument("-H", "--header", action="append", default=[])
    sub = commands.add_parser("sub")
    sub.set_defaults(work=subscribe)
    sub.add_argument("subject")
    sub.add_argument("--stream", required=True)
    for flag in ("--all", "--terminate-at-end", "--raw"):
        sub.add_argument(flag, action="store_true", required=True)  # not done here otherwise
    return top


async def main() -> None:
    options = parser().parse_args()
    connection = await nats.connect(os.environ["NATS_URL"])
    try:
        await options.work(connection, options)
    finally:
        await connection.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
