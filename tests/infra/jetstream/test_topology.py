"""Streams as the ledger needs them: made, verified, and refused with the difference named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from infra.jetstream.errors import StoreUnavailable, StreamMismatch
from infra.jetstream.topology import (
    Topology,
    call,
    differences,
    ensure,
    fnv1a_32,
    live_subjects,
)

from .rigs import connected, fresh_topology, server_with

tokens = st.text(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-~:@=+%",
    min_size=1,
    max_size=40,
)


def ledger(**fields: Any) -> Topology:
    made = fresh_topology(originator_tokens=2, **fields)
    return Topology(
        **{
            **vars(made),
            "live_prefix": f"{made.prefix}-live",
            "snapshot_stream": f"{made.stream}-SNAPSHOTS",
            "snapshot_prefix": f"{made.prefix}-snap",
        }
    )


async def made_otherwise(nc: Client, topology: Topology, **changed: Any) -> None:
    """Makes the stream of partition 0 as somebody else would have; None leaves a setting out."""
    config = {**topology.events_config(0), **changed}
    config = {name: value for name, value in config.items() if value is not None}
    answer = await call(nc, f"STREAM.CREATE.{config['name']}", config)
    assert "error" not in answer, answer


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0x811C9DC5),
        (b"a", 0xE40C292C),
        (b"b", 0xE70C2DE5),
        (b"foobar", 0xBF9CF968),
        (b"chongo was here!\n", 0xD49930D5),
    ],
)
def test_the_hash_is_fnv_1a_32(data: bytes, value: int) -> None:
    """Published test vectors (draft-eastlake-fnv, appendix C)."""
    assert fnv1a_32(data) == value


@given(st.sampled_from(["evt", "convo.evt", "a.b.c"]), st.integers(1, 9), tokens, tokens)
def test_a_subject_leads_back_to_its_originator_and_partition(
    prefix: str, partitions: int, tenant: str, conversation: str
) -> None:
    topology = Topology(stream="S", prefix=prefix, partitions=partitions, originator_tokens=2)
    originator = f"{tenant}.{conversation}"
    subject = topology.subject(originator)
    assert topology.originator(subject) == originator
    assert topology.partition_of_subject(subject) == topology.partition(originator)
    assert 0 <= topology.partition(originator) < partitions
    assert subject == f"{prefix}.{topology.partition(originator)}.{originator}"


@given(st.sampled_from(["evt", "convo.evt"]), st.integers(1, 9), tokens)
def test_an_originator_of_one_token_leads_back_too(
    prefix: str, partitions: int, originator: str
) -> None:
    topology = Topology(stream="S", prefix=prefix, partitions=partitions)
    subject = topology.subject(originator)
    assert topology.originator(subject) == originator
    assert topology.partition_of_subject(subject) == topology.partition(originator)


def test_live_subjects_are_all_or_those_of_the_originators() -> None:
    topology = Topology(stream="S", prefix="evt", live_prefix="live", partitions=3)
    partition = topology.partition("ada")
    assert live_subjects(topology) == ["live.>"]
    assert live_subjects(topology, ["ada"]) == [f"live.{partition}.ada"]
    assert live_subjects(Topology(stream="S", prefix="evt"), ["ada"]) == []


async def test_partitions_are_those_of_natss_own_subject_mapping(tmp_path: Path) -> None:
    # given a server that maps subjects by its own partition function
    ours = "{{partition(%d,1,2)}}.{{wildcard(1)}}.{{wildcard(2)}}"
    lines = [f'"in{each}.*.*": "out{each}.{ours % each}"' for each in (1, 2, 7, 64)]
    mapping = "\n".join(["mappings = {", *lines, "}"])
    names = [("acme", f"c-{n}") for n in range(40)]
    names += [
        ("a", "bc"),
        ("ab", "c"),
        ("%C3%BC", "%F0%9F%98%80"),
        ("~:@=+", "_-"),
        ("x" * 200, "1"),
    ]
    async with server_with(tmp_path, settings=mapping) as url, connected(url) as nc:
        for partitions in (1, 2, 7, 64):
            topology = Topology(
                stream="S", prefix=f"out{partitions}", partitions=partitions, originator_tokens=2
            )
            mapped = await nc.subscribe(f"out{partitions}.>")
            # when originators are sent through it
            for tenant, conversation in names:
                await nc.publish(f"in{partitions}.{tenant}.{conversation}", b"")
            # then they arrive where we would have put them
            for tenant, conversation in names:
                message = await mapped.next_msg(timeout=5)
                assert message.subject == topology.subject(f"{tenant}.{conversation}")


# -- making --------------------------------------------------------------------------------------


async def test_missing_streams_are_made_as_promised(nats_client: Client) -> None:
    topology = ledger(partitions=3)
    infos = await ensure(nats_client, topology)
    assert [info["config"]["name"] for info in infos] == [
        f"{topology.stream}-{n}" for n in range(3)
    ]
    for partition, info in enumerate(infos):
        config = info["config"]
        assert config["subjects"] == [f"{topology.prefix}.{partition}.*.*"]
        assert config["republish"] == {
            "src": f"{topology.prefix}.>",
            "dest": f"{topology.live_prefix}.>",
        }
        promised = {
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "compression": "none",
            "deny_delete": True,
            "deny_purge": True,
            "allow_direct": True,
            "allow_atomic": True,
            "max_msgs": -1,
            "max_age": 0,
            "max_msgs_per_subject": -1,
            "max_msg_size": 900_000,
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000,
        }
        assert {name: config[name] for name in promised} == promised
    snapshots = await call(nats_client, f"STREAM.INFO.{topology.snapshot_stream}", {})
    assert snapshots["config"]["max_msgs_per_subject"] == 1
    assert snapshots["config"]["allow_direct"] is True
    assert snapshots["config"]["subjects"] == [f"{topology.snapshot_prefix}.*.*.*"]


async def test_streams_that_are_right_are_left_alone(nats_client: Client) -> None:
    topology = ledger(partitions=2)
    first = await ensure(nats_client, topology)
    again = await ensure(nats_client, topology)
    assert [info["created"] for info in again] == [info["created"] for info in first]
    assert [info["config"] for info in again] == [info["config"] for info in first]


async def test_processes_that_start_together_make_them_once(nats_client: Client) -> None:
    topology = ledger(partitions=2)
    found = await asyncio.gather(*(ensure(nats_client, topology) for _ in range(4)))
    created = {tuple(info["created"] for info in infos) for infos in found}
    assert len(created) == 1


async def test_nothing_can_be_purged_or_deleted(nats_client: Client) -> None:
    topology = ledger()
    await ensure(nats_client, topology)
    stream = topology.stream_name(0)
    subject = topology.subject("acme.c-1")
    await nats_client.request(subject, b"{}", timeout=10)
    purged = await call(nats_client, f"STREAM.PURGE.{stream}", {})
    deleted = await call(nats_client, f"STREAM.MSG.DELETE.{stream}", {"seq": 1})
    assert purged["error"]["err_code"] == 10110
    assert deleted["error"]["err_code"] == 10057


# -- verifying -----------------------------------------------------------------------------------

BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("storage", {"storage": "memory"}),
    ("retention", {"retention": "workqueue"}),
    ("retention", {"retention": "interest"}),
    ("discard", {"discard": "old"}),
    ("max_msgs", {"max_msgs": 1_000}),
    ("max_age", {"max_age": 3_600_000_000_000}),
    ("max_msgs_per_subject", {"max_msgs_per_subject": 5}),
    ("max_msg_size", {"max_msg_size": 899_999}),
    ("deny_delete", {"deny_delete": False}),
    ("deny_purge", {"deny_purge": False}),
    ("allow_direct", {"allow_direct": False}),
    ("allow_atomic", {"allow_atomic": False}),
    ("republish", {"republish": None}),
    ("republish", {"republish": {"src": ">", "dest": "elsewhere.>"}}),
    ("allow_msg_ttl", {"allow_msg_ttl": True}),
    # Acknowledgements and subjects, on which everything rests.
    ("no_ack", {"no_ack": True}),
    ("subject_transform", {"subject_transform": {"src": "", "dest": "elsewhere.>"}}),
]


@pytest.mark.parametrize(("named", "changed"), BROKEN)
async def test_a_stream_that_breaks_a_promise_is_refused_with_that_difference_named(
    nats_client: Client, named: str, changed: dict[str, Any]
) -> None:
    topology = ledger()
    if "subject_transform" in changed:
        changed = {"subject_transform": {"src": f"{topology.prefix}.>", "dest": "elsewhere.>"}}
    await made_otherwise(nats_client, topology, **changed)
    with pytest.raises(StreamMismatch) as refused:
        await ensure(nats_client, topology)
    [difference] = refused.value.differences
    assert difference.startswith(f"{named}: ")
    assert refused.value.stream == topology.stream_name(0)
    assert difference in str(refused.value)
    assert f"nats stream edit {topology.stream_name(0)}" in str(refused.value)


async def test_roll_ups_are_refused(nats_client: Client) -> None:
    topology = ledger()  # the server takes them only where purging is allowed
    await made_otherwise(nats_client, topology, allow_rollup_hdrs=True, deny_purge=False)
    with pytest.raises(StreamMismatch) as refused:
        await ensure(nats_client, topology)
    assert sorted(each.partition(":")[0] for each in refused.value.differences) == [
        "allow_rollup_hdrs",
        "deny_purge",
    ]


async def test_a_mirror_is_refused(nats_client: Client) -> None:
    topology = ledger()
    origin = ledger()
    await ensure(nats_client, origin)
    mirror = {
        "name": topology.stream_name(0),
        "storage": "file",
        "mirror": {"name": origin.stream_name(0)},
    }
    assert "error" not in await call(nats_client, f"STREAM.CREATE.{mirror['name']}", mirror)
    with pytest.raises(StreamMismatch, match="mirror: is a mirror"):
        await ensure(nats_client, topology)


async def test_a_stream_that_also_gathers_from_others_is_refused(nats_client: Client) -> None:
    topology, other = ledger(), ledger()
    await ensure(nats_client, other)
    await made_otherwise(
        nats_client,
        topology,
        sources=[{"name": other.stream_name(0)}],
    )
    with pytest.raises(StreamMismatch, match="sources: has sources"):
        await ensure(nats_client, topology)


async def test_a_stream_that_was_sealed_is_refused(nats_client: Client) -> None:
    topology = ledger()
    [info] = await ensure(nats_client, topology)
    sealed = {**info["config"], "sealed": True}
    name = topology.stream_name(0)
    assert "error" not in await call(nats_client, f"STREAM.UPDATE.{name}", sealed)
    with pytest.raises(StreamMismatch, match="sealed: stream is sealed"):
        await ensure(nats_client, topology)


async def test_other_subjects_are_refused(nats_client: Client) -> None:
    topology = ledger()
    await made_otherwise(nats_client, topology, subjects=[f"{topology.prefix}.0.*"])
    with pytest.raises(StreamMismatch, match=r"subjects: is \[.*\], has to be \[") as refused:
        await ensure(nats_client, topology)
    assert len(refused.value.differences) == 1


async def test_every_difference_is_named_at_once(nats_client: Client) -> None:
    topology = ledger()
    await made_otherwise(nats_client, topology, storage="memory", discard="old", deny_purge=False)
    with pytest.raises(StreamMismatch) as refused:
        await ensure(nats_client, topology)
    assert sorted(refused.value.differences) == [
        "deny_purge: is false, has to be true",
        'discard: is "old", has to be "new"',
        'storage: is "memory", has to be "file"',
    ]


@pytest.mark.parametrize("asked", [1, 2, 5])
async def test_the_number_of_partitions_is_fixed(nats_client: Client, asked: int) -> None:
    topology = ledger(partitions=3)
    await ensure(nats_client, topology)
    other = Topology(**{**vars(topology), "partitions": asked})
    with pytest.raises(StreamMismatch, match=f"created with 3, the settings say {asked}"):
        await ensure(nats_client, other)
    beyond = await call(nats_client, f"STREAM.INFO.{topology.stream}-4", {})
    assert beyond["error"]["err_code"] == 10059, "nothing was made"


async def test_a_stream_of_no_known_number_of_partitions_is_refused(nats_client: Client) -> None:
    topology = ledger()
    await made_otherwise(nats_client, topology, metadata=None)
    with pytest.raises(StreamMismatch, match="created with an unknown number"):
        await ensure(nats_client, topology)


async def test_a_stream_beyond_the_last_partition_is_refused(nats_client: Client) -> None:
    topology = ledger()
    one_more = Topology(**{**vars(topology), "partitions": 2}).events_config(1)
    assert "error" not in await call(nats_client, f"STREAM.CREATE.{one_more['name']}", one_more)
    with pytest.raises(StreamMismatch, match="it exists, but the settings say 1 partition"):
        await ensure(nats_client, topology)


@pytest.mark.parametrize(
    "changed",
    [
        {"max_bytes": 10_000_000_000},
        {"max_bytes": 50_000},
        {"max_msg_size": 8_000_000},
        {"max_msg_size": -1},
        {"description": "the ledger of acme"},
        {"duplicate_window": 60_000_000_000},
    ],
)
async def test_what_breaks_no_promise_is_the_operators_own(
    nats_client: Client, changed: dict[str, Any]
) -> None:
    topology = ledger()
    await made_otherwise(nats_client, topology, **changed)
    [info] = await ensure(nats_client, topology)
    assert info["config"]["name"] == topology.stream_name(0)


async def test_compression_is_switched_off_where_a_stream_has_it(nats_client: Client) -> None:
    topology = ledger()
    await made_otherwise(nats_client, topology, compression="s2")
    [info] = await ensure(nats_client, topology)
    assert info["config"]["compression"] == "none"
    [again] = await ensure(nats_client, topology)
    assert again["config"] == info["config"]


async def test_a_stream_that_is_not_ours_is_left_as_it_is(nats_client: Client) -> None:
    topology = ledger()
    await made_otherwise(nats_client, topology, compression="s2", deny_purge=False)
    with pytest.raises(StreamMismatch, match="compression: is"):
        await ensure(nats_client, topology)
    info = await call(nats_client, f"STREAM.INFO.{topology.stream_name(0)}", {})
    assert info["config"]["compression"] == "s2"


def test_more_replicas_are_welcome_and_fewer_are_not() -> None:
    topology = ledger(replicas=3)
    wanted = topology.events_config(0)
    assert differences(wanted, {**wanted, "num_replicas": 5}) == []
    assert differences(wanted, {**wanted, "num_replicas": 3}) == []
    assert differences(wanted, {**wanted, "num_replicas": 1}) == [
        "num_replicas: is 1, has to be at least 3"
    ]


def test_asynchronous_persistence_is_refused() -> None:
    wanted = ledger().events_config(0)
    assert differences(wanted, {**wanted, "persist_mode": "async"}) == [
        "persist_mode: is async, has to be the default"
    ]


# -- when JetStream is not as it should be -------------------------------------------------------


async def test_a_server_without_jetstream_says_what_to_check(tmp_path: Path) -> None:
    accounts = "accounts { A { users [{ user: a, password: a }] } }\nno_auth_user: a"
    async with server_with(tmp_path, settings=accounts) as url, connected(url) as nc:
        with pytest.raises(StoreUnavailable, match=r"check that .*JetStream"):
            await ensure(nc, ledger())


async def test_streams_that_cannot_be_made_are_said_with_the_servers_reason(
    nats_client: Client,
) -> None:
    with pytest.raises(StoreUnavailable, match="replicas > 1 not supported"):
        await ensure(nats_client, ledger(replicas=3))


@pytest_asyncio.fixture
async def read_only_user(tmp_path: Path) -> AsyncIterator[Client]:
    """A user who may not touch JetStream's API."""
    permissions = (
        "authorization { users [ { user: a, password: a, permissions: "
        '{ publish: { deny: ["$JS.API.>"] } } } ] }\nno_auth_user: a'
    )
    async with server_with(tmp_path, settings=permissions) as url, connected(url) as nc:
        yield nc


async def test_a_user_without_the_right_is_told_and_not_left_waiting(
    read_only_user: Client,
) -> None:
    with pytest.raises(StoreUnavailable, match=r"did not answer STREAM\.INFO"):
        await ensure(read_only_user, ledger(), timeout=0.3)
