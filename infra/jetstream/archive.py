"""A copy of streams in a folder of ordinary files: made while they are written to, and added to.

    manifest.json                          what is in it, with the digest of every file and its own
    <stream>/<first sequence>.jsonl.gz     messages, one JSON object a line, see `scan.as_stored`

A segment is written once and never touched again: another run adds segments behind it. It ends
where a batch ends, so that whatever is in the archive was written whole. The manifest is replaced
in one step, after the segment that it names is on disk; a file that it does not name is the rest
of a run that was cut short. Nothing here knows what the messages say.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, Any, Self
from uuid import uuid4

from pydantic_core import from_json, to_json

from infra.jetstream.envelope import EVENT_HASH
from infra.jetstream.scan import Stored, as_stored, ends_batch, from_stored
from infra.lock import FileLock
from infra.sync import sync_folder

FORMAT = "conversation-ledger backup/1"
MANIFEST = "manifest.json"
LOCK = ".lock"
SEGMENT_EVENTS = 20_000
SEGMENT_BYTES = 32_000_000
"""Before compression."""

_GZIP_LEVEL = 1
_READ_LINES = 1_000

Progress = Callable[[int, int], None]


class ArchiveRefused(Exception):
    """The archive cannot be used as asked; the message says why and what to do."""


class ArchiveDamaged(ArchiveRefused):
    """What is in the archive is not what was put there."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(
            f"{folder} is not the backup that was made: {problem}. Nothing of it is used: take "
            "another copy of it, or an older backup"
        )


class ArchiveOfAnother(ArchiveRefused):
    """The stream is not the one that the archive is a copy of, or it went back in time."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One file: messages `from_seq` to `to_seq` without a gap; `bytes` and `sha256` of the file."""

    file: str
    from_seq: int
    to_seq: int
    bytes: int
    sha256: str


@dataclass(slots=True)
class Part:
    """What the archive has of one stream.

    `created` is the stream's time of creation when it was copied last; `first` and `last` are the
    fingerprints of message 1 and of message `last_seq`.
    """

    stream: str
    created: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    first: str = ""
    last: str = ""
    segments: list[Segment] = field(default_factory=list)

    @property
    def last_seq(self) -> int:
        """The sequence that the copy ends at; it has all of them from 1 on."""
        return self.segments[-1].to_seq if self.segments else 0

    @property
    def bytes(self) -> int:
        """Of its files."""
        return sum(segment.bytes for segment in self.segments)


def fingerprint(stored: Stored) -> str:
    """What tells a message from any other: hex SHA-256 over its place, its hash and its bytes."""
    place = f"{stored.seq} {stored.subject} {stored.headers.get(EVENT_HASH, '-')}\n"
    return sha256(place.encode() + stored.body).hexdigest()


class Archive:
    """The copy in one folder. `facts` is the caller's; it goes into the manifest with the rest."""

    def __init__(self, folder: Path, id: str) -> None:
        self.folder = folder
        self.id = id
        self.facts: dict[str, Any] = {}
        self.parts: dict[str, Part] = {}
        self._lock: FileLock | None = None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The archive in `folder`. Raises ArchiveDamaged, ArchiveRefused when there is none."""
        try:
            text = (folder / MANIFEST).read_bytes()
            content = from_json(text)
        except FileNotFoundError:
            raise ArchiveRefused(f"{folder} holds no backup ({MANIFEST} is missing)") from None
        except ValueError:
            raise ArchiveDamaged(folder, f"{MANIFEST} is no JSON") from None
        try:
            return cls._read(folder, content, text)
        except (KeyError, TypeError, AttributeError) as error:
            raise ArchiveDamaged(folder, f"{MANIFEST} lacks something: {error!r}") from None

    @classmethod
    def _read(cls, folder: Path, content: dict[str, Any], text: bytes) -> Self:
        if content["format"] != FORMAT:
            raise ArchiveRefused(
                f"{folder} is of format {content['format']!r}, this program reads {FORMAT!r}"
            )
        del content["sha256"]
        if text != _written(content):
            raise ArchiveDamaged(folder, f"{MANIFEST} has been changed")
        archive = cls(folder, content["id"])
        archive.facts = content["facts"]
        for name, part in content["streams"].items():
            segments = [Segment(**each) for each in part.pop("segments")]
            archive.parts[name] = Part(**part, segments=segments)
        return archive

    @classmethod
    def open_or_make(cls, folder: Path) -> Self:
        """The same, to be added to by this process alone until `close`; made where the folder is
        empty or missing. Raises ArchiveRefused for a folder that others use."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(folder / LOCK)
        except BlockingIOError:
            raise ArchiveRefused(f"another backup into {folder} is under way") from None
        try:
            if (folder / MANIFEST).exists():
                archive = cls.open(folder)
            elif any(each.name != LOCK for each in folder.iterdir()):
                raise ArchiveRefused(
                    f"{folder} holds files, and no backup: name a folder of its own"
                )
            else:
                archive = cls(folder, uuid4().hex)
        except BaseException:
            lock.close()
            raise
        archive._lock = lock
        return archive

    def close(self) -> None:
        """Lets others add to it."""
        if self._lock is not None:
            self._lock.close()

    # -- adding --------------------------------------------------------------------------------

    def part(self, stream: str) -> Part:
        """What there is of a stream, empty where there is nothing yet."""
        return self.parts.setdefault(stream, Part(stream))

    def save(self) -> None:
        """Writes the manifest, on disk when this returns."""
        content = {
            "format": FORMAT,
            "id": self.id,
            "facts": self.facts,
            "streams": {name: asdict(part) for name, part in self.parts.items()},
        }
        path = self.folder / MANIFEST
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(_written(content))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(self.folder)

    # -- reading -------------------------------------------------------------------------------

    def check(self, progress: Progress | None = None) -> None:
        """Reads every file and compares it with the manifest. Raises ArchiveDamaged."""
        total = sum(part.bytes for part in self.parts.values())
        done = 0
        for part in self.parts.values():
            due = 1
            for segment in part.segments:
                if segment.from_seq != due or segment.to_seq < due:
                    raise ArchiveDamaged(
                        self.folder, f"the files of {part.stream} lack sequence {due}"
                    )
                due = segment.to_seq + 1
                self._check_file(segment)
                done += segment.bytes
                if progress is not None:
                    progress(done, total)

    def _check_file(self, segment: Segment) -> None:
        path = self.folder / segment.file
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                digest = file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ArchiveDamaged(self.folder, f"{segment.file}: {error.strerror}") from None
        if size != segment.bytes or digest != segment.sha256:
            raise ArchiveDamaged(self.folder, f"the bytes of {segment.file} have been changed")

    def read(self, stream: str, from_seq: int = 1) -> Iterator[list[Stored]]:
        """The messages of a stream from `from_seq` on, oldest first, in blocks.

        Raises ArchiveDamaged.
        """
        for segment in self.part(stream).segments:
            if segment.to_seq < from_seq:
                continue
            due = segment.from_seq
            for block in self._read_file(segment):
                for stored in block:
                    if stored.seq != due:
                        raise ArchiveDamaged(self.folder, f"{segment.file} lacks sequence {due}")
                    due += 1
                if block[-1].seq >= from_seq:
                    yield [stored for stored in block if stored.seq >= from_seq]
            if due != segment.to_seq + 1:
                raise ArchiveDamaged(self.folder, f"{segment.file} lacks sequence {due}")

    def _read_file(self, segment: Segment) -> Iterator[list[Stored]]:
        block: list[Stored] = []
        try:
            with gzip.open(self.folder / segment.file) as lines:
                for line in lines:
                    block.append(from_stored(from_json(line)))
                    if len(block) == _READ_LINES:
                        yield block
                        block = []
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ArchiveDamaged(self.folder, f"{segment.file}: {error!r}") from None
        if block:
            yield block


