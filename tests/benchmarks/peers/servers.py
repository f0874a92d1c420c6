"""Servers that peers need, as child processes on loopback, told to fsync."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.peers.peer import NotHere

READY_WITHIN_S = 30.0
_PAUSE_S = 0.05


def free_port() -> int:
    """A port on loopback that nobody listens on at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(
    up: ExitStack,
    command: Sequence[str],
    *,
    port: int,
    log: Path,
    stop_by: signal.Signals = signal.SIGTERM,
    user: str | None = None,
    cwd: Path | None = None,
) -> int:
    """Starts a server that ends with `up`; returns its process id once its port answers."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, user=user, cwd=cwd
        )

    def stop() -> None:
        process.send_signal(stop_by)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    up.callback(stop)
    give_up_at = time.monotonic() + READY_WITHIN_S
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > give_up_at:
            said = log.read_text(errors="replace")[-500:]
            raise NotHere(f"{command[0]} did not come up: {said}")
        time.sleep(_PAUSE_S)
    return process.pid


def postgres(up: ExitStack, folder: Path) -> tuple[str, int]:
    """A PostgreSQL server, fsync and synchronous_commit on; its DSN and process id."""
    initdb = _program("initdb", Path("/usr/lib/postgresql").glob("*/bin"), "postgresql")
    user = None
    data = folder / "pg"
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:  # the server refuses to run as root
        user = "postgres"
        shutil.chown(data, user, user)
    # PostgreSQL's own user must be able to pass through to it.
    for above in (folder, *folder.parents):
        if os.geteuid() == 0 and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o011)
    made = subprocess.run(
        [initdb, "-D", data, "-U", "bench", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"],
        user=user,
        cwd=data,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise NotHere(f"initdb failed: {made.stderr.strip()[-300:]}")
    port = free_port()
    options = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "fsync": "on",
        "synchronous_commit": "on",
        "max_connections": 300,
        "unix_socket_directories": data,
    }
    server = [str(Path(initdb).with_name("postgres")), "-D", str(data)]
    for name, value in options.items():
        server += ["-c", f"{name}={value}"]
    pid = start(
        up, server, port=port, log=folder / "pg.log", stop_by=signal.SIGINT, user=user, cwd=data
    )
    give_up_at = time.monotonic() + READY_WITHIN_S
    asked = [str(Path(initdb).with_name("pg_isready")), "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(asked, capture_output=True, check=False).returncode:
        if time.monotonic() > give_up_at:
            raise NotHere("PostgreSQL takes no connections")
        time.sleep(_PAUSE_S)
    return f"host=127.0.0.1 port={port} user=bench dbname=postgres", pid


def redis(up: ExitStack, folder: Path) -> tuple[str, int]:
    """A Redis server with `appendfsync always`; its URL and process id."""
    port = free_port()
    command = [
        _program("redis-server", (), "redis-server"),
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
        *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
    ]
    pid = start(up, command, port=port, log=folder / "redis.log")
    return f"redis://127.0.0.1:{port}/0", pid


def _program(name: str, folders: Iterable[Path], package: str) -> str:
    for folder in folders:
        if os.access(folder / name, os.X_OK):
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        raise NotHere(f"{name} is not installed (Debian and Ubuntu: apt install {package})")
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.3)
        return probe.connect_ex(("127.0.0.1", port)) == 0
