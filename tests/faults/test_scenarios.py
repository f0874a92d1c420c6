"""The short form of every fault program on one server: nothing acknowledged is lost or doubled,
nothing wrong is served, and the controls fail. `make faults` runs the long form."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.scenarios import SCENARIOS

SEED = int(os.environ.get("CONVO_TEST_SEED", random.randrange(2**32)))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.cluster) if scenario.replicas > 1 else name
        for name, scenario in SCENARIOS.items()
        if scenario.rounds_short
    ],
)
async def test_nothing_acknowledged_is_lost_and_nothing_wrong_is_served(
    name: str, tmp_path: Path
) -> None:
    scenario = SCENARIOS[name]
    if reason := scenario.why_not():
        pytest.skip(reason)
    print(f"seed {SEED}")  # noqa: T201 (shown when it fails)

    result = await scenario.run(scenario.rounds_short, random.Random(SEED), tmp_path)

    assert result.found == []
    assert result.control_bites, result.control
    assert result.acknowledged or name == "decoders", "a load that writes nothing proves nothing"
