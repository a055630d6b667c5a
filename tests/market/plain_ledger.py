"""A ledger of balances and channels for tests of the market: what blocks would do, without blocks."""

from dataclasses import dataclass, field

from msgspec.structs import replace as struct_replace

from protocol.market.ledger_view import ChannelFacts
from protocol.market.reputation import TrackRecord
from protocol.market.requests import WantTransaction
from protocol.messages.envelope import open_envelope
from protocol.messages.market import Voucher
from protocol.messages.transactions import ChannelClose, ChannelOpen, ChannelRedeem, ChannelTopUp
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Lane,
    LedgerTimeMs,
    Nonce,
    SequenceNumber,
)
from protocol.settlement.vouchers import channel_id, check_voucher, position_after, unused_lane


@dataclass
class PlainLedger:
    """Balances and channels; transactions are applied by ``decide``."""

    balances: dict[AccountId, int] = field(default_factory=dict)
    channels: dict[ChannelId, ChannelFacts] = field(default_factory=dict)
    waiting: list[tuple[AccountId, WantTransaction]] = field(default_factory=list)
    nonces: dict[AccountId, int] = field(default_factory=dict)
    redeemed: list[tuple[ChannelId, Lane, SequenceNumber]] = field(default_factory=list)
    records: dict[AccountId, TrackRecord] = field(default_factory=dict)
    time: int = 0

    def channel(self, channel: ChannelId) -> ChannelFacts | None:
        return self.channels.get(channel)

    def channels_between(self, payer: AccountId, payee: AccountId) -> tuple[ChannelFacts, ...]:
        facts = (self.channels[channel] for channel in sorted(self.channels))
        return tuple(one for one in facts if (one.payer, one.payee) == (payer, payee))

    def channels_paid_by(self, payer: AccountId) -> tuple[ChannelFacts, ...]:
        return tuple(
            self.channels[channel] for channel in sorted(self.channels) if self.channels[channel].payer == payer
        )

    def balance(self, account: AccountId) -> Amount:
        return Amount(self.balances.get(account, 0))

    def bond(self, account: AccountId) -> Amount:
        return Amount(0)

    def track_record(self, account: AccountId) -> TrackRecord:
        return self.records.get(account, TrackRecord(account))

    def ledger_time(self) -> LedgerTimeMs:
        return LedgerTimeMs(self.time)

    def decide(self) -> None:
        """One block with all that waits."""
        for sender, wanted in self.waiting:
            match wanted.action:
                case ChannelOpen(payee, deposit):
                    nonce = self.nonces.get(sender, 0)
                    self.nonces[sender] = nonce + 1
                    self._spend(sender, deposit)
                    opened = channel_id(sender, payee, Nonce(nonce))
                    self.channels[opened] = ChannelFacts(opened, sender, payee, deposit, (), False, LedgerTimeMs(0))
                case ChannelTopUp(channel, amount):
                    self._spend(sender, amount)
                    facts = self.channels[channel]
                    self.channels[channel] = _replaced(facts, deposit=Amount(facts.deposit + amount))
                case ChannelRedeem(channel, vouchers):
                    for voucher in vouchers:
                        self._redeem(channel, voucher)
                case ChannelClose(channel):
                    self.channels[channel] = _replaced(self.channels[channel], closing=True)
                case _:
                    raise AssertionError(wanted.action)
        self.waiting.clear()

    def _spend(self, account: AccountId, amount: int) -> None:
        assert 0 < amount <= self.balances.get(account, 0)
        self.balances[account] -= amount

    def _redeem(self, channel: ChannelId, envelope_bytes: bytes) -> None:
        envelope, voucher = open_envelope(envelope_bytes)
        facts = self.channels[channel]
        assert isinstance(voucher, Voucher)
        assert AccountId(envelope.sender) == facts.payer
        positions = {position.lane: position for position in facts.redeemed}
        last = positions.get(voucher.lane, unused_lane(voucher.lane))
        others = sum(position.cumulative for lane, position in positions.items() if lane != voucher.lane)
        check_voucher(
            voucher,
            channel=channel,
            payee=facts.payee,
            position=last,
            other_lanes_total=others,
            deposit=facts.deposit,
        )
        self.balances[facts.payee] = self.balances.get(facts.payee, 0) + voucher.cumulative - last.cumulative
        positions[voucher.lane] = position_after(voucher)
        rows = tuple(positions[lane] for lane in sorted(positions))
        self.channels[channel] = _replaced(facts, redeemed=rows)
        self.redeemed.append((channel, voucher.lane, voucher.sequence))


def _replaced(facts: ChannelFacts, **changes: object) -> ChannelFacts:
    return struct_replace(facts, **changes)
