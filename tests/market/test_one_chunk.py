"""A short job in one chunk, output with its input: who has what money, whatever becomes of it."""

import pytest
from msgspec.structs import replace

from protocol.market.events import AttemptFailed, JobDelivered, JobFailed, JobFinished, JobReceipted, JobText, SaleEnded
from protocol.market.policies import SellerPolicy
from protocol.market.records import JobStatements, ReceiptRecord, SellerLane, Side
from protocol.market.requests import MarketEffect
from protocol.market.seller_delivery import GATHER_MS
from protocol.market.seller_job import TIME_LIMIT_OVER
from protocol.messages.effects import Notify, Table
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Agreement, Chunk, FaultKind, FinishReason, Prices, Receipt, Voucher
from protocol.primitives.codec import Message, decode
from protocol.primitives.units import Amount, DurationMs
from protocol.settlement.pricing import amount_due
from tests.market.test_balances import assert_balances, debts
from tests.market.town import PRICES, SERVED, Person, Town, Worker, envelope_of, request

PREFILL, LONG, SHORT = (amount_due(PRICES, 10, units) for units in (0, 25, 5))
ENOUGH = 1000 * SHORT // LONG + 1
"""Permille at which one short job is trusted after one long one was paid."""


def acquainted(trust_permille: int = ENOUGH) -> Town:
    """After one job that was paid as it went; from now on the output is short."""
    town = Town()
    town.seller.seller_policy = SellerPolicy(slots=4, trust_permille=trust_permille)
    town.crash(town.seller)
    town.start(request(100))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    town.buyer.events.clear()
    town.seller.events.clear()
    town.seller.worker = Worker(pieces=(5,))
    return town


def sold_lane(town: Town) -> SellerLane:
    [channel] = town.seller.seller.books.channels()
    [lane] = town.seller.seller.books.lanes_of(channel)
    return lane


def statements(town: Town) -> list[str]:
    """Everybody's statements, in the order in which they leave."""
    said: list[str] = []

    def heard(person: Person, statement: Message) -> bool:
        said.append(f"{person.name.split()[0]} {type(statement).__name__}")
        return True

    town.on_send = heard
    return said


def lose(town: Town, *kinds: type[Message]) -> None:
    """Statements of these kinds never arrive."""
    town.on_send = lambda _, statement: not isinstance(statement, kinds)


def chunks_of_last_job(town: Town) -> dict[int, Chunk]:
    return town.watch.chunks[list(town.watch.agreements)[-1]]


def test_who_has_paid_enough_gets_a_short_job_at_once_and_pays_it_with_one_voucher() -> None:
    town = acquainted()
    said = statements(town)
    town.start(request(1))
    town.run()
    assert said == [
        "buyer Agreement",
        "buyer Bid",
        "seller Acceptance",
        "seller Chunk",
        "seller Receipt",
        "buyer Voucher",
    ]
    [finished] = town.buyer.told(JobFinished)
    assert isinstance(finished, JobFinished)
    assert (finished.paid, finished.receipt.chunks, finished.receipt.input_units) == (SHORT, 1, 10)
    [text] = town.buyer.told(JobText)
    assert isinstance(text, JobText)
    assert (text.payload, text.index, text.finish) == (town.seller.worker.output(), 1, FinishReason.STOP)
    [ended] = town.seller.told(SaleEnded)
    assert isinstance(ended, SaleEnded)
    assert ended.earned == SHORT
    assert_balances(town, LONG + SHORT)


@pytest.mark.parametrize(
    ("policy", "pieces"),
    [
        pytest.param(SellerPolicy(slots=4, trust_permille=ENOUGH - 1), (5,), id="who has paid too little"),
        pytest.param(SellerPolicy(slots=4, trust_permille=0), (5,), id="who deals with a provider that trusts nobody"),
        pytest.param(SellerPolicy(slots=4, trust_permille=1000, work_ahead=False), (5,), id="nobody works ahead"),
        pytest.param(SellerPolicy(slots=4, trust_permille=1000), (10, 5), id="whose output is longer than a chunk"),
    ],
)
def test_everybody_else_pays_the_input_first(policy: SellerPolicy, pieces: tuple[int, ...]) -> None:
    town = acquainted()
    town.seller.seller_policy = policy
    town.crash(town.seller)
    town.seller.worker = Worker(pieces=pieces)
    town.start(request(1))
    town.run()
    first = chunks_of_last_job(town)[0]
    assert (first.due, first.payload, first.finish) == (PREFILL, b"", FinishReason.NONE)
    assert len(chunks_of_last_job(town)) == 1 + len(pieces)
    assert town.buyer.told(JobFinished)
    assert_balances(town, LONG + amount_due(PRICES, 10, sum(pieces)))


