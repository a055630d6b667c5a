"""No job is under way on one side alone: what one side has lost, the other learns within seconds."""

from collections.abc import Callable

import pytest

from protocol.market.comparison import ANSWERS_MAX
from protocol.market.events import JobFailed, JobFinished, SaleEnded
from protocol.market.records import buyer_debt, seller_debt
from protocol.messages.effects import Send, SignAndSend
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Cancellation, Chunk, Failure, FaultKind, Receipt, Voucher
from protocol.messages.wire import JobStanding, OpenJobs
from protocol.primitives.codec import Message, decode
from protocol.primitives.units import ChannelId, Lane, MessageId, NodeId, SequenceNumber
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Person, Town, Worker, request

TWO_LOOKS_MS = 10_000
WHOLE = amount_due(PRICES, 10, 25)


def lose(town: Town, lost: Callable[[Message], bool]) -> list[Message]:
    """The first statement of this kind is lost on its way, though its link stands."""
    gone: list[Message] = []

    def heard(sender: Person, payload: Message) -> bool:
        if not gone and lost(payload):
            gone.append(payload)
            return False
        return True

    town.on_send = heard
    return gone


def named(town: Town) -> list[OpenJobs]:
    return [message for queue in town.links.values() for message in queue if isinstance(message, OpenJobs)]


def look_twice(town: Town) -> None:
    """Time for both sides to see a job stand still, and to say so."""
    town.wait(TWO_LOOKS_MS + 1_000)
    town.run()


LOSSES: list[tuple[str, Callable[[Message], bool]]] = [
    ("chunk 0", lambda payload: isinstance(payload, Chunk) and payload.index == 0),
    ("a chunk", lambda payload: isinstance(payload, Chunk) and payload.index == 2),
    ("the last chunk", lambda payload: isinstance(payload, Chunk) and payload.index == 3),
    ("the receipt", lambda payload: isinstance(payload, Receipt)),
    ("the first voucher", lambda payload: isinstance(payload, Voucher) and payload.sequence == 1),
    ("a voucher", lambda payload: isinstance(payload, Voucher) and payload.sequence == 3),
    ("the final voucher", lambda payload: isinstance(payload, Voucher) and payload.receipts_count == 1),
]


@pytest.mark.parametrize(("what", "lost"), LOSSES, ids=[what for what, _ in LOSSES])
def test_what_is_lost_though_the_link_stands_is_said_again_and_the_job_ends_well(
    what: str, lost: Callable[[Message], bool]
) -> None:
    town = Town()
    gone = lose(town, lost)
    town.start(request())
    town.run()
    assert gone, what
    look_twice(town)
    [done] = [event for event in town.buyer.events if isinstance(event, JobFinished)]
    assert done.paid == WHOLE
    assert town.buyer.buyer.jobs() == town.seller.seller.jobs() == ()
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    assert (ended.state, ended.earned) == ("done", WHOLE)


def test_buyer_that_missed_why_its_provider_stopped_learns_it_in_the_same_words() -> None:
    town = Town()
    town.seller.worker = Worker(fails_at=2)
    assert lose(town, lambda payload: isinstance(payload, Failure)) == []
    town.start(request())
    town.run()
    assert len(town.buyer.buyer.jobs()) == 1
    look_twice(town)
    [failed] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert (failed.first_fault, failed.first_reason) == (FaultKind.PROVIDER, "worker died")
    assert failed.paid == amount_due(PRICES, 10, 10)


def test_provider_that_missed_the_end_frees_its_slot_and_both_books_agree() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=2)
    lose(town, lambda payload: isinstance(payload, Cancellation))
    town.start(request())
    town.run()
    town.do(town.buyer, town.buyer.buyer.cancel(request().request, "enough", town.now))
    town.run()
    assert (len(town.buyer.buyer.jobs()), len(town.seller.seller.jobs())) == (0, 1)
    look_twice(town)
    assert town.seller.seller.jobs() == ()
    assert town.seller.seller.slots_free() == 4
    [bought] = town.buyer.buyer.books.lanes()
    sold = town.seller.seller.books.lane(bought.channel, bought.lane)
    assert sold is not None
    assert bought.position == sold.position
    assert (buyer_debt(bought), seller_debt(sold)) == (0, 0)


@pytest.mark.parametrize("victim", ["buyer", "seller"])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_after_a_restart_of_either_side_no_job_is_left_on_the_other(victim: str, chunks: int) -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=chunks)
    town.start(request())
    town.run()
    town.crash(town.buyer if victim == "buyer" else town.seller)
    town.run()
    assert town.buyer.buyer.jobs() == town.seller.seller.jobs() == ()
    [bought] = town.buyer.buyer.books.lanes()
    sold = town.seller.seller.books.lane(bought.channel, bought.lane)
    assert sold is not None
    assert bought.position == sold.position
    assert bought.position.cumulative == amount_due(PRICES, 10, 10 * (chunks - 1))
    debt = amount_due(PRICES, 10, 0) if (victim, chunks) == ("seller", 1) else 0
    assert (buyer_debt(bought), seller_debt(sold)) == (debt, debt)


