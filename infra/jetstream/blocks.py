"""The end of a stopped nats-server's stream cut off: for a part of a batch that a power cut left.

nats-server writes a batch into its stream message by message and syncs once. When power fails in
between, some of it may be on the disk, and the server completes it at its next start from where it
was staged. Staged in memory (`infra.staging`) the rest is gone, so the part has to go too: nobody
was told that it is stored. To cut it off leaves the store as that power cut might as well have
left it, a moment earlier.

A stream's folder holds blocks of messages, `msgs/<N>.blk`, and `msgs/index.db`, which sums them up
and is made anew where it is missing. A message in a block, integers little-endian: its length (32
bits, the highest one set if it has headers), sequence (64, the two highest bits mark what is no
message), time (64), length of its subject (16), subject, headers, body, checksum. (nats-server
2.15.1, server/filestore.go.)
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from infra.sync import sync_folder

_HEAD = struct.Struct("<IQqH")
_LENGTH = 0x7FFF_FFFF
_MARKS = 0b11 << 62
_CHECKSUM_BYTES = 8
_RECORD_BYTES_MAX = 32 * 1024 * 1024


class BlocksUnreadable(Exception):
    """The blocks do not look as this module knows them; nothing was changed."""


def cut_from(stream: Path, seq: int) -> None:
    """Removes every message from sequence `seq` on; returns when that is on the disk.

    `stream` is the stream's folder, of a server that does not run. BlocksUnreadable, OSError.
    """
    blocks = sorted(
        (stream / "msgs").glob("*.blk"), key=lambda block: int(block.stem), reverse=True
    )
    whole: list[Path] = []
    for block in blocks:
        places = dict(_messages(block))
        if seq in places:
            (stream / "msgs" / "index.db").unlink(missing_ok=True)
            for later in whole:
                later.unlink()
            with block.open("r+b") as file:
                file.truncate(places[seq])
                os.fsync(file.fileno())
            sync_folder(stream / "msgs")
            return
        if places and max(places) < seq:
            break
        whole.append(block)
    raise BlocksUnreadable(f"sequence {seq} was not found in the blocks of {stream}")


def _messages(block: Path) -> Iterator[tuple[int, int]]:
    """Sequence and place of each message of a block, in order."""
    data = block.read_bytes()
    place = 0
    while place + _HEAD.size <= len(data):
        length, seq, _, subject = _HEAD.unpack_from(data, place)
        length &= _LENGTH
        if not _HEAD.size + subject + _CHECKSUM_BYTES <= length <= _RECORD_BYTES_MAX:
            raise BlocksUnreadable(f"what is at byte {place} of {block} is no message")
        if not seq & _MARKS:
            yield seq, place
        place += length
