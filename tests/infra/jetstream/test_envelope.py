"""How an event travels: packed and unpacked without loss, chained so that anyone can check it."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from infra.jetstream.envelope import (
    GENESIS,
    HEADER_BYTES_MAX,
    Message,
    Recorded,
    Tail,
    chain,
    pack,
    sent_under,
    unpack,
    unpack_stored,
    verify_chain,
)
from infra.jetstream.errors import LedgerDamaged
from infra.jetstream.topology import call
from infra.server import EmbeddedServer

from .rigs import committed, events, opened, tail_of

SUBJECT = "evt.0.ada"
TIME = "2026-11-21T09:00:00.123456789Z"

topics = st.from_regex(r"[A-Za-z0-9_.:]{1,60}", fullmatch=True)
bodies = st.binary(max_size=200)


def by_direct_get(message: Message, seq: int) -> Recorded:
    """The event as a Direct Get answers it."""
    headers = message.headers()
    headers |= {"Nats-Sequence": str(seq), "Nats-Subject": SUBJECT, "Nats-Time-Stamp": TIME}
    return unpack(headers, message.body)


def from_leader(message: Message, seq: int, **more: str) -> dict[str, Any]:
    """The `message` object of a STREAM.MSG.GET reply."""
    lines = [f"{name}: {value}" for name, value in {**message.headers(), **more}.items()]
    raw = "\r\n".join(["NATS/1.0", *lines, "", ""]).encode()
    return {
        "subject": SUBJECT,
        "seq": seq,
        "hdrs": b64encode(raw).decode(),
        "data": b64encode(message.body).decode(),
        "time": TIME,
    }


def packed(*contents: bytes) -> list[Recorded]:
    tail = Tail(SUBJECT)
    return [
        by_direct_get(pack(tail, "Happened", number, body), 10 * number)
        for number, body in enumerate(contents, start=1)
    ]


@given(st.lists(st.tuples(topics, bodies), min_size=1, max_size=20))
def test_what_is_packed_is_unpacked_and_its_chain_is_sha256_all_the_way(
    contents: list[tuple[str, bytes]],
) -> None:
    tail = Tail(SUBJECT)
    previous = bytes(32)
    for version, (topic, body) in enumerate(contents, start=1):
        message = pack(tail, topic, version, body)
        digest = sha256(previous + body).hexdigest()
        expected = Recorded(version + 100, SUBJECT, topic, version, digest, TIME, body)
        assert by_direct_get(message, version + 100) == expected
        assert unpack_stored(from_leader(message, version + 100)) == expected
        assert message.previous == previous
        previous = bytes.fromhex(digest)
        assert (tail.version, tail.digest) == (version, previous)


def test_packing_runs_ahead_of_what_is_stored() -> None:
    tail = Tail(SUBJECT, 7, 3, b"x" * 32, b"x" * 32)
    pack(tail, "Happened", 4, b"{}")
    pack(tail, "Happened", 5, b"{}")
    assert (tail.version, tail.seq, tail.stored) == (5, 7, b"x" * 32)
    assert not tail.in_flight
    assert not tail.broken


def test_each_message_has_headers_of_its_own() -> None:
    message = pack(Tail(SUBJECT), "Happened", 1, b"{}")
    message.headers()["Nats-Batch-Id"] = "b"
    assert message.headers() == {
        "Event-Type": "Happened",
        "Event-Version": "1",
        "Event-Hash": sha256(bytes(32) + b"{}").hexdigest(),
    }


def test_the_hash_before_the_first_event_is_zeroes() -> None:
    assert bytes(32) == GENESIS
    assert chain(GENESIS, b"{}") == sha256(bytes(32) + b"{}").digest()


@given(st.lists(bodies, max_size=8))
def test_a_whole_chain_verifies(contents: list[bytes]) -> None:
    recorded = packed(*contents)
    last = verify_chain(GENESIS, recorded)
    assert last == (bytes.fromhex(recorded[-1].digest) if recorded else GENESIS)


@given(st.data(), st.lists(bodies, min_size=2, max_size=8, unique=True))
def test_a_chain_that_was_tampered_with_is_told_at_that_version(
    data: st.DataObject, contents: list[bytes]
) -> None:
    recorded = packed(*contents)
    place = data.draw(st.integers(0, len(recorded) - 1))
    match data.draw(st.sampled_from(["other body", "other hash", "missing", "exchanged"])):
        case "other body":
            recorded[place] = recorded[place]._replace(body=recorded[place].body + b"!")
            bad = recorded[place]
        case "other hash":
            recorded[place] = recorded[place]._replace(digest="0" * 64)
            bad = recorded[place]
        case "missing":
            place = min(place, len(recorded) - 2)
            del recorded[place]
            bad = recorded[place]
        case _:
            place = min(place, len(recorded) - 2)
            recorded[place], recorded[place + 1] = recorded[place + 1], recorded[place]
            bad = recorded[place]
    with pytest.raises(LedgerDamaged, match=rf"version {bad.version} of {SUBJECT} .*{bad.seq}"):
        verify_chain(GENESIS, recorded)


# -- messages that are no events -----------------------------------------------------------------

WHOLE = {
    "Event-Type": "Happened",
    "Event-Version": "1",
    "Event-Hash": "ab" * 32,
    "Nats-Sequence": "4",
    "Nats-Subject": SUBJECT,
    "Nats-Time-Stamp": TIME,
}


@pytest.mark.parametrize("missing", sorted(WHOLE))
def test_a_message_without_one_of_the_headers_is_foreign(missing: str) -> None:
    headers = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(LedgerDamaged, match="not an event of a ledger"):
        unpack(headers, b"{}")


def test_a_message_without_headers_is_foreign() -> None:
    with pytest.raises(LedgerDamaged, match="not an event of a ledger"):
        unpack(None, b"{}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Event-Version", ""),
        ("Event-Version", "one"),
        ("Event-Version", "1.0"),
        ("Event-Hash", ""),
        ("Event-Hash", "not a hash"),
        ("Event-Hash", "ab" * 31),
    ],
)
def test_a_header_that_no_event_has_is_foreign(name: str, value: str) -> None:
    with pytest.raises(LedgerDamaged, match=f"{SUBJECT} at stream sequence 4"):
        unpack({**WHOLE, name: value}, b"{}")


def test_the_leaders_copy_of_a_foreign_message_is_foreign_too() -> None:
    bare = {"subject": SUBJECT, "seq": 4, "time": TIME}
    with pytest.raises(LedgerDamaged, match=f"{SUBJECT} at stream sequence 4"):
        unpack_stored(bare)
    assert sent_under(bare) == ""


@pytest.mark.parametrize(
    "raw", [b"NATS/1.0\r\nX-Name: \xff\xfe\r\n\r\n", b"NATS/1.0\r\n\xff: x\r\n\r\n", b"\xff", b""]
)
def test_headers_that_are_no_text_are_foreign_and_nothing_worse(raw: bytes) -> None:
    stored = {"subject": SUBJECT, "seq": 4, "time": TIME, "hdrs": b64encode(raw).decode()}
    assert sent_under(stored) == ""
    with pytest.raises(LedgerDamaged):
        unpack_stored(stored)


def test_an_event_says_under_which_id_it_was_sent() -> None:
    message = pack(Tail(SUBJECT), "Happened", 1, b"{}")
    assert sent_under(from_leader(message, 1)) == ""
    assert sent_under(from_leader(message, 1, **{"Event-Write": "w1"})) == "w1"
    assert sent_under(from_leader(message, 1, **{"Nats-Batch-Id": "b1"})) == "b1"


# -- as the server has it ------------------------------------------------------------------------


async def test_what_the_server_stored_is_read_alike_both_ways_and_alone_with_hashlib(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    # given events written as plain publishes and in a batch, of any bytes
    async with opened(nats_server.url) as store:
        tail = tail_of(store, "mixed")
        for body in (b"", b"{}", b"\x00\r\n\xff", "Grüße".encode()):
            await store.append(events(tail, 1, body))
        await store.append(events(tail, 3, b'{"a": 1}'))
        # when every one of them is read, by Direct Get and from the leader
        stream = store.topology.stream_name(0)
        direct = await store.read("mixed")
        leader = [
            (await call(nats_client, f"STREAM.MSG.GET.{stream}", {"seq": each.seq}))["message"]
            for each in direct
        ]
        # then both are the same, and the chain is what sha256 says
        assert [unpack_stored(each) for each in leader] == direct
        assert len(direct) == 7
        previous = bytes(32)
        for version, each in enumerate(direct, start=1):
            previous = sha256(previous + each.body).digest()
            assert (each.version, each.digest) == (version, previous.hex())
        assert tail.digest == tail.stored == previous


async def test_foreign_messages_on_a_subject_are_damage_however_they_are_read(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    async with opened(nats_server.url) as store:
        # given a message that no committer made
        subject = store.topology.subject("strange")
        answer = json.loads((await nats_client.request(subject, b"hello", timeout=10)).data)
        assert answer["seq"] == 1
        # when it is read
        for reading in (
            store.last("strange"),
            store.last("strange", leader=True),
            store.read("strange"),
        ):
            # then it is damage, not an event
            with pytest.raises(LedgerDamaged, match="not an event of a ledger"):
                await reading


async def test_the_headers_of_a_write_fit_into_the_room_that_is_left_for_them(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    async with opened(nats_server.url) as store:
        tail = tail_of(store, "t" * 200)
        tail.version = 10**9
        message = [pack(tail, "ConversationReopened", 10**9 + 1, b"{}") for _ in range(2)]
        tail.version = 2
        [write] = await committed(store, [message])
        assert write.error is None
        raw = await call(
            nats_client, f"STREAM.MSG.GET.{store.topology.stream_name(0)}", {"seq": write.seqs[-1]}
        )
        stored = len(raw["message"]["hdrs"]) * 3 // 4
        assert 100 < stored < HEADER_BYTES_MAX - 100
