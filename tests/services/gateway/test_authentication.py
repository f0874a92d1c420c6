"""Who may ask: keys, tokens, origins, rates; and what is refused before the gateway listens."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from infra.server import HOST
from services.gateway.errors import GatewayUnusable
from services.gateway.keys import KeyFile
from tests.acceptance.client import Ledger
from tests.services.cli.conftest import Convo, complaint, convo  # noqa: F401 - a fixture
from tests.services.gateway.site import GatewayProcess, Site

ISSUER, AUDIENCE = "https://issuer.example", "ledger"
SECRET = "a secret of more than thirty-two characters"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def keyed(site: Site, key_file: KeyFile) -> GatewayProcess:
    """A gateway that asks for keys."""
    key_file.add("first", "acme")
    return site.gateway(auth="keys", keys_file=key_file.path)


@pytest.fixture(scope="module")
def ada(key_file: KeyFile, keyed: GatewayProcess) -> str:
    key = key_file.add("ada", "acme", "ada")
    _until_known(keyed, key)
    return key


@pytest.fixture(scope="module")
def tokened(site: Site) -> GatewayProcess:
    """A gateway that asks for tokens of a shared secret."""
    return site.gateway(
        auth="jwt",
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_secret=SECRET,
        jwt_scope_claim="scope",
    )


def token(**changed: Any) -> str:
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": time.time() + 600,
        "sub": "ada",
        "tenant_id": "acme",
        "scope": "read write delete",
    }
    claims = {name: value for name, value in (claims | changed).items() if value is not None}
    return jwt.encode(claims, SECRET, "HS256")


def get(gateway: GatewayProcess, path: str = "/api/chat", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(f"{gateway.http}{path}", headers=named, timeout=30)


def begin(gateway: GatewayProcess, id: str, key: str, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{gateway.http}/v1/threads/{id}/init",
        json={"userId": "ada"},
        headers={"authorization": f"Bearer {key}", **headers},
        timeout=30,
    )


@contextmanager
def _serving(directory: Path, content: Any) -> Iterator[str]:
    """A URL at which the JSON is, as an issuer has its public keys."""
    (directory / "keys").write_text(json.dumps(content))
    handler = partial(_Quiet, directory=str(directory))
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}/keys"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing."""


def _until_known(gateway: GatewayProcess, key: str, status: int = 200) -> None:
    deadline = time.monotonic() + 30
    while get(gateway, x_api_key=key).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "nonsense", "convo_0123456789ab_x", "convo__", "é"])
