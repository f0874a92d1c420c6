"""NATS JetStream as a persistence module for the `eventsourcing` library.

`PERSISTENCE_MODULE=infra.jetstream` and `NATS_URL=nats://…` in the environment are all that an
application needs (docs/eventsourcing.md). The ledger itself uses `store` underneath, directly.
"""

from __future__ import annotations

from infra.jetstream.datastore import JetStreamDatastore
from infra.jetstream.factory import Factory
from infra.jetstream.recorders import (
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamSnapshotRecorder,
    JetStreamTrackingRecorder,
)

__all__ = [
    "Factory",
    "JetStreamAggregateRecorder",
    "JetStreamApplicationRecorder",
    "JetStreamDatastore",
    "JetStreamProcessRecorder",
    "JetStreamSnapshotRecorder",
    "JetStreamTrackingRecorder",
]
