"""Every way to forge a record that we can think of, made in a copied stream, and what finds it.

`verify` of one conversation sees whatever breaks its chain; the check of the whole ledger sees the
rest by the notary's checkpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client

from infra.connection import connect
from infra.notary.checkpoint import Checkpoint, key_record
from infra.notary.notes import PublicKey, Signer
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.bootstrap import topology
from services.ledger_check import PartitionCheck, check_partition
from services.notary import Notary, checkpoints_subject
from services.notary import records as notary_records
from tests.services.auditing import Refused, ledger_on
from tests.services.forging import Copy, delete, read_copy, rechained, replaced, write_copy

JSON = dict[str, Any]

TOPOLOGY = topology(Settings())
STRANGER = Signer("convo-notary", Ed25519PrivateKey.generate())


@dataclass
class Place:
    """The server that copies are written to."""

    nc: Client
    url: str

    async def check(self, copy: Copy, **options: Any) -> PartitionCheck:
        """Writes a copy and checks all of it."""
        await write_copy(self.nc, TOPOLOGY, copy)
        return await check_partition(self.nc, TOPOLOGY, 0, **options)

    async def verify(self, conversation: str) -> JSON:
        """What the audit service says of one conversation of the copy written last."""
        async with ledger_on(self.url, "audit") as ledger:
            return await ledger.audit(conversation, "verify")


@pytest_asyncio.fixture(scope="module")
async def original(nats_server: EmbeddedServer, store_dir: Path) -> Copy:
    """Three conversations side by side, and checkpoints on the way."""
    async with ledger_on(nats_server.url) as ledger:
        in_force = Settings(data_dir=store_dir, checkpoint_events=8, checkpoint_every="1s")
        notary = Notary(TOPOLOGY, ledger.nc, in_force)
        await notary.start()
        for name in ("a", "b", "c"):
            await ledger.do(name, "init", user_id="ada")
        for number in range(8):
            for name in ("a", "b", "c"):
                await ledger.do(name, "append", role="user", content=f"{name} says {number}")
        async with asyncio.timeout(30):
            while await covered(ledger.nc) < 30:  # noqa: ASYNC110 - another's work
                await asyncio.sleep(0.05)
        await notary.close()
        return await read_copy(ledger.nc)


async def covered(nc: Client) -> int:
    found = [
        Checkpoint.read(each.body.decode(), None).size
        async for each in notary_records(nc, checkpoints_subject(0))
    ]
    return found[-1] if found else 0


@pytest_asyncio.fixture
async def place(nats_server: EmbeddedServer) -> AsyncIterator[Place]:
    """The same server: the original is held in memory by then."""
    nc = await connect(nats_server.url, name="forging", settings=Settings())
    yield Place(nc, nats_server.url)
    await nc.close()


def kinds(report: PartitionCheck) -> set[str]:
    return {each["kind"] for each in report.faults}


def first(report: PartitionCheck, kind: str) -> JSON:
    return next(each for each in report.faults if each["kind"] == kind)


async def test_an_unforged_copy_is_valid(original: Copy, place: Place) -> None:
    report = await place.check(original)

    assert report.valid, report.faults
    assert report.events == len(original.events) == 30
    assert report.covered == 30
    assert report.checkpoints >= 3
    assert (await place.verify("b"))["valid"]


@pytest.mark.parametrize("version", [1, 5, 10])
async def test_one_flipped_byte(original: Copy, place: Place, version: int) -> None:
    at = original.of("b")[version - 1]
    body = bytearray(original.events[at].body)
    body[len(body) // 2] ^= 1
    forged = replaced(original.events, at, replace(original.events[at], body=bytes(body)))

    report = await place.check(Copy(forged, original.records))

    fault = first(report, "chain")
    assert (fault["conversation"], fault["version"], fault["seq"]) == ("acme.b", version, at + 1)
    assert fault["problem"] == "hash"
    single = await place.verify("b")
    assert not single["valid"]
    assert single["first_bad"]["version"] == version
    assert single["first_bad"]["expected"] == fault["expected"]
    assert single["first_bad"]["found"] == original.events[at].headers["Event-Hash"]
    assert (await place.verify("a"))["valid"]


@pytest.mark.parametrize("name", ["Event-Type", "Event-Version", "Event-Hash"])
async def test_a_changed_header(original: Copy, place: Place, name: str) -> None:
    at = original.of("b")[4]
    value = {"Event-Type": "SessionReset", "Event-Version": "99", "Event-Hash": "0" * 64}[name]
    forged = replaced(original.events, at, original.events[at].with_header(name, value))

    report = await place.check(Copy(forged, original.records))

    assert first(report, "chain")["version"] == 5
    unfit = first(report, "checkpoint")
    assert unfit["after_seq"] < at + 1 <= unfit["up_to_seq"]
    assert (await place.verify("b"))["first_bad"]["version"] == 5


async def test_a_removed_event(original: Copy, place: Place) -> None:
    at = original.of("b")[4]

    report = await place.check(Copy(replaced(original.events, at), original.records))

    fault = first(report, "chain")
    assert (fault["version"], fault["problem"]) == (5, "version")
    assert (fault["expected"], fault["found"]) == ("5", "6")
    assert "checkpoint" in kinds(report)
    assert (await place.verify("b"))["first_bad"]["version"] == 5


async def test_an_event_removed_by_the_servers_own_means(original: Copy, place: Place) -> None:
    at = original.of("b")[4]
    await write_copy(place.nc, TOPOLOGY, original, deletable=True)
    await delete(place.nc, at + 1)

    report = await check_partition(place.nc, TOPOLOGY, 0)

    gap = first(report, "sequence")
    assert (gap["from_seq"], gap["to_seq"]) == (at + 1, at + 1)
    assert first(report, "chain")["version"] == 5
    assert first(report, "checkpoint")["problem"] == "events that it counted are missing"


async def test_the_last_event_removed_by_the_servers_own_means(
    original: Copy, place: Place
) -> None:
    await write_copy(place.nc, TOPOLOGY, original, deletable=True)
    await delete(place.nc, 30)

    report = await check_partition(place.nc, TOPOLOGY, 0)

    assert first(report, "sequence")["from_seq"] == first(report, "sequence")["to_seq"] == 30


async def test_two_swapped_events(original: Copy, place: Place) -> None:
    fifth, sixth = original.of("b")[4:6]
    forged = replaced(original.events, fifth, original.events[sixth])
    forged = replaced(forged, sixth, original.events[fifth])

    report = await place.check(Copy(forged, original.records))

    assert first(report, "chain")["version"] == 5
    assert "checkpoint" in kinds(report)
    assert (await place.verify("b"))["first_bad"]["version"] == 5


async def test_events_of_two_conversations_swapped_in_their_order(
    original: Copy, place: Place
) -> None:
    """Each chain is whole; only the order between conversations is another."""
    at = original.of("b")[4]
    forged = replaced(original.events, at, original.events[at + 1], original.events[at])
    del forged[at + 2]

    report = await place.check(Copy(forged, original.records))

    assert kinds(report) == {"checkpoint"}
    assert (await place.verify("b"))["valid"]


async def test_a_truncated_tail(original: Copy, place: Place) -> None:
    report = await place.check(Copy(original.events[:-4], original.records))

    assert kinds(report) == {"checkpoint"}
    assert report.faults[0]["problem"] == "it counted 30 events, the stream ends at 26"


async def test_a_rewritten_conversation_with_a_recomputed_chain(
    original: Copy, place: Place
) -> None:
    places = original.of("b")
    rewritten = [original.events[at] for at in places]
    rewritten[4] = rewritten[4].with_body(b"b says 2", b"b says 7")
    events = list(original.events)
    for at, message in zip(places, rechained(rewritten), strict=True):
        events[at] = message

    report = await place.check(Copy(events, original.records))

    assert kinds(report) == {"checkpoint"}
    fault = first(report, "checkpoint")
    assert fault["problem"] == "the events are not those that it was made of"
    assert fault["after_seq"] < places[4] + 1 <= fault["up_to_seq"]
    assert report.covered == fault["after_seq"]
    assert (await place.verify("b"))["valid"], "a chain alone cannot tell"


async def test_an_event_moved_to_another_conversation(original: Copy, place: Place) -> None:
    places = original.of("b")
    moved = [replace(original.events[at], subject="convo.evt.0.acme.d") for at in places]
    events = list(original.events)
    for at, message in zip(places, moved, strict=True):
        events[at] = message

    report = await place.check(Copy(events, original.records))

    fault = first(report, "chain")
    assert (fault["conversation"], fault["problem"]) == ("acme.d", "identity")
    assert fault["found"] == "ConversationStarted 1 of acme.b"


async def test_a_foreign_message_on_a_conversation(original: Copy, place: Place) -> None:
    at = original.of("b")[4]
    foreign = replace(original.events[at], headers={}, body=b"hello")

    report = await place.check(Copy(replaced(original.events, at, foreign), original.records))

    assert first(report, "chain")["problem"] == "header"
    single = await place.verify("b")
    assert single["first_bad"]["version"] == 5
    assert single["events"] == 10


# -- the notary's own records ----------------------------------------------------------------------


async def test_a_replayed_old_checkpoint(original: Copy, place: Place) -> None:
    """In the place of the last one, so that events behind it could be cut off unseen."""
    old = original.records[1]
    report = await place.check(Copy(original.events[:-4], [*original.records[:-1], old]))

    assert kinds(report) == {"checkpoint"}
    fault = report.faults[0]
    assert fault["record_seq"] == len(original.records)
    assert "an old one was stored again" in fault["problem"]


async def test_a_missing_checkpoint(original: Copy, place: Place) -> None:
    report = await place.check(Copy(original.events, replaced(original.records, 2)))

    assert kinds(report) == {"checkpoint"}
    assert "one is missing" in report.faults[0]["problem"]


@pytest.mark.parametrize("line", [0, 1, 2, 3, 4, 5])
async def test_a_changed_checkpoint(original: Copy, place: Place, line: int) -> None:
    lines = original.records[1].body.split(b"\n")
    changed = bytearray(lines[line])
    changed[-1] ^= 1
    lines[line] = bytes(changed)
    forged = replace(original.records[1], body=b"\n".join(lines))

    report = await place.check(Copy(original.events, replaced(original.records, 1, forged)))

    assert first(report, "checkpoint")["record_seq"] == 2


async def test_a_strangers_checkpoint(original: Copy, place: Place) -> None:
    said = Checkpoint.read(original.records[-1].body.decode(), None)
    note = said.signed(STRANGER).encode()

    report = await place.check(
        Copy(
            original.events,
            [*original.records[:-1], replace(original.records[-1], body=note)],
        )
    )

    assert kinds(report) == {"checkpoint"}
    assert "not signed by" in report.faults[0]["problem"]


async def test_a_whole_history_by_a_stranger_is_seen_by_who_knows_the_key(
    original: Copy, place: Place
) -> None:
    """Everything rewritten, and signed anew: it fits, but not the key that was published."""
    ours = (await place.check(original)).keys
    records = [
        replace(
            original.records[0],
            body=key_record(STRANGER, None, "2026-11-21T09:00:00.000000Z").encode(),
        )
    ]
    report = await place.check(Copy(original.events, records))
    assert report.valid

    report = await place.check(Copy(original.events, records), pinned=PublicKey.parse(ours[0]))
    assert kinds(report) == {"key"}


async def test_a_key_that_the_one_before_did_not_sign(original: Copy, place: Place) -> None:
    record = key_record(STRANGER, None, "2026-11-21T09:00:00.000000Z").encode()
    report = await place.check(
        Copy(original.events, [*original.records, replace(original.records[0], body=record)])
    )

    assert kinds(report) == {"key"}


async def test_a_replay_of_a_forged_record_is_refused_and_says_what_to_do(
    original: Copy, place: Place
) -> None:
    at = original.of("b")[4]
    forged = replaced(original.events, at, original.events[at].with_body(b"b says", b"B says"))
    await write_copy(place.nc, TOPOLOGY, Copy(forged, original.records))

    async with ledger_on(place.url, "audit") as ledger:
        for what, body in (("replay", {}), ("diff", {"from_version": 1, "to_version": 9})):
            with pytest.raises(Refused) as refused:
                await ledger.audit("b", what, **body)
            assert refused.value.error["code"] == "internal"
            assert "version 5" in refused.value.error["message"]
            assert "convo verify" in refused.value.error["message"]
        exported = await ledger.audit("b", "export")
        assert len(exported["events"]) == 10