def test_without_a_known_key_nothing_is_answered(keyed: GatewayProcess, key: str | None) -> None:
    headers = {} if key is None else {b"authorization": f"Bearer {key}".encode()}
    answer = httpx.get(f"{keyed.http}/api/chat", headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_with_another_secret_is_not_known(keyed: GatewayProcess, ada: str) -> None:
    other = ada[:-1] + ("A" if ada[-1] != "A" else "B")
    assert get(keyed, authorization=f"Bearer {other}").status_code == 401


def test_a_key_is_taken_where_a_client_can_put_it(keyed: GatewayProcess, ada: str) -> None:
    assert get(keyed, authorization=f"Bearer {ada}").status_code == 200
    assert get(keyed, authorization=f"bearer  {ada}").status_code == 200
    assert get(keyed, x_api_key=ada).status_code == 200
    assert get(keyed, f"/api/chat?access_token={ada}").status_code == 200
    url = f"{keyed.http}/api/chat?access_token={ada}"
    assert httpx.post(url, timeout=30).status_code == 401  # only where a browser has no other way


async def test_a_websocket_takes_credentials_as_a_subprotocol(
    keyed: GatewayProcess, ada: str, id: str
) -> None:
    offered = base64.urlsafe_b64encode(ada.encode()).decode().rstrip("=")
    url = f"{keyed.ws}/conversation/{id}"
    async with websockets.connect(
        url,
        subprotocols=[websockets.Subprotocol("convo"), websockets.Subprotocol(f"bearer.{offered}")],
    ) as connection:
        assert connection.subprotocol == "convo"
        assert "Connected" in str(await connection.recv())
    async with websockets.connect(f"{url}?access_token={ada}") as connection:
        assert "Connected" in str(await connection.recv())
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(url)
    assert refused.value.response.status_code == 401


async def test_a_key_is_the_actor_of_what_it_does(
    keyed: GatewayProcess, ada: str, key_file: KeyFile, ledger: Ledger, id: str
) -> None:
    assert begin(keyed, id, ada).status_code == 200
    whole = key_file.add("back end", "acme")
    _until_known(keyed, whole)
    assert begin(keyed, f"{id}-2", whole).status_code == 200
    for name, actor in ((id, "user:ada"), (f"{id}-2", "key:back end")):
        [started] = await ledger.conversation(name, "acme").events()
        assert started["actor"] == actor
        assert started["data"]["user_id"] == "ada"


def test_a_key_may_do_what_its_scopes_say(
    keyed: GatewayProcess, key_file: KeyFile, ada: str, id: str
) -> None:
    reader = key_file.add("reader", "acme", "ada", scopes=["read"])
    _until_known(keyed, reader)
    begin(keyed, id, ada)
    assert get(keyed, f"/v1/threads/{id}/state", x_api_key=reader).status_code == 200
    answer = begin(keyed, id, reader)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    answer = httpx.delete(
        f"{keyed.http}/sessions/{id}/clear", headers={"x-api-key": reader}, timeout=30
    )
    assert answer.status_code == 403


def test_a_removed_key_is_refused(keyed: GatewayProcess, key_file: KeyFile) -> None:
    key = key_file.add("leaving", "acme")
    _until_known(keyed, key)
    key_file.remove("leaving")
    _until_known(keyed, key, 401)


def test_a_key_of_a_user_speaks_for_no_other(keyed: GatewayProcess, ada: str, id: str) -> None:
    answer = httpx.post(
        f"{keyed.http}/v1/threads/{id}/init",
        json={"userId": "bob"},
        headers={"x-api-key": ada},
        timeout=30,
    )
    assert answer.status_code == 403
    answer = begin(keyed, id, ada, **{"x-user-id": "bob"})
    assert answer.status_code == 403
    answer = httpx.post(
        f"{keyed.http}/v1/threads/{id}/init",
        json={"userId": "ada", "tenantId": "globex"},
        headers={"x-api-key": ada},
        timeout=30,
    )
    assert answer.status_code == 403


def test_who_asks_too_often_is_told_when_to_come_back(
    keyed: GatewayProcess, key_file: KeyFile
) -> None:
    key = key_file.add("eager", "acme", requests_per_minute=10)
    _until_known(keyed, key)
    with httpx.Client(headers={"x-api-key": key}, timeout=30) as client:
        for _ in range(100):
            answer = client.get(f"{keyed.http}/api/chat")
            if answer.status_code == 429:
                break
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert int(answer.headers["retry-after"]) >= 1


def test_the_file_keeps_no_key(key_file: KeyFile, ada: str) -> None:
    text = key_file.path.read_text()
    assert ada not in text
    assert ada.split("_", 2)[2] not in text
    assert key_file.path.stat().st_mode & 0o077 == 0


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.path.write_text("{")
    with pytest.raises(GatewayUnusable, match="mend or remove"):
        file.load()
    with pytest.raises(GatewayUnusable, match="mend or remove"):
        file.add("a", "b")


def test_keys_are_made_shown_and_ended_on_the_command_line(convo: Convo, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    place = ("--data", tmp_path)
    made = convo("keys", "add", "web", "--tenant", "acme", "--user-id", "ada", *place)
    assert made.stdout.startswith("convo_")
    assert "web" in complaint(convo("keys", "add", "web", "--tenant", "acme", *place), 1)
    shown = convo("keys", "list", *place).stdout
    assert "acme" in shown
    assert made.stdout.strip() not in shown
    assert convo("keys", "remove", "web", *place).exit_code == 0
    assert "no key 'web'" in complaint(convo("keys", "remove", "web", *place), 1)


# -- tokens ---------------------------------------------------------------------------------------


def test_a_token_says_who_asks(tokened: GatewayProcess, id: str) -> None:
    answer = begin(tokened, id, token())
    assert (answer.status_code, answer.json()["state"]["tenantId"]) == (200, "acme")
    assert begin(tokened, id, token(sub="bob")).status_code == 403
    state = f"/v1/threads/{id}/state"
    assert get(tokened, state, authorization=f"Bearer {token(sub='bob')}").status_code == 404
    assert get(tokened, state, authorization=f"Bearer {token(tenant_id='b')}").status_code == 404


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"exp": 1}, 401),
        ({"exp": None}, 401),
        ({"iss": "https://other.example"}, 401),
        ({"aud": "another"}, 401),
        ({"aud": None}, 401),
        ({"nbf": time.time() + 3_600}, 401),
        ({"tenant_id": None}, 403),
        ({"tenant_id": "x" * 201}, 403),
        ({"sub": None}, 403),
        ({"sub": ""}, 403),
        ({"sub": "a\nb"}, 403),
        ({"scope": "openid"}, 403),
        ({"scope": None}, 403),
    ],
)
def test_a_token_that_is_not_good_is_refused(
    tokened: GatewayProcess, changed: dict[str, Any], status: int
) -> None:
    answer = get(tokened, authorization=f"Bearer {token(**changed)}")
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text


