"""Whatever well-typed transaction somebody signs, it executes, or it is refused as its sender's fault."""

import random

import pytest
from msgspec.structs import replace

from protocol.ledger.blocks import PendingTransaction, execute_block
from protocol.ledger.errors import TransactionInvalid
from protocol.ledger.mempool import Mempool, TransactionRejected
from protocol.ledger.registry import REGISTER_FEES
from protocol.ledger.tracks import REPORT_FEES
from protocol.messages.consensus import VoteBody
from protocol.messages.envelope import open_as
from protocol.messages.genesis import AuthorityRecord
from protocol.messages.governance import (
    AuthorityChange,
    Issuance,
    MotionNumber,
    ParameterChange,
    ParameterValue,
    Redemption,
    Subject,
    VersionChange,
)
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Failure, FaultKind, Prices
from protocol.messages.transactions import (
    MANIFEST_BYTES_MAX,
    MANIFEST_CARRIED_BYTES_MAX,
    Action,
    BondDeposit,
    BondRelease,
    BondUnlock,
    ChannelClose,
    ChannelFinalise,
    ChannelOpen,
    ChannelRedeem,
    ChannelTopUp,
    EvidenceReport,
    FailureReport,
    ModelRegister,
    MotionOpen,
    MotionVote,
    Output,
    Transaction,
    Transfer,
)
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import (
    AMOUNT_MAX,
    Amount,
    AuthorityId,
    BlockHash,
    ChannelId,
    Height,
    MessageId,
    ModelId,
    NodeId,
    TimestampMs,
    View,
)
from tests.ledger.deal import Deal, id_of
from tests.ledger.world import FEE, NAMES, Ledger, account_of, sealed