def test_a_buyer_new_to_a_provider_pays_the_input_first() -> None:
    town = Town()
    town.seller.seller_policy = SellerPolicy(slots=4, trust_permille=1000)
    town.crash(town.seller)
    town.seller.worker = Worker(pieces=(5,))
    town.start(request(1))
    town.run()
    assert sorted(chunks_of_last_job(town)) == [0, 1]


def test_nothing_goes_out_unpaid_on_a_channel_that_is_about_to_end() -> None:
    town = acquainted()
    seller = town.seller
    town.start(request(1))
    while not seller.pulled:
        town.busy()[0]()
    [channel] = town.ledger.channels
    town.ledger.channels[channel] = replace(town.ledger.channels[channel], closing=True)
    town.run()
    assert SHORT not in [chunk.due for chunk in chunks_of_last_job(town).values()]


def test_an_output_that_takes_its_time_keeps_the_input_waiting_for_a_moment_only() -> None:
    town = acquainted()
    town.seller.worker = Worker(pieces=(5,), silent_from=1)
    town.start(request(1))
    town.run()
    job = list(town.watch.agreements)[-1]
    assert job not in town.watch.chunks
    town.wait(GATHER_MS)
    town.run()
    assert town.watch.chunks[job][0].due == PREFILL
    town.seller.pulled.append(job)  # now the worker has it
    town.seller.workers[job] = Worker(pieces=(5,))
    town.run()
    assert town.buyer.told(JobFinished)
    assert_balances(town, LONG + SHORT)


@pytest.mark.parametrize("restarts", [False, True], ids=["", "whose provider restarts each time"])
def test_who_takes_and_never_pays_has_had_no_more_than_its_share_of_what_it_paid(restarts: bool) -> None:
    """It goes back to the disk on which its promise is not, each time."""
    town = acquainted(trust_permille=3 * ENOUGH)
    kept, promised = dict(town.buyer.disk), {lane: dict(rows) for lane, rows in town.watch.vouchers.items()}
    taken: list[int] = []
    for number in range(1, 8):
        lose(town, Voucher)
        town.start(request(number))
        town.run()
        taken += [chunk.due for chunk in chunks_of_last_job(town).values()]
        town.buyer.disk = dict(kept)
        town.watch.vouchers = {lane: dict(rows) for lane, rows in promised.items()}  # nobody but it ever saw them
        town.crash(town.buyer)
        if restarts:
            town.crash(town.seller)
        town.wait(60_000)
        town.publish()
    assert taken == [SHORT] * 3 + [PREFILL] * 4, "from then on it gets no output that it has not paid the input of"
    assert 3 * SHORT * 1000 <= 3 * ENOUGH * LONG
    # What it had not worked for to the end when its process ended, a provider does not count as lost to its buyer.
    assert sold_lane(town).written_off == 3 * SHORT + (0 if restarts else 3 * PREFILL)
    assert_balances(town, LONG)


def test_a_late_payment_is_no_loss() -> None:
    town = acquainted()
    lose(town, Voucher)
    town.start(request(1))
    town.run()
    town.on_send = None
    town.unlink(town.buyer, town.seller)
    town.wait(60_000)  # the provider waits no longer
    town.link(town.buyer, town.seller)
    town.run()
    assert sold_lane(town).position.cumulative == LONG + SHORT
    town.publish()
    town.start(request(2))
    town.run()
    assert sold_lane(town).written_off == 0
    assert_balances(town, LONG + 2 * SHORT)


