"""Named keys, a small network's genesis, and a ledger that can be driven block by block."""

from collections.abc import Sequence

from nacl.signing import SigningKey

from protocol.ledger.blocks import PendingTransaction, build_block, execute_block
from protocol.ledger.checkpoints import StoredChange
from protocol.ledger.execution import Execution
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Header, header_hash
from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.genesis import Allocation, AuthorityRecord, Genesis, Parameters, genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Voucher
from protocol.messages.quorum import AuthoritySet, certified_statement
from protocol.messages.transactions import Action, ChannelOpen, Transaction
from protocol.primitives.codec import Message, encode
from protocol.primitives.units import (
    AccountId,
    Amount,
    AuthorityId,
    ChannelId,
    DurationMs,
    Hash,
    Height,
    Lane,
    NodeId,
    Nonce,
    PublicKey,
    SequenceNumber,
    Signature,
    TimestampMs,
    View,
)
from protocol.settlement.vouchers import channel_id

NAMES = ("alice", "bob", "carol", "dave")
START_MS = 1_700_000_000_000
FEE = 10


def key_of(name: str) -> SigningKey:
    """The well-known test key of a name."""
    return SigningKey(name.encode().ljust(32, b"."))


def account_of(name: str) -> AccountId:
    """The account of a name."""
    return AccountId(bytes(key_of(name).verify_key))


def make_parameters(**changes: int) -> Parameters:
    """Small numbers: fee floor 10, redeem fee 1 % but at least 5, windows of 5 s and 9 s."""
    numbers: dict[str, int] = {
        "heartbeat_ms": 15_000,
        "delta_ms": 500,
        "delta_cap_ms": 30_000,
        "clock_precision_ms": 500,
        "challenge_ms": 5_000,
        "unbonding_ms": 9_000,
        "provider_bond_min": 1_000,
        "fee_min": FEE,
        "redeem_fee_min": 5,
        "redeem_fee_share_ppm": 10_000,
        "epoch_blocks": 1_000,
        "evidence_blocks": 20,
        "evidence_ms": 8_000,
        "motion_ms": 60_000,
        "motion_timelock_ms": 0,
        "motion_fee_min": FEE,
        "issuance_cap": 50_000,
        "issuance_period_ms": 100_000,
    }
    numbers.update(changes)
    return Parameters(
        heartbeat_ms=DurationMs(numbers["heartbeat_ms"]),
        delta_ms=DurationMs(numbers["delta_ms"]),
        delta_cap_ms=DurationMs(numbers["delta_cap_ms"]),
        clock_precision_ms=DurationMs(numbers["clock_precision_ms"]),
        challenge_ms=DurationMs(numbers["challenge_ms"]),
        unbonding_ms=DurationMs(numbers["unbonding_ms"]),
        provider_bond_min=Amount(numbers["provider_bond_min"]),
        fee_min=Amount(numbers["fee_min"]),
        redeem_fee_min=Amount(numbers["redeem_fee_min"]),
        redeem_fee_share_ppm=numbers["redeem_fee_share_ppm"],
        epoch_blocks=numbers["epoch_blocks"],
        evidence_blocks=numbers["evidence_blocks"],
        evidence_ms=DurationMs(numbers["evidence_ms"]),
        motion_ms=DurationMs(numbers["motion_ms"]),
        motion_timelock_ms=DurationMs(numbers["motion_timelock_ms"]),
        motion_fee_min=Amount(numbers["motion_fee_min"]),
        issuance_cap=Amount(numbers["issuance_cap"]),
        issuance_period_ms=DurationMs(numbers["issuance_period_ms"]),
    )


def make_genesis(
    balance: int = 1_000_000, names: tuple[str, ...] = NAMES, authorities: int = 4, **parameters: int
) -> Genesis:
    """Each name holds ``balance`` and a bond of 2,000; authorities are named auth0, auth1, …"""
    records = tuple(
        AuthorityRecord(
            AuthorityId(account_of(f"auth{index}")),
            account_of(f"auth{index}-account"),
            NodeId(account_of(f"auth{index}-node")),
            f"auth{index}",
        )
        for index in range(authorities)
    )
    allocations = tuple(Allocation(account_of(name), Amount(balance), Amount(2_000)) for name in names)
    return Genesis("test", True, TimestampMs(START_MS), make_parameters(**parameters), records, allocations)


def sealed(genesis: Hash, name: str, kind: MessageKind, body: Message) -> bytes:
    """An envelope signed by a name's key."""
    payload, key = encode(body), key_of(name)
    signature = key.sign(signing_bytes(genesis, kind, payload)).signature
    return seal(kind, payload, PublicKey(bytes(key.verify_key)), signature)


