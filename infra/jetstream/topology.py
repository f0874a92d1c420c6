"""Which streams hold what, and what they must be configured like.

A `Topology` turns originator ids into subjects and back and names the streams of one
application. Everything else that is kept beside the events (snapshots, tracking) has a stream of
its own under the same prefix. NATS sequences become notification ids elsewhere; names live here.

- `<stream>-<partition>`, subjects `<prefix>.<partition>.<originator>`: the events, append-only,
  one subject per originator;
- `<snapshot stream>`, subjects `<snapshots>.<partition>.<originator>`: the latest snapshot of each
  originator, rebuildable.

An originator id is one or more subject tokens that the caller has made safe. Partition =
FNV-1a-32 over the bytes of those tokens, modulo the number of partitions: the hash of NATS's own
`{{partition(n,...)}}` subject mapping.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from nats.aio.client import Client

from infra.jetstream import outcome
from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable, StreamMismatch, reason

EVENT_BYTES_MAX = 900_000
"""Largest event (headers and body), below nats-server's default max_payload of 1 MiB."""

BATCH_MESSAGES_MAX = 1_000
"""Messages in one atomic batch: nats-server's default limit (`jetstream.limits.batch.max_msgs`)."""

RESTORING = "ledger.restoring"
"""In the metadata of a stream that is being filled from a backup: nothing else may use it yet."""

UNCOMPRESSED = "none"
"""A compressed block that becomes a stream's last one again (after a crash right behind the start
of the next one, or on a replica that goes back to its log) costs the whole stream: nats-server
2.15.1 appends to it as if it were plain, cannot read it at the next start, and drops all."""

_DUPLICATE_WINDOW_NS = 120_000_000_000


@dataclass(frozen=True)
class Topology:
    """The streams and subjects of one application's events.

    `originator_tokens`: how many subject tokens one originator id has. `replicas` is what new
    streams are created with; existing ones may have more. `beside`: prefixes of further subjects
    (one token behind the partition) in the events streams, for what has to be committed in one
    batch with events. `kept_per_subject`: messages kept of one subject, -1 for all of them.
    """

    stream: str
    prefix: str
    live_prefix: str | None = None
    snapshot_stream: str | None = None
    snapshot_prefix: str | None = None
    partitions: int = 1
    replicas: int = 1
    originator_tokens: int = 1
    beside: tuple[str, ...] = ()
    kept_per_subject: int = -1
    snapshot_bytes_max: int = EVENT_BYTES_MAX
    metadata: Mapping[str, str] = field(default_factory=dict)

    def partition(self, originator: str) -> int:
        """The partition, 0 … partitions - 1, that holds this originator's events."""
        if self.partitions == 1:
            return 0
        return fnv1a_32(originator.replace(".", "").encode()) % self.partitions

    def stream_name(self, partition: int) -> str:
        """The name of the events stream of one partition."""
        return f"{self.stream}-{partition}"

    def subject(self, originator: str) -> str:
        """The subject that holds this originator's events, and no other's."""
        return f"{self.prefix}.{self.partition(originator)}.{originator}"

    def snapshot_subject(self, originator: str) -> str:
        """The subject that keeps this originator's latest snapshot."""
        return f"{self.snapshot_prefix}.{self.partition(originator)}.{originator}"

    def originator(self, subject: str) -> str:
        """The originator id that an events subject belongs to."""
        return subject.split(".", self.prefix.count(".") + 2)[-1]

    def partition_of_subject(self, subject: str) -> int:
        """The partition that an events subject belongs to."""
        return int(subject.split(".", self.prefix.count(".") + 2)[-2])

    def events_config(self, partition: int) -> dict[str, Any]:
        """The configuration of one partition's events stream (`$JS.API.STREAM.CREATE`)."""
        any_originator = ".".join(["*"] * self.originator_tokens)
        config: dict[str, Any] = {
            "name": self.stream_name(partition),
            "subjects": [
                f"{self.prefix}.{partition}.{any_originator}",
                *(f"{prefix}.{partition}.*" for prefix in self.beside),
            ],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "num_replicas": self.replicas,
            "max_msg_size": EVENT_BYTES_MAX,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msgs_per_subject": self.kept_per_subject,
            "max_consumers": -1,
            "duplicate_window": _DUPLICATE_WINDOW_NS,
            "compression": UNCOMPRESSED,
            "deny_delete": True,
            "deny_purge": True,
            "allow_direct": True,
            "allow_atomic": True,
            "metadata": {**self.metadata, "ledger.partitions": str(self.partitions)},
        }
        if self.live_prefix is not None:
            config["republish"] = {"src": f"{self.prefix}.>", "dest": f"{self.live_prefix}.>"}
        return config

    def events_configs(self) -> dict[str, dict[str, Any]]:
        """The configuration of every events stream, by its name."""
        return {self.stream_name(each): self.events_config(each) for each in range(self.partitions)}

    def snapshots_config(self) -> dict[str, Any]:
        """The configuration of the snapshot stream: the last message per subject, rebuildable."""
        any_originator = ".".join(["*"] * (self.originator_tokens + 1))
        return {
            "name": self.snapshot_stream,
            "subjects": [f"{self.snapshot_prefix}.{any_originator}"],
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "num_replicas": self.replicas,
            "max_msg_size": self.snapshot_bytes_max,
            "max_msgs_per_subject": 1,
            "compression": UNCOMPRESSED,
            "allow_direct": True,
        }


