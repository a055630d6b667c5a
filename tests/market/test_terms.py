"""What a provider refuses: each labelled check by a row that breaks it alone, with the fault it names."""

import pytest
from msgspec.structs import replace

from protocol.market.ledger_view import ChannelFacts
from protocol.market.policies import SellerPolicy
from protocol.market.records import SellerLane
from protocol.market.terms import (
    BOOKS_DIFFER,
    Proposal,
    TermsRefused,
    check_bid,
    check_channel,
    check_input,
    check_lane,
    check_parties,
    check_service,
)
from protocol.messages.effects import Now
from protocol.messages.market import Agreement, Bid, FaultKind, ModelOffer
from protocol.messages.wire import JobInput
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    DurationMs,
    Hash,
    Lane,
    LedgerTimeMs,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    Salt,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from protocol.settlement.accumulator import EMPTY, EMPTY_ROOT
from protocol.settlement.pricing import amount_due
from protocol.settlement.receipts import input_commitment
from protocol.settlement.vouchers import LanePosition
from tests.market.town import MODEL, PAYLOAD, PRICES, SERVED

BUYER, PROVIDER = AccountId(b"b" * 32), AccountId(b"p" * 32)
BUYER_NODE, PROVIDER_NODE = NodeId(b"B" * 32), NodeId(b"P" * 32)
SALT = Salt(b"s" * 32)
CHANNEL = ChannelId(b"c" * 32)
NOW = Now(MonotonicMs(0), TimestampMs(10_000_000))
POLICY = SellerPolicy(clock_tolerance_ms=DurationMs(60_000), chunk_units_max=100)
JOB = MessageId(b"j" * 32)
AGREEMENT = Agreement(
    bid=MessageId(b"i" * 32),
    offer=MessageId(b"o" * 32),
    buyer=BUYER,
    provider=PROVIDER,
    buyer_node=BUYER_NODE,
    provider_node=PROVIDER_NODE,
    model=MODEL,
    runtime_build=SERVED.runtime_build,
    settings=SERVED.settings,
    prices=PRICES,
    chunk_units=10,
    input_units_max=WorkUnits(20),
    output_units_max=WorkUnits(40),
    price_ceiling=amount_due(PRICES, 20, 40),
    input_commitment=input_commitment(SALT, PAYLOAD),
    input_bytes=len(PAYLOAD),
    channel=CHANNEL,
    lane=Lane(0),
    cumulative_start=Amount(500),
    sequence_start=SequenceNumber(3),
    created_at=NOW.wall_ms,
    accept_ms=DurationMs(10_000),
    first_output_ms=DurationMs(60_000),
    stall_ms=DurationMs(30_000),
    total_ms=DurationMs(600_000),
    seed=0,
    temperature_milli=0,
    verification="none",
)
BID = Bid(
    MODEL,
    WorkUnits(20),
    WorkUnits(40),
    AGREEMENT.price_ceiling,
    TimestampMs(NOW.wall_ms + 1),
    "none",
    1,
    Hash(b"u" * 32),
)
PROPOSAL = Proposal(JOB, BUYER_NODE, AGREEMENT, BUYER, BID, BUYER)
STRANGER = AccountId(b"x" * 32)


def agreed(**changes: object) -> Agreement:
    return replace(AGREEMENT, **changes)


def refused(fault: FaultKind, reason: str) -> "pytest.RaisesExc[TermsRefused]":
    def named(error: BaseException) -> bool:
        return isinstance(error, TermsRefused) and error.fault is fault

    return pytest.RaisesExc(TermsRefused, match=reason, check=named)


def test_good_terms_pass_every_check() -> None:
    check_parties(PROPOSAL, PROVIDER, PROVIDER_NODE)
    check_bid(PROPOSAL, NOW, POLICY)
    check_service(AGREEMENT, SERVED, POLICY)
    check_input(AGREEMENT, JobInput(JOB, SALT, PAYLOAD))


@pytest.mark.parametrize(
    ("proposal", "reason"),
    [
        (replace(PROPOSAL, signer=STRANGER), "not signed by its buyer"),
        (replace(PROPOSAL, agreement=agreed(provider=STRANGER)), "for another provider"),
        (replace(PROPOSAL, agreement=agreed(provider_node=NodeId(b"x" * 32))), "for another provider"),
        (replace(PROPOSAL, peer=NodeId(b"x" * 32)), "did not come from its buyer's node"),
        (replace(PROPOSAL, agreement=agreed(buyer=PROVIDER), signer=PROVIDER), "one account"),
    ],
)
def test_wrong_parties_are_refused(proposal: Proposal, reason: str) -> None:
    with refused(FaultKind.USER, reason):
        check_parties(proposal, PROVIDER, PROVIDER_NODE)


