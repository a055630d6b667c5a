"""The receipts' Merkle mountain range: proofs hold for what is in it and for nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.primitives.hashing import Domain, digest
from protocol.primitives.units import Hash
from protocol.settlement.accumulator import (
    EMPTY,
    EMPTY_ROOT,
    MembershipProof,
    accumulate,
    prove,
    receipt_leaf,
    verify_membership,
)


def leaves(count: int) -> list[Hash]:
    return [receipt_leaf(number.to_bytes(4, "big")) for number in range(count)]


def naive_root(of: list[Hash]) -> Hash:
    """By the definition: perfect trees along the binary digits of the count, bagged by one hash."""
    peaks: list[Hash] = []
    rest = list(of)
    while rest:
        size = 1 << (len(rest).bit_length() - 1)
        row, rest = rest[:size], rest[size:]
        while len(row) > 1:
            row = [digest(Domain.RECEIPT_NODE, row[place], row[place + 1]) for place in range(0, len(row), 2)]
        peaks.append(row[0])
    return digest(Domain.RECEIPTS_ROOT, len(of).to_bytes(8, "big"), *peaks) if of else EMPTY_ROOT


def test_empty_range_has_the_zero_root() -> None:
    assert EMPTY.root() == bytes(32)
    assert not verify_membership(EMPTY_ROOT, 0, leaves(1)[0], MembershipProof(0, (), ()))


@pytest.mark.parametrize("count", range(1, 34))
def test_every_leaf_of_every_size_is_proved_and_root_matches_the_definition(count: int) -> None:
    held = leaves(count)
    root = accumulate(held).root()
    assert root == naive_root(held)
    for index in range(count):
        proof = prove(held, index)
        assert proof.index == index
        assert verify_membership(root, count, held[index], proof)


def test_proof_at_append_equals_the_proof_from_all_leaves() -> None:
    accumulator = EMPTY
    held = leaves(40)
    for index, leaf in enumerate(held):
        accumulator, proof = accumulator.append_proved(leaf)
        assert proof == prove(held[: index + 1], index)
        assert verify_membership(accumulator.root(), index + 1, leaf, proof)


@given(st.integers(1, 40), st.data())
def test_a_proof_holds_for_its_leaf_index_count_and_root_alone(count: int, data: st.DataObject) -> None:
    held = leaves(count)
    root = accumulate(held).root()
    index = data.draw(st.integers(0, count - 1))
    proof = prove(held, index)
    other = data.draw(st.integers(0, count + 3))
    if other != index:
        moved = MembershipProof(other, proof.path, proof.peaks)
        assert not verify_membership(root, count, held[index], moved)
        assert not verify_membership(root, count, receipt_leaf(b"another"), proof)
    assert not verify_membership(root, count + 1, held[index], proof)
    assert not verify_membership(Hash(bytes(32)), count, held[index], proof)
    for place in range(len(proof.path)):
        path = (*proof.path[:place], Hash(b"x" * 32), *proof.path[place + 1 :])
        assert not verify_membership(root, count, held[index], MembershipProof(index, path, proof.peaks))
    for place in range(len(proof.peaks)):
        peaks = (*proof.peaks[:place], Hash(b"x" * 32), *proof.peaks[place + 1 :])
        assert not verify_membership(root, count, held[index], MembershipProof(index, proof.path, peaks))
    longer = MembershipProof(index, (*proof.path, Hash(b"x" * 32)), proof.peaks)
    assert not verify_membership(root, count, held[index], longer)
    more = MembershipProof(index, proof.path, (*proof.peaks, Hash(b"x" * 32)))
    assert not verify_membership(root, count, held[index], more)


def test_an_inner_node_is_no_leaf() -> None:
    held = leaves(4)
    inner = digest(Domain.RECEIPT_NODE, held[0], held[1])
    proof = prove(held, 0)
    assert not verify_membership(accumulate(held).root(), 4, inner, MembershipProof(0, proof.path[1:], proof.peaks))


@pytest.mark.parametrize("index", [-1, 3])
def test_proving_outside_the_range_is_an_error(index: int) -> None:
    with pytest.raises(IndexError):
        prove(leaves(3), index)
