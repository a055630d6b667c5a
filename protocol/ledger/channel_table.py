"""All open channels, found by id and by who takes part.

Law: what is looked at often is found by who pays: strangers can open any number of channels *towards* an account, how
many it has opened itself is its own doing.
"""

from collections.abc import ItemsView, Iterable

from protocol.ledger.rows import Channel
from protocol.primitives.units import AccountId, ChannelId

_Index = dict[AccountId, dict[ChannelId, None]]


class ChannelTable:
    """Open channels with their indices."""

    def __init__(self) -> None:
        self._channels: dict[ChannelId, Channel] = {}
        self._of: _Index = {}
        self._paid_by: _Index = {}

    def get(self, channel_id: ChannelId) -> Channel | None:
        """An open channel, or ``None``."""
        return self._channels.get(channel_id)

    def items(self) -> ItemsView[ChannelId, Channel]:
        """All open channels, in no promised order."""
        return self._channels.items()

    def of(self, account_id: AccountId) -> tuple[tuple[ChannelId, Channel], ...]:
        """Channels in which the account is payer or payee, oldest first."""
        return self._oldest_first(self._of.get(account_id, {}))

    def paid_by(self, account_id: AccountId) -> tuple[tuple[ChannelId, Channel], ...]:
        """Channels that the account has opened itself, oldest first."""
        return self._oldest_first(self._paid_by.get(account_id, {}))

    def set(self, channel_id: ChannelId, channel: Channel | None) -> None:
        """Put a channel's row in; ``None`` ends it."""
        if channel is not None:
            self._channels[channel_id] = channel
            for index, party in self._indexed(channel):
                index.setdefault(party, {})[channel_id] = None
            return
        ended = self._channels.pop(channel_id, None)
        if ended is None:
            return
        for index, party in self._indexed(ended):
            del index[party][channel_id]
            if not index[party]:
                del index[party]

    def _indexed(self, channel: Channel) -> tuple[tuple[_Index, AccountId], ...]:
        return (self._of, channel.payer), (self._of, channel.payee), (self._paid_by, channel.payer)

    def _oldest_first(self, ids: Iterable[ChannelId]) -> tuple[tuple[ChannelId, Channel], ...]:
        found = [(channel_id, self._channels[channel_id]) for channel_id in ids]
        return tuple(sorted(found, key=lambda entry: (entry[1].opened_height, entry[0])))
