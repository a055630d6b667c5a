"""Authority sets and the structure of certificates."""

import pytest

from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.quorum import AuthoritySet, CertificateInvalid, certificate_checks
from protocol.primitives.units import BlockHash, Hash, Height, Signature, View
from tests.consensus.council import X, authority_set

GENESIS = Hash(b"g" * 32)
VOTED, SKIPPED, DECIDED = CertificateKind.VOTED, CertificateKind.SKIPPED, CertificateKind.DECIDED


@pytest.mark.parametrize("n", range(1, 31))
def test_two_quorums_share_an_honest_member_and_honest_members_reach_a_quorum(n: int) -> None:
    authorities = authority_set(n)
    f, quorum = authorities.f, authorities.quorum
    assert 2 * quorum - n > f
    assert quorum <= n - f
    assert f == (n - 1) // 3


@pytest.mark.parametrize("n", [1, 2, 4, 7, 30])
def test_every_authority_leads_within_n_views(n: int) -> None:
    authorities = authority_set(n)
    leaders = [authorities.leader(Height(5), View(view)) for view in range(1, n + 1)]
    assert sorted(leaders) == [record.authority for record in authorities.records]
    assert all(authorities.index_of(leader) is not None for leader in leaders)


def test_order_of_records_changes_neither_set_nor_hash() -> None:
    authorities = authority_set(4)
    turned = AuthoritySet(tuple(reversed(authorities.records)))
    assert turned.records == authorities.records
    assert turned.hash() == authorities.hash()
    assert authority_set(5).hash() != authorities.hash()


def test_a_repeated_key_or_an_empty_set_is_refused() -> None:
    record = authority_set(1).records[0]
    with pytest.raises(ValueError, match="twice"):
        AuthoritySet((record, record))
    with pytest.raises(ValueError, match="1 to 30"):
        AuthoritySet(())


def _certificate(
    kind: CertificateKind = VOTED,
    block_hash: BlockHash | None = X,
    signers: tuple[int, ...] = (0, 1, 3),
    signatures: int | None = None,
    height: int = 1,
    view: int = 1,
) -> Certificate:
    count = len(signers) if signatures is None else signatures
    return Certificate(
        kind, Height(height), View(view), block_hash, signers, tuple(Signature(bytes(64)) for _ in range(count))
    )


@pytest.mark.parametrize(
    "broken",
    [
        _certificate(signers=(0, 1)),
        _certificate(signers=(0, 1, 1)),
        _certificate(signers=(0, 2, 1)),
        _certificate(signers=(0, 1, 4)),
        _certificate(signatures=2),
        _certificate(signatures=4),
        _certificate(block_hash=None),
        _certificate(kind=SKIPPED),
        _certificate(kind=DECIDED, block_hash=None),
        _certificate(height=0),
        _certificate(view=0),
    ],
    ids=[
        "one short of a quorum",
        "a signer twice",
        "signers out of order",
        "a signer outside the set",
        "too few signatures",
        "too many signatures",
        "VC without a block",
        "SC with a block",
        "DC without a block",
        "height 0",
        "view 0",
    ],
)
def test_wrong_structure_is_refused_before_any_signature(broken: Certificate) -> None:
    with pytest.raises(CertificateInvalid):
        certificate_checks(GENESIS, authority_set(4), broken)


@pytest.mark.parametrize(("kind", "block_hash"), [(VOTED, X), (DECIDED, X), (SKIPPED, None)])
def test_one_check_for_each_signer_over_one_statement(kind: CertificateKind, block_hash: BlockHash | None) -> None:
    authorities = authority_set(4)
    checks = certificate_checks(GENESIS, authorities, _certificate(kind, block_hash, (0, 1, 3)))
    assert [bytes(check.key) for check in checks] == [
        bytes(authorities.records[signer].authority) for signer in (0, 1, 3)
    ]
    assert len({check.message for check in checks}) == 1


def test_voted_skipped_and_decided_are_three_different_statements() -> None:
    statements = {
        certificate_checks(GENESIS, authority_set(4), _certificate(kind, block_hash))[0].message
        for kind, block_hash in ((VOTED, X), (DECIDED, X), (SKIPPED, None))
    }
    assert len(statements) == 3