def test_a_token_of_another_signature_is_refused(tokened: GatewayProcess) -> None:
    claims = jwt.decode(token(), options={"verify_signature": False})
    forged = [
        jwt.encode(claims, "another secret of more than thirty-two chars", "HS256"),
        jwt.encode(claims, "", "none"),
        jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), "ES256"),
        token()[:-4],
        "a.b.c",
        "x",
    ]
    for each in forged:
        assert get(tokened, authorization=f"Bearer {each}").status_code == 401


def test_public_keys_of_the_issuer_are_fetched(site: Site, tmp_path: Path, id: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "k", "alg": "ES256"}
    with _serving(tmp_path, {"keys": [public]}) as url:
        gateway = site.gateway(
            auth="jwt", jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks_url=url
        )
        claims = jwt.decode(token(), options={"verify_signature": False})
        good = jwt.encode(claims, key, "ES256", headers={"kid": "k"})
        assert begin(gateway, id, good).status_code == 200
        other = ec.generate_private_key(ec.SECP256R1())
        for bad in (
            jwt.encode(claims, other, "ES256", headers={"kid": "k"}),
            jwt.encode(claims, other, "ES256", headers={"kid": "unknown"}),
            jwt.encode(claims, SECRET, "HS256", headers={"kid": "k"}),
        ):
            assert begin(gateway, id, bad).status_code == 401


# -- browsers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
    ],
)
async def test_pages_of_elsewhere_cannot_write(
    gateway: GatewayProcess, http: httpx.AsyncClient, id: str, headers: dict[str, str], status: int
) -> None:
    url = f"/v1/threads/{id}/init"
    answer = await http.post(url, json={"userId": "ada"}, headers=headers)
    assert answer.status_code == status
    own = {"origin": gateway.http}
    assert (await http.post(url, json={"userId": "ada"}, headers=own)).status_code == 200
    connecting = websockets.connect(f"{gateway.ws}/conversation/{id}", additional_headers=headers)
    if status == 200:
        await (await connecting).close()
        return
    if "host" in headers:
        return  # websockets writes the header itself
    with pytest.raises(websockets.InvalidStatus) as refused:
        await connecting
    assert refused.value.response.status_code == status


def test_pages_of_a_listed_origin_can(site: Site, id: str) -> None:
    gateway = site.gateway(origins="https://app.example, http://localhost:5173")
    url = f"{gateway.http}/v1/threads/{id}/init"
    for origin, status in (("https://app.example", 200), ("https://evil.example", 403)):
        answer = httpx.post(url, json={"userId": "ada"}, headers={"origin": origin}, timeout=30)
        assert answer.status_code == status
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    answer = httpx.options(url, headers=asked)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    answer = httpx.options(url, headers={**asked, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


# -- before it listens ----------------------------------------------------------------------------


def test_without_credentials_it_listens_on_loopback_only(
    convo: Convo,  # noqa: F811 - the fixture
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONVO_GATEWAY_HOST", "0.0.0.0")
    monkeypatch.setenv("CONVO_GATEWAY_PORT", "0")
    line = complaint(convo("serve", "gateway", "--nats", site.server.url), 1)
    assert "loopback only" in line


def test_a_port_that_is_taken_is_named(
    convo: Convo,  # noqa: F811 - the fixture
    gateway: GatewayProcess,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONVO_GATEWAY_PORT", str(gateway.port))
    line = complaint(convo("serve", "gateway", "--nats", site.server.url), 1)
    assert str(gateway.port) in line
    assert "CONVO_GATEWAY_PORT" in line


@pytest.mark.parametrize(
    "settings",
    [
        {"JWT_SECRET": SECRET},
        {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE},
        {"JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE, "JWT_SECRET": "short"},
    ],
)
def test_tokens_that_could_not_be_checked_are_refused_at_the_start(
    convo: Convo,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
) -> None:
    for name, value in {"AUTH": "jwt", **settings}.items():
        monkeypatch.setenv(f"CONVO_{name}", value)
    assert "jwt" in complaint(convo("serve", "gateway"), 1).lower()