class Writing:
    """Adds the messages of one stream to an archive, behind what it has of it already.

    Takes them in order; cuts segments at the ends of batches; what is behind the last
    of those is left to another run, which will find it whole.
    """

    def __init__(self, archive: Archive, part: Part) -> None:
        self._archive = archive
        self._part = part
        self._open: list[Stored] = []  # of a batch whose end has not come
        self._file: IO[bytes] | None = None
        self._gzip: gzip.GzipFile | None = None
        self._from_seq = 0
        self._events = 0
        self._bytes = 0
        self._last: Stored | None = None

    def take(self, messages: Sequence[Stored]) -> None:
        """Takes further messages. Raises ArchiveOfAnother where a sequence is missing."""
        due = self._due()
        for stored in messages:
            if stored.seq != due:
                raise ArchiveOfAnother(
                    f"{self._part.stream} has no sequence {due} ({stored.seq} comes next): the "
                    "ledger is damaged. `convo scrub` tells more; what was copied before is kept"
                )
            due += 1
            self._open.append(stored)
            if ends_batch(stored):
                self._put(self._open)
                self._open = []
                if self._events >= SEGMENT_EVENTS or self._bytes >= SEGMENT_BYTES:
                    self.cut()

    def cut(self) -> None:
        """Ends the segment at hand, if there is one: it is on disk and in the manifest then."""
        if self._gzip is None or self._file is None or self._last is None:
            return
        self._gzip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self._path()
        fresh = path.with_suffix(".new")
        with fresh.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        size = fresh.stat().st_size
        fresh.replace(path)
        sync_folder(path.parent)
        name = str(path.relative_to(self._archive.folder))
        segment = Segment(name, self._from_seq, self._last.seq, size, digest)
        self._part.segments.append(segment)
        self._part.last = fingerprint(self._last)
        self._file = self._gzip = None
        self._archive.save()

    def drop(self) -> None:
        """Forgets the segment at hand: it could not be written."""
        if self._file is not None:
            self._file.close()
            self._file = self._gzip = None
            self._path().with_suffix(".new").unlink(missing_ok=True)

    def _due(self) -> int:
        if self._open:
            return self._open[-1].seq + 1
        return (self._last.seq if self._last else self._part.last_seq) + 1

    def _put(self, messages: Sequence[Stored]) -> None:
        if self._gzip is None:
            self._from_seq = messages[0].seq
            self._events = self._bytes = 0
            path = self._path()
            path.parent.mkdir(exist_ok=True)
            self._file = path.with_suffix(".new").open("wb")
            self._gzip = gzip.GzipFile("", "wb", _GZIP_LEVEL, self._file, mtime=0)
        lines = b"".join(to_json(as_stored(stored)) + b"\n" for stored in messages)
        self._gzip.write(lines)
        self._events += len(messages)
        self._bytes += len(lines)
        self._last = messages[-1]
        if messages[0].seq == 1:
            self._part.first = fingerprint(messages[0])

    def _path(self) -> Path:
        return self._archive.folder / self._part.stream / f"{self._from_seq:015d}.jsonl.gz"


def _written(content: dict[str, Any]) -> bytes:
    """The manifest's file, with the digest of all the rest at its end."""
    digest = sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1, ensure_ascii=False).encode() + b"\n"
