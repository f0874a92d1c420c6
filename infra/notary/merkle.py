"""The Merkle tree of RFC 6962 (section 2.1), SHA-256, over entries that come one after the other.

A tree of n entries is named by n and its root. A proof is a list of hashes of subtrees; which ones
is said by the ranges of entries that they cover, half open, counted from 0. All of it is computed
in one pass over the entries' hashes, in memory that grows with the logarithm of n.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

HASH_BYTES = 32


class Range(NamedTuple):
    """The entries `start` … `end - 1`."""

    start: int
    end: int


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a subtree made of two."""
    return sha256(b"\x01" + left + right).digest()


EMPTY_ROOT = sha256(b"").digest()


class Frontier:
    """A tree that grows at its right: the roots of its full subtrees, the largest first.

    There is one for each bit of `size` that is set; they are all that is needed to go on.
    """

    __slots__ = ("_roots", "size")

    def __init__(self, size: int = 0, roots: Sequence[bytes] = ()) -> None:
        """Raises ValueError for roots that cannot be those of a tree of this size."""
        if len(roots) != size.bit_count() or any(len(each) != HASH_BYTES for each in roots):
            raise ValueError(f"{len(roots)} subtrees cannot make a tree of {size} entries")
        self.size = size
        self._roots = list(roots)

    @property
    def roots(self) -> list[bytes]:
        """The full subtrees' roots, the largest first."""
        return list(self._roots)

    def append(self, leaf: bytes) -> None:
        """Adds an entry by its `leaf_hash`."""
        roots = self._roots
        size = self.size
        while size & 1:  # two full subtrees of one height make a higher one
            leaf = sha256(b"\x01" + roots.pop() + leaf).digest()
            size >>= 1
        roots.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        if not self._roots:
            return EMPTY_ROOT
        *rest, root = self._roots
        for left in reversed(rest):
            root = node_hash(left, root)
        return root


def split(span: Range) -> int:
    """Where RFC 6962 divides a range of two entries or more: at the largest power of two."""
    return span.start + (1 << (span.end - span.start - 1).bit_length() - 1)


# -- which subtrees a proof consists of ------------------------------------------------------------


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The subtrees of the audit path (2.1.1) of one entry, from the leaf to the root."""
    assert 0 <= index < size, "only an entry of the tree is included in it"
    path: list[Range] = []
    span = Range(0, size)
    while span.end - span.start > 1:
        middle = split(span)
        left, right = Range(span.start, middle), Range(middle, span.end)
        path.append(right if index < middle else left)
        span = left if index < middle else right
    path.reverse()
    return path


def consistency_ranges(old_size: int, size: int) -> list[Range]:
    """The subtrees of the consistency proof (2.1.2) between two sizes; none when they are equal."""
    assert 0 < old_size <= size, "an older tree is not larger, and holds something"
    ranges: list[Range] = []
    span = Range(0, size)
    whole = True  # whether the old tree's part in this span is a whole subtree of the old tree
    while old_size != span.end:
        middle = split(span)
        if old_size <= middle:
            ranges.append(Range(middle, span.end))
            span = Range(span.start, middle)
        else:
            ranges.append(Range(span.start, middle))
            span = Range(middle, span.end)
            whole = False
    if not whole:
        ranges.append(span)
    ranges.reverse()
    return ranges


def cover_ranges(indices: Sequence[int], size: int) -> list[Range]:
    """The fewest subtrees that, with the entries at `indices` (sorted), make up the tree.

    From left to right. This is the audit paths of all the entries in one, without repetition.
    """
    return list(_cover(indices, Range(0, size))) if size else []


def _cover(indices: Sequence[int], span: Range) -> Iterator[Range]:
    first = bisect_left(indices, span.start)
    if first == len(indices) or indices[first] >= span.end:
        yield span
    elif span.end - span.start > 1:
        middle = split(span)
        yield from _cover(indices, Range(span.start, middle))
        yield from _cover(indices, Range(middle, span.end))


class Roots:
    """Computes the roots of disjoint ranges, given every entry's hash in order."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self._ranges = sorted(set(ranges))
        self._found: dict[Range, bytes] = {}
        self._next = 0
        self._index = 0
        self._frontier = Frontier()

    def append(self, leaf: bytes) -> None:
        """Takes the hash of the next entry."""
        if self._next < len(self._ranges):
            span = self._ranges[self._next]
            if self._index >= span.start:
                self._frontier.append(leaf)
                if self._index + 1 == span.end:
                    self._found[span] = self._frontier.root()
                    self._frontier = Frontier()
                    self._next += 1
        self._index += 1

    def of(self, ranges: Iterable[Range]) -> list[bytes]:
        """The roots of these ranges, in this order. Raises ValueError while one is not complete."""
        try:
            return [self._found[each] for each in ranges]
        except KeyError as missing:
            raise ValueError(f"the tree has not grown to {missing} yet") from None


# -- what a proof proves ---------------------------------------------------------------------------


def root_of_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that an audit path leads to from an entry's hash; None when it cannot be one."""
    if not 0 <= index < size:
        return None
    ranges = inclusion_ranges(index, size)
    if len(path) != len(ranges):
        return None
    root = leaf
    for span, sibling in zip(ranges, path, strict=True):
        root = node_hash(sibling, root) if span.start < index else node_hash(root, sibling)
    return root


def is_consistent(
    old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether the proof shows that the tree of `size` begins with the whole tree of `old_size`."""
    if not 0 < old_size <= size:
        return False
    ranges = consistency_ranges(old_size, size)
    if len(proof) != len(ranges):
        return False
    known = dict(zip(ranges, proof, strict=True))
    if old_size & (old_size - 1) == 0 or old_size == size:
        known[Range(0, old_size)] = old_root  # a whole subtree: the proof leaves it out
    return (
        _rebuilt(Range(0, old_size), known) == old_root and _rebuilt(Range(0, size), known) == root
    )


def root_of_cover(
    leaves: Sequence[tuple[int, bytes]], size: int, cover: Sequence[bytes]
) -> bytes | None:
    """The root that entries (index, hash; sorted) and the subtrees around them lead to.

    None when the number of subtrees, or an index, cannot be right.
    """
    indices = [index for index, _ in leaves]
    if any(not 0 <= index < size for index in indices) or indices != sorted(set(indices)):
        return None
    ranges = cover_ranges(indices, size)
    if len(ranges) != len(cover):
        return None
    known = dict(zip(ranges, cover, strict=True))
    known |= {Range(index, index + 1): leaf for index, leaf in leaves}
    return _rebuilt(Range(0, size), known) if size else EMPTY_ROOT


def _rebuilt(span: Range, known: dict[Range, bytes]) -> bytes:
    """The root of a range out of the roots of its parts."""
    found = known.get(span)
    if found is not None:
        return found
    if span.end - span.start == 1:
        return b""  # not covered: gives a root that nothing has
    middle = split(span)
    return node_hash(
        _rebuilt(Range(span.start, middle), known), _rebuilt(Range(middle, span.end), known)
    )