@pytest.mark.parametrize("lost", [Acceptance, Chunk, Receipt, Voucher])
@pytest.mark.parametrize("victim", ["", "buyer", "seller"])
def test_whatever_is_lost_and_whoever_restarts_both_have_what_is_theirs(lost: type[Message], victim: str) -> None:
    town = acquainted()
    lose(town, *((lost, Chunk, Receipt) if lost is Acceptance else (lost, Receipt) if lost is Chunk else (lost,)))
    town.start(request(1))
    town.run()
    town.on_send = None
    if victim:
        town.crash(town.buyer if victim == "buyer" else town.seller)
    else:
        town.unlink(town.buyer, town.seller)
    town.link(town.buyer, town.seller)
    town.run()
    if victim == "buyer" and lost is not Voucher:
        # It doesn't know what it had; the provider bears its one chunk.
        assert_balances(town, LONG)
        return
    if victim != "buyer":
        assert town.buyer.told(JobFinished)
        assert not town.buyer.told(AttemptFailed)
    assert debts(town) == (0, 0)
    assert_balances(town, LONG + SHORT)


def test_a_receipt_that_never_comes_leaves_the_result_and_its_payment() -> None:
    town = acquainted()
    lose(town, Receipt)
    town.start(request(1))
    town.run()
    town.unreachable.add(town.seller.node)
    town.unlink(town.buyer, town.seller)
    town.wait(60_000)
    [delivered] = town.buyer.told(JobDelivered)
    assert isinstance(delivered, JobDelivered)
    assert (delivered.amount, delivered.chunks) == (SHORT, 1)
    town.on_send = None
    town.unreachable.clear()
    town.link(town.buyer, town.seller)
    town.run()
    assert town.buyer.told(JobReceipted)
    assert_balances(town, LONG + SHORT)


@pytest.mark.parametrize("units", [-1, 11, 2**60])
def test_a_worker_that_meters_wrongly_is_its_providers_fault(units: int) -> None:
    town = acquainted()
    town.seller.worker = Worker(pieces=(units,))
    town.start(request(1))
    town.run()
    [lost] = town.buyer.told(JobFailed)
    assert isinstance(lost, JobFailed)
    assert lost.fault is FaultKind.PROVIDER
    assert f"worker broke the agreement: {units} units" in lost.reason
    assert_balances(town, LONG + (PREFILL if lost.paid else 0))


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_what_ends_before_anything_went_out_costs_nothing(how: str) -> None:
    town = acquainted()
    town.seller.worker = Worker(pieces=(5,), **({"fails_at": 1} if how == "failed" else {"silent_from": 1}))
    town.start(request(1))
    town.run()
    if how == "cancelled":
        town.do(town.buyer, town.buyer.buyer.cancel(request(1).request, "changed my mind", town.now))
        town.run()
        town.wait(GATHER_MS)
        town.run()
    assert not town.seller.seller.jobs()
    assert list(town.watch.agreements)[-1] not in town.watch.chunks
    assert debts(town) == (0, 0)
    assert_balances(town, LONG)


def test_a_job_that_was_lost_with_its_link_still_comes_after_its_provider_has_given_it_up() -> None:
    town = acquainted()
    lose(town, Chunk, Receipt)
    town.start(request(1, stall_ms=DurationMs(1_000)))
    town.run()
    town.on_send = None
    town.unreachable.add(town.seller.node)
    town.unlink(town.buyer, town.seller)
    town.wait(1_100)
    assert not town.seller.seller.jobs()
    town.unreachable.clear()
    town.link(town.buyer, town.seller)
    town.run()
    assert town.buyer.told(JobFinished)
    assert not town.buyer.told(AttemptFailed)
    assert_balances(town, LONG + SHORT)


def test_the_providers_record_holds_every_statement_of_the_job() -> None:
    town = acquainted()
    town.start(request(1))
    town.run()
    [channel] = town.seller.seller.books.channels()
    records = [decode(row, ReceiptRecord) for row in town.seller.rows(Table.RECEIPT)]
    [short] = [record for record in records if record.side is Side.SELLER and record.proof.index == 1]
    kinds = [open_envelope(said)[0].kind for said in (short.bid, short.agreement, short.acceptance, short.receipt)]
    assert kinds == [MessageKind.BID, MessageKind.AGREEMENT, MessageKind.ACCEPTANCE, MessageKind.RECEIPT]
    assert open_envelope(short.final_voucher)[0].kind == MessageKind.VOUCHER
    assert short.channel == channel


