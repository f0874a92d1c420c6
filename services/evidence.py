"""Evidence on paper: the proof of one event, and the bundle of a whole conversation.

Both are files of text that are checked without a server, with the notary's public key alone.

**A proof** is one JSON object: the event as it is stored (`subject`, `seq`, `type`, `version`,
`hash`, `body`), `previous_hash`, the audit path (RFC 6962, 2.1.1) to the root of a `checkpoint`,
and the records of the keys up to that checkpoint. **A bundle** is JSON lines:

    {"format", "tenant_id", "conversation_id", "stream", "subject", "partition", "exported_at"}
    {"event": {"seq", "subject", "time", "headers", "body"}}      one for each event, in order
    {"key": <key record>}                                          each key of the notary, in order
    {"checkpoint": <checkpoint>}                                   the last one there was
    {"cover": [<hash>, …]}     the subtrees that make its root with the events that it counted
    {"manifest": {"events", "head_hash", "covered", "sha256": {"events", "records", "all"}}}

`sha256` are of the bytes of the event lines, of the lines from there to the manifest, and of
everything before the manifest. Without a notary there are no key, checkpoint and cover lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, BinaryIO

from nats.aio.client import Client

from domain import clock
from domain.errors import ConversationNotInitialized, InvalidRequest
from domain.identity import ConversationId
from infra.jetstream.chain import START, Fault, Link, entry_of
from infra.jetstream.envelope import EVENT_HASH, EVENT_TYPE, EVENT_VERSION, GENESIS
from infra.jetstream.scan import Stored, as_stored, from_stored, scan
from infra.jetstream.topology import Topology
from infra.notary.checkpoint import PROJECT, Checkpoint, KeyHistory
from infra.notary.merkle import (
    Range,
    Roots,
    cover_ranges,
    inclusion_ranges,
    leaf_hash,
    root_of_cover,
    root_of_inclusion,
)
from infra.notary.notes import NoteRefused, PublicKey
from services.notary import KEYS, checkpoints_subject, last_record, records
from services.verification import ConversationCheck, follow_conversation

BUNDLE_FORMAT = f"{PROJECT} evidence/1"
PROOF_FORMAT = f"{PROJECT} proof/1"
LINE_BYTES_MAX = 16_000_000

Progress = Callable[[int, int], None]
"""Hears how many events of how many have been read."""


class EvidenceMissing(Exception):
    """What was asked for cannot be proved (yet); the message says why."""


# -- making it -------------------------------------------------------------------------------------


async def prove(
    nc: Client,
    topology: Topology,
    id: ConversationId,
    version: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The proof that one event is under the last checkpoint. Reads the stream up to there.

    Raises EvidenceMissing, ConversationNotInitialized, StoreUnavailable.
    """
    subject = topology.subject(id.key)
    partition = topology.partition(id.key)
    stream = topology.stream_name(partition)
    link: Link | Fault = START
    event: Stored | None = None
    previous = GENESIS
    async with aclosing(scan(nc, stream, subject=subject)) as blocks:
        async for block in blocks:
            for stored in block:
                assert isinstance(link, Link), "a broken chain ends the search"
                previous = link.digest
                link = follow_conversation(link, stored)
                if isinstance(link, Fault):
                    raise EvidenceMissing(
                        f"version {link.version} is not what was written: see `convo verify`"
                    )
                if link.version == version:
                    event = stored
                    break
            if event is not None:
                break
    if event is None:
        if link == START:
            raise ConversationNotInitialized.named(id.tenant_id, id.conversation_id)
        raise EvidenceMissing(f"the conversation has no version {version}")
    keys, checkpoint_note = await _vouchers(nc, partition)
    checkpoint = None if checkpoint_note is None else Checkpoint.read(checkpoint_note, None)
    if checkpoint is None or checkpoint.size < event.seq:
        raise EvidenceMissing(
            f"no checkpoint counts version {version} yet: let the notary run (`convo up` does), "
            "and ask again in a minute"
        )
    ranges = inclusion_ranges(event.seq - 1, checkpoint.size)
    roots = await _roots(nc, stream, ranges, checkpoint.size, progress)
    return {
        "format": PROOF_FORMAT,
        "subject": subject,
        "seq": event.seq,
        "type": event.headers[EVENT_TYPE],
        "version": version,
        "previous_hash": previous.hex(),
        "hash": event.headers[EVENT_HASH],
        "body": event.body.decode(),
        "path": [each.hex() for each in roots.of(ranges)],
        "checkpoint": checkpoint_note,
        "keys": keys,
    }