def test_provider_with_a_lost_disk_says_that_it_knows_nothing_of_the_job() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=2)
    town.start(request())
    town.run()
    town.seller.disk.clear()
    town.crash(town.seller)
    town.run()
    assert town.buyer.buyer.jobs() == ()
    [failed] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert failed.first_reason == "not under way here"
    assert failed.first_fault is FaultKind.NETWORK, "it may have ended well: nobody is to blame by these words"


def test_ordinary_jobs_are_over_before_they_are_named() -> None:
    town = Town()
    said: list[OpenJobs] = []
    for number in range(1, 5):
        town.start(request(number))
        while town.busy():
            town.busy()[0]()
            said += named(town)
        town.wait(1_000)
        said += named(town)
    assert said == []
    assert len(town.buyer.told(JobFinished)) == 4


def standing(number: int) -> JobStanding:
    return JobStanding(
        MessageId(number.to_bytes(32, "big")), ChannelId(bytes(32)), Lane(0), number, SequenceNumber(number)
    )


def test_many_unknown_jobs_are_answered_a_few_at_a_time_and_not_too_often() -> None:
    town = Town()
    many, stranger = tuple(standing(number) for number in range(100)), NodeId(b"s" * 32)
    for machine in (town.buyer.buyer, town.seller.seller):
        assert len(machine.compare(stranger, many, town.now)) == ANSWERS_MAX
        assert machine.compare(stranger, many, town.now) == []
        assert machine.compare(stranger, (), town.now) == []
    town.wait(500)
    assert len(town.seller.seller.compare(stranger, many, town.now)) == ANSWERS_MAX


def test_nothing_is_signed_about_a_live_job_whoever_names_it() -> None:
    """A signed end in a stranger's hand would end the job on the other side."""
    town = Town()
    town.seller.worker = Worker(silent_from=2)
    town.start(request())
    town.run()
    [job] = town.watch.agreements
    lane = town.buyer.buyer.books.lanes()[0]
    stranger = NodeId(b"s" * 32)
    live = (JobStanding(job, lane.channel, lane.lane, 0, SequenceNumber(0)),)
    assert town.seller.seller.compare(stranger, live, town.now) == []
    assert town.buyer.buyer.compare(stranger, live, town.now) == []


def test_a_finished_job_that_is_asked_for_gives_no_proof_of_a_failure() -> None:
    town = Town()
    town.start(request())
    town.run()
    [job] = town.watch.agreements
    asked = (JobStanding(job, ChannelId(bytes(32)), Lane(0), 0, SequenceNumber(0)),)
    [answer] = town.seller.seller.compare(town.buyer.node, asked, town.now)
    assert isinstance(answer, SignAndSend)
    assert answer.kind is MessageKind.FAILURE
    assert decode(answer.payload, Failure).fault is FaultKind.NETWORK


def test_what_was_released_is_said_again_to_the_buyers_node_alone() -> None:
    town = Town()
    town.on_send = lambda sender, payload: not isinstance(payload, Voucher)
    town.start(request())
    town.run()
    [job] = town.watch.agreements
    behind = (JobStanding(job, ChannelId(bytes(32)), Lane(0), 0, SequenceNumber(0)),)
    assert town.seller.seller.compare(NodeId(b"s" * 32), behind, town.now) == []
    assert [type(effect) for effect in town.seller.seller.compare(town.buyer.node, behind, town.now)] == [Send, Send]


def test_a_job_that_is_named_many_times_over_is_answered_once() -> None:
    """A short question must not buy many times a chunk, nor many signatures."""
    town = Town()
    town.on_send = lambda sender, payload: not isinstance(payload, Voucher)
    town.start(request())
    town.run()
    [job] = town.watch.agreements
    [lane] = town.buyer.buyer.books.lanes()
    behind = 128 * (JobStanding(job, lane.channel, lane.lane, 0, SequenceNumber(0)),)
    assert [type(effect) for effect in town.seller.seller.compare(town.buyer.node, behind, town.now)] == [Send, Send]
    lanes_named = tuple(
        JobStanding(MessageId(number.to_bytes(32, "big")), lane.channel, lane.lane, 0, SequenceNumber(0))
        for number in range(128)
    )
    said = town.buyer.buyer.compare(town.seller.node, lanes_named, town.now)
    assert sum(isinstance(effect, SignAndSend) and effect.kind is MessageKind.VOUCHER for effect in said) == 1
