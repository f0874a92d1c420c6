"""A part of a batch that has lost its rest is removed, and nothing else is."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from nats.aio.client import Client

from infra.jetstream.blocks import BlocksUnreadable, abandoned, cut_from, staged_as
from infra.jetstream.whole import find_whole
from infra.server import EmbeddedServer
from tests.infra.batches import STREAM, begin_batch, connected, stream_folder, write_batch
from tests.infra.jetstream.rigs import events, opened, tail_of


async def ends(client: Client) -> tuple[int, int]:
    """Where the stream ends, and up to where it is whole."""
    told = await client.jetstream().stream_info(STREAM)
    whole = await find_whole(client, STREAM, seen=0, timeout=5)
    return told.state.last_seq, whole


async def written(data_dir: Path, batches: list[int], size: int) -> list[int]:
    """A ledger of so many batches, and where each ends; its server has stopped."""
    async with EmbeddedServer(data_dir) as server:
        client = await connected(server)
        last = [
            await write_batch(client, f"b{n}", events, size) for n, events in enumerate(batches)
        ]
        await client.close()
    return last


def lose_power(data_dir: Path, last_left: int) -> None:
    """What a loss of power may leave: the stream up to that sequence, and a link to nowhere."""
    cut_from(stream_folder(data_dir), last_left + 1)
    staged = stream_folder(data_dir) / "batches"
    if staged.is_dir():
        staged.rmdir()
    staged.symlink_to(data_dir / "gone")


@pytest.mark.parametrize("left", [1, 4, 7])
async def test_a_part_of_a_batch_at_the_end_is_removed(
    left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, before, _ = await written(tmp_path, [3, 5, 8], 100)
    lose_power(tmp_path, before + left)
    async with EmbeddedServer(tmp_path) as server:
        client = await connected(server)
        assert await ends(client) == (before, before)
        assert await write_batch(client, "next", 2) == before + 2
        await client.close()
    assert f"from sequence {before + 1} of {STREAM} on, is removed" in caplog.text
    [kept] = (tmp_path / "nats" / "removed").iterdir()
    assert kept.name.startswith(f"{STREAM}-{before + 1}-")
    assert kept.read_bytes().count(b"Nats-Batch-Id: b2") == left


async def test_a_part_that_reaches_over_several_blocks_is_removed_from_all_of_them(
    tmp_path: Path,
) -> None:
    before, end = await written(tmp_path, [20, 40], 500_000)
    assert len(list((stream_folder(tmp_path) / "msgs").glob("*.blk"))) > 2
    lose_power(tmp_path, end - 1)
    async with EmbeddedServer(tmp_path) as server:
        client = await connected(server)
        assert await ends(client) == (before, before)
        assert await write_batch(client, "next", 2) == before + 2
        await client.close()


async def test_a_batch_that_came_whole_stays(tmp_path: Path) -> None:
    end, _ = await written(tmp_path, [5, 5], 100)
    lose_power(tmp_path, end)
    async with EmbeddedServer(tmp_path) as server:
        client = await connected(server)
        assert await ends(client) == (end, end)
        await client.close()


async def test_a_part_that_ends_in_what_is_no_message_is_removed_with_that(tmp_path: Path) -> None:
    _, before, _ = await written(tmp_path, [3, 5, 8], 100)
    lose_power(tmp_path, before + 4)
    [block] = (stream_folder(tmp_path) / "msgs").glob("*.blk")
    block.write_bytes(block.read_bytes() + bytes(100))
    async with EmbeddedServer(tmp_path) as server:
        client = await connected(server)
        assert await ends(client) == (before, before)
        await client.close()


@pytest.mark.parametrize("torn", [0, 50])
async def test_a_part_is_removed_whose_rest_was_lost_without_a_loss_of_power(
    torn: int, tmp_path: Path
) -> None:
    """As of a server that came back on a full disk: it forgets what it could not complete."""
    _, before, _ = await written(tmp_path, [3, 5, 8], 100)
    stream = stream_folder(tmp_path)
    [block] = (stream / "msgs").glob("*.blk")
    whole = block.read_bytes()
    cut_from(stream, before + 5)
    block.write_bytes(whole[: block.stat().st_size + torn])
    async with EmbeddedServer(tmp_path) as server:
        client = await connected(server)
        assert await ends(client) == (before, before)
        assert await write_batch(client, "next", 2) == before + 2
        await client.close()


async def test_damage_in_the_middle_is_no_end(tmp_path: Path) -> None:
    """What is behind it was acknowledged, and is not for us to remove."""
    _, before, *_ = await written(tmp_path, [3, 5, 8, 2], 100)
    stream = stream_folder(tmp_path)
    [block] = (stream / "msgs").glob("*.blk")
    whole = block.read_bytes()
    cut_from(stream, before + 5)  # in the middle of a batch
    place = block.stat().st_size
    for bit in range(32):  # of the length of the message there
        damaged = bytearray(whole)
        damaged[place + bit // 8] ^= 1 << bit % 8
        block.write_bytes(damaged)
        with contextlib.suppress(BlocksUnreadable):
            assert abandoned(stream) is None


async def test_a_damaged_commit_is_none_the_less_a_commit(tmp_path: Path) -> None:
    _, end = await written(tmp_path, [3, 5], 10)
    stream = stream_folder(tmp_path)
    [block] = (stream / "msgs").glob("*.blk")
    whole = block.read_bytes()
    cut_from(stream, end)
    begin = block.stat().st_size
    for bit in range(8 * begin, 8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        block.write_bytes(damaged)
        with contextlib.suppress(BlocksUnreadable):
            assert abandoned(stream) is None, bit - 8 * begin


async def test_a_part_that_the_server_can_complete_is_left_to_it(tmp_path: Path) -> None:
    _, before, end = await written(tmp_path, [3, 5, 8], 100)
    stream = stream_folder(tmp_path)
    cut_from(stream, end)
    staged = stream / "batches" / staged_as("b2")
    staged.mkdir(parents=True)
    assert abandoned(stream) is None
    staged.rmdir()
    assert abandoned(stream) == before + 1
    cut_from(stream, before + 1)
    assert abandoned(stream) is None


async def test_a_batch_is_staged_in_the_folder_that_is_looked_for(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path, staging="disk") as server:
        client = await connected(server)
        await begin_batch(client, "begun")
        assert (stream_folder(tmp_path) / "batches" / staged_as("begun")).is_dir()
        await client.close()


async def test_blocks_that_look_otherwise_are_left_as_they_are(tmp_path: Path) -> None:
    last = await written(tmp_path, [3, 5], 100)
    [block] = (stream_folder(tmp_path) / "msgs").glob("*.blk")
    found = block.read_bytes()
    with pytest.raises(BlocksUnreadable):
        cut_from(stream_folder(tmp_path), last[-1] + 1)
    block.write_bytes(b"\xff" * 64 + found)
    with pytest.raises(BlocksUnreadable):
        cut_from(stream_folder(tmp_path), last[-1])
    assert block.read_bytes() == b"\xff" * 64 + found


async def test_a_part_of_what_a_store_wrote_is_known_as_one(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path) as server, opened(server.url) as store:
        seqs = await store.append(events(tail_of(store, "a"), 5))
    [stream] = (tmp_path / "nats/jetstream/jetstream/$G/streams").glob("*-0")
    cut_from(stream, seqs[-1])
    assert abandoned(stream) == seqs[0]
