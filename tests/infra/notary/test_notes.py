"""Notes, keys and checkpoints: what is signed, what is believed, and how keys are kept."""

from __future__ import annotations

import shutil
import stat
import subprocess
from base64 import b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.notary.checkpoint import (
    NO_PREVIOUS,
    Checkpoint,
    KeyHistory,
    key_record,
    note_digest,
    origin,
)
from infra.notary.keys import KEY_FILE, NEXT_FILE, PUBLIC_FILE, KeyFolder, KeyUnusable
from infra.notary.notes import NoteRefused, PublicKey, Signer, opened, signed

TIME = "2026-11-21T09:00:00.000000Z"


def signer(name: str = "convo-notary") -> Signer:
    return Signer(name, Ed25519PrivateKey.generate())


def checkpoint(**fields: object) -> Checkpoint:
    known: dict[str, object] = {
        "origin": origin("LOG", bytes(32)),
        "size": 3,
        "root": bytes(range(32)),
        "number": 1,
        "time": TIME,
        "previous": NO_PREVIOUS,
    }
    return Checkpoint(**{**known, **fields})  # type: ignore[arg-type]


def test_the_example_of_go_is_read() -> None:
    """The published example of golang.org/x/mod/sumdb/note, which defines the format."""
    key = PublicKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    note = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n\n"
        "\u2014 PeterNeumann "
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )

    assert opened(note, key).startswith("If you think")
    with pytest.raises(NoteRefused, match="false"):
        opened(note.replace("answer", "Answer"), key)


def test_a_checkpoint_is_read_back_and_only_by_the_key_that_signed_it() -> None:
    ours, other = signer(), signer()
    said = checkpoint()

    note = said.signed(ours)

    assert Checkpoint.read(note, ours.public) == said
    with pytest.raises(NoteRefused, match="not signed by"):
        Checkpoint.read(note, other.public)


def test_no_byte_of_a_note_can_be_another() -> None:
    ours = signer()
    note = checkpoint().signed(ours).encode()

    for place in range(len(note)):
        forged = bytearray(note)
        forged[place] ^= 1
        try:
            text = forged.decode()
        except UnicodeDecodeError:
            continue
        with pytest.raises(NoteRefused):
            Checkpoint.read(text, ours.public)


@pytest.mark.parametrize("note", ["", "\n", "x\n", "x\n\n", "\n\n\u2014 a b\n", "x\n\n- a AAAA\n"])
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(NoteRefused):
        Checkpoint.read(note, None)


def test_a_signed_text_that_is_no_checkpoint_is_refused() -> None:
    ours = signer()
    for text in ("hello\n", checkpoint().text() + "more 1\n", checkpoint(size=0).text()):
        with pytest.raises(NoteRefused, match="no checkpoint"):
            Checkpoint.read(signed(text, [ours]), ours.public)


def test_a_signature_is_checked_by_openssl_too(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    ours = signer()
    note = checkpoint().signed(ours)
    text, below = note.split("\n\n")
    # An Ed25519 key in DER is these twelve bytes and the key (RFC 8410).
    der = bytes.fromhex("302a300506032b6570032100") + ours.public.raw
    (tmp_path / "key").write_bytes(der)
    (tmp_path / "text").write_text(text + "\n")
    (tmp_path / "signature").write_bytes(b64decode(below.split()[2])[4:])

    command = "openssl pkeyutl -verify -pubin -keyform DER -inkey key -rawin -in text -sigfile"
    done = subprocess.run(
        [*command.split(), "signature"], cwd=tmp_path, capture_output=True, check=False
    )

    assert done.returncode == 0, done


@pytest.mark.parametrize(
    "line",
    [
        "",
        "name",
        "name+00000000+AAAA",
        "na me+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+AhpC2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ],
)
def test_a_damaged_public_key_is_refused(line: str) -> None:
    with pytest.raises(NoteRefused):
        PublicKey.parse(line)


# -- keys one after the other ----------------------------------------------------------------------


def test_a_key_is_replaced_by_one_that_it_has_signed() -> None:
    first, second, stranger = signer(), signer(), signer()
    history = KeyHistory()

    assert history.take(key_record(first, None, TIME)) == first.public
    with pytest.raises(NoteRefused):
        history.take(key_record(stranger, None, TIME))
    with pytest.raises(NoteRefused):
        history.take(key_record(stranger, stranger, TIME))
    with pytest.raises(NoteRefused):
        history.take(checkpoint().signed(first))
    assert history.current == first.public

    history.take(key_record(second, first, TIME))
    assert history.current == second.public
    with pytest.raises(NoteRefused):
        history.take(key_record(stranger, first, TIME))  # a key that was replaced signs no more


def test_a_pinned_key_has_to_be_in_the_history() -> None:
    first, second = signer(), signer()
    records = [key_record(first, None, TIME), key_record(second, first, TIME)]

    assert KeyHistory.of(records).is_anchored
    assert KeyHistory.of(records, pinned=first.public).is_anchored
    assert KeyHistory.of(records, pinned=second.public).is_anchored
    assert not KeyHistory.of(records, pinned=signer().public).is_anchored


def test_what_comes_next_names_the_note_before_it() -> None:
    ours = signer()
    note = checkpoint().signed(ours)

    assert note_digest(note) != note_digest(checkpoint(size=4).signed(ours))


# -- keys on disk ----------------------------------------------------------------------------------


def test_a_key_is_made_once_and_kept_to_its_owner(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path / "notary")
    assert folder.load() is None

    made = folder.load_or_make()

    assert folder.load_or_make().public == made.public
    assert stat.S_IMODE((tmp_path / "notary").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "notary" / KEY_FILE).stat().st_mode) == 0o600
    line, fingerprint = (tmp_path / "notary" / PUBLIC_FILE).read_text().splitlines()
    assert PublicKey.parse(line) == made.public
    assert fingerprint == made.public.fingerprint
    assert sorted(each.name for each in (tmp_path / "notary").iterdir()) == [KEY_FILE, PUBLIC_FILE]


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.load_or_make()
    (tmp_path / KEY_FILE).chmod(0o640)

    with pytest.raises(KeyUnusable, match="chmod 600"):
        folder.load_or_make()


def test_a_damaged_key_is_told_and_not_replaced(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.load_or_make()
    (tmp_path / KEY_FILE).write_bytes(b"nonsense")

    with pytest.raises(KeyUnusable, match="restore"):
        folder.load_or_make()
    assert (tmp_path / KEY_FILE).read_bytes() == b"nonsense"


def test_a_rotation_is_asked_for_and_taken(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    old = folder.load_or_make()

    asked = folder.ask_for_rotation()
    assert folder.ask_for_rotation() == asked
    assert folder.load_or_make().public == old.public

    assert folder.take_next().public == asked
    assert not (tmp_path / NEXT_FILE).exists()
    assert asked.line in (tmp_path / PUBLIC_FILE).read_text()
