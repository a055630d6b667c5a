"""The seller's books: the best voucher of each lane, and what was worked for.

Law: the best voucher is put on disk by the caller before any more output is released for it, and is never replaced by
one that is worth less. ``earned`` follows the work that was released; what vouchers say beyond it is this node's debt.
"""

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from protocol.market.records import SellerLane, lane_key
from protocol.messages.effects import Put, Table
from protocol.messages.market import Agreement, FinishReason, Voucher
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Lane,
    MessageId,
    TimestampMs,
)
from protocol.settlement.accumulator import EMPTY, MembershipProof
from protocol.settlement.chunks import Progress
from protocol.settlement.vouchers import (
    LanePosition,
    ReceiptsFell,
    SequenceNotRising,
    VoucherInvalid,
    check_voucher,
    position_after,
    unused_lane,
)


class AmountNotDue(VoucherInvalid):
    """A voucher for a live job that says another amount, or another place, than the chunk it must pay."""

    def __init__(self, due: int, got: int) -> None:
        super().__init__(f"voucher says {got}, {due} is due")
        self.due = due
        self.got = got


class Taken(Struct, frozen=True):
    """A voucher that counts: the row to make durable, and the job whose receipt it committed to."""

    put: Put
    receipted: MessageId | None
    proof: MembershipProof | None


class _Totals:
    """Sums over a channel's lanes, kept up with them: they are asked for at each voucher, and lanes are many."""

    __slots__ = ("bounds", "covered", "promised")

    def __init__(self) -> None:
        self.bounds = 0
        """What the lanes have been promised or may yet come to."""
        self.promised = 0
        self.covered: tuple[LanePosition, ...] = ()
        """What the ledger said when it was last seen to know no more than our books; they only ever learn."""


