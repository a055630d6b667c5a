"""Sums over lanes are kept up with them: whatever happened to the lanes, they are what adding up gives."""

import random
from collections.abc import Iterator

import pytest

from protocol.market.buyer_books import BuyerBooks
from protocol.market.records import BuyerLane, SellerLane
from protocol.market.seller_books import SellerBooks
from protocol.primitives.units import AccountId, Amount, ChannelId, Lane, MessageId, NodeId, SequenceNumber, TimestampMs
from protocol.settlement.accumulator import EMPTY, EMPTY_ROOT
from protocol.settlement.vouchers import LanePosition

CHANNELS = tuple(ChannelId(bytes([number]) * 32) for number in range(3))
JOB = MessageId(b"j" * 32)
LANES = 6


def position(lane: int, cumulative: int) -> LanePosition:
    return LanePosition(Lane(lane), SequenceNumber(cumulative), Amount(cumulative), EMPTY_ROOT, 0)


def sold(channel: ChannelId, lane: int, cumulative: int, live: int | None) -> SellerLane:
    return SellerLane(
        channel, Lane(lane), AccountId(b"b" * 32), NodeId(b"n" * 32), position(lane, cumulative), EMPTY, b"",
        Amount(cumulative), JOB if live is not None else None, Amount(cumulative), SequenceNumber(0),
        Amount(live or 0), Amount(0), None, None, TimestampMs(0),
    )  # fmt: skip


def bought(channel: ChannelId, lane: int, cumulative: int, live: int | None) -> BuyerLane:
    return BuyerLane(
        channel, Lane(lane), AccountId(b"p" * 32), NodeId(b"n" * 32), position(lane, cumulative), EMPTY,
        Amount(cumulative), JOB if live is not None else None, Amount(cumulative), Amount(live or 0), Amount(0), None,
        False,
    )  # fmt: skip


def steps(seed: int) -> Iterator[tuple[ChannelId, int, int, int | None]]:
    """A lane's next row: what it has been paid only rises, with a live job or without."""
    dice = random.Random(seed)
    paid: dict[tuple[ChannelId, int], int] = {}
    for _ in range(200):
        channel, lane = dice.choice(CHANNELS), dice.randrange(LANES)
        paid[(channel, lane)] = paid.get((channel, lane), 0) + dice.randrange(50)
        yield channel, lane, paid[(channel, lane)], dice.choice((None, 0, 70))


def bound(cumulative: int, live: int | None) -> int:
    return cumulative + (live or 0)


@pytest.mark.parametrize("seed", range(8))
def test_a_buyers_commitments_are_the_sum_of_its_lanes(seed: int) -> None:
    books = BuyerBooks()
    rows: dict[tuple[ChannelId, int], int] = {}
    for channel, lane, cumulative, live in steps(seed):
        books._keep(bought(channel, lane, cumulative, live))
        rows[(channel, lane)] = bound(cumulative, live)
        for each in CHANNELS:
            assert books.committed(each) == sum(total for (of, _), total in rows.items() if of == each)


@pytest.mark.parametrize("seed", range(8))
def test_a_sellers_reservations_are_what_other_lanes_and_the_ledger_say(seed: int) -> None:
    dice = random.Random(seed)
    books = SellerBooks()
    rows: dict[tuple[ChannelId, int], tuple[int, int | None]] = {}
    ledger: dict[ChannelId, tuple[LanePosition, ...]] = dict.fromkeys(CHANNELS, ())
    for channel, lane, cumulative, live in steps(seed):
        books._keep(sold(channel, lane, cumulative, live))
        rows[(channel, lane)] = (cumulative, live)
        if dice.random() < 0.2:  # redeemed, or redeemed by a life whose books are lost
            ledger[channel] = tuple(position(number, dice.randrange(400)) for number in range(dice.randrange(LANES)))
        if dice.random() < 0.1:
            for gone in books.forget_ended(channel):
                del rows[(channel, gone.lane)]
        said: dict[int, int] = {each.lane: each.cumulative for each in ledger[channel]}
        promised = dict(said)
        reserved = dict(said)
        for (of, number), (paid, under_way) in rows.items():
            if of == channel:
                promised[number] = max(paid, promised.get(number, 0))
                reserved[number] = max(bound(paid, under_way), reserved.get(number, 0))
        for number in range(LANES):
            expected = sum(amount for other, amount in reserved.items() if other != number)
            assert books.reserved_elsewhere(channel, number, ledger[channel]) == expected
            held = books.lane(channel, number)
            if held is not None:
                expected = sum(amount for other, amount in promised.items() if other != number)
                assert books._promised_elsewhere(held, ledger[channel]) == expected
