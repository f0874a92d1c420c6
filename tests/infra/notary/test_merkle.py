"""The tree against RFC 6962's own definitions, written down once more in the plainest way."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.notary.merkle import (
    EMPTY_ROOT,
    Frontier,
    Range,
    Roots,
    consistency_ranges,
    cover_ranges,
    inclusion_ranges,
    is_consistent,
    leaf_hash,
    root_of_cover,
    root_of_inclusion,
)

# The test vectors that Certificate Transparency implementations share.
ENTRIES = [
    bytes.fromhex(each)
    for each in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def mth(entries: list[bytes]) -> bytes:
    """MTH of section 2.1."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = largest_power_below(len(entries))
    return hashlib.sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m: int, entries: list[bytes]) -> list[bytes]:
    """PATH of section 2.1.1."""
    if len(entries) == 1:
        return []
    k = largest_power_below(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of section 2.1.2; PROOF is SUBPROOF with `whole`."""
    if m == len(entries):
        return [] if whole else [mth(entries)]
    k = largest_power_below(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


def largest_power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def entries_of(size: int) -> list[bytes]:
    return [b"entry %d" % number for number in range(size)]


def roots_of(entries: list[bytes], ranges: list[Range]) -> list[bytes]:
    roots = Roots(ranges)
    for entry in entries:
        roots.append(leaf_hash(entry))
    return roots.of(ranges)


def tree(entries: list[bytes]) -> Frontier:
    frontier = Frontier()
    for entry in entries:
        frontier.append(leaf_hash(entry))
    return frontier


def test_the_roots_are_those_of_the_shared_vectors() -> None:
    frontier = Frontier()
    assert frontier.root() == EMPTY_ROOT == mth([])
    for entry, root in zip(ENTRIES, ROOTS, strict=True):
        frontier.append(leaf_hash(entry))
        assert frontier.root().hex() == root


@pytest.mark.parametrize("size", range(1, 41))
def test_every_proof_of_every_small_tree_is_that_of_the_rfc(size: int) -> None:
    entries = entries_of(size)
    root = mth(entries)
    assert tree(entries).root() == root
    for index in range(size):
        proof = roots_of(entries, inclusion_ranges(index, size))
        assert proof == path(index, entries)
        leaf = leaf_hash(entries[index])
        assert root_of_inclusion(leaf, index, size, proof) == root
        if size > 1:
            assert root_of_inclusion(leaf, (index + 1) % size, size, proof) != root
    for old in range(1, size + 1):
        proof = roots_of(entries, consistency_ranges(old, size))
        assert proof == subproof(old, entries, True)
        assert is_consistent(old, mth(entries[:old]), size, root, proof)
        assert not is_consistent(old, mth(entries[1 : old + 1]), size, root, proof)
        assert not is_consistent(old, mth(entries[:old]), size, mth([b"x", *entries[1:]]), proof)


@given(st.integers(1, 300), st.data())
def test_a_tree_goes_on_from_its_frontier(size: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, size))
    entries = entries_of(size)
    first = tree(entries[:cut])

    second = Frontier(first.size, first.roots)
    for entry in entries[cut:]:
        second.append(leaf_hash(entry))

    assert second.root() == mth(entries)


@given(st.integers(1, 200), st.data())
def test_a_cover_and_its_entries_make_the_root_and_no_other_entries_do(
    size: int, data: st.DataObject
) -> None:
    entries = entries_of(size)
    indices = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    cover = roots_of(entries, cover_ranges(indices, size))
    leaves = [(index, leaf_hash(entries[index])) for index in indices]

    assert root_of_cover(leaves, size, cover) == mth(entries)
    forged = [(indices[0], leaf_hash(b"another")), *leaves[1:]]
    assert root_of_cover(forged, size, cover) != mth(entries)
    assert root_of_cover(leaves[1:], size, cover) != mth(entries)
    if cover:
        assert root_of_cover(leaves, size, cover[1:]) is None


def test_proofs_of_the_wrong_shape_prove_nothing() -> None:
    entries = entries_of(5)
    leaf = leaf_hash(entries[2])
    proof = path(2, entries)

    assert root_of_inclusion(leaf, 5, 5, proof) is None
    assert root_of_inclusion(leaf, -1, 5, proof) is None
    assert root_of_inclusion(leaf, 2, 5, [*proof, proof[0]]) is None
    assert root_of_cover([(1, leaf), (1, leaf)], 5, []) is None
    assert not is_consistent(0, EMPTY_ROOT, 5, mth(entries), [])
    assert not is_consistent(6, mth(entries), 5, mth(entries), [])


def test_a_frontier_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="3 entries"):
        Frontier(3, [bytes(32)])
    with pytest.raises(ValueError, match="1 entries"):
        Frontier(1, [bytes(31)])
