"""The state tree against the whole recomputation written out, and proofs that no change survives."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ledger import state_tree
from protocol.ledger.state_tree import (
    ENTRY_BYTES,
    PAGE_ROWS_MAX,
    RowProof,
    RowProofInvalid,
    StateTree,
    row_leaf,
    row_place,
    verify_row,
)
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.units import Hash

KEYS = st.integers(min_value=0, max_value=120).map(lambda number: b"a" + number.to_bytes(32, "big"))
ROWS = st.dictionaries(KEYS, st.binary(min_size=1, max_size=8), max_size=90)
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(min_size=1, max_size=8), max_size=60)


def naive_root(rows: dict[bytes, bytes]) -> Hash:
    """The root from nothing but the rows, by the law in the module's docstring."""

    def over(entries: list[tuple[str, bytes]], depth: int) -> Hash:
        if len(entries) <= PAGE_ROWS_MAX:
            return digest(Domain.STATE_PAGE, b"".join(entry for _, entry in entries))
        halves = [[each for each in entries if each[0][depth] == bit] for bit in "01"]
        return digest(Domain.STATE_BRANCH, over(halves[0], depth + 1), over(halves[1], depth + 1))

    def bits(place: bytes) -> str:
        return f"{int.from_bytes(place, 'big'):0{8 * len(place)}b}"

    listed = [(row_place(key), row_leaf(key, value)) for key, value in rows.items()]
    return over(sorted((bits(place), place + leaf) for place, leaf in listed), 0)


def tree_of(rows: dict[bytes, bytes]) -> StateTree:
    return StateTree().updated({**rows})


def many(count: int, seed: int = 1) -> dict[bytes, bytes]:
    dice = random.Random(seed)
    return {b"a" + dice.randbytes(32): dice.randbytes(12) for _ in range(count)}


@settings(max_examples=100, deadline=None)
@given(ROWS, st.lists(CHANGES, max_size=4))
def test_any_way_to_the_rows_gives_the_root_of_the_naive_recomputation(
    rows: dict[bytes, bytes], detours: list[dict[bytes, bytes | None]]
) -> None:
    tree, held = tree_of(rows), dict(rows)
    stored = dict(tree.pages())
    for changes in detours:
        touched: dict[bytes, bytes | None] = {}
        tree = tree.updated(changes, touched)
        for key, value in changes.items():
            held.pop(key, None)
            if value is not None:
                held[key] = value
        for page, entries in touched.items():
            stored.pop(page, None)
            if entries is not None:
                stored[page] = entries
        assert tree.root == naive_root(held)
        assert tree.root == tree_of(held).root
        assert len(tree) == len(held)
        assert stored == dict(tree.pages())
    assert StateTree.from_pages(stored).root == tree.root


@settings(max_examples=60, deadline=None)
@given(ROWS, KEYS)
def test_every_row_and_every_absence_has_a_proof_that_shows_nothing_else(rows: dict[bytes, bytes], key: bytes) -> None:
    tree = tree_of(rows)
    proof = decode(encode(tree.prove(key)), RowProof)
    value = rows.get(key)
    verify_row(tree.root, key, value, proof)
    with pytest.raises(RowProofInvalid):
        verify_row(tree.root, key, b"another value", proof)
    with pytest.raises(RowProofInvalid):
        verify_row(tree.root, key, None if value is not None else b"", proof)


def test_an_earlier_tree_still_proves_after_a_later_one_was_made_of_it() -> None:
    rows = many(300)
    before = tree_of(rows)
    key = next(iter(rows))
    after = before.updated({key: b"new", b"b" + key: b"other"})
    verify_row(before.root, key, rows[key], before.prove(key))
    verify_row(before.root, b"b" + key, None, before.prove(b"b" + key))
    verify_row(after.root, key, b"new", after.prove(key))
    with pytest.raises(RowProofInvalid):
        verify_row(after.root, key, rows[key], before.prove(key))


def test_a_changed_bit_anywhere_in_a_proof_is_refused() -> None:
    rows = many(400)
    tree, key = tree_of(rows), next(iter(rows))
    absent = b"a" + bytes(32)
    for asked, value in ((key, rows[key]), (absent, None)):
        proven = encode(tree.prove(asked))
        for place in range(len(proven)):
            for bit in (1, 0x80):
                forged = bytearray(proven)
                forged[place] ^= bit
                with pytest.raises((RowProofInvalid, MalformedMessage)):
                    verify_row(tree.root, asked, value, decode(bytes(forged), RowProof))


def test_no_page_but_a_rows_own_proves_its_absence() -> None:
    rows = many(400)
    tree, key = tree_of(rows), next(iter(rows))
    for other in (*rows, *many(50, seed=2)):
        proof = tree.prove(other)
        if proof != tree.prove(key):
            with pytest.raises(RowProofInvalid):
                verify_row(tree.root, key, None, proof)


def test_a_branch_passes_for_no_page() -> None:
    rows = many(PAGE_ROWS_MAX + 1)
    tree = tree_of(rows)
    shortened = RowProof(b"", ())
    with pytest.raises(RowProofInvalid, match="root"):
        verify_row(tree.root, b"a", None, shortened)
    with pytest.raises(RowProofInvalid, match="cut"):
        verify_row(tree.root, b"a", None, RowProof(bytes(ENTRY_BYTES + 1), ()))


def test_accounts_that_differ_in_their_last_byte_alone_stand_apart() -> None:
    twins = {b"a" + bytes(31) + bytes((last,)): b"v" for last in range(200)}
    tree = tree_of(twins)
    assert max(len(tree.prove(key).siblings) for key in twins) <= 12
    for (key, value), (other, _) in pairwise(twins.items()):
        verify_row(tree.root, key, value, tree.prove(key))
        if tree.prove(other) != tree.prove(key):
            with pytest.raises(RowProofInvalid):
                verify_row(tree.root, key, value, tree.prove(other))


def test_ground_places_lengthen_a_proof_by_one_step_a_bit_and_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if somebody had found keys whose places all share their first 80 bits with a victim's.
    def ground(key: bytes) -> bytes:
        return bytes(10) + row_place(key)[10:]

    monkeypatch.setattr(state_tree, "row_place", ground)
    rows = many(200)
    tree = tree_of(rows)
    for key, value in rows.items():
        proof = tree.prove(key)
        assert len(proof.page) <= PAGE_ROWS_MAX * ENTRY_BYTES
        assert 80 < len(proof.siblings) <= 96
        verify_row(tree.root, key, value, proof)
    shrunk = tree.updated(dict.fromkeys(tuple(rows)[20:]))
    assert shrunk.root == tree_of(dict(tuple(rows.items())[:20])).root


@pytest.mark.parametrize("stray", [b"", b"x", b"x" * 25, bytes(24) + b"\xff", b"\xff" * 40])
def test_stored_pages_with_a_key_that_is_none_give_another_tree_and_no_error(stray: bytes) -> None:
    tree = StateTree().updated({b"a" + number.to_bytes(32, "big"): b"v" for number in range(40)})
    pages = dict(tree.pages())
    assert len(pages) > 1
    kept = dict(list(pages.items())[1:])
    assert StateTree.from_pages({**kept, stray: pages[min(pages)]}).root != tree.root
