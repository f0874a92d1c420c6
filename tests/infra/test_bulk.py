"""Messages in bulk are those that nats-py hands on, in the same order, however they were cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.protocol.parser import Parser

from infra.bulk import BulkParser, Delivered
from infra.jetstream.envelope import (
    Recorded,
    batch_of,
    is_unfinished,
    read_in_bulk,
    status_of,
    unpack_delivered,
    unpack_in_bulk,
)
from infra.jetstream.errors import LedgerDamaged
from infra.sturdy import SturdyClient

IN_BULK, ALSO, OTHER = 7, 8, 12


class Recording(SturdyClient):
    """Notes what its parser makes of what comes: (sid or word, subject, reply, headers, body)."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[object, ...]] = []

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        self.heard.append((sid, subject, reply, headers or b"", data))

    async def _process_ping(self) -> None:
        self.heard.append(("ping",))


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """One operation as nats-server sends it."""
    sid = draw(st.sampled_from([IN_BULK, ALSO, OTHER]))
    body = draw(st.binary(max_size=40) | st.sampled_from([b"HMSG a 7 b 4 4\r\n", b"\r\n" * 9]))
    block = draw(st.sampled_from([b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0 100 Idle\r\n\r\n"]))
    reply = draw(st.sampled_from([b"", b"$JS.ACK.s.c.1.2.3.4.5 "]))
    size = len(block) + len(body)
    return draw(
        st.sampled_from(
            [
                b"HMSG s.%d %d %b%d %d\r\n%b%b\r\n"
                % (len(body), sid, reply, len(block), size, block, body),
                b"MSG s.t %d %b%d\r\n%b\r\n" % (sid, reply, len(body), body),
                b"PING\r\n",
            ]
        )
    )


@given(st.lists(wires(), max_size=12), st.lists(st.integers(1, 90), min_size=1, max_size=8))
async def test_every_operation_is_taken_once_and_in_order_however_the_bytes_are_cut(
    wires: list[bytes], cuts: list[int]
) -> None:
    own, bulk = Recording(), Recording()
    parsers: list[Parser] = [Parser(own), BulkParser(bulk)]
    for sid in (IN_BULK, ALSO):

        def take(messages: object, sid: int = sid) -> None:
            assert isinstance(messages, list)
            bulk.heard.extend((sid, *message) for message in messages)

        parsers[1].takers[sid] = take  # type: ignore[attr-defined]  # a BulkParser
    for parser in parsers:
        data, number = b"".join(wires), 0
        while data:
            size = cuts[number % len(cuts)]
            await parser.parse(data[:size])
            data, number = data[size:], number + 1

    assert bulk.heard == own.heard
    assert len(bulk.heard) == len(wires)


@given(st.lists(st.sampled_from("eeeeuo"), max_size=12), st.lists(st.integers(1, 900), min_size=1))
async def test_a_reader_takes_what_it_can_read_and_the_taker_the_rest(
    kinds: list[str], cuts: list[int]
) -> None:
    # given events (e), what looks unusual (u) and messages of another subscription (o)
    wires = [wire(number, kind) for number, kind in enumerate(kinds, start=1)]
    parser = SturdyClient()._ps
    taken: list[int] = []

    def read(data: bytes, place: int, sid: bytes) -> tuple[int, int]:
        found, behind = read_in_bulk(data, place, sid)
        taken.extend(event.seq for event, _, _ in found)
        return len(found), behind

    def take(messages: Sequence[Delivered]) -> None:
        taken.extend(unpack_in_bulk(message).seq for message in messages)

    parser.takers[IN_BULK], parser.readers[IN_BULK] = take, read
    data, number = b"".join(wires), 0
    while data:
        size = cuts[number % len(cuts)]
        await parser.parse(data[:size])
        data, number = data[size:], number + 1

    assert taken == [number for number, kind in enumerate(kinds, start=1) if kind != "o"]


BLOCK = b"NATS/1.0\r\nEvent-Type: T\r\nEvent-Version: 3\r\nEvent-Hash: " + b"ab" * 32 + b"\r\n"
REPLY = b"$JS.ACK.S.c.1.42.7.1700000000123456789.0"
READ = Recorded(42, "e.x", "T", 3, "ab" * 32, "2023-11-14T22:13:20.123456789Z", b"{}")


def wire(seq: int, kind: str, more: bytes = b"") -> bytes:
    block = BLOCK + (b"Somebody-Elses: a word and another\r\n" if kind == "u" else more) + b"\r\n"
    sid = OTHER if kind == "o" else IN_BULK
    reply = b"$JS.ACK.S.c.1.%d.7.1700000000123456789.0" % seq
    return b"HMSG e.x %d %b %d %d\r\n%b{}\r\n" % (sid, reply, len(block), len(block) + 2, block)


@pytest.mark.parametrize(
    "more",
    [
        b"",
        b"Event-Write: w\r\nNats-Expected-Last-Subject-Sequence: 4\r\n",
        b"Nats-Batch-Id: b\r\nNats-Batch-Sequence: 1\r\nNats-Expected-Last-Subject-Sequence: 4\r\n",
        b"Nats-Batch-Id: b\r\nNats-Batch-Sequence: 9\r\nNats-Batch-Commit: 1\r\n",
    ],
)
def test_what_is_read_in_bulk_is_what_single_messages_say(more: bytes) -> None:
    data = wire(42, "e", more) + wire(43, "e", more)

    found, behind = read_in_bulk(data, 0, b"%d" % IN_BULK)

    message = Delivered(b"e.x", REPLY, BLOCK + more + b"\r\n", b"{}")
    said = (batch_of(message.headers), is_unfinished(message.headers))
    assert found == [(READ, *said), (READ._replace(seq=43), *said)]
    assert behind == len(data)
    assert read_in_bulk(data[:-1], 0, b"%d" % IN_BULK)[0] == found[:1]
    assert read_in_bulk(data, 0, b"%d" % OTHER) == ([], 0)


@pytest.mark.parametrize(
    "more",
    [
        b"",
        b"Event-Write: w\r\n",
        b"Nats-Expected-Last-Subject-Sequence: 4\r\nNats-Batch-Id: b\r\nNats-Batch-Sequence: 1\r\n",
        b"Somebody-Elses: a word and another\r\n",
        b"Nats-Trace-Dest:\r\n",
    ],
)
def test_an_event_is_read_as_from_its_single_headers(more: bytes) -> None:
    message = Delivered(b"e.x", REPLY, BLOCK + more + b"\r\n", b"{}")
    headers = {"Event-Type": "T", "Event-Version": "3", "Event-Hash": "ab" * 32}
    assert unpack_in_bulk(message) == READ
    assert unpack_delivered("e.x", REPLY.decode(), headers, b"{}") == READ


@pytest.mark.parametrize(
    "block", [b"", b"NATS/1.0\r\n\r\n", BLOCK.replace(b"ab", b"a", 1) + b"\r\n"]
)
def test_what_is_no_event_is_damage(block: bytes) -> None:
    with pytest.raises(LedgerDamaged, match="stream sequence 42"):
        unpack_in_bulk(Delivered(b"e.x", REPLY, block, b"{}"))


def test_a_batch_is_unfinished_until_its_last_message() -> None:
    of_a_batch = BLOCK + b"Nats-Batch-Id: b\r\nNats-Batch-Sequence: 1\r\n"
    assert not is_unfinished(BLOCK + b"\r\n")
    assert is_unfinished(of_a_batch + b"\r\n")
    assert not is_unfinished(of_a_batch + b"Nats-Batch-Commit: 1\r\n\r\n")


def test_a_status_says_its_code_its_text_and_what_is_left() -> None:
    block = b"NATS/1.0 409 Batch Completed\r\nNats-Pending-Messages: 3\r\n\r\n"
    assert status_of(block) == ("409", "Batch Completed", {"Nats-Pending-Messages": "3"})
    assert status_of(b"NATS/1.0 100\r\n\r\n") == ("100", "", {})
