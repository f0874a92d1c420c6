"""The requests of docs/gateway.md are sent as they stand there, and answered."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import httpx
import pytest

from tests.services.gateway.site import GatewayProcess
from tests.services.gateway.talking import Talking

PAGE = Path(__file__).resolve().parents[3] / "docs" / "gateway.md"
FAMILIES = re.findall(
    r"^## (\w+)\n(?:(?!^## ).*\n)*?```sh curl\n((?:.*\n)*?)```", PAGE.read_text(), re.MULTILINE
)


def test_every_family_has_its_requests() -> None:
    assert [name for name, _ in FAMILIES] == [
        *("Threads", "Conversations", "Streams", "Sessions", "Chats")
    ]


@pytest.mark.parametrize(("name", "lines"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_the_requests_of_the_page_are_answered(
    gateway: GatewayProcess, talking: Talking, name: str, lines: str
) -> None:
    for line in lines.splitlines():
        answer = curl(line, gateway)
        assert answer.status_code == 200, f"{line}\n{answer.text}"
        if answer.headers["content-type"] == "application/json":
            assert json.loads(answer.text).get("success", True) is True
        else:
            assert "Hello" in "".join(re.findall(r'"(?:content|delta)":"([^"]*)', answer.text))


def curl(line: str, gateway: GatewayProcess) -> httpx.Response:
    """What a line of curl sends: -X, -H and -d, as far as the page uses them."""
    words = iter(shlex.split(line))
    assert next(words) == "curl"
    method, url, headers, data = "GET", "", {}, None
    for word in words:
        match word:
            case "-s" | "-N":
                pass
            case "-X":
                method = next(words)
            case "-H":
                header, _, value = next(words).partition(": ")
                headers[header] = value
            case "-d":
                data = next(words)
            case _:
                url = word
    assert url.startswith("localhost:8080/")
    there = gateway.http + url.removeprefix("localhost:8080")
    return httpx.request(method, there, headers=headers, content=data, timeout=60)
