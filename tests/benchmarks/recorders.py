"""`python -m tests.benchmarks.recorders`: durable inserts through the `eventsourcing` library.

JetStream (the recorders of `infra.jetstream`), SQLite (a file) and PostgreSQL (where its programs
and psycopg are installed) in turn, round by round, in one run; medians. All three are left at what
they promise by default: an insert that returned is on disk (JetStream `sync_interval: always`,
SQLite `synchronous=FULL` with a write-ahead log, PostgreSQL `fsync` and `synchronous_commit` on).
All files are on one disk, in the folder given by `--folder`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from eventsourcing.persistence import (
    ApplicationRecorder,
    InfrastructureFactory,
    ProcessRecorder,
    StoredEvent,
    Tracking,
)
from eventsourcing.utils import Environment

from infra.server import free_port
from tests.infra.jetstream.nats_process import NatsProcess

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "bench-results"
"""Git-ignored."""

STATE = b'{"timestamp":"2026-11-21T09:00:00.123456Z","text":"' + b"x" * 160 + b'"}'
POSTGRES_READY_TIMEOUT_S = 30.0

Factory = InfrastructureFactory[Any]
Backend = Callable[[Path], contextlib.AbstractContextManager[dict[str, str]]]


# -- the three stores --------------------------------------------------------------------------


@contextlib.contextmanager
def jetstream(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of an application on a nats-server of its own."""
    with NatsProcess(folder) as server:
        yield {"PERSISTENCE_MODULE": "infra.jetstream", "NATS_URL": server.url}


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of an application on a new SQLite file."""
    yield {
        "PERSISTENCE_MODULE": "eventsourcing.sqlite",
        "SQLITE_DBNAME": str(folder / "events.db"),
        "SQLITE_LOCK_TIMEOUT": "60",
    }


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of an application on a PostgreSQL of its own, on loopback."""
    port = free_port()
    data = folder / "pg"
    data.mkdir()
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        name = next(n for n in ("postgres", "nobody") if _exists(n))
        account = {"user": name}
        shutil.chown(data, name)
        for parent in (folder, *folder.parents[:2]):
            parent.chmod(parent.stat().st_mode | 0o011)
    data.chmod(0o700)
    initdb = [_program("initdb"), "-D", str(data), "-U", "bench", "-A", "trust", "-E", "UTF8"]
    subprocess.run(
        [*initdb, "--no-locale", "-N"], check=True, stdout=subprocess.DEVNULL, cwd=data, **account
    )
    options = ["-p", str(port), "-k", str(data), "-c", "listen_addresses=127.0.0.1"]
    options += ["-c", "max_connections=300"]
    with (folder / "postgres.log").open("wb") as log:
        server = subprocess.Popen(
            [_program("postgres"), "-D", str(data), *options], stderr=log, cwd=data, **account
        )
    try:
        _wait_for_postgres(port)
        yield {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": "postgres",
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(port),
            "POSTGRES_USER": "bench",
            "POSTGRES_PASSWORD": "none",
            "POSTGRES_POOL_SIZE": "16",
            "POSTGRES_MAX_OVERFLOW": "16",
            "POSTGRES_MAX_WAITING": "1000",
        }
    finally:
        server.send_signal(signal.SIGINT)  # without waiting for its clients
        server.wait()


def has_postgres() -> bool:
    """Whether PostgreSQL can be started and spoken to here."""
    programs = all(shutil.which(name) for name in ("initdb", "postgres"))
    return programs and importlib.util.find_spec("psycopg_pool") is not None


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None
    return str(Path(found).resolve())


def _exists(account: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(account))
    return False


def _wait_for_postgres(port: int) -> None:
    import psycopg  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 (optional)

    deadline = time.monotonic() + POSTGRES_READY_TIMEOUT_S
    while True:
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=bench dbname=postgres").close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# -- what is measured --------------------------------------------------------------------------


def new_aggregates(writers: int) -> Callable[[Factory, float], float]:
    """The library's `test_performance`: one event of a new aggregate at a time."""

    def measure(factory: Factory, seconds: float) -> float:
        recorder = factory.application_recorder()

        def insert() -> int:
            recorder.insert_events([StoredEvent(uuid4(), 1, "topic", STATE)])
            return 1

        return _rate(insert, writers, seconds)

    return measure


def own_aggregates(writers: int) -> Callable[[Factory, float], float]:
    """Each writer appends to an aggregate of its own, one event at a time."""

    def measure(factory: Factory, seconds: float) -> float:
        recorder = factory.application_recorder()

        def writer() -> Callable[[], int]:
            id, versions = uuid4(), count(1)

            def insert() -> int:
                recorder.insert_events([StoredEvent(id, next(versions), "topic", STATE)])
                return 1

            return insert

        return _rate_of([writer() for _ in range(writers)], seconds)

    return measure


def throughput(writers: int, events: int) -> Callable[[Factory, float], float]:
    """The library's `test_concurrent_throughput`: events of a new aggregate, many at once."""

    def measure(factory: Factory, seconds: float) -> float:
        recorder: ApplicationRecorder = factory.application_recorder()

        def insert() -> int:
            id = uuid4()
            recorder.insert_events([StoredEvent(id, n, "topic", STATE) for n in range(events)])
            return events

        return _rate(insert, writers, seconds)

    return measure


