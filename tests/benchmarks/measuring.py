"""The measurement itself: rounds in which every operation is followed by its echo."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tests.benchmarks.figures import Measured, Row, row
from tests.benchmarks.load import Order
from tests.benchmarks.peers.driver import PeerOrder
from tests.benchmarks.peers.process import PeerProcess
from tests.benchmarks.stage import LoadProcess, Stage
from tests.benchmarks.workloads import BY, Plan, Workload

Progress = Callable[[Measured], None]


class Measurement:
    """Carries a plan out on one stage or several (one per checkout that is compared).

    Rounds are interleaved: in each, every operation is measured on each stage, then its echo, then
    the peers, so that whatever else the machine does meets all of them alike.
    """

    def __init__(
        self,
        plan: Plan,
        stages: Sequence[Stage],
        load: LoadProcess,
        progress: Progress,
        peers: Sequence[PeerProcess] = (),
    ) -> None:
        self._plan = plan
        self._stages = stages
        self._load = load
        self._progress = progress
        self._peers = peers
        self._runs = 0
        self.measured: list[Measured] = []

    async def carry_out(self) -> list[Row]:
        """Returns the table's rows, each operation behind its echo. Raises LoadFailed, StageFailed
        when a measurement could not be made at all."""
        for round_ in range(1, self._plan.rounds + 1):
            for case in self._plan.cases:
                reply_bytes = 0
                for stage in self._on(case.workload):
                    measured = await self._measure(stage, case.workload, case.concurrency, round_)
                    reply_bytes = measured.reply_bytes
                if case.workload.ceiling is not None:
                    echo = case.workload.echo(reply_bytes)
                    await self._measure(self._stages[0], echo, case.concurrency, round_)
            for peer in self._peers:
                for operation, concurrency in self._plan.peer_cases:
                    await self._measure_peer(peer, operation, concurrency, round_)
        return self._rows()

    def _on(self, workload: Workload) -> Sequence[Stage]:
        return self._stages if workload.served_by == "worker" else self._stages[:1]

    async def _measure(
        self, stage: Stage, workload: Workload, concurrency: int, round_: int
    ) -> Measured:
        self._runs += 1
        run = f"r{time.time_ns():x}-{self._runs}"
        plan = self._plan
        load = await self._load.carry_out(
            Order(
                url=stage.url,
                prepare=[step(run, concurrency) for step in workload.prepare],
                requests=workload.requests(run, concurrency),
                ok=workload.ok,
                seconds=plan.echo_seconds if workload.served_by == "echo" else plan.seconds,
                warm_up_s=plan.warm_up_s,
                requests_max=plan.requests_max,
                watch=stage.watch(workload.served_by),
                batch=workload.batch,
            )
        )
        measured = Measured.of(_name(workload, stage), concurrency, round_, load)
        self.measured.append(measured)
        self._progress(measured)
        return measured

    async def _measure_peer(
        self, peer: PeerProcess, operation: str, concurrency: int, round_: int
    ) -> None:
        load = await peer.carry_out(
            PeerOrder(operation, concurrency, self._plan.peer_seconds, self._plan.warm_up_s)
        )
        measured = Measured.of(f"{operation}{BY}{peer.name}", concurrency, round_, load)
        self.measured.append(measured)
        self._progress(measured)

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        for case in self._plan.cases:
            echoes: list[Measured] = []
            if case.workload.ceiling is not None:
                echoes = self._all(f"echo of {case.workload.name}", case.concurrency)
                rows.append(row(echoes))
            for stage in self._on(case.workload):
                name = _name(case.workload, stage)
                rows.append(row(self._all(name, case.concurrency), echoes))
        for peer in self._peers:
            for operation, concurrency in self._plan.peer_cases:
                rows.append(row(self._all(f"{operation}{BY}{peer.name}", concurrency)))
        return rows

    def _all(self, operation: str, concurrency: int) -> list[Measured]:
        return [
            each
            for each in self.measured
            if (each.operation, each.concurrency) == (operation, concurrency)
        ]


def _name(workload: Workload, stage: Stage) -> str:
    named = stage.name and workload.served_by == "worker"
    return f"{workload.name} ({stage.name})" if named else workload.name
