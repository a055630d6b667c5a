"""The ledger's state as the market wants to see it: the market never imports the ledger."""

from protocol.ledger.rows import Channel
from protocol.ledger.state import LedgerState
from protocol.ledger.track_rows import NO_TRACK, Role, Track, track_id
from protocol.market.ledger_view import ChannelFacts
from protocol.market.reputation import NOTHING_KNOWN, Dealing, SideRecord, TrackRecord
from protocol.primitives.units import AccountId, Amount, ChannelId, LedgerTimeMs


class LedgerFacts:
    """Implements ``market.ledger_view.LedgerView`` over the state after the last decided block."""

    def __init__(self, state: LedgerState) -> None:
        self._state = state

    def channel(self, channel: ChannelId) -> ChannelFacts | None:
        """The channel, or ``None`` when it is unknown or has ended."""
        held = self._state.channel(channel)
        return _facts(channel, held) if held is not None else None

    def channels_between(self, payer: AccountId, payee: AccountId) -> tuple[ChannelFacts, ...]:
        """All channels from payer to payee, closing ones included, in the order of their ids."""
        found = [
            _facts(channel_id, channel)
            for channel_id, channel in self._state.channels_paid_by(payer)
            if channel.payee == payee
        ]
        return tuple(sorted(found, key=lambda facts: facts.channel))

    def channels_paid_by(self, payer: AccountId) -> tuple[ChannelFacts, ...]:
        """All channels of a payer, closing ones included, in the order of their ids."""
        found = [_facts(channel_id, channel) for channel_id, channel in self._state.channels_paid_by(payer)]
        return tuple(sorted(found, key=lambda facts: facts.channel))

    def balance(self, account: AccountId) -> Amount:
        """What the account can put into one transaction, in base units: all but that transaction's fee."""
        return Amount(max(0, self._state.account(account).balance - self._state.parameters.fee_min))

    def bond(self, account: AccountId) -> Amount:
        """What the account has at stake, in base units; what is unlocking no longer counts."""
        return self._state.bond(account).amount

    def track_record(self, account: AccountId) -> TrackRecord:
        """What the account has settled so far and what was reported of it, as provider and as buyer."""
        provider, buyer = (self._state.track(track_id(role, account)) for role in (Role.PROVIDER, Role.BUYER))
        return TrackRecord(account, side_record(provider), side_record(buyer))

    def ledger_time(self) -> LedgerTimeMs:
        """Ledger time after the last decided block."""
        return self._state.ledger_time_ms


def side_record(track: Track) -> SideRecord:
    """A row of the ledger as the market reads it."""
    if track == NO_TRACK:
        return NOTHING_KNOWN
    return SideRecord(
        jobs=track.jobs,
        volume=Amount(track.volume),
        recent_volume=track.recent_volume,
        first_at=track.first_at,
        last_at=track.last_at,
        dealings=tuple(
            Dealing(each.counterparty, each.volume, each.settled_at) for each in track.dealings if each.volume
        ),
        failures=track.failures,
        failed_volume=track.failed_volume,
        failed_at=track.failed_at,
    )


def _facts(channel_id: ChannelId, channel: Channel) -> ChannelFacts:
    return ChannelFacts(
        channel=channel_id,
        payer=channel.payer,
        payee=channel.payee,
        deposit=channel.deposit,
        redeemed=channel.lanes,
        closing=channel.closing_at is not None,
        open_since=channel.opened_at,
    )