def test_a_provider_that_stops_between_payment_and_its_lanes_end_owes_nothing() -> None:
    town = acquainted()
    town.start(request(1))
    seller, carry_out = town.seller, town.do

    def ends(person: Person, effects: list[MarketEffect]) -> None:
        if person is seller and any(isinstance(said, Notify) and isinstance(said.event, SaleEnded) for said in effects):
            town.crash_after = 1  # the lane's row with the voucher is on the disk
        carry_out(person, effects)

    town.do = ends  # type: ignore[method-assign]
    town.run()
    town.do = carry_out  # type: ignore[method-assign]
    town.link(town.buyer, seller)
    town.run()
    assert debts(town) == (0, 0)
    assert_balances(town, LONG + SHORT)


def test_a_job_whose_time_is_over_while_it_waits_is_over_and_was_never_released() -> None:
    town = acquainted()
    town.seller.worker = Worker(pieces=(5,), silent_from=0)
    town.start(request(1, total_ms=DurationMs(1_500), first_output_ms=DurationMs(5_000), stall_ms=DurationMs(5_000)))
    town.run()
    [job] = town.seller.seller.jobs()
    town.buyer.timers.clear()  # its clock stands still
    town.wait(1_498)
    town.do(town.seller, town.seller.seller.work_prefilled(job.job, 10, town.now))
    town.wait(GATHER_MS)
    [ended] = town.seller.told(SaleEnded)
    assert isinstance(ended, SaleEnded)
    assert ended.reason == TIME_LIMIT_OVER
    assert job.job not in town.watch.chunks


@pytest.mark.parametrize("units", [-1, -(2**63)])
def test_an_input_that_was_metered_at_less_than_nothing_is_its_providers_fault(units: int) -> None:
    town = acquainted()
    town.seller.worker = Worker(input_units=units, pieces=(5,))
    town.start(request(1))
    town.run()
    [lost] = town.buyer.told(JobFailed)
    assert isinstance(lost, JobFailed)
    assert lost.fault is FaultKind.PROVIDER
    assert_balances(town, LONG)


def test_a_signed_breach_is_kept() -> None:
    town = acquainted()
    town.start(request(1))
    while not (link := town.links.get((town.seller.node, town.buyer.node))) or len(link) < 3:
        town.busy()[0]()
    for place, said in enumerate(link):
        chunk = open_envelope(said)[1] if isinstance(said, bytes) else None
        if isinstance(chunk, Chunk):
            link[place] = envelope_of(town.seller, MessageKind.CHUNK, replace(chunk, due=Amount(chunk.due + 1)))[2]
            breach = link[place]
    town.run()
    [lost] = town.buyer.told(JobFailed)
    assert isinstance(lost, JobFailed)
    assert lost.fault is FaultKind.PROVIDER
    [statements] = [decode(row, JobStatements) for row in town.buyer.rows(Table.JOB_STATEMENT)]
    assert statements.ending == breach
    assert_balances(town, LONG)


def test_what_an_earlier_provider_began_is_not_shown_where_the_next_one_gives_all_of_it_at_once() -> None:
    """Free work needs no trust."""
    free = replace(SERVED, runtime="onnx", prices=Prices(Amount(0), Amount(0), Amount(0)))
    town = Town(sellers=2, served=free)
    first, second = Worker(pieces=(10, 10, 5), fails_at=2), Worker(pieces=(5,))

    def heard(_: Person, statement: Message) -> bool:
        if isinstance(statement, Agreement):
            worker = first if len(town.watch.agreements) == 1 else second
            next(seller for seller in town.sellers if seller.account == statement.provider).worker = worker
        return True

    town.on_send = heard
    town.start(request(1))
    town.run()
    assert len(town.watch.agreements) == 2
    assert [len(chunks) for chunks in town.watch.chunks.values()] == [2, 1]
    [text] = town.buyer.told(JobText)
    assert isinstance(text, JobText)
    assert (text.index, text.payload) == (1, second.output())
    assert town.buyer.told(JobFinished)
