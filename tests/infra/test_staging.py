"""Batches are staged in memory where that can be done, and on the disk where it cannot."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from nats.aio.client import Client

from infra import staging
from infra.server import EmbeddedServer
from infra.staging import MEMORY, ROOM, Staging
from tests.infra.batches import STREAM, begin_batch, connected, stream_folder, write_batch

Until = Callable[[Callable[[], bool]], Awaitable[None]]

pytestmark = pytest.mark.skipif(
    not MEMORY.is_dir() or os.statvfs(MEMORY).f_bavail * os.statvfs(MEMORY).f_frsize < ROOM,
    reason=f"{MEMORY} has less than {ROOM >> 20} MB free here",
)


def batches_of(server: EmbeddedServer) -> Path:
    return stream_folder(server.data_dir) / "batches"


@contextlib.asynccontextmanager
async def in_memory(data_dir: Path, until: Until) -> AsyncIterator[tuple[EmbeddedServer, Client]]:
    """A server whose events stream has its batches in memory, and a connection to it."""
    async with EmbeddedServer(data_dir) as server:
        client = await connected(server)
        await until(batches_of(server).is_symlink)
        yield server, client
        await client.close()


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A folder in the place of the memory."""
    folder = tmp_path / "memory"
    folder.mkdir()
    return folder


async def test_a_batch_is_staged_in_memory_and_nothing_of_it_is_left(
    tmp_path: Path, until: Until
) -> None:
    async with in_memory(tmp_path, until) as (server, client):
        staged = batches_of(server).resolve()
        await begin_batch(client, "begun")
        under_way = [each.name for each in staged.iterdir()]
        assert await write_batch(client, "whole", 3) == 3
        assert len(under_way) == 1
        assert [each.name for each in staged.iterdir()] == under_way
        assert staged.is_relative_to(MEMORY)


async def test_after_a_crash_it_is_put_back_without_what_the_dead_server_had_staged(
    tmp_path: Path, until: Until
) -> None:
    async with in_memory(tmp_path, until) as (server, client):
        before = batches_of(server).resolve()
        await begin_batch(client, "begun")
        server.kill()
        await until(lambda: batches_of(server).is_symlink() and not before.exists())
        await until(lambda: client.is_connected)
        assert await write_batch(client, "whole", 2) == 2
        assert not list(batches_of(server).iterdir())


async def test_nothing_stays_in_memory_once_the_server_has_stopped(
    tmp_path: Path, until: Until
) -> None:
    async with in_memory(tmp_path, until) as (server, _):
        assert server.staging is not None
        folder = server.staging.folder
        assert folder.is_dir()
    assert not folder.exists()
    assert not batches_of(server).is_symlink()


async def test_with_disk_chosen_the_data_directory_has_it(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path, staging="disk") as server:
        client = await connected(server)
        assert await write_batch(client, "whole", 2) == 2
        assert server.staging is None
        assert batches_of(server).is_dir()
        assert not batches_of(server).is_symlink()
        await client.close()


# -- what a folder in memory has to be -----------------------------------------------------------


def stream(store: Path, name: str = STREAM, about: str = '{"allow_atomic":true}') -> Path:
    folder = store / "jetstream/$G/streams" / name
    folder.mkdir(parents=True)
    (folder / "meta.inf").write_text(about)
    return folder


async def test_a_stream_that_takes_no_batches_is_left_alone(tmp_path: Path, memory: Path) -> None:
    batched, other = stream(tmp_path), stream(tmp_path, "CONVO-SNAPSHOTS", "{}")
    kept = Staging(tmp_path, memory)
    kept.open()
    kept.link()
    assert (batched / "batches").is_symlink()
    assert not (other / "batches").is_symlink()
    await kept.close()


async def test_a_folder_that_is_in_use_is_replaced_once_it_is_empty(
    tmp_path: Path, memory: Path
) -> None:
    batches = stream(tmp_path) / "batches"
    (batches / "under-way").mkdir(parents=True)
    kept = Staging(tmp_path, memory)
    kept.open()
    kept.link()
    assert (batches / "under-way").is_dir()
    assert not batches.is_symlink()
    (batches / "under-way").rmdir()
    kept.link()
    assert batches.is_symlink()
    await kept.close()


async def test_where_somebody_else_could_read_it_nothing_is_staged(
    tmp_path: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batches = stream(tmp_path) / "batches"
    kept = Staging(tmp_path, memory)
    kept.folder.mkdir(mode=0o755)
    caplog.set_level("INFO")
    kept.open()
    kept.link()
    assert not batches.is_symlink()
    assert "not ours alone" in caplog.text
    await kept.close()


@pytest.mark.parametrize("where", ["nowhere", "full"])
async def test_without_room_in_memory_batches_are_staged_on_the_disk(
    where: str,
    tmp_path: Path,
    memory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    batches = stream(tmp_path) / "batches"
    monkeypatch.setattr(staging, "ROOM", 2**62)
    kept = Staging(tmp_path, memory if where == "full" else tmp_path / "nowhere")
    caplog.set_level("INFO")
    kept.open()
    kept.link()
    assert not batches.is_symlink()
    assert "staged on the disk" in caplog.text
    await kept.close()


async def test_when_the_memory_fills_the_disk_has_it_again(
    tmp_path: Path, memory: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = stream(tmp_path) / "batches"
    kept = Staging(tmp_path, memory)
    kept.open()
    await until(batches.is_symlink)
    monkeypatch.setattr(staging, "ROOM_LEFT", 2**62)
    await until(lambda: not batches.is_symlink())
    await kept.close()


async def test_when_the_memory_is_gone_the_disk_has_it_again(
    tmp_path: Path, memory: Path, until: Until
) -> None:
    batches = stream(tmp_path) / "batches"
    kept = Staging(tmp_path, memory)
    kept.open()
    await until(batches.is_symlink)
    shutil.rmtree(memory)
    await until(lambda: not batches.is_symlink())
    await kept.close()


async def test_what_a_killed_run_left_is_removed_once_its_store_is_gone(
    tmp_path: Path, memory: Path
) -> None:
    for name in ("kept", "gone"):
        (tmp_path / name).mkdir()
        of = Staging(tmp_path / name, memory)
        of.open()  # and never closed
    (tmp_path / "gone").rmdir()
    last = Staging(tmp_path / "last", memory)
    last.open()
    left = {(folder / "of").readlink() for folder in memory.iterdir()}
    assert left == {tmp_path / "kept", tmp_path / "last"}
    await last.close()
