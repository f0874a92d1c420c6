"""One loop and one thread for everybody, there as long as anybody needs it, in every process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from eventsourcing.persistence import InterfaceError, OperationalError

from infra.jetstream import JetStreamApplicationRecorder, JetStreamDatastore
from infra.jetstream.bridge import THREAD_NAME, Bridge
from tests.infra.jetstream.library import OpenDatastore

ROOT = Path(__file__).resolve().parents[3]


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_datastores_share_one_thread_which_ends_with_the_last_of_them(
    open_datastore: OpenDatastore,
) -> None:
    assert loop_threads() == []
    first, second = open_datastore(), open_datastore()
    assert loop_threads() == []  # nothing is connected before there is a recorder
    for datastore in (first, second):
        JetStreamApplicationRecorder(datastore)
        assert len(loop_threads()) == 1
    first.close()
    assert len(loop_threads()) == 1
    assert JetStreamApplicationRecorder(second).max_notification_id() is None
    second.close()
    assert loop_threads() == []
    third = open_datastore()
    assert JetStreamApplicationRecorder(third).max_notification_id() is None


def test_a_datastore_that_nobody_closes_goes_with_its_last_recorder(
    open_datastore: OpenDatastore,
) -> None:
    kept = open_datastore()
    JetStreamApplicationRecorder(kept)
    [thread] = loop_threads()
    # one that the fixture does not close
    recorder = JetStreamApplicationRecorder(JetStreamDatastore(kept.server, kept.prefix))
    kept.close()
    assert recorder.max_notification_id() is None  # the recorder keeps its datastore
    assert thread.is_alive()
    del recorder
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


def test_results_and_errors_of_a_coroutine_are_its_callers() -> None:
    bridge = Bridge.acquire()
    try:

        async def answer(number: int) -> int:
            await asyncio.sleep(0)
            return 84 // number

        assert bridge.run(answer(2), 10) == 42
        with pytest.raises(ZeroDivisionError):
            bridge.run(answer(0), 10)

        async def own_timeout() -> None:
            raise TimeoutError("its own")

        with pytest.raises(TimeoutError, match="its own"):
            bridge.run(own_timeout(), 10)
    finally:
        bridge.release(wait=10)


def test_a_coroutine_that_takes_too_long_is_given_up() -> None:
    bridge = Bridge.acquire()
    cancelled = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    try:
        with pytest.raises(OperationalError, match="no answer within"):
            bridge.run(forever(), 0.05)
        assert cancelled.wait(10)
    finally:
        bridge.release(wait=10)


def test_who_waits_while_it_is_closed_is_told() -> None:
    bridge = Bridge.acquire()
    waiting = threading.Event()
    told: list[BaseException] = []

    async def forever() -> None:
        waiting.set()
        await asyncio.Event().wait()

    def wait() -> None:
        try:
            bridge.run(forever(), 60)
        except InterfaceError as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(10)
    bridge.release(wait=10)
    thread.join(10)
    assert len(told) == 1
    with pytest.raises(InterfaceError, match="closed"):
        bridge.run(forever(), 1)


def python(program: str, nats_url: str, prefix: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program, nats_url, prefix],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


PREAMBLE = """
import os, sys
from uuid import uuid4
from eventsourcing.persistence import InterfaceError, StoredEvent
from infra.jetstream import Factory, JetStreamApplicationRecorder
env = {"NATS_URL": sys.argv[1], "JETSTREAM_PREFIX": sys.argv[2]}
recorder = Factory(env).application_recorder()
recorder.insert_events([StoredEvent(uuid4(), 1, "t", b"parent")])
"""


def test_a_program_ends_though_nobody_closed_its_factory(nats_url: str, prefix: str) -> None:
    done = python(PREAMBLE + "print(recorder.max_notification_id())", nats_url, prefix)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_after_a_fork_the_child_opens_its_own_and_the_parent_goes_on(
    nats_url: str, prefix: str
) -> None:
    program = (
        PREAMBLE
        + """
child = os.fork()
if child == 0:
    try:
        recorder.max_notification_id()
    except InterfaceError as error:
        assert "fork" in str(error), error
    with Factory(env) as factory:
        own = factory.application_recorder()
        assert own.insert_events([StoredEvent(uuid4(), 1, "t", b"child")]) == [2]
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert recorder.insert_events([StoredEvent(uuid4(), 1, "t", b"parent")]) == [3]
print([n.state.decode() for n in recorder.select_notifications(None, 10)])
"""
    )
    done = python(program, nats_url, prefix)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['parent', 'child', 'parent']\n"
