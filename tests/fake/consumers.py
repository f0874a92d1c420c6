"""The fake's consumers: ephemeral, pulled from, without acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .copies import Copies
from .stream import Stream
from .wire import Connection, Headers, Wire


@dataclass
class Consumer:
    """One consumer; `replica` is where it lives."""

    name: str
    stream: Stream
    pattern: str
    next_seq: int
    replica: int
    delivered: int = 0
    last_seq: int = 0
    requests: list[Pull] = field(default_factory=list)


@dataclass
class Pull:
    """One request to a consumer."""

    connection: Connection
    epoch: int
    inbox: str
    left: int
    expires_s: float
    heartbeat_s: float

    @classmethod
    def of(cls, asked: dict[str, Any], connection: Connection, epoch: int, inbox: str) -> Pull:
        """Reads the body of a request."""
        expires_s = asked.get("expires", 0) / 1e9
        heartbeat_s = asked.get("idle_heartbeat", 0) / 1e9
        return cls(connection, epoch, inbox, asked["batch"], expires_s, heartbeat_s)


class Consumers:
    """The consumers of a server's streams, by their names.

    They show what the copies have; while the server stands still they say nothing.
    """

    def __init__(self, copies: Copies, stands_still: Callable[[], bool]) -> None:
        self._copies = copies
        self._stands_still = stands_still
        self._living: dict[str, Consumer] = {}
        self._created = 0
        self._loop = asyncio.get_running_loop()

    def create(self, stream: Stream, config: dict[str, Any], replica: int) -> dict[str, Any]:
        """A new one, living on a replica; what the server says about it."""
        self._created += 1
        name = config.get("name") or f"consumer{self._created}"
        pattern = config.get("filter_subject") or ">"
        consumer = Consumer(name, stream, pattern, config["opt_start_seq"], replica)
        self._living[name] = consumer
        upto = self._copies.upto(stream, replica)
        pending = len(stream.from_seq(consumer.next_seq, pattern, upto))
        return {"name": name, "stream_name": stream.name, "num_pending": pending}

    def delete(self, name: str) -> bool:
        """Ends one; whether it was there."""
        return self._living.pop(name, None) is not None

    def clear(self) -> None:
        """All of them are gone."""
        self._living.clear()

    def lose(self, replica: int) -> None:
        """Those on a replica are gone."""
        for consumer in [each for each in self._living.values() if each.replica == replica]:
            del self._living[consumer.name]

    def pull(self, name: str, pull: Pull) -> bool:
        """Takes a request to one; whether it is there."""
        consumer = self._living.get(name)
        if consumer is None:
            return False
        consumer.requests.append(pull)
        self._loop.call_later(pull.expires_s, self._expire, consumer, pull)
        if pull.heartbeat_s:
            self._loop.call_later(pull.heartbeat_s, self._beat, consumer, pull)
        self._serve(consumer)
        return True

    def feed(self, stream: Stream) -> None:
        """A stream shows more than it did."""
        for consumer in self._living.values():
            if consumer.stream is stream:
                self._serve(consumer)

    def _serve(self, consumer: Consumer) -> None:
        if not consumer.requests or self._stands_still():
            return
        stream = consumer.stream
        upto = self._copies.readable_upto(stream, consumer.replica)
        if consumer.next_seq > upto:
            return
        found = stream.from_seq(consumer.next_seq, consumer.pattern, upto)
        found = [each for each in found if self._copies.has(consumer.replica, each)]
        for place, message in enumerate(found):
            if not consumer.requests:
                return
            pull = consumer.requests[0]
            pull.left -= 1
            if pull.left == 0:
                consumer.requests.pop(0)
            consumer.delivered += 1
            consumer.next_seq = message.seq + 1
            consumer.last_seq = message.seq
            ack = (
                f"$JS.ACK.{stream.name}.{consumer.name}.1.{message.seq}.{consumer.delivered}."
                f"{message.time_ns}.{len(found) - place - 1}"
            )
            headers, body = dict(message.headers), message.body
            pull.connection.deliver(
                pull.epoch, Wire(pull.inbox, message.subject, ack, headers, body)
            )
        consumer.next_seq = max(consumer.next_seq, upto + 1)

    def _expire(self, consumer: Consumer, pull: Pull) -> None:
        if pull in consumer.requests and self._lives(consumer):
            consumer.requests.remove(pull)
            left = {"Nats-Pending-Messages": str(pull.left), "Nats-Pending-Bytes": "0"}
            self._status(pull, {"Status": "408", "Description": "Request Timeout", **left})

    def _beat(self, consumer: Consumer, pull: Pull) -> None:
        if pull in consumer.requests and self._lives(consumer):
            if pull is consumer.requests[0] and not self._stands_still():
                at = {
                    "Nats-Last-Consumer": str(consumer.delivered),
                    "Nats-Last-Stream": str(consumer.last_seq),
                }
                self._status(pull, {"Status": "100", "Description": "Idle Heartbeat", **at})
            self._loop.call_later(pull.heartbeat_s, self._beat, consumer, pull)

    def _lives(self, consumer: Consumer) -> bool:
        return self._living.get(consumer.name) is consumer

    def _status(self, pull: Pull, headers: Headers) -> None:
        pull.connection.deliver(pull.epoch, Wire(pull.inbox, pull.inbox, "", headers, b""))