class SellerBooks:
    """All lanes of all channels towards this provider."""

    def __init__(self, rows: Iterable[SellerLane] = ()) -> None:
        self._channels: dict[ChannelId, dict[int, SellerLane]] = {}
        self._totals: dict[ChannelId, _Totals] = {}
        for row in rows:
            self._keep(row)

    def lane(self, channel: ChannelId, lane: int) -> SellerLane | None:
        """One lane, or ``None`` before its first job."""
        return self._channels.get(channel, {}).get(lane)

    def lanes_of(self, channel: ChannelId) -> tuple[SellerLane, ...]:
        """The channel's lanes that were ever used, lowest first."""
        lanes = self._channels.get(channel, {})
        return tuple(lanes[number] for number in sorted(lanes))

    def knows(self, channel: ChannelId) -> bool:
        """Whether this node holds or held vouchers of a channel that it has not forgotten."""
        return channel in self._channels

    def channels(self) -> tuple[ChannelId, ...]:
        """Every channel with a lane, in the order of ids."""
        return tuple(sorted(self._channels))

    def reserved_elsewhere(self, channel: ChannelId, lane: int, redeemed: tuple[LanePosition, ...]) -> Amount:
        """What all other lanes have been promised or may yet come to.

        ``redeemed`` is the ledger's word on the channel's lanes: it counts where our own books know less.
        """
        if self._covers(channel, redeemed):
            held = self.lane(channel, lane)
            total = self._totals[channel].bounds if channel in self._totals else 0
            return Amount(total - (_bound(held) if held is not None else 0))
        bounds = {position.lane: int(position.cumulative) for position in redeemed}
        for number, other in self._channels.get(channel, {}).items():
            bounds[Lane(number)] = max(_bound(other), bounds.get(Lane(number), 0))
        return Amount(sum(bound for number, bound in bounds.items() if number != lane))

    def begin(self, agreement: Agreement, job: MessageId) -> Put:
        """Give the lane to a job: what the buyer did not pay before is written off here, and remembered."""
        held = self.lane(agreement.channel, agreement.lane)
        assert held is None or held.job is None
        row = SellerLane(
            channel=agreement.channel,
            lane=agreement.lane,
            buyer=agreement.buyer,
            node=agreement.buyer_node,
            position=held.position if held is not None else unused_lane(agreement.lane),
            accumulator=held.accumulator if held is not None else EMPTY,
            voucher=held.voucher if held is not None else b"",
            earned=agreement.cumulative_start,
            job=job,
            start=agreement.cumulative_start,
            sequence_start=agreement.sequence_start,
            ceiling=agreement.price_ceiling,
            paid=Amount(0),
            pending=None,
            pending_job=None,
            unredeemed_since=held.unredeemed_since if held is not None else TimestampMs(0),
            written_off=Amount(min(AMOUNT_MAX, held.written_off + _unpaid(held))) if held is not None else Amount(0),
        )
        return self._keep(row)

    def trusts(self, channel: ChannelId, lane: Lane, amount: Amount, share_permille: int) -> bool:
        """Whether so much may be released on a lane before anything of its job is paid.

        All that the lane's buyer has not paid or may not pay stays within a share of what it has paid there, so whoever
        takes and goes has paid many times as much before.
        """
        held = self._channels[channel][lane]
        return (held.written_off + amount) * 1000 <= share_permille * held.position.cumulative

    def expect_receipt(self, channel: ChannelId, lane: Lane, job: MessageId, leaf: Hash) -> Put:
        """The next voucher may commit to this receipt."""
        held = self._channels[channel][lane]
        assert held.job == job
        return self._keep(replace(held, pending=leaf, pending_job=job))

    def take(
        self,
        voucher: Voucher,
        envelope_bytes: bytes,
        own: AccountId,
        deposit: int,
        redeemed: tuple[LanePosition, ...],
        released: Progress | None,
        now: TimestampMs,
    ) -> Taken:
        """Judge a voucher for a lane and keep it if it counts. Raises ``VoucherInvalid``.

        ``released`` is what the lane's live job has come to with the chunk that waits for payment, ``None`` when the
        lane has no job: then any rise is welcome.
        """
        held = self._channels[voucher.channel][voucher.lane]
        check_voucher(
            voucher,
            channel=held.channel,
            payee=own,
            position=held.position,
            other_lanes_total=self._promised_elsewhere(held, redeemed),
            deposit=deposit,
        )
        counted = held
        if released is not None:
            # [live job] one voucher for each chunk, for exactly what is due; only the last may be said again, with the
            # receipt, by a buyer that had paid it without
            expected = max(held.position.cumulative, held.start + released.due)
            at = held.sequence_start + released.chunks
            if voucher.sequence < at or (voucher.sequence > at and released.finish is FinishReason.NONE):
                raise SequenceNotRising(held.sequence_start + released.chunks - 1, voucher.sequence)
            if voucher.cumulative != expected:
                raise AmountNotDue(expected, voucher.cumulative)
            counted = replace(
                held, paid=released.due, input_units=released.input_units, output_units=released.output_units
            )
        accumulator, proof = held.accumulator, None
        if voucher.receipts_count != accumulator.count:
            # [receipts] only the receipt that this node issued for the lane's last job may be new
            if held.pending is None:
                raise ReceiptsFell(accumulator.count, voucher.receipts_count)
            accumulator, proof = accumulator.append_proved(held.pending)
            if (voucher.receipts_count, voucher.receipts_root) != (accumulator.count, accumulator.root()):
                raise ReceiptsFell(accumulator.count, voucher.receipts_count)
        row = replace(
            counted,
            position=position_after(voucher),
            accumulator=accumulator,
            voucher=envelope_bytes,
            earned=self._earned_after(held, voucher) if released is None else held.earned,
            pending=None if proof is not None else held.pending,
            pending_job=None if proof is not None else held.pending_job,
            unredeemed_since=held.unredeemed_since or now,
        )
        return Taken(self._keep(row), held.pending_job if proof is not None else None, proof)

    def end(self, channel: ChannelId, lane: Lane, earned_by_job: Amount) -> Put:
        """The lane's job is over, and this much was worked for by its prices."""
        held = self._channels[channel][lane]
        assert held.job is not None
        return self._keep(replace(held, job=None, earned=Amount(held.start + earned_by_job)))

    def forget_ended(self, channel: ChannelId) -> tuple[SellerLane, ...]:
        """The ledger does not have this channel any more: its lanes go, but for those with a live job. Gives them."""
        lanes = self._channels[channel]
        gone = tuple(lane for lane in self.lanes_of(channel) if lane.job is None)
        totals = self._totals[channel]
        for lane in gone:
            del lanes[lane.lane]
            totals.bounds -= _bound(lane)
            totals.promised -= lane.position.cumulative
        totals.covered = ()
        if not lanes:
            del self._channels[channel], self._totals[channel]
        return gone

    def redeemed(self, channel: ChannelId) -> tuple[Put, ...]:
        """All vouchers held for the channel are on the ledger now."""
        return tuple(
            self._keep(replace(lane, unredeemed_since=TimestampMs(0)))
            for lane in self.lanes_of(channel)
            if lane.unredeemed_since
        )

    def _earned_after(self, held: SellerLane, voucher: Voucher) -> Amount:
        # A voucher beyond the job's first one pays for output: by sending it the buyer says that it got some.
        if voucher.sequence > held.sequence_start + 1 and voucher.cumulative > held.position.cumulative:
            return Amount(max(held.earned, voucher.cumulative))
        return held.earned

    def _covers(self, channel: ChannelId, redeemed: tuple[LanePosition, ...]) -> bool:
        """True if our own books say at least as much of every lane as the ledger does."""
        totals = self._totals.get(channel)
        if totals is None:
            return not redeemed
        if totals.covered is not redeemed:
            lanes = self._channels[channel]
            for position in redeemed:
                held = lanes.get(position.lane)
                if position.cumulative > (held.position.cumulative if held is not None else 0):
                    return False
            totals.covered = redeemed
        return True

    def _promised_elsewhere(self, held: SellerLane, redeemed: tuple[LanePosition, ...]) -> int:
        if self._covers(held.channel, redeemed):
            return self._totals[held.channel].promised - held.position.cumulative
        promised = {position.lane: position.cumulative for position in redeemed}
        for number, other in self._channels[held.channel].items():
            promised[Lane(number)] = max(other.position.cumulative, promised.get(Lane(number), Amount(0)))
        return sum(amount for number, amount in promised.items() if number != held.lane)

    def _keep(self, row: SellerLane) -> Put:
        lanes = self._channels.setdefault(row.channel, {})
        totals = self._totals.setdefault(row.channel, _Totals())
        held = lanes.get(row.lane)
        if held is not None:
            totals.bounds -= _bound(held)
            totals.promised -= held.position.cumulative
        totals.bounds += _bound(row)
        totals.promised += row.position.cumulative
        lanes[row.lane] = row
        return Put(Table.SELLER_LANE, lane_key(row.channel, row.lane), encode(row))


def _unpaid(lane: SellerLane) -> int:
    return max(0, lane.earned - lane.position.cumulative)


def _bound(lane: SellerLane) -> int:
    if lane.job is None:
        return lane.position.cumulative
    return max(lane.position.cumulative, lane.start + lane.ceiling)
