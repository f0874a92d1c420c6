"""The factory that `PERSISTENCE_MODULE=infra.jetstream` names.

Environment, each also with the application's name before it (`SHOP_NATS_URL`), as usual with the
library:

- `NATS_URL`: the servers, several with commas. Required.
- `JETSTREAM_PREFIX`: namespace of streams and subjects; the application's name when unset. Set for
  several applications together, they share their streams.
- `JETSTREAM_REPLICAS`: of the streams that are created (1).
- `JETSTREAM_TIMEOUT`: seconds that a call may take, outages included (30);
  `JETSTREAM_CONNECT_TIMEOUT`: for the first connection (5).
- `NATS_CREDS`, `NATS_TLS_CA`, `NATS_TLS_CERT`, `NATS_TLS_KEY`: files.
- `ORIGINATOR_ID_TYPE` (uuid, text) and `CREATE_TABLE` (whether to create streams) mean what they
  mean with the SQL modules.
"""

from __future__ import annotations

from types import TracebackType
from typing import Literal, TypeVar

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    InfrastructureFactory,
    ProcessRecorder,
)
from eventsourcing.utils import Environment, EnvType, resolve_topic, strtobool

from infra.connection import Access
from infra.jetstream.connections import Server
from infra.jetstream.datastore import JetStreamDatastore
from infra.jetstream.recorders import (
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamSnapshotRecorder,
    JetStreamTrackingRecorder,
)
from infra.jetstream.tokens import stream_prefix

_Class = TypeVar("_Class")

REPLICAS = ("1", "3", "5")
EVENTS = "events"


