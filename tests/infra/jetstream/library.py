"""What tests of the recorders have in common, the library's own cases among them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import ClassVar
from unittest import TestCase
from unittest.mock import patch
from uuid import UUID

from eventsourcing.persistence import AggregateRecorder, StoredEvent
from nats.nuid import NUID

from infra.jetstream import JetStreamDatastore

OpenDatastore = Callable[[], JetStreamDatastore]


def event(id: UUID | str, version: int, state: bytes = b"{}", topic: str = "t") -> StoredEvent:
    return StoredEvent(id, version, topic, state)


def versions(recorder: AggregateRecorder, id: UUID | str) -> list[int]:
    return [stored.originator_version for stored in recorder.select_events(id)]


class OnJetStream(TestCase):
    """A datastore with streams of the test's own, closed after its threads have ended."""

    nats_url: ClassVar[str]
    replicas: ClassVar[int] = 1

    def setUp(self) -> None:
        self.prefix = NUID().next().decode()
        threads = set(threading.enumerate())
        self.datastore = JetStreamDatastore(self.nats_url, self.prefix, replicas=self.replicas)
        self.addCleanup(self.datastore.close)
        self.addCleanup(join_readers, threads)  # before it: the last in is the first out
        super().setUp()


def join_readers(before: set[threading.Thread]) -> None:
    """Waits for the reader threads that one of the library's cases tells to stop and leaves."""
    for thread in set(threading.enumerate()) - before:
        if "read_continuously" in thread.name:
            thread.join()


class InEnvironment(TestCase):
    """Applications of the test find JetStream by environment variables alone.

    Each application has streams of its own, unless `shared_prefix` names one for all.
    """

    nats_url: ClassVar[str]
    replicas: ClassVar[int] = 1
    expected_factory_topic = "infra.jetstream.factory:JetStreamFactory"

    def setUp(self) -> None:
        unique = NUID().next().decode()
        environment = {
            "PERSISTENCE_MODULE": "infra.jetstream",
            "NATS_URL": self.nats_url,
            "JETSTREAM_REPLICAS": str(self.replicas),
            "JETSTREAM_PREFIX": unique,
            "COUNTERS_JETSTREAM_PREFIX": f"{unique}-counters",
            "EVENTCOUNTERS_JETSTREAM_PREFIX": f"{unique}-view",
        }
        patcher = patch.dict(os.environ, environment)
        patcher.start()
        self.addCleanup(patcher.stop)
        super().setUp()
