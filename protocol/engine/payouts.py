"""What waits for nothing but time: closed channels and unlocked bonds of this account, paid out once they may be.

Law: no state without a deadline and a default payout. Anyone may ask the ledger for it; this node asks for its own, so
that nobody has to remember.
"""

from protocol.ledger.evidence import is_answerable
from protocol.ledger.state import LedgerState
from protocol.ledger.view import Context, Overlay
from protocol.messages.effects import Now
from protocol.messages.transactions import Action, BondRelease, ChannelFinalise
from protocol.primitives.units import AccountId, Height, MonotonicMs

RETRY_MS = 60_000
"""A payout that no block shows by then is asked for again."""

_BOND = b"bond"


class Payouts:
    """Remembers what was asked for, so that each payout is asked for once."""

    def __init__(self, account: AccountId) -> None:
        self._account = account
        self._asked: dict[bytes, MonotonicMs] = {}

    def due(self, state: LedgerState, now: Now) -> list[Action]:
        """Actions that the ledger would take at its present time and that are not under way."""
        waiting: dict[bytes, Action] = {}
        for channel_id, channel in state.channels_paid_by(self._account):
            if channel.closing_at is not None and channel.closing_at <= state.ledger_time_ms:
                waiting[channel_id] = ChannelFinalise(channel_id)
        bond = state.bond(self._account)
        next_block = Context(Height(state.height + 1), state.ledger_time_ms, state.tip.timestamp_ms)
        is_over = bond.unlocking and bond.unlock_at <= state.ledger_time_ms
        if is_over and not is_answerable(Overlay(state), next_block, self._account):
            waiting[_BOND] = BondRelease(self._account)
        self._asked = {key: until for key, until in self._asked.items() if key in waiting and until > now.monotonic_ms}
        fresh = [key for key in waiting if key not in self._asked]
        for key in fresh:
            self._asked[key] = MonotonicMs(now.monotonic_ms + RETRY_MS)
        return [waiting[key] for key in fresh]
