"""Bytes from anywhere for everything that reads bytes: it gives a value, or its own refusal.

With `atheris` installed (it is no dependency: `pip install atheris`) the bytes are led by what they
make the readers do; else hypothesis makes them.

    python -m tests.faults.decoders RUNS SEED     atheris, until a reader raises something else
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from domain.commands import COMMANDS, parse_command
from domain.errors import ConversationError
from infra.jetstream.envelope import unpack, unpack_delivered
from infra.jetstream.errors import LedgerDamaged
from services.endpoint import conversation_of
from services.snapshots import Snapshot
from tests.faults.result import Result

HEADERS = {"Event-Type": "T", "Event-Version": "1", "Event-Hash": "00" * 32}
PLACE = {"Nats-Sequence": "1", "Nats-Subject": "s", "Nats-Time-Stamp": "t"}


def _command(data: bytes) -> None:
    parse_command(list(COMMANDS)[data[0] % len(COMMANDS)] if data else "append", data[1:])


def _subject(data: bytes) -> None:
    conversation_of("convo.cmd." + data.decode(errors="replace"), "convo.cmd.")


def _event(data: bytes) -> None:
    name, _, value = data.decode(errors="replace").partition(":")
    unpack({**HEADERS, **PLACE, name: value}, data)


def _delivery(data: bytes) -> None:
    unpack_delivered("s", "$JS.ACK." + data.decode(errors="replace"), HEADERS, data)


def _snapshot(data: bytes) -> None:
    Snapshot.decode(data, window_size=50)


READERS: tuple[Callable[[bytes], None], ...] = (_command, _subject, _event, _delivery, _snapshot)

SAMPLES = (
    b'{"role": "user", "content": "x", "metadata": {"a": [1, 2.5, null]}}',
    b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "usage": {}}',
    b"acme.a%2Eb.append",
    b"Event-Version:7",
    b"CONVO-EVENTS-0.x.1.2.3.4.5",
    b'{"view": {}, "conversation": {"version": 1}, "digest": "00"}',
)


def read(data: bytes) -> None:
    """Gives the bytes behind the first to the reader that the first one names."""
    reader = READERS[data[0] % len(READERS)] if data else READERS[0]
    with contextlib.suppress(ConversationError, LedgerDamaged):  # its own refusals
        reader(data[1:])


@st.composite
def changed_samples(draw: st.DrawFn) -> bytes:
    """A sample with some bytes changed, cut off, or added."""
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes([draw(st.integers(0, len(READERS) - 1)), draw(st.integers(0, 255)), *data])


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many inputs to the readers."""
    result = Result("decoders", rounds=rounds)
    if importlib.util.find_spec("atheris") is not None:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "tests.faults.decoders", str(rounds)],
            str(rng.randrange(1, 2**31)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        if process.returncode:
            result.blame([f"wrong: {said[-1_500:].decode(errors='replace')}"])
        result.notes.append("by atheris")
        return result.end()

    @seeded(rng.randrange(2**32))
    @settings(
        max_examples=rounds,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(changed_samples() | st.binary(max_size=60))
    def refused_or_read(data: bytes) -> None:
        read(data)

    try:
        await asyncio.to_thread(refused_or_read)
    except Exception as error:  # noqa: BLE001 (whatever a reader raises is what we look for)
        result.blame([f"wrong: {error!r} {getattr(error, '__notes__', '')}"])
    result.notes.append("by hypothesis; atheris is not installed")
    return result.end()


def _led(runs: int, number: int) -> None:
    atheris = importlib.import_module("atheris")
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-runs={runs}", f"-seed={number}", "-max_len=400"], read)
    atheris.Fuzz()


if __name__ == "__main__":
    _led(int(sys.argv[1]), int(sys.argv[2]))
