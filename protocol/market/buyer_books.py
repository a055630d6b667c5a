"""The buyer's books: what was promised on each lane of each channel, and what may still come to be.

Law: for every channel the sum over its lanes of what was promised, or may yet be promised to the job that uses the
lane, stays within the deposit. A voucher never says less than the one before; a provider's debt shows as a lower start
of the next job on the lane. A lane is put on disk by the caller before any voucher of it leaves.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from protocol.market.agreement import LaneTerms
from protocol.market.ledger_view import ChannelFacts
from protocol.market.records import BuyerLane, buyer_debt, lane_key
from protocol.messages.effects import Put, Table
from protocol.messages.market import Voucher
from protocol.primitives.codec import encode
from protocol.primitives.limits import LANES_PER_CHANNEL
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Lane,
    MessageId,
    NodeId,
    SequenceNumber,
)
from protocol.settlement.accumulator import EMPTY, MembershipProof
from protocol.settlement.chunks import Progress
from protocol.settlement.vouchers import LanePosition, position_after, unused_lane


class BuyerBooks:
    """All lanes of one buyer."""

    def __init__(self, rows: Iterable[BuyerLane] = ()) -> None:
        self._channels: dict[ChannelId, dict[int, BuyerLane]] = {}
        self._debts: dict[AccountId, dict[tuple[ChannelId, Lane], Amount]] = {}
        """What providers owe; a debt stands until the job that works it off has ended."""
        self._committed: dict[ChannelId, int] = {}
        """Sums of the lanes' bounds, kept up with them: they are asked for at each job, and lanes are many."""
        for row in rows:
            self._keep(row)

    def knows(self, channel: ChannelId) -> bool:
        """Whether a lane of this channel was ever used."""
        return channel in self._channels

    def lane(self, channel: ChannelId, lane: int) -> BuyerLane | None:
        """One lane, or ``None`` before its first job."""
        return self._channels.get(channel, {}).get(lane)

    def lanes(self) -> tuple[BuyerLane, ...]:
        """Every lane that was ever used."""
        return tuple(lane for lanes in self._channels.values() for lane in lanes.values())

    def committed(self, channel: ChannelId) -> Amount:
        """What the channel's lanes have promised or may yet promise to the jobs that use them."""
        return Amount(self._committed.get(channel, 0))

    def left(self, facts: ChannelFacts) -> int:
        """What of the deposit no lane has a claim on."""
        return facts.deposit - self.committed(facts.channel)

    def debt(self, provider: AccountId) -> Amount:
        """What a provider owes this buyer, all lanes together."""
        return Amount(sum(self._debts.get(provider, {}).values()))

    def debtors(self) -> tuple[AccountId, ...]:
        """Providers that owe something."""
        return tuple(self._debts)

    def in_use(self, channel: ChannelId) -> bool:
        """Whether a job has a lane of this channel."""
        return any(lane.job is not None for lane in self._channels.get(channel, {}).values())

    def owes(self, channel: ChannelId, lane: int) -> bool:
        """True if the next job on this lane is paid out of a debt first."""
        held = self.lane(channel, lane)
        return held is not None and held.job is None and buyer_debt(held) > 0

    def free_lane(self, facts: ChannelFacts, ceiling: int) -> Lane | None:
        """The lane for a job of this ceiling: first one on which the provider owes something, else the lowest.

        ``None`` when every lane is in use or the deposit does not cover the ceiling.
        """
        lanes = self._channels.get(facts.channel, {})
        left = self.left(facts)
        lowest: int | None = None
        for number in range(LANES_PER_CHANNEL):
            lane = lanes.get(number)
            if lane is None:
                return Lane(number if lowest is None else lowest) if ceiling <= left else None
            if lane.job is not None or lane.retired:
                continue
            # A lane with a debt starts lower, so its job may cost that much more.
            if (debt := buyer_debt(lane)) > 0 and ceiling - debt <= left:
                return Lane(number)
            if lowest is None:
                lowest = number
        return Lane(lowest) if lowest is not None and ceiling <= left else None

    def lane_fits(self, facts: ChannelFacts, lane: Lane, ceiling: int) -> bool:
        """True if this very lane can take a job of this ceiling."""
        held = self.lane(facts.channel, lane)
        if held is None:
            return ceiling <= self.left(facts)
        return held.job is None and not held.retired and ceiling - buyer_debt(held) <= self.left(facts)

    def terms(self, channel: ChannelId, lane: Lane) -> LaneTerms:
        """What the next job on a lane counts from."""
        held = self.lane(channel, lane)
        if held is None:
            return LaneTerms(channel, lane, Amount(0), SequenceNumber(0))
        return LaneTerms(channel, lane, Amount(held.position.cumulative - buyer_debt(held)), held.position.sequence)

    def begin(self, terms: LaneTerms, provider: AccountId, node: NodeId, job: MessageId, ceiling: Amount) -> Put:
        """Give the lane to a job."""
        held = self.lane(terms.channel, terms.lane)
        assert held is None or (held.job is None and not held.retired)
        position = held.position if held is not None else unused_lane(terms.lane)
        assert terms.sequence_start == position.sequence
        row = BuyerLane(
            channel=terms.channel,
            lane=terms.lane,
            provider=provider,
            node=node,
            position=position,
            accumulator=held.accumulator if held is not None else EMPTY,
            earned=terms.cumulative_start,
            job=job,
            start=terms.cumulative_start,
            ceiling=ceiling,
            paid=Amount(0),
            last_receipt=held.last_receipt if held is not None else None,
            retired=False,
        )
        return self._keep(row)

    def pay(
        self, channel: ChannelId, lane: Lane, delivered: Progress, receipt: Hash | None
    ) -> tuple[Put, Voucher, MembershipProof | None]:
        """Promise what the lane's job has come to; with ``receipt`` (its leaf) commit to the receipt as well.

        The voucher may be sent once the ``Put`` is durable.
        """
        held, due = self._channels[channel][lane], delivered.due
        assert held.job is not None
        assert held.paid <= due <= held.ceiling
        accumulator, proof = held.accumulator, None
        if receipt is not None:
            accumulator, proof = accumulator.append_proved(receipt)
        voucher = Voucher(
            channel=channel,
            payee=held.provider,
            lane=lane,
            sequence=SequenceNumber(held.position.sequence + 1),
            cumulative=Amount(max(held.position.cumulative, held.start + due)),
            receipts_root=held.position.receipts_root if receipt is None else accumulator.root(),
            receipts_count=accumulator.count,
        )
        row = replace(
            held,
            position=position_after(voucher),
            accumulator=accumulator,
            paid=due,
            input_units=delivered.input_units,
            output_units=delivered.output_units,
            last_receipt=held.job if receipt is not None else held.last_receipt,
        )
        return self._keep(row), voucher, proof

    def end(self, channel: ChannelId, lane: Lane, *, owed_back: bool) -> Put:
        """The lane's job is over. ``owed_back``: the provider took the input's price and delivered nothing for it."""
        held = self._channels[channel][lane]
        assert held.job is not None
        return self._keep(replace(held, job=None, earned=Amount(held.start + (0 if owed_back else held.paid))))

    def hold(self, channel: ChannelId, lane: Lane) -> Put:
        """The lane's job is paid whole and only its receipt is missing: nothing more is kept free for it."""
        held = self._channels[channel][lane]
        assert held.job is not None
        return self._keep(replace(held, ceiling=held.paid))

    def last_voucher(self, lane: BuyerLane) -> Voucher | None:
        """The lane's last voucher, to be signed and sent again: the same statement, the same bytes."""
        if lane.position.sequence == 0:
            return None
        position = lane.position
        return Voucher(
            channel=lane.channel,
            payee=lane.provider,
            lane=lane.lane,
            sequence=position.sequence,
            cumulative=position.cumulative,
            receipts_root=position.receipts_root,
            receipts_count=position.receipts_count,
        )

    def channels(self) -> tuple[ChannelId, ...]:
        """Every channel with a lane, in the order of ids."""
        return tuple(sorted(self._channels))

    def forget_ended(self, channel: ChannelId) -> tuple[BuyerLane, ...]:
        """The ledger does not have this channel any more, and no job a lane of it: its lanes go. Gives them."""
        assert not self.in_use(channel)
        gone = tuple(self._channels.pop(channel).values())
        self._committed.pop(channel, None)
        for lane in gone:
            self._note_debt(replace(lane, earned=lane.position.cumulative))
        return gone

    def adopt(self, channel: ChannelId, lane: Lane, voucher: Voucher | None, debt: Amount) -> Put | None:
        """Take over what the provider's books say of a free lane, where they bind us.

        A later voucher of our own is a promise that we have forgotten: it counts, and if it commits to receipts that
        we lost, the lane is retired. At the same voucher the provider's word on its debt is taken: what a buyer
        risks with a provider is chunk 0. Returns ``None`` when there is nothing to take over.
        """
        held = self._channels[channel][lane]
        assert held.job is None
        ours = held.position
        if voucher is None or voucher.sequence < ours.sequence:
            return None
        theirs = position_after(voucher)
        if voucher.sequence == ours.sequence:
            if theirs != ours or debt >= buyer_debt(held):
                return None
            return self._keep(replace(held, earned=Amount(ours.cumulative - debt)))
        if voucher.cumulative < ours.cumulative:
            return None
        lost = (theirs.receipts_count, theirs.receipts_root) != (ours.receipts_count, ours.receipts_root)
        earned = Amount(max(0, theirs.cumulative - debt))
        return self._keep(replace(held, position=theirs, earned=earned, retired=held.retired or lost))

    def position(self, channel: ChannelId, lane: Lane) -> LanePosition:
        """Where a lane stands."""
        held = self.lane(channel, lane)
        return held.position if held is not None else unused_lane(lane)

    def _keep(self, row: BuyerLane) -> Put:
        lanes = self._channels.setdefault(row.channel, {})
        held = lanes.get(row.lane)
        before = _bound(held) if held is not None else 0
        self._committed[row.channel] = self._committed.get(row.channel, 0) - before + _bound(row)
        lanes[row.lane] = row
        if row.job is None:
            self._note_debt(row)
        return Put(Table.BUYER_LANE, lane_key(row.channel, row.lane), encode(row))

    def _note_debt(self, row: BuyerLane) -> None:
        name, debt = (row.channel, row.lane), buyer_debt(row)
        if debt:
            self._debts.setdefault(row.provider, {})[name] = debt
        elif (owed := self._debts.get(row.provider)) is not None and owed.pop(name, None) is not None and not owed:
            del self._debts[row.provider]


def _bound(lane: BuyerLane) -> int:
    if lane.job is None:
        return lane.position.cumulative
    return max(lane.position.cumulative, lane.start + lane.ceiling)