async def write_bundle(
    nc: Client,
    topology: Topology,
    id: ConversationId,
    file: BinaryIO,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes the evidence of a conversation into `file`; returns its manifest.

    Raises ConversationNotInitialized, StoreUnavailable.
    """
    subject = topology.subject(id.key)
    partition = topology.partition(id.key)
    stream = topology.stream_name(partition)
    lines = _Lines(file)
    lines.write(
        {
            "format": BUNDLE_FORMAT,
            "tenant_id": id.tenant_id,
            "conversation_id": id.conversation_id,
            "stream": stream,
            "subject": subject,
            "partition": partition,
            "exported_at": clock.to_text(clock.now()),
        }
    )
    seqs: list[int] = []
    head = GENESIS.hex()
    lines.begin_part()
    async with aclosing(scan(nc, stream, subject=subject)) as blocks:
        async for block in blocks:
            for stored in block:
                seqs.append(stored.seq)
                head = stored.headers.get(EVENT_HASH, "")
                lines.write({"event": as_stored(stored)})
    if not seqs:
        raise ConversationNotInitialized.named(id.tenant_id, id.conversation_id)
    events_digest = lines.end_part()
    keys, checkpoint_note = await _vouchers(nc, partition)
    covered = 0
    for note in keys:
        lines.write({"key": note})
    if checkpoint_note is not None:
        size = Checkpoint.read(checkpoint_note, None).size
        indices = [seq - 1 for seq in seqs if seq <= size]
        covered = len(indices)
        ranges = cover_ranges(indices, size)
        roots = await _roots(nc, stream, ranges, size, progress)
        lines.write({"checkpoint": checkpoint_note})
        lines.write({"cover": [each.hex() for each in roots.of(ranges)]})
    manifest = {
        "events": len(seqs),
        "head_hash": head,
        "covered": covered,
        "sha256": {
            "events": events_digest,
            "records": lines.end_part(),
            "all": lines.digest(),
        },
    }
    lines.write({"manifest": manifest})
    return manifest


class _Lines:
    """Writes JSON lines and keeps the digests of what it has written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._all = sha256()
        self._part = sha256()

    def write(self, value: dict[str, Any]) -> None:
        """Writes one line."""
        line = encode_line(value)
        self._file.write(line)
        self._all.update(line)
        self._part.update(line)

    def begin_part(self) -> None:
        """Begins a part with a digest of its own."""
        self._part = sha256()

    def end_part(self) -> str:
        """The digest of the part, and begins the next one."""
        digest = self._part.hexdigest()
        self._part = sha256()
        return digest

    def digest(self) -> str:
        """The digest of everything so far."""
        return self._all.hexdigest()


def encode_line(value: dict[str, Any]) -> bytes:
    """The one way to write a line of a bundle."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


async def _vouchers(nc: Client, partition: int) -> tuple[list[str], str | None]:
    """The notary's last checkpoint of the partition, and the key records in front of it."""
    last = await last_record(nc, checkpoints_subject(partition))
    if last is None:
        return [], None
    async with aclosing(records(nc, KEYS)) as found:
        keys = [each.body.decode() async for each in found if each.seq < last.seq]
    return keys, last.body.decode()


async def _roots(
    nc: Client, stream: str, ranges: Iterable[Range], size: int, progress: Progress | None
) -> Roots:
    """The roots of these ranges of the stream, read once up to `size`."""
    roots = Roots(ranges)
    done = 0
    async with aclosing(scan(nc, stream)) as blocks:
        async for block in blocks:
            for stored in block:
                if stored.seq > size:
                    return roots
                if stored.seq != done + 1:
                    raise EvidenceMissing(
                        f"{stream} lacks sequence {done + 1}: see `convo verify --all`"
                    )
                done = stored.seq
                roots.append(leaf_hash(entry_of(stored)))
            if progress is not None:
                progress(done, size)
    if done < size:
        raise EvidenceMissing(f"{stream} lacks sequence {done + 1}: see `convo verify --all`")
    return roots


# -- checking it -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Finding:
    """What a piece of evidence shows; `problem` says why it shows nothing.

    Of a bundle `events` are counted; of a proof `version` is the one event.
    """

    problem: str | None = None
    name: str = ""
    events: int = 0
    covered: int = 0
    version: int = 0
    head_hash: str = ""
    first_bad: dict[str, Any] | None = None
    checkpoint: Checkpoint | None = None
    key: PublicKey | None = None

    @property
    def valid(self) -> bool:
        """Whether it shows what it says."""
        return self.problem is None

    def report(self) -> dict[str, Any]:
        """The same as a plain object."""
        found: dict[str, Any] = {
            "ok": True,
            "valid": self.valid,
            "conversation": self.name,
            "events": self.events,
            "covered": self.covered,
            "version": self.version,
            "head_hash": self.head_hash,
            "key": self.key and self.key.line,
            "fingerprint": self.key and self.key.fingerprint,
        }
        if self.checkpoint is not None:
            found["checkpoint"] = {
                "origin": self.checkpoint.origin,
                "number": self.checkpoint.number,
                "size": self.checkpoint.size,
                "time": self.checkpoint.time,
            }
        if self.problem is not None:
            found["problem"] = self.problem
        if self.first_bad is not None:
            found["first_bad"] = self.first_bad
        return found


class _Refused(Exception):
    """The evidence is not what it says."""


def check_proof(text: bytes, pinned: PublicKey | None) -> Finding:
    """What the proof of one event shows. Never raises for what is in it."""
    found = Finding()
    try:
        _check_proof(json.loads(text), pinned, found)
    except _Refused as refused:
        found.problem = str(refused)
    except NoteRefused as refused:
        found.problem = f"its checkpoint or key cannot be believed: {refused}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found.problem = f"it is no proof of this ledger ({type(error).__name__}: {error})"
    return found


def _check_proof(proof: dict[str, Any], pinned: PublicKey | None, found: Finding) -> None:
    if proof["format"] != PROOF_FORMAT:
        raise _Refused(f"it is of format {proof['format']!r}, this program reads {PROOF_FORMAT}")
    stored = Stored(
        proof["seq"],
        proof["subject"],
        {
            EVENT_TYPE: proof["type"],
            EVENT_VERSION: str(proof["version"]),
            EVENT_HASH: proof["hash"],
        },
        0,
        proof["body"].encode(),
    )
    link = Link(proof["version"] - 1, _hash(proof["previous_hash"]))
    following = follow_conversation(link, stored)
    if isinstance(following, Fault):
        raise _Refused(
            f"the event does not fit ({following.problem}): expected {following.expected}, "
            f"found {following.found}"
        )
    found.name = "/".join(ConversationId.from_key(stored.subject.split(".", 3)[3]))
    found.version, found.head_hash = following.version, proof["hash"]
    checkpoint = _believed(proof["keys"], proof["checkpoint"], pinned, found)
    _require_partition(checkpoint, stored.subject)
    root = root_of_inclusion(
        leaf_hash(entry_of(stored)),
        stored.seq - 1,
        checkpoint.size,
        [_hash(each) for each in proof["path"]],
    )
    if root != checkpoint.root:
        raise _Refused("the event is not one that its checkpoint counted")
    found.covered = 1


def check_bundle(file: BinaryIO, pinned: PublicKey | None) -> Finding:
    """What a bundle shows. Never raises for what is in it."""
    reading = _Bundle(pinned)
    found = reading.found
    try:
        reading.read(file)
    except _Refused as refused:
        found.problem = str(refused)
    except NoteRefused as refused:
        found.problem = f"its checkpoint or key cannot be believed: {refused}"
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        InvalidRequest,
    ) as error:
        found.problem = (
            f"line {reading.line}: it is no line of a bundle ({type(error).__name__}: {error})"
        )
    return found


