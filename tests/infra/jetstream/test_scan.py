"""Reading a stream as it lies there, and where the chains of many subjects stand."""

from __future__ import annotations

import json
from contextlib import aclosing

import pytest
from nats.aio.client import Client

from infra.jetstream import scan as scanning
from infra.jetstream.chain import START, Link
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.heads import Heads
from infra.jetstream.scan import Stored, scan
from infra.jetstream.topology import call


async def filled(nc: Client, stream: str, bodies: list[bytes]) -> None:
    """A stream with these messages on two subjects in turn."""
    made = await call(nc, f"STREAM.CREATE.{stream}", {"name": stream, "subjects": [f"{stream}.>"]})
    assert "error" not in made, made
    for number, body in enumerate(bodies):
        await nc.request(f"{stream}.{number % 2}", body, headers={"N": str(number)}, timeout=10)


async def read(nc: Client, stream: str, **options: object) -> list[Stored]:
    return [each async for block in scan(nc, stream, **options) for each in block]  # type: ignore[arg-type]


async def test_every_message_is_read_once_and_in_order(nats_client: Client) -> None:
    bodies = [b"%d" % number for number in range(50)]
    await filled(nats_client, "ALL", bodies)

    found = await read(nats_client, "ALL")

    assert [each.seq for each in found] == list(range(1, 51))
    assert [each.body for each in found] == bodies
    assert [each.headers["N"] for each in found] == [str(number) for number in range(50)]
    assert [each.subject for each in found[:2]] == ["ALL.0", "ALL.1"]
    assert found[0].time <= found[-1].time
    assert found[0].time.endswith("Z")
    assert [each.seq for each in await read(nats_client, "ALL", subject="ALL.1", from_seq=46)] == [
        46,
        48,
        50,
    ]
    assert await read(nats_client, "ALL", from_seq=51) == []


async def test_more_than_fits_two_requests_is_read(
    nats_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "REQUEST_EVENTS", 7)
    monkeypatch.setattr(scanning, "REQUEST_BYTES", 20_000)
    bodies = [b"x" * (number * 311 % 9_000) for number in range(120)]
    await filled(nats_client, "MANY", bodies)

    assert [each.body for each in await read(nats_client, "MANY")] == bodies


async def test_no_more_is_sent_than_was_asked_for(
    nats_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "REQUEST_EVENTS", 5)
    await filled(nats_client, "SLOW", [b"x"] * 100)

    async with aclosing(scan(nats_client, "SLOW")) as blocks:
        async for block in blocks:
            await nats_client.flush()  # whatever was sent is here by now
            assert len(block) <= 10


async def test_a_scan_goes_on_when_its_consumer_is_taken_away(
    nats_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "REQUEST_EVENTS", 5)
    monkeypatch.setattr(scanning, "SILENCE_MAX_S", 0.5)
    await filled(nats_client, "LOST", [b"x"] * 60)

    seqs = []
    async with aclosing(scan(nats_client, "LOST")) as blocks:
        async for block in blocks:
            seqs += [each.seq for each in block]
            if len(seqs) < 20:
                names = await call(nats_client, "CONSUMER.NAMES.LOST", {})
                for name in names["consumers"] or ():
                    await call(nats_client, f"CONSUMER.DELETE.LOST.{name}", {})

    assert seqs == list(range(1, 61))


async def test_a_scan_leaves_no_consumer_behind(nats_client: Client) -> None:
    await filled(nats_client, "CLEAN", [b"x"] * 10)
    await read(nats_client, "CLEAN")
    async with aclosing(scan(nats_client, "CLEAN")) as blocks:
        async for _ in blocks:
            break
    await nats_client.flush()

    info = json.loads((await nats_client.request("$JS.API.STREAM.INFO.CLEAN", timeout=10)).data)
    assert info["state"]["consumer_count"] == 0


async def test_a_stream_that_is_not_there_cannot_be_read(
    nats_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "_ATTEMPTS", 1)
    with pytest.raises(StoreUnavailable, match="NONE"):
        await read(nats_client, "NONE")


def test_heads_of_more_subjects_than_are_held() -> None:
    with Heads(held_max=10) as heads:
        for turn in range(3):
            for number in range(100):
                link = heads.get(f"s.{number}")
                if number == 7:
                    assert link == (START if turn == 0 else None)
                    heads.set("s.7", None)
                    continue
                assert link == (Link(turn, bytes([number] * 32)) if turn else START)
                heads.set(f"s.{number}", Link(turn + 1, bytes([number] * 32)))
        assert heads.count == 100
