"""The state root forgets its history; the transaction tree proves membership and nothing else."""

import random

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ledger.lattice import EMPTY_LATTICE, LANES, LatticeSum, lattice_root, updated
from protocol.ledger.merkle import EMPTY_ROOT, MerkleStep, merkle_path, merkle_root, root_of_path, transaction_leaf
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.units import Hash

ROWS = st.dictionaries(st.binary(min_size=1, max_size=40), st.binary(max_size=80), max_size=12)


def naive_root(rows: dict[bytes, bytes]) -> Hash:
    """The root as a sum of lanes written out one by one."""
    lanes = [0] * LANES
    for key, value in rows.items():
        framed = Domain.STATE_ROW.value + len(key).to_bytes(4, "big") + key + value
        output = blake3(framed).digest(length=2 * LANES)
        for lane in range(LANES):
            lanes[lane] = (lanes[lane] + int.from_bytes(output[2 * lane : 2 * lane + 2], "little")) % 2**16
    return digest(Domain.STATE_ROOT, b"".join(lane.to_bytes(2, "little") for lane in lanes))


def summed(rows: dict[bytes, bytes]) -> LatticeSum:
    return updated(EMPTY_LATTICE, (), rows.items())


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_the_fast_sum_equals_the_naive_one(rows: dict[bytes, bytes]) -> None:
    assert lattice_root(summed(rows)) == naive_root(rows)


@settings(max_examples=100, deadline=None)
@given(ROWS, ROWS, st.randoms(use_true_random=False))
def test_any_way_to_the_same_rows_gives_the_same_root(
    target: dict[bytes, bytes], detour: dict[bytes, bytes], dice: random.Random
) -> None:
    steps: list[tuple[bool, tuple[bytes, bytes]]] = []
    for row in detour.items():
        steps += [(True, row), (False, row)]
    steps += [(True, row) for row in target.items()]
    dice.shuffle(steps)  # Even removals that come before their addition: the sum is a group.
    lattice = EMPTY_LATTICE
    for coming, row in steps:
        lattice = updated(lattice, (), (row,)) if coming else updated(lattice, (row,), ())
    assert lattice == summed(target)
    assert lattice_root(lattice) == naive_root(target)


@settings(max_examples=50, deadline=None)
@given(ROWS, ROWS)
def test_different_rows_have_different_roots(left: dict[bytes, bytes], right: dict[bytes, bytes]) -> None:
    assert (lattice_root(summed(left)) == lattice_root(summed(right))) is (left == right)


def test_a_key_and_its_value_cannot_be_cut_elsewhere() -> None:
    assert summed({b"ab": b"c"}) != summed({b"a": b"bc"})


def test_a_sum_over_more_rows_than_fit_between_two_carries_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {number.to_bytes(2, "big"): b"v" for number in range(300)}
    at_once = summed(rows)
    monkeypatch.setattr("protocol.ledger.lattice._ADDITIONS_BEFORE_CARRY_MAX", 7)
    assert summed(rows) == at_once
    assert updated(at_once, rows.items(), ()) == EMPTY_LATTICE
    assert lattice_root(at_once) == naive_root(rows)


def leaves_of(count: int) -> list[Hash]:
    return [transaction_leaf(bytes((number,))) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 13, 16, 33])
def test_every_leaf_has_a_path_and_no_other_leaf_passes_on_it(count: int) -> None:
    leaves = leaves_of(count)
    root = merkle_root(leaves)
    for index, leaf in enumerate(leaves):
        path = merkle_path(leaves, index)
        assert root_of_path(leaf, path) == root
        assert root_of_path(transaction_leaf(b"other"), path) != root
        for step, taken in enumerate(path):
            turned = (*path[:step], MerkleStep(taken.sibling, not taken.on_left), *path[step + 1 :])
            assert root_of_path(leaf, turned) != root


def test_roots_differ_by_order_and_by_number() -> None:
    leaves = leaves_of(4)
    roots = [merkle_root(leaves[:count]) for count in range(5)] + [merkle_root(leaves[::-1])]
    assert roots[0] == EMPTY_ROOT
    assert len(set(roots)) == len(roots)
    with pytest.raises(IndexError):
        merkle_path(leaves, 4)


def test_an_inner_node_does_not_pass_for_a_leaf() -> None:
    left, right = leaves_of(2)
    assert merkle_root([left, right]) != transaction_leaf(left + right)