@lru_cache(maxsize=65_536)
def fnv1a_32(data: bytes) -> int:
    """The 32-bit FNV-1a hash of `data`."""
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


_PROMISED = (
    "storage",
    "compression",
    "retention",
    "discard",
    "max_msgs",
    "max_age",
    "max_msgs_per_subject",
    "deny_delete",
    "deny_purge",
    "allow_direct",
    "allow_atomic",
    "republish",
    "subjects",
)


def differences(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> list[str]:
    """One line for each setting in which a live events stream breaks a promise; empty when none.

    `max_bytes` is the operator's (a full stream refuses, it loses nothing), more replicas than
    asked for are welcome, and so is a larger `max_msg_size`.
    """
    found = [
        f"{name}: is {_shown(live.get(name))}, has to be {_shown(wanted[name])}"
        for name in _PROMISED
        if name in wanted and (live.get(name) or None) != (wanted[name] or None)
    ]
    if live.get("num_replicas", 1) < wanted["num_replicas"]:
        found.append(
            f"num_replicas: is {live.get('num_replicas', 1)}, "
            f"has to be at least {wanted['num_replicas']}"
        )
    size = live.get("max_msg_size", -1)
    if size not in (-1, 0) and size < wanted["max_msg_size"]:
        found.append(f"max_msg_size: is {size}, has to be at least {wanted['max_msg_size']}")
    forbidden = {"sealed": "stream is sealed", "mirror": "is a mirror", "sources": "has sources"}
    found += [f"{name}: {why}" for name, why in forbidden.items() if live.get(name)]
    if live.get("allow_msg_ttl"):
        found.append("allow_msg_ttl: is true, has to be false")
    if live.get("allow_rollup_hdrs"):
        found.append("allow_rollup_hdrs: is true, has to be false")
    if live.get("allow_msg_counter"):
        found.append("allow_msg_counter: is true, has to be false")
    if live.get("allow_msg_schedules"):
        found.append("allow_msg_schedules: is true, has to be false")
    if live.get("no_ack"):
        found.append("no_ack: is true, has to be false")
    if live.get("subject_transform"):
        found.append(f"subject_transform: is {_shown(live['subject_transform'])}, has to be absent")
    if live.get("persist_mode") == "async":
        found.append("persist_mode: is async, has to be the default")
    if (live.get("metadata") or {}).get(RESTORING):
        found.append("it is being restored: run `convo restore` to its end, the same way as before")
    partitions = (live.get("metadata") or {}).get("ledger.partitions")
    if partitions != wanted["metadata"]["ledger.partitions"]:
        found.append(
            f"partitions: this ledger was created with {partitions or 'an unknown number'}, "
            f"the settings say {wanted['metadata']['ledger.partitions']}; "
            "the number is fixed when a ledger is created"
        )
    return found


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)


