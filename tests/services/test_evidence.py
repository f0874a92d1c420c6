"""Bundles and proofs: what they show without a server, and that nothing in them can be another."""

from __future__ import annotations

import asyncio
import json
import runpy
import subprocess
import venv
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client

from domain.errors import ConversationNotInitialized
from domain.identity import ConversationId
from infra.notary.checkpoint import Checkpoint
from infra.notary.notes import PublicKey, Signer
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.evidence import (
    EvidenceMissing,
    Finding,
    check_bundle,
    check_proof,
    encode_line,
    prove,
    write_bundle,
)
from services.notary import Notary, checkpoints_subject, key_history
from services.notary import records as notary_records
from tests.services.auditing import Ledger, ledger_on

JSON = dict[str, Any]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "verify_bundle.py"
SCRIPT = runpy.run_path(str(PAGE))
EVERY_BYTE = """
import runpy, sys
shown_by = runpy.run_path(sys.argv[1])["shown_by"]
bundle = open(sys.argv[2], "rb").read()
accepted = []
for place in range(len(bundle)):
    try:
        shown_by(bundle[:place] + bytes([bundle[place] ^ 1]) + bundle[place + 1:], None)
    except Exception:
        continue
    accepted.append(place)
print(len(bundle), accepted)
"""
STRANGER = Signer("convo-notary", Ed25519PrivateKey.generate())


@dataclass(frozen=True)
class Evidence:
    """What was made of a ledger whose server need not run any more."""

    bundle: bytes
    """Of a conversation of 17 events, the last three of which no checkpoint counts."""
    whole: bytes
    """Of one of 8 events, all counted."""
    proofs: dict[int, bytes]
    """Of versions of the first, by number."""
    key: PublicKey


def name(conversation: str) -> ConversationId:
    return ConversationId.parse("acme", conversation)


async def bundle_of(ledger: Ledger, conversation: str) -> bytes:
    file = BytesIO()
    await write_bundle(ledger.nc, ledger.process.store.topology, name(conversation), file)
    return file.getvalue()


@pytest_asyncio.fixture(scope="module")
async def evidence(nats_server: EmbeddedServer, store_dir: Path) -> Evidence:
    async with ledger_on(nats_server.url) as ledger:
        topology = ledger.process.store.topology
        await ledger.talk("alone", turns=1)
        unsigned = await bundle_of(ledger, "alone")
        assert b"checkpoint" not in unsigned
        with pytest.raises(EvidenceMissing, match="no checkpoint counts"):
            await prove(ledger.nc, topology, name("alone"), 1)

        in_force = Settings(data_dir=store_dir, checkpoint_events=100, checkpoint_every="1s")
        notary = Notary(topology, ledger.nc, in_force)
        await ledger.talk("other", turns=2)
        await ledger.talk("c-1", turns=4)
        await notary.start()
        await covers(ledger, 5 + 8 + 14)
        await notary.close()
        await ledger.do("c-1", "append", role="user", content="later", message_id="later")
        await ledger.do("c-1", "reset")
        await ledger.do("c-1", "append", role="user", content="last")

        with pytest.raises(EvidenceMissing, match="no version 18"):
            await prove(ledger.nc, topology, name("c-1"), 18)
        with pytest.raises(EvidenceMissing, match="version 17 yet"):
            await prove(ledger.nc, topology, name("c-1"), 17)
        for make in (bundle_of(ledger, "x"), prove(ledger.nc, topology, name("x"), 1)):
            with pytest.raises(ConversationNotInitialized):
                await make
        key = (await key_history(ledger.nc)).current
        assert key is not None
        proofs = {
            version: json.dumps(await prove(ledger.nc, topology, name("c-1"), version)).encode()
            for version in (1, 7, 14)
        }
        return Evidence(
            await bundle_of(ledger, "c-1"), await bundle_of(ledger, "other"), proofs, key
        )


async def covers(ledger: Ledger, size: int) -> None:
    await covers_of(ledger.nc, size)


async def covers_of(nc: Client, size: int) -> None:
    """Returns once the last checkpoint of partition 0 counts so many events."""
    async with asyncio.timeout(30):
        while True:
            found = [
                Checkpoint.read(each.body.decode(), None).size
                async for each in notary_records(nc, checkpoints_subject(0))
            ]
            if found and found[-1] >= size:
                return
            await asyncio.sleep(0.05)


def check(bundle: bytes, pinned: PublicKey | None = None) -> Finding:
    """What the bundle shows; the script of the documentation, which shares no code with the
    product, says the same."""
    found = check_bundle(BytesIO(bundle), pinned)
    refused = None
    try:
        SCRIPT["shown_by"](bundle, pinned and pinned.line)
    except Exception as error:  # noqa: BLE001 (whatever says no)
        refused = error
    assert found.valid == (refused is None), (found.problem, refused)
    return found


