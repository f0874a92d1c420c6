"""Three real servers keep the contract that the fake of three keeps."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import RunningCluster
from tests.fake.contract import CASES
from tests.fake.test_contract import on_servers

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("name", CASES)
def test_three_servers_keep_the_contract(name: str, running_cluster: RunningCluster) -> None:
    on_servers(running_cluster.url, name, 3)
