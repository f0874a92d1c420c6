"""The JavaScript of docs/gateway.md is run as it stands, after the requests of its section."""

from __future__ import annotations

import re

import pytest

from tests.clients.test_clients import CHROMIUM, run
from tests.services.gateway.site import GatewayProcess
from tests.services.gateway.talking import Talking
from tests.services.gateway.test_gateway_docs import FAMILIES, PAGE, curl

pytestmark = pytest.mark.clients

EXAMPLES = re.findall(
    r"^## (\w+)\n(?:(?!^## ).*\n)*?```js\n((?:.*\n)*?)```", PAGE.read_text(), re.MULTILINE
)


def test_every_family_has_an_example() -> None:
    assert [name for name, _ in EXAMPLES] == [name for name, _ in FAMILIES]


@pytest.mark.parametrize(("name", "code"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
async def test_the_examples_of_the_page_work(
    gateway: GatewayProcess, talking: Talking, name: str, code: str
) -> None:
    for line in dict(FAMILIES)[name].splitlines():
        if "-X DELETE" not in line:
            assert curl(line, gateway).status_code == 200, line
    await run(gateway, "examples.mjs", name, gateway.http, CHROMIUM, code)
