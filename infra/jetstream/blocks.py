"""The end of a stopped nats-server's stream: a part of a batch that has lost its rest, cut off.

nats-server writes a batch into its stream message by message and syncs once. When power fails in
between, some of it may be on the disk, and the server completes it at its next start from where it
was staged. Staged in memory (`infra.staging`) the rest is gone, so the part has to go too: nobody
was told that it is stored. To cut it off leaves the store as that power cut might as well have
left it, a moment earlier. The rest is lost as well where that next start finds the disk full: the
server cannot complete the batch then, and removes what was staged all the same.

A stream's folder holds blocks of messages, `msgs/<N>.blk`, and `msgs/index.db`, which sums them up
and is made anew where it is missing. A message in a block, integers little-endian: its length (32
bits, the highest one set if it has headers), sequence (64, the two highest bits mark what is no
message), time (64), length of its subject (16), subject, length of its headers (32, if it has any),
headers, body, checksum. A batch is staged in `batches/<its hashed id>/`. (nats-server 2.15.1,
server/filestore.go, server/jetstream_batching.go.)
"""

from __future__ import annotations

import os
import string
import struct
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from infra.jetstream.envelope import (
    BATCH_COMMIT,
    BATCH_ID,
    BATCH_SEQUENCE,
    EVENT_HASH,
    EVENT_TYPE,
    EVENT_VERSION,
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    header_lines,
)
from infra.jetstream.whole import whole_up_to
from infra.sync import sync_folder

_HEAD = struct.Struct("<IQqH")
_NUMBER = struct.Struct("<Q")
_NUMBER32 = struct.Struct("<I")
_LENGTH = 0x7FFF_FFFF
_HAS_HEADERS = 0x8000_0000
_MARKS = 0b11 << 62
_CHECKSUM_BYTES = 8
_KNOWN = {
    *(EVENT_TYPE, EVENT_VERSION, EVENT_HASH),
    *(BATCH_ID, BATCH_SEQUENCE, EXPECTED_LAST_SUBJECT_SEQUENCE),
}
"""Headers of a message within a batch: with any other name it may be a damaged commit."""

_RECORD_BYTES_MAX = 32 * 1024 * 1024


class BlocksUnreadable(Exception):
    """The blocks do not look as this module knows them; nothing was changed."""


def cut_from(stream: Path, seq: int, *, kept_in: Path | None = None) -> None:
    """Removes every message from sequence `seq` on; returns when that is on the disk.

    `stream` is the stream's folder, of a server that does not run. What is removed is put into a
    file in the folder `kept_in` first. BlocksUnreadable, OSError.
    """
    whole: list[Path] = []
    for block in _newest_first(stream):
        places = dict(_messages(block))
        if seq in places:
            if kept_in is not None:
                later = b"".join(each.read_bytes() for each in reversed(whole))
                _keep(block.read_bytes()[places[seq] :] + later, kept_in, f"{stream.name}-{seq}")
            (stream / "msgs" / "index.db").unlink(missing_ok=True)
            for each in whole:
                each.unlink()
            with block.open("r+b") as file:
                file.truncate(places[seq])
                os.fsync(file.fileno())
            sync_folder(stream / "msgs")
            return
        if places and max(places) < seq:
            break
        whole.append(block)
    raise BlocksUnreadable(f"sequence {seq} was not found in the blocks of {stream}")


def _keep(removed: bytes, folder: Path, name: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / f"{name}-{time.time_ns()}.blk").open("xb") as file:
        file.write(removed)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def abandoned(stream: Path) -> int | None:
    """The sequence from which on the stream ends with a part of a batch whose rest is not staged
    any more; None where there is no such part.

    `stream` is the stream's folder, of a server that does not run. BlocksUnreadable, OSError.
    """
    for block in _newest_first(stream):
        if places := dict(_messages(block)):
            return _open_from(block, places, stream / "batches")
    return None


def _open_from(block: Path, places: Mapping[int, int], staged: Path) -> int | None:
    data = block.read_bytes()
    seq = max(places)
    headers = _headers(data, places[seq])
    try:
        whole = whole_up_to(seq, headers)
    except ValueError as error:
        raise BlocksUnreadable(f"sequence {seq} in {block} is damaged: {error}") from error
    if seq == whole or (staged / staged_as(headers[BATCH_ID])).is_dir():
        return None
    (length,) = _NUMBER32.unpack_from(data, places[seq])
    behind = data[places[seq] + (length & _LENGTH) :]
    if len(behind) >= _HEAD.size and _HEAD.unpack_from(behind)[1] & _MARKS:
        raise BlocksUnreadable(f"behind sequence {seq} in {block} is what is no message")
    for each in range(max(whole + 1, min(places)), seq + 1):  # what else is in this block
        expected = {BATCH_ID: headers[BATCH_ID], BATCH_SEQUENCE: str(each - whole)}
        found = _headers(data, places[each]) if each in places else {}
        if found.keys() - _KNOWN or expected.items() - found.items():
            raise BlocksUnreadable(
                f"sequence {each} in {block} is no part of a batch as we know them"
            )
    return whole + 1


def staged_as(batch_id: str) -> str:
    """The name of the folder that a batch is staged in."""
    digits = string.digits + string.ascii_uppercase + string.ascii_lowercase
    return "".join(digits[byte % 62] for byte in sha256(batch_id.encode()).digest()[:8])


def _newest_first(stream: Path) -> list[Path]:
    blocks = (stream / "msgs").glob("*.blk")
    return sorted(blocks, key=lambda block: int(block.stem), reverse=True)


def _headers(data: bytes, place: int) -> Mapping[str, str]:
    """Those of the message at a place of a block."""
    length, _, _, subject = _HEAD.unpack_from(data, place)
    if not length & _HAS_HEADERS:
        return {}
    begin = place + _HEAD.size + subject + _NUMBER32.size
    (size,) = _NUMBER32.unpack_from(data, begin - _NUMBER32.size)
    raw = data[begin : begin + size]
    headers = dict(header_lines(raw))
    if not raw.endswith(b"\r\n\r\n") or len(headers) != raw.count(b"\r\n") - 2:
        raise BlocksUnreadable(f"the headers of the message at byte {place} are damaged")
    return headers


def _messages(block: Path) -> Iterator[tuple[int, int]]:
    """Sequence and place of each message of a block, in order.

    The last one may be cut short, as a full disk leaves it: the server drops that. One whose length
    is damaged looks alike; BlocksUnreadable where something says that it is that: others behind it,
    or a commit that would be whole but for a single bit.
    """
    data = block.read_bytes()
    place = last = 0
    while place + _HEAD.size <= len(data):
        length, seq, _, subject = _HEAD.unpack_from(data, place)
        length &= _LENGTH
        if not _HEAD.size + subject + _CHECKSUM_BYTES <= length <= _RECORD_BYTES_MAX:
            raise BlocksUnreadable(f"what is at byte {place} of {block} is no message")
        if place + length > len(data):
            rest = data[place:]
            missing = length - len(rest)
            one_bit = missing.bit_count() == 1 and BATCH_COMMIT.encode() in rest
            if (last and seq != last + 1) or _NUMBER.pack(seq + 1) in rest[_HEAD.size :] or one_bit:
                raise BlocksUnreadable(f"what is at byte {place} of {block} is damaged")
            return
        if not seq & _MARKS:
            if seq <= last:
                raise BlocksUnreadable(f"the sequence at byte {place} of {block} is damaged")
            last = seq
            yield seq, place
        place += length