class Hostile:
    """Draws transactions with extreme numbers on real channels; nonces mostly right."""

    def __init__(self, dice: random.Random, ledger: Ledger) -> None:
        self.dice = dice
        self.ledger = ledger
        self.terms = Deal().terms
        self.channels = [
            (ledger.open_channel(payer, payee, 10_000), payer, payee)
            for payer, payee in (("alice", "bob"), ("bob", "alice"), ("carol", "bob"))
        ]

    def number(self) -> int:
        return self.dice.choice((0, 1, 9_999, 10_001, 900_000, AMOUNT_MAX - 10_000, AMOUNT_MAX))

    def voucher(self, channel: ChannelId, payer: str, payee: str) -> bytes:
        dice = self.dice
        sequence, lane = dice.choice((0, 1, 2, 2**48)), dice.choice((0, 1, 63))
        return self.ledger.voucher(
            channel,
            dice.choice((payer, payee)),
            dice.choice((payee, payee, payer)),
            sequence,
            dice.choice((0, 1, 5_000, 9_999, AMOUNT_MAX)),
            lane,
            receipts_count=dice.choice((0, 0, 2**32)),
        )

    def authority(self) -> AuthorityId:
        """A real one's key, or one that nobody has."""
        return AuthorityId(account_of(self.dice.choice(("auth0", "auth1", "alice"))))

    def subject(self) -> Subject:
        """What could do harm if it were passed, and a redemption, which anybody may ask for."""
        dice, amount = self.dice, Amount(self.number())
        member = AuthorityRecord(self.authority(), account_of("bob"), NodeId(account_of("bob-node")), "bob")
        subjects: tuple[Subject, ...] = (
            AuthorityChange((self.authority(),) * dice.randint(0, 2), (member,) * dice.randint(0, 2)),
            ParameterChange((ParameterValue(dice.choice(("fee_min", "issuance_cap", "")), amount),)),
            VersionChange(dice.choice((1, 2, 2**16)), Height(dice.choice((0, 9, 2**48)))),
            Issuance(account_of("bob"), amount, "\x1b"),
            Redemption(amount, "x" * 256),
            Redemption(Amount(dice.choice((1, 500))), ""),
        )
        return dice.choice(subjects)

    def statement(self) -> bytes:
        """Something that an authority, or somebody, may have signed."""
        dice = self.dice
        block_hash = BlockHash(bytes([dice.randrange(3)]) * 32)
        body = VoteBody(Height(dice.choice((0, 1, 2**48))), View(dice.choice((0, 1))), block_hash)
        vote = sealed(self.ledger.hash, dice.choice(("auth0", "auth1", "alice")), MessageKind.VOTE, body)
        return dice.choice((vote, vote, vote[:-1], b"", self.voucher(self.channels[0][0], "alice", "bob")))

    def action(self) -> Action:
        dice = self.dice
        channel, payer, payee = dice.choice(self.channels)
        amount, name = Amount(self.number()), account_of(dice.choice(NAMES))
        vouchers = tuple(self.voucher(channel, payer, payee) for _ in range(dice.randint(1, 3)))
        actions: tuple[Action, ...] = (
            Transfer(tuple(Output(name, Amount(self.number())) for _ in range(dice.randint(1, 3)))),
            BondDeposit(amount),
            BondUnlock(amount),
            BondRelease(name),
            ChannelOpen(name, amount),
            ChannelTopUp(channel, amount),
            ChannelRedeem(channel, vouchers),
            ChannelClose(channel),
            ChannelFinalise(channel),
            MotionOpen(dice.choice((None, self.authority())), self.subject()),
            MotionVote(MotionNumber(dice.choice((1, 2, 2**48))), self.authority(), True),
            EvidenceReport(self.statement(), self.statement()),
            self.registration(),
            self.report(),
        )
        return dice.choice(actions)

    def registration(self) -> ModelRegister:
        """A model, mostly with its own manifest, of which there are few: they are registered again and again."""
        manifest = self.dice.choice((b"a", b"b", b"c", b"", b"\xc1" * MANIFEST_CARRIED_BYTES_MAX))
        model = self.dice.choice((ModelId(content_hash(manifest)), ModelId(bytes(32))))
        return ModelRegister(model, self.dice.choice((max(1, len(manifest)), MANIFEST_BYTES_MAX)), manifest)

    def report(self) -> FailureReport:
        """A failure, of which little fits together: signers, jobs, faults, times and prices are drawn apart."""
        dice, network = self.dice, self.ledger.hash
        far = replace(self.terms, prices=Prices(Amount(self.number()), Amount(self.number()), Amount(AMOUNT_MAX)))
        created_at = TimestampMs(dice.choice((0, self.terms.created_at, self.terms.created_at + 1, 2**48)))
        terms = replace(dice.choice((self.terms, far)), created_at=created_at, buyer=account_of(dice.choice(NAMES)))
        agreed = sealed(network, dice.choice(NAMES), MessageKind.AGREEMENT, terms)
        job = dice.choice((id_of(agreed), id_of(agreed), MessageId(bytes(32))))
        accepted = sealed(network, dice.choice(("bob", "alice")), MessageKind.ACCEPTANCE, Acceptance(job, created_at))
        fault = dice.choice((FaultKind.PROVIDER, FaultKind.PROVIDER, FaultKind.USER))
        failed = sealed(network, dice.choice(("bob", "alice")), MessageKind.FAILURE, Failure(job, fault, 0, "\x1b"))
        return FailureReport(agreed, dice.choice((accepted, accepted, accepted[:-1])), failed)

    def transaction(self, name: str, nonce: int) -> PendingTransaction:
        fee = self.dice.choice((0, *[FEE] * 8, FEE + 2, FEE * REPORT_FEES, FEE * REGISTER_FEES, AMOUNT_MAX))
        valid_until = self.dice.choice((0, *[self.ledger.state.height + 1] * 4, *[2**48] * 4))
        return self.ledger.transaction(name, self.action(), nonce, fee, valid_until)


@pytest.mark.parametrize("seed", range(8))
def test_mempool_and_blocks_take_or_refuse_any_transaction_and_keep_the_supply(seed: int) -> None:
    dice = random.Random(seed)
    ledger = Ledger()
    hostile = Hostile(dice, ledger)
    mempool = Mempool(ledger.genesis)
    taken = 0
    for _ in range(50):
        candidates: list[PendingTransaction] = []
        for _ in range(8):
            name = dice.choice(NAMES)
            nonce = mempool.next_nonce(account_of(name), ledger.state) - dice.choice((0, 0, 0, 1))
            pending = hostile.transaction(name, max(0, nonce))
            envelope, transaction = open_as(pending.envelope_bytes, MessageKind.TRANSACTION)
            assert isinstance(transaction, Transaction)
            candidates.append(pending)
            try:
                mempool.add(pending.envelope_bytes, envelope, transaction, ledger.state)
            except TransactionRejected:
                continue
            taken += 1
        refused = ledger.build(candidates, ledger.state.tip.timestamp_ms).refused
        assert all(isinstance(error, TransactionInvalid) for _, error in refused)
        # Two senders may ask for the same payout: a block takes the first of them.
        timestamp = TimestampMs(ledger.state.tip.timestamp_ms + 15_000)
        built = ledger.build(mempool.select(ledger.state, 10**6, 100), timestamp)
        execution = execute_block(ledger.state, built.block)
        ledger.state.apply(execution)
        mempool.block_applied(ledger.state, execution.transaction_ids)
        supply = ledger.state.supply()
        assert supply.total == supply.issued
    assert taken > 20