def lines_of(bundle: bytes) -> list[JSON]:
    return [json.loads(line) for line in bundle.splitlines()]


def sealed(lines: list[JSON]) -> bytes:
    """The lines as a forger would put them together: every digest of the manifest is right."""
    *content, last = lines
    raw = [encode_line(each) for each in content]
    events = [line for line, each in zip(raw, content, strict=True) if "event" in each]
    others = [
        line
        for line, each in zip(raw, content, strict=True)
        if not {"event", "format"} & each.keys()
    ]
    manifest = last["manifest"]
    hashes = [each["event"]["headers"].get("Event-Hash", "") for each in content if "event" in each]
    size = next(
        (
            Checkpoint.read(each["checkpoint"], None).size
            for each in content
            if "checkpoint" in each
        ),
        0,
    )
    covered = sum(each["event"]["seq"] <= size for each in content if "event" in each)
    manifest = {
        "events": len(events),
        "head_hash": hashes[-1] if hashes else manifest["head_hash"],
        "covered": covered,
        "sha256": {
            "events": sha256(b"".join(events)).hexdigest(),
            "records": sha256(b"".join(others)).hexdigest(),
            "all": sha256(b"".join(raw)).hexdigest(),
        },
    }
    return b"".join([*raw, encode_line({"manifest": manifest})])


def rechained(lines: list[JSON]) -> list[JSON]:
    """The events with the hashes that their bodies give."""
    head = bytes(32)
    for each in lines:
        if "event" in each:
            head = sha256(head + each["event"]["body"].encode()).digest()
            each["event"]["headers"]["Event-Hash"] = head.hex()
    return lines


def test_a_bundle_shows_what_was_written(evidence: Evidence) -> None:
    found = check(evidence.bundle, evidence.key)

    assert found.valid, found.problem
    assert (found.name, found.events, found.version) == ("acme/c-1", 17, 17)
    assert found.covered == 14
    assert found.key == evidence.key
    assert check(evidence.bundle).valid
    assert check(evidence.whole, evidence.key).covered == 8
    assert sealed(lines_of(evidence.bundle)) == evidence.bundle, "the forger knows the format"


def test_no_byte_of_a_bundle_can_be_another(evidence: Evidence) -> None:
    for place in range(len(evidence.whole)):
        forged = bytearray(evidence.whole)
        forged[place] ^= 1
        assert not check_bundle(BytesIO(forged), None).valid, f"byte {place}"


def test_a_bundle_is_verified_in_an_empty_environment_and_one_of_another_byte_is_not(
    evidence: Evidence, tmp_path: Path
) -> None:
    """No package, not even pip; none of this project; no network."""
    venv.create(tmp_path / "empty", with_pip=False, symlinks=True)
    python = tmp_path / "empty" / "bin" / "python"
    script, bundle = tmp_path / "verify_bundle.py", tmp_path / "c-1.evidence.jsonl"
    script.write_bytes(PAGE.read_bytes())
    bundle.write_bytes(evidence.bundle)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-I", *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False
        )

    listed = run("-c", "import importlib.metadata as m; print(len(list(m.distributions())))")
    assert listed.stdout == "0\n", listed.stderr
    shown = run(script, bundle, evidence.key.line)
    assert (shown.returncode, shown.stderr) == (0, "")
    first, counted, signed_by = shown.stdout.splitlines()
    assert first == f"valid: acme/c-1, 17 events, hash {check(evidence.bundle).head_hash}"
    assert counted.startswith("  14 of them counted by checkpoint ")
    assert signed_by == f"  signed by {evidence.key.line}"
    by_another = run(script, bundle, STRANGER.public.line)
    assert by_another.returncode == 1
    assert "the key that was given does not vouch" in by_another.stderr
    smaller = tmp_path / "other.evidence.jsonl"
    smaller.write_bytes(evidence.whole)
    of_every_byte = run("-c", EVERY_BYTE, script, smaller)
    assert of_every_byte.stdout == f"{len(evidence.whole)} []\n", of_every_byte.stderr
    bundle.write_bytes(evidence.bundle.replace(b"Answer", b"Answer!", 1))
    changed = run(script, bundle)
    assert (changed.returncode, changed.stdout) == (1, "")
    assert changed.stderr == "NOT VALID: its bytes are not those of its manifest\n"


def test_no_byte_can_be_missing_or_added(evidence: Evidence) -> None:
    bundle = evidence.whole

    for place in [*range(0, len(bundle), 97), len(bundle) - 1]:
        assert not check(bundle[:place]).valid, f"cut at {place}"
        assert not check(bundle[:place] + b" " + bundle[place:]).valid, f"a blank at {place}"
    assert not check(bundle + b"\n").valid
    assert not check(b"").valid


Forgery = Callable[[list[JSON]], list[JSON]]


