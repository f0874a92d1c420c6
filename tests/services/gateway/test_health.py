"""`/health`, `/docs` and `/openapi.json`: what is shown to everybody."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx

from tests.services.gateway.site import GatewayProcess, Site


def health(gateway: GatewayProcess) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{gateway.http}/health", timeout=30)
    return answer.status_code, answer.json()


def test_health_says_what_answers_and_how_far_behind(gateway: GatewayProcess, id: str) -> None:
    httpx.post(f"{gateway.http}/v1/threads/{id}/init", json={"userId": "ada"}, timeout=30)
    here = ("commands", "queries", "directory")
    deadline = time.monotonic() + 60
    while True:  # who takes long to say that it is there is not, for a moment
        told = _until(gateway, 200)
        found = [told["services"][name] for name in here]
        if all(each["ok"] for each in found) and found[-1]["lagMs"] is not None:
            break
        assert time.monotonic() < deadline, told
    assert told["status"] in {"ok", "degraded"}
    assert [each["instances"] for each in found] == [1, 1, 1]
    assert told["services"]["directory"]["lagMs"] >= 0
    assert told["services"]["audit"]["ok"] is False  # nobody runs it here
    assert "convo serve audit" in told["services"]["audit"]["reason"]
    assert told["store"] == {"CONVO-EVENTS-0": {**_blank(), "ok": True}}


def test_health_is_down_when_a_write_would_fail(tmp_path: Path) -> None:
    site = Site(tmp_path)
    try:
        site.start()
        gateway = site.gateway()
        _until(gateway, 200)
        site.worker.kill()
        assert _until(gateway, 503)["services"]["commands"]["ok"] is False
        answer = httpx.post(f"{gateway.http}/v1/threads/t/init", json={"userId": "ada"}, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        site.worker.start()
        _until(gateway, 200)
        site.server.kill()
        told = _until(gateway, 503)
        assert (told["status"], told["store"]["CONVO-EVENTS-0"]["ok"]) == ("down", False)
        site.server.start()
        _until(gateway, 200)
    finally:
        site.stop()


def test_the_docs_take_nothing_from_elsewhere(gateway: GatewayProcess) -> None:
    with httpx.Client(base_url=gateway.http, timeout=30) as client:
        page = client.get("/docs")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for name in re.findall(r'(?:src|href)="(/docs\.\w+)"', page.text):
            file = client.get(name)
            assert file.status_code == 200
            assert "http" not in re.sub(r"HTTP|httpx?_", "", file.text).replace("https", "http")


def test_the_openapi_document_lists_every_family(gateway: GatewayProcess) -> None:
    told = httpx.get(f"{gateway.http}/openapi.json", timeout=30).json()
    tags = {
        tag for item in told["paths"].values() for each in item.values() for tag in each["tags"]
    }
    assert tags == {"threads", "conversations", "streams", "sessions", "chats", "health"}


def _blank() -> dict[str, Any]:
    return {"ok": False, "instances": None, "state": None, "lagMs": None, "reason": None}


def _until(gateway: GatewayProcess, wanted: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        status, told = health(gateway)
        if status == wanted:
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