_AUTHORITY_KEYS = {AuthorityId(account_of(f"auth{index}")): key_of(f"auth{index}") for index in range(12)}


class Ledger:
    """A state, with shorthand to sign, include and refuse transactions."""

    def __init__(self, genesis: Genesis | None = None) -> None:
        self.genesis = genesis if genesis is not None else make_genesis()
        self.hash = genesis_hash(self.genesis)
        self.state = LedgerState.from_genesis(self.genesis)
        self.kept: tuple[StoredChange, ...] = ()
        """What a store keeps of the state tree after the last block."""

    def transaction(
        self, name: str, action: Action, nonce: int | None = None, fee: int = FEE, valid_until: int = 1_000_000
    ) -> PendingTransaction:
        """A signed transaction with the account's next nonce unless told otherwise."""
        if nonce is None:
            nonce = self.state.account(account_of(name)).nonce
        body = Transaction(Nonce(nonce), Amount(fee), Height(valid_until), action)
        return PendingTransaction.from_bytes(sealed(self.hash, name, MessageKind.TRANSACTION, body))

    @property
    def certificate(self) -> Certificate | None:
        """One that decided the tip; ``None`` before the first block."""
        return self.certify(self.state.tip) if self.state.height else None

    def build(self, candidates: Sequence[PendingTransaction], timestamp_ms: TimestampMs) -> Execution:
        """A block on top of the state, not yet applied."""
        return build_block(self.state, candidates, timestamp_ms, self.certificate)

    def include(self, *transactions: PendingTransaction, after_ms: int = 20) -> Execution:
        """Put transactions into the next block, execute it as a follower would, and apply it."""
        timestamp = TimestampMs(self.state.tip.timestamp_ms + after_ms)
        built = self.build(transactions, timestamp)
        for _, error in built.refused:
            raise error
        execution = execute_block(self.state, built.block)
        assert execution.rows == built.rows
        self.kept = self.state.apply(execution)
        return execution

    def act(self, name: str, action: Action, fee: int = FEE, after_ms: int = 20) -> Execution:
        """One transaction in a block of its own; raises its ``TransactionInvalid``."""
        return self.include(self.transaction(name, action, fee=fee), after_ms=after_ms)

    def pass_time(self, duration_ms: int) -> None:
        """Let ledger time pass in empty blocks."""
        while duration_ms > 0:
            step = max(min(duration_ms, 30_000), self.state.parameters.heartbeat_ms)
            self.include(after_ms=step)
            duration_ms -= step

    def balance(self, name: str) -> int:
        """Balance of a name's account in base units."""
        return self.state.account(account_of(name)).balance

    def open_channel(self, payer: str, payee: str, deposit: int) -> ChannelId:
        """Open a channel and return its id."""
        nonce = self.state.account(account_of(payer)).nonce
        self.act(payer, ChannelOpen(account_of(payee), Amount(deposit)))
        return channel_id(account_of(payer), account_of(payee), nonce)

    def voucher(
        self,
        channel: ChannelId,
        payer: str,
        payee: str,
        sequence: int,
        cumulative: int,
        lane: int = 0,
        receipts_root: bytes = bytes(32),
        receipts_count: int = 0,
    ) -> bytes:
        """A signed voucher."""
        body = Voucher(
            channel,
            account_of(payee),
            Lane(lane),
            SequenceNumber(sequence),
            Amount(cumulative),
            Hash(receipts_root),
            receipts_count,
        )
        return sealed(self.hash, payer, MessageKind.VOUCHER, body)

    def decided(self, execution: Execution) -> Certificate:
        """A DECIDED certificate for a block, signed by a quorum."""
        return self.certify(execution.header)

    def certify(self, header: Header, kind: CertificateKind = CertificateKind.DECIDED) -> Certificate:
        """A certificate for a header, whatever stands in it, signed by the first authorities that make a quorum."""
        authorities = self.state.authorities_at(header.height) or AuthoritySet.from_genesis(self.genesis)
        view, block_hash = View(1), header_hash(header)
        statement, payload = certified_statement(kind, header.height, view, block_hash)
        message = signing_bytes(self.hash, statement, payload)
        counting = [index for index, record in enumerate(authorities.records) if authorities.counts(record.authority)]
        signers = tuple(counting[: authorities.quorum])
        signatures = tuple(
            Signature(_AUTHORITY_KEYS[authorities.records[index].authority].sign(message).signature)
            for index in signers
        )
        return Certificate(kind, header.height, view, block_hash, signers, signatures)