class JetStreamFactory(InfrastructureFactory[JetStreamTrackingRecorder]):
    """Makes recorders over one datastore, which it closes."""

    NATS_URL = "NATS_URL"
    NATS_CREDS = "NATS_CREDS"
    NATS_TLS_CA = "NATS_TLS_CA"
    NATS_TLS_CERT = "NATS_TLS_CERT"
    NATS_TLS_KEY = "NATS_TLS_KEY"
    JETSTREAM_PREFIX = "JETSTREAM_PREFIX"
    JETSTREAM_REPLICAS = "JETSTREAM_REPLICAS"
    JETSTREAM_TIMEOUT = "JETSTREAM_TIMEOUT"
    JETSTREAM_CONNECT_TIMEOUT = "JETSTREAM_CONNECT_TIMEOUT"
    ORIGINATOR_ID_TYPE = "ORIGINATOR_ID_TYPE"
    CREATE_TABLE = "CREATE_TABLE"

    aggregate_recorder_class = JetStreamAggregateRecorder
    snapshot_recorder_class = JetStreamSnapshotRecorder
    application_recorder_class = JetStreamApplicationRecorder
    tracking_recorder_class = JetStreamTrackingRecorder
    process_recorder_class = JetStreamProcessRecorder

    def __init__(self, env: Environment | EnvType | None) -> None:
        """Reads the environment, connects to nothing yet. Raises OSError, as the SQL modules do,
        when a setting is missing or cannot be used."""
        super().__init__(env)
        self.datastore = JetStreamDatastore(
            Server(
                self._required(self.NATS_URL),
                Access(
                    self.env.get(self.NATS_CREDS),
                    self.env.get(self.NATS_TLS_CA),
                    self.env.get(self.NATS_TLS_CERT),
                    self.env.get(self.NATS_TLS_KEY),
                ),
                connect_timeout=self._seconds(self.JETSTREAM_CONNECT_TIMEOUT, "5"),
            ),
            self._prefix(),
            replicas=self._replicas(),
            originator_id_type=self._originator_id_type(),
            timeout=self._seconds(self.JETSTREAM_TIMEOUT, "30"),
            create_streams=self.env_create_table(),
        )

    # -- recorders -----------------------------------------------------------------------------

    def aggregate_recorder(self, purpose: str = EVENTS) -> AggregateRecorder:
        """A recorder of events, or of what jumps in versions: snapshots, any other purpose."""
        if purpose == EVENTS:
            return self.aggregate_recorder_class(self._datastore())
        return self.snapshot_recorder_class(self._datastore(), purpose)

    def application_recorder(self) -> ApplicationRecorder:
        """A recorder of events and notifications, of the class that the environment names."""
        recorder_class = self._class_named(
            self.APPLICATION_RECORDER_TOPIC, self.application_recorder_class
        )
        return recorder_class(self._datastore())

    def tracking_recorder(
        self, tracking_recorder_class: type[JetStreamTrackingRecorder] | None = None
    ) -> JetStreamTrackingRecorder:
        """A recorder of positions, of the class given or the one that the environment names."""
        if tracking_recorder_class is None:
            tracking_recorder_class = self._class_named(
                self.TRACKING_RECORDER_TOPIC, self.tracking_recorder_class
            )
        assert issubclass(tracking_recorder_class, JetStreamTrackingRecorder)
        return tracking_recorder_class(self._datastore())

    def process_recorder(self) -> ProcessRecorder:
        """A recorder of events with positions, of the class that the environment names."""
        recorder_class = self._class_named(self.PROCESS_RECORDER_TOPIC, self.process_recorder_class)
        return recorder_class(self._datastore())

    def close(self) -> None:
        """Ends subscriptions, lets writes finish and closes the connections; harmless to repeat."""
        self.datastore.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        self.close()

    # -- the environment -----------------------------------------------------------------------

    def env_create_table(self) -> bool:
        """Whether streams may be created; else they have to be there."""
        return strtobool(self.env.get(self.CREATE_TABLE, "yes") or "yes")

    def _datastore(self) -> JetStreamDatastore:
        self.datastore.create_streams = self.env_create_table()
        return self.datastore

    def _class_named(self, key: str, base: type[_Class]) -> type[_Class]:
        topic = self.env.get(key)
        if not topic:
            return base
        named: type[_Class] = resolve_topic(topic)
        assert issubclass(named, base), f"{key}={topic} is no {base.__name__}"
        return named

    def _required(self, key: str) -> str:
        value = (self.env.get(key) or "").strip()
        if not value:
            keys = ", ".join(self.env.create_keys(key))
            raise OSError(f"NATS URL not found in environment with keys: {keys}")
        return value

    def _prefix(self) -> str:
        name = self.env.get(self.JETSTREAM_PREFIX) or self.env.name
        if not name:
            raise OSError(
                f"{self.JETSTREAM_PREFIX} is not set, and the environment has no application name "
                "to take instead"
            )
        try:
            return stream_prefix(name)
        except ValueError as error:
            raise self._invalid(self.JETSTREAM_PREFIX, name, str(error)) from None

    def _replicas(self) -> int:
        value = self.env.get(self.JETSTREAM_REPLICAS) or "1"
        if value.strip() not in REPLICAS:
            raise self._invalid(self.JETSTREAM_REPLICAS, value, f"one of {', '.join(REPLICAS)}")
        return int(value)

    def _seconds(self, key: str, default: str) -> float:
        value = self.env.get(key) or default
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise self._invalid(key, value, "a number of seconds above 0")
        return seconds

    def _originator_id_type(self) -> Literal["uuid", "text"]:
        value = (self.env.get(self.ORIGINATOR_ID_TYPE) or "uuid").lower()
        if value == "uuid":
            return "uuid"
        if value == "text":
            return "text"
        raise self._invalid(self.ORIGINATOR_ID_TYPE, value, "'uuid' or 'text'")

    def _invalid(self, key: str, value: str, expected: str) -> OSError:
        return OSError(
            f"JetStream environment value for key '{key}' is invalid. "
            f"Expected: {expected}. Found: '{value}'"
        )


Factory = JetStreamFactory
