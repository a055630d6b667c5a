"""Replaying a chain from its genesis: an honest one gives the state, and every forgery is named by its block."""

import msgspec
import pytest

from protocol.engine.replay import Replay, ReplayFailed, RowDifference, first_difference
from protocol.ledger.rows import FEE_POOL_KEY, Account, account_row, sum_row
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Block, DecidedBlock, Header, header_hash
from protocol.messages.consensus import Certificate
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import Amount, Nonce, Signature
from tests.ledger.world import account_of
from tests.store.chain import Chain

LENGTH = 20


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


@pytest.fixture(scope="module")
def blocks(chain: Chain) -> tuple[DecidedBlock, ...]:
    return tuple(chain.next(2).decided for _ in range(LENGTH))


def replayed(chain: Chain, blocks: tuple[DecidedBlock, ...]) -> Replay:
    """All blocks executed from the genesis, as somebody does who has nothing else."""
    replay = Replay(LedgerState.from_genesis(chain.ledger.genesis))
    for each in blocks:
        replay.take(each)
    return replay


def test_a_chain_gives_every_row_of_the_state_that_made_it(chain: Chain, blocks: tuple[DecidedBlock, ...]) -> None:
    replay = replayed(chain, blocks)
    assert replay.state.tip_hash == chain.ledger.state.tip_hash
    assert first_difference(replay.state.rows(), chain.ledger.state.rows()) is None
    assert replay.transactions == 2 * LENGTH
    assert replay.signatures == LENGTH * (2 + 3)  # the parents' certificates are the ones that were checked


def without_signature(certificate: Certificate) -> Certificate:
    """The same certificate with one signature that does not hold."""
    broken = Signature(bytes((certificate.signatures[-1][0] ^ 1,)) + certificate.signatures[-1][1:])
    return msgspec.structs.replace(certificate, signatures=(*certificate.signatures[:-1], broken))


def altered(chain: Chain, decided: DecidedBlock, what: str) -> DecidedBlock:
    """A block with one thing wrong, certified again if the header had to change."""
    block = decode(decided.block, Block)
    parent, transactions, header = block.parent_certificate, block.transactions, block.header
    match what:
        case "certificate":
            return msgspec.structs.replace(decided, certificate=without_signature(decided.certificate))
        case "bytes":
            return msgspec.structs.replace(decided, block=decided.block[:-1] + bytes((decided.block[-1] ^ 1,)))
        case "state root":
            header = msgspec.structs.replace(header, state_root=header.transactions_root)
        case "checkpoint root":
            header = msgspec.structs.replace(header, checkpoint_root=header.state_root)
        case "transaction":
            transactions = transactions[::-1]
        case "parent certificate":
            assert parent is not None
            parent = without_signature(parent)
            header = _with_parent(header, parent)
    changed = Block(header, parent, transactions)
    return DecidedBlock(encode(changed), chain.ledger.certify(header))


def _with_parent(header: Header, parent: Certificate) -> Header:
    from protocol.messages.blocks import certificate_hash

    return msgspec.structs.replace(header, parent_certificate_hash=certificate_hash(parent))


@pytest.mark.parametrize(
    "what", ["certificate", "bytes", "state root", "checkpoint root", "transaction", "parent certificate"]
)
def test_a_forged_block_is_named_although_its_authorities_signed_it(
    chain: Chain, blocks: tuple[DecidedBlock, ...], what: str
) -> None:
    replay = replayed(chain, blocks[:9])
    before = replay.state.tip_hash
    with pytest.raises(ReplayFailed, match="block 10"):
        replay.take(altered(chain, blocks[9], what))
    assert replay.state.tip_hash == before
    replay.take(blocks[9])


def test_blocks_out_of_their_order_are_refused(chain: Chain, blocks: tuple[DecidedBlock, ...]) -> None:
    replay = replayed(chain, blocks[:3])
    for wrong in (blocks[2], blocks[4]):
        with pytest.raises(ReplayFailed, match="does not follow"):
            replay.take(wrong)
    assert header_hash(replay.state.tip) == replay.state.tip_hash


def test_the_first_row_that_differs_is_named_with_what_it_has_and_should_have(chain: Chain) -> None:
    rows = dict(chain.ledger.state.rows())
    alice, changed = account_row(account_of("alice"), Account(Amount(7_500_000), Nonce(3)))
    assert changed is not None
    found = first_difference(iter(sorted({**rows, alice: changed}.items())), iter(sorted(rows.items())))
    address = format_address(AddressKind.ACCOUNT, account_of("alice"))
    assert str(found).startswith(f"account {address} has 7.50 credits at nonce 3 and should have ")
    missing = {key: value for key, value in rows.items() if key != alice}
    assert f"account {address} has nothing and should have " in str(
        first_difference(iter(missing.items()), iter(rows.items()))
    )
    extra = first_difference(iter(rows.items()), iter(missing.items()))
    assert isinstance(extra, RowDifference)
    assert str(extra).endswith("should have nothing")
    pool = first_difference(iter([sum_row(FEE_POOL_KEY, 1)]), iter([sum_row(FEE_POOL_KEY, 2)]))
    assert str(pool) == "the row 'fee_pool' has 9101 and should have 9102"
    assert "bytes that say nothing" in str(RowDifference(alice, b"\xc1", changed))