async def ensure(nc: Client, topology: Topology, *, timeout: float = 10.0) -> list[dict[str, Any]]:
    """Creates the streams that are missing and verifies the ones that exist.

    One whose only fault is that it is compressed is mended, where we are let. Returns the
    `$JS.API.STREAM.INFO` answer of each events stream, partition by partition. Raises
    StreamMismatch when an existing one breaks a promise, StoreUnavailable when JetStream does not
    answer or does not let us.
    """
    answers = []
    for partition in range(topology.partitions):
        wanted = topology.events_config(partition)
        info = await _info_or_create(nc, wanted, timeout)
        found = differences(wanted, info["config"])
        if [each.partition(":")[0] for each in found] == ["compression"]:
            changed = {**info["config"], "compression": UNCOMPRESSED}
            answer = await call(nc, f"STREAM.UPDATE.{wanted['name']}", changed, timeout=timeout)
            if "error" not in answer:
                info, found = answer, differences(wanted, answer["config"])
        if found:
            raise StreamMismatch(wanted["name"], found)
        answers.append(info)
    await _refuse_more_partitions(nc, topology, timeout)
    if topology.snapshot_stream is not None:
        await _info_or_create(nc, topology.snapshots_config(), timeout)
    return answers


async def limit_bytes(nc: Client, stream: str, bytes_max: int) -> None:
    """Has the stream hold at most so many bytes. Raises StoreUnavailable."""
    info = await call(nc, f"STREAM.INFO.{stream}", {})
    if "error" not in info:
        if info["config"].get("max_bytes") == bytes_max:
            return
        info = await call(nc, f"STREAM.UPDATE.{stream}", {**info["config"], "max_bytes": bytes_max})
    if "error" in info:
        raise StoreUnavailable(
            f"{stream} cannot be limited to {bytes_max:,} bytes: {info['error'].get('description')}"
        )


async def _refuse_more_partitions(nc: Client, topology: Topology, timeout: float) -> None:
    beyond = topology.stream_name(topology.partitions)
    answer = await call(nc, f"STREAM.INFO.{beyond}", {}, timeout=timeout)
    if "error" not in answer:
        raise StreamMismatch(
            beyond,
            [f"it exists, but the settings say {topology.partitions} partition(s)"],
        )


async def _info_or_create(nc: Client, wanted: dict[str, Any], timeout: float) -> dict[str, Any]:
    name = wanted["name"]
    info = await call(nc, f"STREAM.INFO.{name}", {}, timeout=timeout)
    if outcome.unmade(info):
        created = await call(nc, f"STREAM.CREATE.{name}", wanted, timeout=timeout)
        info = (
            created
            if "error" not in created
            else await call(nc, f"STREAM.INFO.{name}", {}, timeout=timeout)
        )
        if "error" in info:
            info = created
    if "error" in info:
        raise StoreUnavailable(
            f"stream {name} can neither be read nor created: {info['error'].get('description')}; "
            "check that JetStream is enabled and that this user may use it"
        )
    return info


async def call(
    nc: Client, api: str, body: Mapping[str, Any], *, timeout: float = 5.0
) -> dict[str, Any]:
    """Asks JetStream's API (`$JS.API.<api>`); returns its answer, errors included.

    Raises StoreUnavailable when nobody answers in time.
    """
    try:
        message = await nc.request(f"$JS.API.{api}", json.dumps(body).encode(), timeout=timeout)
    except NATS_FAILURES as error:
        raise StoreUnavailable(
            f"JetStream did not answer {api}: {reason(error)}; "
            "check that the server is up and has JetStream enabled"
        ) from error
    answer: dict[str, Any] = json.loads(message.data)
    return answer


def live_subjects(topology: Topology, originators: Iterable[str] = ()) -> list[str]:
    """What to subscribe to, to hear every stored event, or those of the originators given."""
    if topology.live_prefix is None:
        return []
    chosen = list(originators)
    if not chosen:
        return [f"{topology.live_prefix}.>"]
    return [f"{topology.live_prefix}.{topology.partition(o)}.{o}" for o in chosen]