def process(factory: Factory, seconds: float) -> float:
    """The process recorders' `test_performance`: one event with its position at a time."""
    recorder: ProcessRecorder = factory.process_recorder()
    positions = count(1)

    def insert() -> int:
        recorder.insert_events(
            [StoredEvent(uuid4(), 1, "topic", STATE)],
            tracking=Tracking(factory.env.name, next(positions)),
        )
        return 1

    return _rate(insert, 1, seconds)


def processes(writers: int) -> Callable[[Factory, float], float]:
    """As `new_aggregates`, each writer a process of its own: as web workers are."""

    def measure(factory: Factory, seconds: float) -> float:
        factory.application_recorder()  # so that they find tables and streams
        argv = [sys.executable, "-m", __spec__.name, "--writer", factory.env.name, str(seconds)]
        workers = [
            subprocess.Popen(
                argv,
                cwd=ROOT,
                env=os.environ | dict(factory.env) | {"CREATE_TABLE": "n"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(writers)
        ]
        try:
            return _rates(workers)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()

    return measure


def _rates(workers: list[subprocess.Popen[str]]) -> float:
    """Lets the workers go together; the sum of what they made of it."""
    pipes = [(worker.stdin, worker.stdout) for worker in workers]
    for _, said in pipes:
        assert said is not None
        if not said.readline():
            raise RuntimeError("a writer ended before it began")
    for told, _ in pipes:
        assert told is not None
        told.write("go\n")
        told.flush()
    return sum(float(worker.communicate()[0]) for worker in workers)


def write(name: str, seconds: float) -> None:
    """One of the writers of `processes`."""
    factory: Factory = InfrastructureFactory.construct(Environment(name, dict(os.environ)))
    recorder = factory.application_recorder()

    def insert() -> int:
        recorder.insert_events([StoredEvent(uuid4(), 1, "topic", STATE)])
        return 1

    insert()
    print("ready", flush=True)
    sys.stdin.readline()
    print(_rate(insert, 1, seconds), flush=True)
    factory.close()


MEASURES: dict[str, Callable[[Factory, float], float]] = {
    "1 writer, new aggregates (test_performance)": new_aggregates(1),
    "10 writers, new aggregates": new_aggregates(10),
    "1 writer, its own aggregate": own_aggregates(1),
    "10 writers, own aggregates": own_aggregates(10),
    "10 processes, new aggregates": processes(10),
    "4 writers, 50 events each (test_concurrent_throughput)": throughput(4, 50),
    "10 writers, 100 events each (test_concurrent_no_conflicts)": throughput(10, 100),
    "1 processor, event and position (test_performance)": process,
}


def _rate(insert: Callable[[], int], writers: int, seconds: float) -> float:
    return _rate_of([insert] * writers, seconds)


def _rate_of(inserts: list[Callable[[], int]], seconds: float) -> float:
    """Events per second, by as many threads as there are inserts."""
    for insert in inserts:
        insert()  # warm
    started = time.perf_counter()

    def repeat(insert: Callable[[], int]) -> int:
        done = 0
        while time.perf_counter() - started < seconds:
            done += insert()
        return done

    with ThreadPoolExecutor(len(inserts)) as threads:
        events = sum(threads.map(repeat, inserts))
        return events / (time.perf_counter() - started)


# -- the run -----------------------------------------------------------------------------------


def run(
    folder: Path, rounds: int, seconds: float, only: str = ""
) -> dict[str, dict[str, list[float]]]:
    """Events per second by measure and store, one figure a round.

    `only`: the measures whose names have this in them.
    """
    chosen = {name: measure for name, measure in MEASURES.items() if only in name}
    stores: dict[str, Backend] = {"JetStream": jetstream, "SQLite": sqlite}
    if has_postgres():
        stores["PostgreSQL"] = postgres
    figures: dict[str, dict[str, list[float]]] = {
        measure: {store: [] for store in stores} for measure in chosen
    }
    with contextlib.ExitStack() as stack:
        environments = {}
        for store, backend in stores.items():
            own = folder / store
            own.mkdir()
            environments[store] = stack.enter_context(backend(own))
        for round_ in range(rounds):
            for number, (name, measure) in enumerate(chosen.items()):
                for store, env in environments.items():
                    app = f"Bench{round_}x{number}"  # tables and streams of its own
                    factory: Factory = InfrastructureFactory.construct(Environment(app, env))
                    try:
                        figures[name][store].append(measure(factory, seconds))
                    finally:
                        factory.close()
    return figures


def table(figures: dict[str, dict[str, list[float]]]) -> str:
    """The medians, as a Markdown table."""
    stores = list(next(iter(figures.values())))
    lines = [
        f"| durable events per second | {' | '.join(stores)} |",
        "|---|" + "--:|" * len(stores),
    ]
    lines += [
        f"| {name} | {' | '.join(f'{median(row[store]):,.0f}' for store in stores)} |"
        for name, row in figures.items()
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.recorders", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument(
        "--folder", type=Path, default=RESULTS, help="on the disk that is to be measured"
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="measures that contain this")
    parser.add_argument("--writer", nargs=2, metavar=("NAME", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.writer:
        write(options.writer[0], float(options.writer[1]))
        return 0
    options.folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="recorders-", dir=options.folder) as folder:
        print(table(run(Path(folder), options.rounds, options.seconds, options.only)))
    if not has_postgres():
        print("\nPostgreSQL: not measured (initdb and postgres in PATH, psycopg[binary,pool])")
    return 0


if __name__ == "__main__":
    sys.exit(main())
