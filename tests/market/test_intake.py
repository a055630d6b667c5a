"""Every check of the terms is made before a job is taken, and what waits is bounded for each peer."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.market.events import SaleRefused
from protocol.market.seller_intake import ARRIVALS_MAX, BIDS_HELD_MAX
from protocol.messages.envelope import envelope_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Agreement, Bid, Cancellation, FaultKind, Refusal
from protocol.messages.wire import JobInput
from protocol.primitives.codec import Message
from protocol.primitives.units import Amount, Lane, MessageId, NodeId, SequenceNumber, WorkUnits
from tests.market.town import Person, Town, envelope_of, request


def opening(town: Town, number: int = 1) -> tuple[Agreement, Bid, JobInput]:
    """The three opening messages of a request, none of which has reached the seller."""
    kept: dict[type[Message], Message] = {}

    def heard(sender: Person, payload: Message) -> bool:
        kept[type(payload)] = payload
        return False

    town.on_send = heard
    town.start(request(number))
    queue = town.links.get((town.buyer.node, town.seller.node))
    while not queue:
        town.busy()[0]()
        queue = town.links.get((town.buyer.node, town.seller.node))
    [job_input] = [message for message in queue if isinstance(message, JobInput)]
    queue.clear()
    town.on_send = None
    agreement, bid = kept[Agreement], kept[Bid]
    assert isinstance(agreement, Agreement)
    assert isinstance(bid, Bid)
    return agreement, bid, job_input


def present(
    town: Town, agreement: Agreement, bid: Bid, job_input: JobInput, sender: Person | None = None
) -> list[SaleRefused]:
    """Hand all three to the seller and see whether it refuses."""
    person = sender or town.buyer
    town.hand(town.seller, person.node, envelope_of(person, MessageKind.BID, bid)[2])
    town.hand(town.seller, person.node, envelope_of(person, MessageKind.AGREEMENT, agreement)[2])
    job = town.job_of(person, agreement)
    matching = JobInput(job, job_input.salt, job_input.payload)
    town.do(town.seller, town.seller.seller.receive_input(person.node, matching, town.now))
    return [event for event in town.seller.events if isinstance(event, SaleRefused)]


ROWS: list[tuple[Callable[[Agreement], Agreement], str]] = [
    (lambda agreed: replace(agreed, provider_node=NodeId(bytes(32))), "for another provider"),
    (lambda agreed: replace(agreed, buyer_node=NodeId(bytes(32))), "did not come from its buyer's node"),
    (lambda agreed: replace(agreed, created_at=0), "older than its accept deadline"),
    (lambda agreed: replace(agreed, verification="replay"), "differs from its bid"),
    (lambda agreed: replace(agreed, runtime_build="other"), "runtime or settings have changed"),
    (lambda agreed: replace(agreed, stall_ms=1), "stall deadline"),
    (lambda agreed: replace(agreed, sequence_start=SequenceNumber(1)), "books differ"),
    (lambda agreed: replace(agreed, cumulative_start=Amount(1)), "books differ"),
    (lambda agreed: replace(agreed, input_bytes=agreed.input_bytes + 1), "bytes"),
    (lambda agreed: replace(agreed, input_commitment=bytes(32)), "does not match its commitment"),
]


@pytest.mark.parametrize(("change", "reason"), ROWS)
def test_each_check_stands_before_the_acceptance(change: Callable[[Agreement], Agreement], reason: str) -> None:
    town = Town()
    agreement, bid, job_input = opening(town)
    changed = change(agreement)
    town.watch.agreements[town.job_of(town.buyer, changed)] = changed
    [refusal] = present(town, changed, bid, job_input)
    assert reason in refusal.reason
    assert town.seller.seller.jobs() == ()
    assert town.seller.seller.slots_free() == 4


def test_unchanged_opening_is_taken() -> None:
    town = Town()
    assert present(town, *opening(town)) == []
    assert len(town.seller.seller.jobs()) == 1


def test_channel_that_does_not_cover_two_live_jobs_takes_one() -> None:
    town = Town()
    agreement, bid, job_input = opening(town)
    [channel] = town.ledger.channels
    tight = replace(town.ledger.channels[channel], deposit=Amount(2 * agreement.price_ceiling - 1))
    town.ledger.channels[channel] = tight
    assert present(town, agreement, bid, job_input) == []
    assert town.seller.seller.books.reserved_elsewhere(channel, 1, ()) == agreement.price_ceiling
    second = replace(agreement, lane=Lane(1))
    present(town, second, bid, job_input)
    town.wait(5_000)
    [refusal] = [event for event in town.seller.events if isinstance(event, SaleRefused)]
    assert "does not cover the ceiling" in refusal.reason
    assert len(town.seller.seller.jobs()) == 1


def test_stranger_who_names_a_buyers_channel_learns_nothing_of_its_books() -> None:
    town = Town(buyers=2)
    town.start(request(1))
    town.run()
    agreement, bid, job_input = opening(town, 2)
    mallory = town.buyers[1]
    said: list[Refusal] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Refusal):
            said.append(payload)
        return True

    town.on_send = heard
    town.link(mallory, town.seller)
    theirs = replace(
        agreement,
        bid=envelope_id(envelope_of(mallory, MessageKind.BID, bid)[0]),
        buyer=mallory.account,
        buyer_node=mallory.node,
        sequence_start=SequenceNumber(77),
    )
    present(town, theirs, bid, job_input, mallory)
    [refusal] = said
    assert refusal.reason == "channel is not between this buyer and this provider"
    assert (refusal.fault, refusal.last_voucher, refusal.debt) == (FaultKind.USER, None, 0)


def test_bid_below_the_agreement_is_refused_whoever_signed_it() -> None:
    town = Town()
    agreement, bid, job_input = opening(town)
    lower = replace(bid, output_units_max=WorkUnits(1))
    linked = replace(agreement, bid=envelope_id(envelope_of(town.buyer, MessageKind.BID, lower)[0]))
    [refusal] = present(town, linked, lower, job_input)
    assert "limits are above its bid's" in refusal.reason


def test_inputs_of_one_peer_never_push_out_anothers() -> None:
    town = Town()
    seller = town.seller.seller
    agreement, bid, job_input = opening(town)
    job = town.job_of(town.buyer, agreement)
    seller.receive_input(town.buyer.node, JobInput(job, job_input.salt, job_input.payload), town.now)
    for number in range(100):
        stray = JobInput(MessageId(number.to_bytes(32, "big")), job_input.salt, b"x")
        seller.receive_input(NodeId(b"f" * 32), stray, town.now)
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.BID, bid)[2])
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.AGREEMENT, agreement)[2])
    assert len(seller.jobs()) == 1


def test_waiting_agreement_is_withdrawn_by_its_buyer_alone() -> None:
    town = Town(buyers=2)
    agreement, _, _ = opening(town)
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.AGREEMENT, agreement)[2])
    cancellation = Cancellation(town.job_of(town.buyer, agreement), 0, "no")
    waiting = town.seller.seller._intake.waiting
    town.hand(town.seller, town.buyers[1].node, envelope_of(town.buyers[1], MessageKind.CANCELLATION, cancellation)[2])
    assert waiting() == 1
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.CANCELLATION, cancellation)[2])
    assert waiting() == 0


def test_early_inputs_go_with_their_link() -> None:
    town = Town()
    _, _, job_input = opening(town)
    town.seller.seller.receive_input(town.buyer.node, job_input, town.now)
    town.seller.seller.link_down(town.buyer.node, town.now)
    assert town.seller.seller._intake._inputs == {}


def flood(town: Town, peer: NodeId, agreement: Agreement, count: int) -> None:
    """Agreements of one peer that nothing but patience could make good, each with a bid of its own."""
    for number in range(count):
        stray = replace(agreement, seed=number, buyer_node=peer, channel=number.to_bytes(32, "big"))
        town.watch.agreements[town.job_of(town.buyer, stray)] = stray
        town.hand(town.seller, peer, envelope_of(town.buyer, MessageKind.AGREEMENT, stray)[2])


def test_agreements_of_one_peer_never_push_out_anothers() -> None:
    town = Town()
    opened = opening(town)
    flood(town, NodeId(b"f" * 32), opened[0], ARRIVALS_MAX + 10)
    assert town.seller.seller._intake.waiting() == ARRIVALS_MAX
    refusals = present(town, *opened)
    assert all(refusal.reason == "too many agreements wait" for refusal in refusals)
    assert len(town.seller.seller.jobs()) == 1
    assert town.seller.seller._intake.waiting() == ARRIVALS_MAX - 1


def test_bids_of_one_peer_never_push_out_anothers() -> None:
    town = Town()
    agreement, bid, job_input = opening(town)
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.BID, bid)[2])
    for number in range(BIDS_HELD_MAX + 10):
        stray = replace(bid, unique=number.to_bytes(32, "big"))
        town.hand(town.seller, NodeId(b"f" * 32), envelope_of(town.buyer, MessageKind.BID, stray)[2])
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.AGREEMENT, agreement)[2])
    held = town.seller.seller._intake._bids
    assert len(held) == BIDS_HELD_MAX
    town.do(town.seller, town.seller.seller.receive_input(town.buyer.node, job_input, town.now))
    assert len(town.seller.seller.jobs()) == 1
    assert agreement.bid not in held, "a bid whose agreement came is of no more use"
