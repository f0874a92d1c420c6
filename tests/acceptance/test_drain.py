"""SIGTERM and SIGINT: what was accepted is answered, then the process ends with status 0."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from tests.acceptance.client import Ledger, parsed
from tests.acceptance.conftest import Deploy, connected
from tests.acceptance.deployment import Deployment, answering

WRITERS = 32
ENDS_WITHIN_S = 20.0
"""Much longer than it takes; shorter than what a process may hang for that waits in vain."""


class Traffic:
    """Requests without a pause; each is answered, or refused at once because nobody listens."""

    def __init__(self) -> None:
        self.answered = 0
        self.refused_by_nats = 0
        self.unanswered = 0
        self.contents: set[str] = set()
        self.stopping = False

    async def run(self, ledger: Ledger, writers: int) -> None:
        await asyncio.gather(*(self._writer(ledger, number) for number in range(writers)))

    async def _writer(self, ledger: Ledger, writer: int) -> None:
        nats = ledger.nats
        tokens = f"drain.c-{writer % 8}"
        for number in range(1_000_000):
            if self.stopping:
                return
            content = f"{writer}:{number}"
            subject = f"convo.cmd.{tokens}.append"
            body = b'{"role": "tool", "content": "%b"}' % content.encode()
            if number % 5 == 4:
                subject, body = f"convo.get.{tokens}.state", b""
            try:
                answer = await nats.request(subject, body, timeout=10)
            except NoRespondersError:
                self.refused_by_nats += 1
                return
            except NatsTimeoutError:
                self.unanswered += 1
                return
            assert parsed(answer.data)["ok"], answer.data
            self.answered += 1
            if body:
                self.contents.add(content)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_under_load_every_accepted_request_is_answered(
    deploy: Deploy, number: signal.Signals
) -> None:
    deployed = deploy()
    [worker] = deployed.workers
    nats = await connected(deployed.url)
    ledger = Ledger(nats)
    for place in range(8):
        await ledger.conversation(f"c-{place}", tenant_id="drain").init(title="Drain")
    traffic = Traffic()
    running = asyncio.ensure_future(traffic.run(ledger, WRITERS))
    await at_least(lambda: traffic.answered, 300)
    os.kill(worker.pid, number)
    await running
    assert await ended(worker.exit_status) == 0
    assert traffic.unanswered == 0
    assert traffic.refused_by_nats == WRITERS
    assert deployed.complaints() == []

    worker.start()
    await asyncio.to_thread(answering, deployed.url)
    stored: set[str] = set()
    for place in range(8):
        history = await ledger.conversation(f"c-{place}", tenant_id="drain").history()
        stored |= {message["content"] for message in history}
    assert stored == traffic.contents, "answered means stored, and nothing else is"
    await nats.close()


async def test_while_others_go_on_nobody_notices(deploy: Deploy) -> None:
    deployed = deploy(workers=3)
    nats = await connected(deployed.url)
    ledger = Ledger(nats)
    for place in range(8):
        await ledger.conversation(f"c-{place}", tenant_id="drain").init(title="Drain")
    traffic = Traffic()
    running = asyncio.ensure_future(traffic.run(ledger, WRITERS))
    for worker in deployed.workers[1:]:
        await at_least(lambda: traffic.answered, traffic.answered + 200)
        worker.ask_to_stop()
        assert await ended(worker.exit_status) == 0
        worker.start()
    await at_least(lambda: traffic.answered, traffic.answered + 200)
    traffic.stopping = True
    await running
    assert (traffic.unanswered, traffic.refused_by_nats) == (0, 0)
    assert deployed.complaints() == []
    await nats.close()


async def test_an_idle_process_ends_at_once(deploy: Deploy) -> None:
    deployed = deploy()
    [worker] = deployed.workers
    worker.ask_to_stop()
    assert await ended(worker.exit_status) == 0
    assert deployed.complaints() == []


async def test_a_process_ends_without_its_server_too(deploy: Deploy) -> None:
    deployed = deploy()
    [worker] = deployed.workers
    nats = await connected(deployed.url)
    conversation = await Ledger(nats).begun()
    await conversation.append("Hello")
    await nats.close()
    deployed.server.kill()
    worker.ask_to_stop()
    assert await ended(worker.exit_status) == 0
    assert deployed.complaints() == []


async def test_a_process_told_to_stop_while_it_starts_ends(tmp_path: Path) -> None:
    ledger = Deployment(tmp_path)
    [worker] = ledger.workers
    ledger.server.start()
    try:
        for pause_s in (0.0, 0.2, 0.4, 0.6, 0.8):  # somewhere in the imports, or behind them
            worker.start()
            await asyncio.sleep(pause_s)
            worker.ask_to_stop()
            assert await ended(worker.exit_status) in {0, -signal.SIGTERM, 128 + signal.SIGTERM}
            assert "Traceback" not in worker.log
    finally:
        ledger.stop()


async def ended(exit_status: Callable[[], int]) -> int:
    """The exit status of a process that has to end within `ENDS_WITHIN_S`."""
    return await asyncio.wait_for(asyncio.to_thread(exit_status), ENDS_WITHIN_S)


async def at_least(count: Callable[[], int], wanted: int) -> None:
    """Returns once `count()` has come that far."""
    deadline = time.monotonic() + 30
    while count() < wanted:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