class _Bundle:
    """A bundle on its way through the check, line by line."""

    def __init__(self, pinned: PublicKey | None) -> None:
        self.found = Finding()
        self.line = 0
        self._pinned = pinned
        self._check = ConversationCheck()
        self._head: dict[str, Any] = {}
        self._leaves: list[tuple[int, bytes]] = []
        self._keys: list[str] = []
        self._checkpoint: Checkpoint | None = None
        self._cover: list[bytes] | None = None
        self._all, self._events, self._records = sha256(), sha256(), sha256()
        self._is_complete = False

    def read(self, file: BinaryIO) -> None:
        """Reads all lines and judges them."""
        while line := file.readline(LINE_BYTES_MAX):
            self.line += 1
            if self._is_complete:
                raise _Refused("something stands behind its manifest")
            value = json.loads(line)
            if encode_line(value) != line:
                raise _Refused(f"line {self.line} is not as it was written")
            [(kind, content)] = value.items() if self.line > 1 else [("head", value)]
            if kind == "manifest":
                self._compare(content)
                continue
            self._take(kind, content)
            self._all.update(line)
            if kind == "event":
                self._events.update(line)
            elif kind != "head":
                self._records.update(line)
        if not self._is_complete:
            raise _Refused("its end is missing")
        self._conclude()

    def _take(self, kind: str, content: Any) -> None:
        match kind:
            case "head":
                self._begin(content)
            case "event" if not self._keys and self._checkpoint is None:
                self._take_event(content)
            case "key" if self._checkpoint is None:
                self._keys.append(content)
            case "checkpoint" if self._checkpoint is None:
                self._checkpoint = _believed(self._keys, content, self._pinned, self.found)
                _require_partition(self._checkpoint, self._head["subject"])
            case "cover" if self._checkpoint is not None and self._cover is None:
                self._cover = [_hash(each) for each in content]
            case _:
                raise _Refused(f"line {self.line}: {kind} has no place here")

    def _begin(self, head: dict[str, Any]) -> None:
        if head.get("format") != BUNDLE_FORMAT:
            raise _Refused(
                f"it is of format {head.get('format')!r}, this program reads {BUNDLE_FORMAT}"
            )
        id = ConversationId.parse(head["tenant_id"], head["conversation_id"])
        if head["subject"] != f"convo.evt.{head['partition']}.{id.key}":
            raise _Refused("its subject is not that of its conversation")
        if not head["stream"].endswith(f"-{head['partition']}"):
            raise _Refused("its stream is not that of its partition")
        self._head = head
        self.found.name = "/".join(id)

    def _take_event(self, event: dict[str, Any]) -> None:
        stored = from_stored(event)
        if stored.subject != self._head["subject"] or stored.seq <= self._check.seq:
            raise _Refused(f"line {self.line}: the event does not belong here")
        self._check.take(stored)
        self._leaves.append((stored.seq - 1, leaf_hash(entry_of(stored))))

    def _compare(self, manifest: dict[str, Any]) -> None:
        self._is_complete = True
        digests = manifest["sha256"]
        if digests["all"] != self._all.hexdigest():
            raise _Refused("its bytes are not those that its manifest was made of")
        if digests["events"] != self._events.hexdigest():
            raise _Refused("its events are not those that its manifest was made of")
        if digests["records"] != self._records.hexdigest():
            raise _Refused("its records are not those that its manifest was made of")
        size = 0 if self._checkpoint is None else self._checkpoint.size
        covered = sum(index < size for index, _ in self._leaves)
        if manifest != {
            "events": self._check.events,
            "head_hash": manifest["head_hash"],
            "covered": covered,
            "sha256": digests,
        }:
            raise _Refused("its manifest does not count what is in it")
        if self._check.fault is None and manifest["head_hash"] != self._check.link.digest.hex():
            raise _Refused("its manifest names another last hash")

    def _conclude(self) -> None:
        report = self._check.report()
        found = self.found
        found.events, found.version = report["events"], report["version"]
        found.head_hash = report["head_hash"]
        if not report["valid"]:
            found.first_bad = report["first_bad"]
            raise _Refused(
                f"version {found.first_bad['version']} is not what was written "
                f"({found.first_bad['problem']})"
            )
        if self._checkpoint is None:
            if self._pinned is not None:
                raise _Refused("it holds no checkpoint, so no key vouches for it")
            return
        size = self._checkpoint.size
        leaves = [each for each in self._leaves if each[0] < size]
        if self._cover is None or root_of_cover(leaves, size, self._cover) != self._checkpoint.root:
            raise _Refused("its events are not those that its checkpoint counted")
        found.covered = len(leaves)


def _believed(keys: list[str], note: str, pinned: PublicKey | None, found: Finding) -> Checkpoint:
    """The checkpoint, signed by the last of the keys; the pinned one has to be among them."""
    history = KeyHistory.of(keys, pinned)
    if history.current is None:
        raise NoteRefused("it names no key")
    if not history.is_anchored:
        raise _Refused("the key that was given is not one that vouches for it")
    found.checkpoint = Checkpoint.read(note, history.current)
    found.key = history.current
    return found.checkpoint


def _require_partition(checkpoint: Checkpoint, subject: str) -> None:
    """A checkpoint of another partition's stream proves nothing of this subject."""
    stream = checkpoint.origin.split("/")[1]
    if stream.rpartition("-")[2] != subject.split(".")[2]:
        raise _Refused("its checkpoint is of another partition")


def _hash(text: str) -> bytes:
    raw = bytes.fromhex(text)
    if len(raw) != len(GENESIS) or raw.hex() != text:
        raise ValueError(f"{text[:70]!r} is no hash")
    return raw