@pytest.mark.parametrize(
    ("proposal", "fault", "reason"),
    [
        (replace(PROPOSAL, bid_signer=STRANGER), FaultKind.USER, "bid is not the buyer's"),
        (
            replace(PROPOSAL, bid=replace(BID, expires_at=TimestampMs(NOW.wall_ms - 60_000))),
            FaultKind.USER,
            "bid has expired",
        ),
        (replace(PROPOSAL, bid=replace(BID, model=ModelId(b"x" * 32))), FaultKind.USER, "differs from its bid"),
        (replace(PROPOSAL, bid=replace(BID, verification="replay")), FaultKind.USER, "differs from its bid"),
        (
            replace(PROPOSAL, bid=replace(BID, price_ceiling=Amount(BID.price_ceiling - 1))),
            FaultKind.USER,
            "ceiling is above its bid's",
        ),
        (replace(PROPOSAL, bid=replace(BID, input_units_max=WorkUnits(19))), FaultKind.USER, "limits are above"),
        (replace(PROPOSAL, bid=replace(BID, output_units_max=WorkUnits(39))), FaultKind.USER, "limits are above"),
        (
            replace(PROPOSAL, agreement=agreed(created_at=TimestampMs(NOW.wall_ms - 70_001))),
            FaultKind.NETWORK,
            "older than its accept deadline",
        ),
        (
            replace(PROPOSAL, agreement=agreed(created_at=TimestampMs(NOW.wall_ms + 60_001))),
            FaultKind.NETWORK,
            "clocks differ",
        ),
    ],
)
def test_agreement_that_its_bid_does_not_cover_is_refused(proposal: Proposal, fault: FaultKind, reason: str) -> None:
    with refused(fault, reason):
        check_bid(proposal, NOW, POLICY)


@pytest.mark.parametrize(
    ("agreement", "served", "fault", "reason"),
    [
        (AGREEMENT, None, FaultKind.CAPACITY, "not served any more"),
        (AGREEMENT, replace(SERVED, runtime_build="echo 2"), FaultKind.CAPACITY, "runtime or settings"),
        (AGREEMENT, replace(SERVED, settings="other"), FaultKind.CAPACITY, "runtime or settings"),
        (agreed(prices=replace(PRICES, request=Amount(99))), SERVED, FaultKind.CAPACITY, "prices have changed"),
        (AGREEMENT, replace(SERVED, input_units_max=WorkUnits(19)), FaultKind.USER, "input limit is 19"),
        (AGREEMENT, replace(SERVED, output_units_max=WorkUnits(39)), FaultKind.USER, "output limit is 39"),
        (agreed(output_units_max=WorkUnits(0)), SERVED, FaultKind.USER, "at least 1"),
        (agreed(price_ceiling=Amount(AGREEMENT.price_ceiling - 1)), SERVED, FaultKind.USER, "ceiling is below"),
        (agreed(chunk_units=101), SERVED, FaultKind.CAPACITY, "chunks of more than 100"),
        (agreed(verification="replay"), SERVED, FaultKind.CAPACITY, "verification 'replay'"),
        (agreed(accept_ms=DurationMs(99)), SERVED, FaultKind.CAPACITY, "accept deadline"),
        (agreed(first_output_ms=DurationMs(999)), SERVED, FaultKind.CAPACITY, "first output deadline"),
        (agreed(stall_ms=DurationMs(499)), SERVED, FaultKind.CAPACITY, "stall deadline"),
        (agreed(stall_ms=DurationMs(120_001)), SERVED, FaultKind.CAPACITY, "stall deadline"),
        (agreed(total_ms=DurationMs(3_600_001)), SERVED, FaultKind.CAPACITY, "total deadline"),
        (agreed(total_ms=DurationMs(0)), SERVED, FaultKind.CAPACITY, "total deadline"),
    ],
)
def test_what_is_not_sold_is_refused(
    agreement: Agreement, served: ModelOffer | None, fault: FaultKind, reason: str
) -> None:
    with refused(fault, reason):
        check_service(agreement, served, POLICY)