def a_changed_word(lines: list[JSON]) -> list[JSON]:
    event = lines[7]["event"]
    assert "Answer 1" in event["body"]
    event["body"] = event["body"].replace("Answer 1", "Answer 2")
    return lines


def a_removed_event(lines: list[JSON]) -> list[JSON]:
    del lines[6]
    return lines


def a_cut_end(lines: list[JSON]) -> list[JSON]:
    return [each for each in lines if each.get("event", {}).get("seq", 0) < 26]


def no_checkpoint(lines: list[JSON]) -> list[JSON]:
    return [each for each in lines if not {"key", "checkpoint", "cover"} & each.keys()]


def another_conversation(lines: list[JSON]) -> list[JSON]:
    lines[0]["conversation_id"] = "c-2"
    return lines


def another_partition(lines: list[JSON]) -> list[JSON]:
    text = json.dumps(lines).replace("convo.evt.0.", "convo.evt.1.")
    lines = json.loads(text)
    lines[0] |= {"partition": 1, "stream": "CONVO-EVENTS-1"}
    return lines


def two_events_in_one(lines: list[JSON]) -> list[JSON]:
    lines[7]["event"]["seq"] = lines[6]["event"]["seq"]
    return lines


def a_strangers_checkpoint(lines: list[JSON]) -> list[JSON]:
    for each in lines:
        if "checkpoint" in each:
            each["checkpoint"] = Checkpoint.read(each["checkpoint"], None).signed(STRANGER)
    return lines


@pytest.mark.parametrize(
    ("forgery", "says"),
    [
        (a_changed_word, "version 7 is not what was written (hash)"),
        (a_removed_event, "version 6 is not what was written (version)"),
        (lambda lines: rechained(a_changed_word(lines)), "not those that its checkpoint counted"),
        (a_cut_end, "not those that its checkpoint counted"),
        (no_checkpoint, "no key vouches for it"),
        (another_conversation, "not that of its conversation"),
        (another_partition, "of another partition"),
        (two_events_in_one, "does not belong here"),
        (a_strangers_checkpoint, "not signed by"),
        (lambda lines: [*lines[:-2], lines[-1]], "not those that its checkpoint counted"),
        (lambda lines: [*lines[:3], lines[-4], *lines[3:]], "has no place here"),
        (lambda lines: [lines[0], {"event": 7}, *lines[1:]], "no line of a bundle"),
        (lambda lines: [{**lines[0], "format": "x"}, *lines[1:]], "this program reads"),
    ],
)
def test_a_bundle_forged_with_care_is_found_out(
    evidence: Evidence, forgery: Forgery, says: str
) -> None:
    found = check(_resealed(forgery(lines_of(evidence.bundle))), evidence.key)

    assert not found.valid
    assert says in (found.problem or "")


def _resealed(lines: list[JSON]) -> bytes:
    try:
        return sealed(lines)
    except TypeError:  # lines that are no longer a bundle's have no manifest to make
        return b"".join(map(encode_line, lines))


def test_a_bundle_by_another_notary_is_not_what_was_asked_for(evidence: Evidence) -> None:
    found = check(evidence.bundle, STRANGER.public)

    assert "the key that was given" in (found.problem or "")


@pytest.mark.parametrize("version", [1, 7, 14])
def test_a_proof_shows_one_event(evidence: Evidence, version: int) -> None:
    found = check_proof(evidence.proofs[version], evidence.key)

    assert found.valid, found.problem
    assert (found.name, found.version) == ("acme/c-1", version)
    assert check_proof(evidence.proofs[version], None).valid
    assert not check_proof(evidence.proofs[version], STRANGER.public).valid


@pytest.mark.parametrize(
    "field",
    [
        "format",
        "subject",
        "seq",
        "type",
        "version",
        "previous_hash",
        "hash",
        "body",
        "path",
        "checkpoint",
        "keys",
    ],
)
def test_a_changed_proof_proves_nothing(evidence: Evidence, field: str) -> None:
    proof, other = (json.loads(evidence.proofs[version]) for version in (7, 14))
    changed = {
        "format": "x",
        "subject": "convo.evt.0.acme.c-2",
        "checkpoint": Checkpoint.read(proof["checkpoint"], None).signed(STRANGER),
        "keys": [],
    }.get(field, other[field])

    others: list[Any] = [changed, None, 7, "", [], {}]
    for value in others:
        found = check_proof(json.dumps({**proof, field: value}).encode(), None)
        assert not found.valid or value == proof[field], (field, value)
    del proof[field]
    assert not check_proof(json.dumps(proof).encode(), None).valid


@pytest.mark.parametrize("text", [b"", b"x", b"[]", b"7", b"[" * 100_000, b"\xff"])
def test_what_is_no_proof_proves_nothing(text: bytes) -> None:
    assert not check_proof(text, None).valid
    assert not check(text).valid