@pytest.mark.parametrize(
    ("job_input", "reason"),
    [
        (JobInput(JOB, SALT, PAYLOAD + b"!"), f"{len(PAYLOAD) + 1} bytes, {len(PAYLOAD)} agreed"),
        (JobInput(JOB, SALT, PAYLOAD[:-1] + b"!"), "does not match its commitment"),
        (JobInput(JOB, Salt(b"t" * 32), PAYLOAD), "does not match its commitment"),
    ],
)
def test_another_input_than_the_agreed_one_is_refused(job_input: JobInput, reason: str) -> None:
    with refused(FaultKind.USER, reason):
        check_input(AGREEMENT, job_input)


NEEDED = AGREEMENT.cumulative_start + AGREEMENT.price_ceiling
FACTS = ChannelFacts(CHANNEL, BUYER, PROVIDER, Amount(NEEDED + 300), (), False, LedgerTimeMs(0))


def redeemed(lane: int, sequence: int) -> ChannelFacts:
    position = LanePosition(Lane(lane), SequenceNumber(sequence), Amount(100), EMPTY_ROOT, 0)
    return replace(FACTS, redeemed=(position,))


def test_channel_that_covers_all_lanes_to_the_last_unit_is_enough() -> None:
    check_channel(AGREEMENT, FACTS, 300)


def test_what_the_ledger_has_of_other_lanes_and_of_earlier_vouchers_is_no_obstacle() -> None:
    check_channel(AGREEMENT, redeemed(1, AGREEMENT.sequence_start + 1), 300)
    check_channel(AGREEMENT, redeemed(0, AGREEMENT.sequence_start), 300)


@pytest.mark.parametrize(
    ("facts", "reserved", "fault", "reason", "may_wait"),
    [
        (None, 0, FaultKind.NETWORK, "not on this node's ledger", True),
        (replace(FACTS, payer=STRANGER), 0, FaultKind.USER, "not between", False),
        (replace(FACTS, payee=STRANGER), 0, FaultKind.USER, "not between", False),
        (replace(FACTS, closing=True), 0, FaultKind.NETWORK, "closing", False),
        (FACTS, 301, FaultKind.NETWORK, "does not cover", True),
        (redeemed(0, AGREEMENT.sequence_start + 1), 0, FaultKind.NETWORK, "has redeemed a later voucher", False),
    ],
)
def test_channel_that_does_not_cover_the_job_is_refused(
    facts: ChannelFacts | None, reserved: int, fault: FaultKind, reason: str, may_wait: bool
) -> None:
    with refused(fault, reason) as caught:
        check_channel(AGREEMENT, facts, reserved)
    assert caught.value.may_wait is may_wait


LANE = SellerLane(
    channel=CHANNEL,
    lane=Lane(0),
    buyer=BUYER,
    node=BUYER_NODE,
    position=LanePosition(Lane(0), SequenceNumber(3), Amount(600), EMPTY_ROOT, 0),
    accumulator=EMPTY,
    voucher=b"v",
    earned=Amount(500),
    job=None,
    start=Amount(0),
    sequence_start=SequenceNumber(0),
    ceiling=Amount(0),
    paid=Amount(0),
    pending=None,
    pending_job=None,
    unredeemed_since=TimestampMs(0),
)


@pytest.mark.parametrize("start", [500, 550, 600])
def test_debt_may_be_claimed_in_full_in_part_or_not_at_all(start: int) -> None:
    check_lane(agreed(cumulative_start=Amount(start)), LANE)


@pytest.mark.parametrize(
    ("agreement", "lane", "fault", "reason"),
    [
        (AGREEMENT, replace(LANE, job=JOB), FaultKind.CAPACITY, "in use"),
        (agreed(sequence_start=SequenceNumber(2)), LANE, FaultKind.NETWORK, BOOKS_DIFFER),
        (agreed(sequence_start=SequenceNumber(4)), LANE, FaultKind.NETWORK, BOOKS_DIFFER),
        (agreed(cumulative_start=Amount(499)), LANE, FaultKind.NETWORK, BOOKS_DIFFER),
        (agreed(cumulative_start=Amount(601)), LANE, FaultKind.NETWORK, BOOKS_DIFFER),
        (AGREEMENT, None, FaultKind.NETWORK, BOOKS_DIFFER),
        (
            agreed(sequence_start=SequenceNumber(0), cumulative_start=Amount(1)),
            None,
            FaultKind.NETWORK,
            BOOKS_DIFFER,
        ),
    ],
)
def test_lane_whose_books_say_something_else_is_refused(
    agreement: Agreement, lane: SellerLane | None, fault: FaultKind, reason: str
) -> None:
    with refused(fault, reason) as caught:
        check_lane(agreement, lane)
    assert caught.value.books is (reason == BOOKS_DIFFER)
