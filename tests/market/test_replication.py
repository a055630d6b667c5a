"""The same job at several providers: who gets it, what it costs together, whose output is shown, and who differs."""

import pytest

from protocol.market.buyer_job import RequestInvalid
from protocol.market.events import (
    JobCancelled,
    JobFailed,
    JobFinished,
    JobText,
    ReplicaFailed,
    ReplicaFinished,
    ReplicasCompared,
    ReplicaText,
)
from protocol.market.replication import ATTEMPTS_MAX, Replication, first_difference
from protocol.market.requests import MarketEffect
from protocol.messages.market import FaultKind
from protocol.primitives.limits import CHUNK_PAYLOAD_BYTES_MAX
from protocol.primitives.units import Amount
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Person, Town, Worker, request

AT_LIMITS = amount_due(PRICES, 10, 40)
WANTED = request(replication=3, replicas_min=3)


class LyingWorker(Worker):
    """Gives another output from its second piece on."""

    def payload(self, number: int) -> bytes:
        return b"another;" if number == 1 else super().payload(number)


class LargeWorker(Worker):
    """Two pieces of so many bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(pieces=(10, 10))
        self._size = size

    def payload(self, number: int) -> bytes:
        return bytes([number]) * self._size


class GroupTown(Town):
    """A town whose first buyer asks for replicas."""

    def __init__(self, sellers: int) -> None:
        self.groups: Replication | None = None
        super().__init__(sellers=sellers)
        self.groups = Replication(self.buyer.buyer, self.buyer.book)

    def do(self, person: Person, effects: list[MarketEffect]) -> None:
        if self.groups is not None and person is self.buyer:
            effects = self.groups.follow(effects, self.now)
        super().do(person, effects)

    def begin(self, **changes: object) -> None:
        assert self.groups is not None
        wanted = request(1, **{"replication": 3, "replicas_min": 3, **changes})
        self.do(self.buyer, self.groups.start(wanted, self.now))
        self.run()

    def told(self, kind: type) -> list:  # type: ignore[type-arg]
        return [event for event in self.buyer.told(kind) if event.request == WANTED.request]  # type: ignore[attr-defined]

    def paid(self) -> int:
        vouchers = self.watch.vouchers.values()
        return sum(lane[max(lane)].cumulative for lane in vouchers)


def test_equal_outputs_of_different_providers_are_shown_once_and_each_is_paid_its_own() -> None:
    town = GroupTown(sellers=4)
    town.begin()
    [finished] = town.told(JobFinished)
    [text] = town.told(JobText)
    assert text.payload == Worker().output()
    replicas = town.told(ReplicaFinished)
    assert len({replica.provider for replica in replicas}) == 3
    assert finished.paid == sum(replica.amount for replica in replicas) == town.paid()
    [compared] = town.told(ReplicasCompared)
    assert compared.agreeing == 3
    assert all(outcome.agrees and outcome.differs_at is None for outcome in compared.outcomes)
    assert len({outcome.output_commitment for outcome in compared.outcomes}) == 1


@pytest.mark.parametrize("liar", [0, 1, 2])
def test_the_one_that_differs_is_named_with_the_place_and_paid_all_the_same(liar: int) -> None:
    town = GroupTown(sellers=3)
    town.sellers[liar].worker = LyingWorker()
    town.begin()
    [text] = town.told(JobText)
    assert text.payload == Worker().output()
    [compared] = town.told(ReplicasCompared)
    assert compared.agreeing == 2
    [differing] = [outcome for outcome in compared.outcomes if not outcome.agrees]
    assert differing.provider == town.sellers[liar].account
    assert differing.differs_at == len(Worker().payload(0))
    [finished] = town.told(JobFinished)
    assert finished.paid == 3 * amount_due(PRICES, 10, 25) == town.paid()


def test_without_a_majority_nothing_is_shown_and_the_group_fails() -> None:
    town = GroupTown(sellers=2)
    town.sellers[0].worker = LyingWorker()
    town.begin(replication=2, replicas_min=2)
    assert town.told(JobText) == []
    [compared] = town.told(ReplicasCompared)
    assert compared.agreeing == 0
    [failed] = town.told(JobFailed)
    assert failed.fault is FaultKind.PROVIDER
    assert "more than half" in failed.reason
    assert failed.paid == town.paid() > 0


def test_too_few_providers_are_refused_with_the_reasons_before_anything_is_signed() -> None:
    town = GroupTown(sellers=2)
    with pytest.raises(RequestInvalid, match=r"2 different providers .* 3 are wanted"):
        town.begin()
    assert town.watch.agreements == {}
    with pytest.raises(RequestInvalid, match=r"1 × price above ceiling"):
        town.begin(replication=2, replicas_min=2, price_ceiling=Amount(2 * AT_LIMITS - 1))
    assert town.watch.agreements == {}


def test_fewer_than_wanted_do_when_the_least_number_says_so() -> None:
    town = GroupTown(sellers=2)
    town.begin(replicas_min=2)
    [compared] = town.told(ReplicasCompared)
    assert compared.agreeing == 2
    assert len(town.told(JobFinished)) == 1


def test_one_ceiling_bounds_all_replicas_together() -> None:
    town = GroupTown(sellers=4)
    ceiling = Amount(3 * AT_LIMITS)
    town.begin(price_ceiling=ceiling)
    assert sum(agreement.price_ceiling for agreement in town.watch.agreements.values()) <= ceiling
    assert len(town.told(JobFinished)) == 1


def test_a_provider_that_fails_is_replaced_by_one_that_has_no_replica_yet() -> None:
    town = GroupTown(sellers=4)
    for seller in town.sellers[:1]:
        seller.worker = Worker(fails_at=1)
    town.begin()
    town.wait(100)
    town.run()
    failed = town.told(ReplicaFailed)
    assert [event.provider for event in failed] in ([], [town.sellers[0].account])
    replicas = town.told(ReplicaFinished)
    assert len({replica.provider for replica in replicas}) == 3
    [finished] = town.told(JobFinished)
    assert finished.paid == town.paid()


def test_a_failed_replica_leaves_less_of_the_ceiling_and_never_more_is_promised_than_it() -> None:
    town = GroupTown(sellers=6)
    for seller in town.sellers:
        seller.worker = Worker(fails_at=2)
    ceiling = Amount(3 * AT_LIMITS + 10)
    town.begin(price_ceiling=ceiling)
    [failed] = town.told(JobFailed)
    assert failed.paid == town.paid() <= ceiling
    assert len(town.watch.agreements) <= 3 * ATTEMPTS_MAX


def in_order_of_choice(town: GroupTown) -> list[Person]:
    """All sellers: those that would get the replicas first."""
    assert town.groups is not None
    chosen = [match.live.account for match in town.groups._choose(WANTED, town.now)]
    return sorted(town.sellers, key=lambda seller: chosen.index(seller.account) if seller.account in chosen else 9)


@pytest.mark.parametrize(("spare", "agreements"), [(10, 3), (AT_LIMITS, 4)])
def test_a_place_is_given_again_only_for_what_is_neither_paid_nor_promised(spare: int, agreements: int) -> None:
    town = GroupTown(sellers=4)
    first, *others = in_order_of_choice(town)
    first.worker = Worker(fails_at=2)
    for other in others:
        other.worker = Worker(silent_from=1)
    town.begin(price_ceiling=Amount(3 * AT_LIMITS + spare))
    assert len(town.told(ReplicaFailed)) == 1
    assert len(town.watch.agreements) == agreements


def test_nobody_gets_a_second_replica_of_a_group_whatever_fails() -> None:
    town = GroupTown(sellers=4)
    first, second, third, fourth = in_order_of_choice(town)
    for failing in (first, second, fourth):
        failing.worker = Worker(fails_at=1)
    town.begin()
    asked = [agreement.provider for agreement in town.watch.agreements.values()]
    assert sorted(asked) == sorted({seller.account for seller in (first, second, third, fourth)})


def test_a_group_that_is_cancelled_cancels_every_replica_and_tells_what_was_paid() -> None:
    town = GroupTown(sellers=3)
    for seller in town.sellers:
        seller.worker = Worker(silent_from=2)
    town.begin()
    assert town.groups is not None
    assert town.groups.owns(WANTED.request)
    town.do(town.buyer, town.groups.cancel(WANTED.request, "enough", town.now))
    town.run()
    [cancelled] = town.told(JobCancelled)
    assert cancelled.paid == town.paid() > 0
    assert not town.groups.owns(WANTED.request)
    assert town.buyer.buyer.jobs() == ()


def test_the_first_replicas_text_is_told_as_it_comes_for_those_who_want_it() -> None:
    town = GroupTown(sellers=3)
    town.begin()
    assert b"".join(event.payload for event in town.told(ReplicaText)) == Worker().output()


def test_a_large_output_is_told_in_pieces_no_larger_than_a_chunks() -> None:
    town = GroupTown(sellers=2)
    piece = CHUNK_PAYLOAD_BYTES_MAX - 5
    for seller in town.sellers:
        seller.worker = LargeWorker(piece)
    town.begin(replication=2, replicas_min=2)
    texts = town.told(JobText)
    assert [len(text.payload) for text in texts] == [CHUNK_PAYLOAD_BYTES_MAX, 2 * piece - CHUNK_PAYLOAD_BYTES_MAX]
    assert [text.index for text in texts] == [1, 2]


def test_more_replicas_than_the_cap_or_fewer_than_the_least_are_refused() -> None:
    town = GroupTown(sellers=3)
    for changes in ({"replication": 17}, {"replication": 2, "replicas_min": 3}, {"replicas_min": 0}):
        with pytest.raises(RequestInvalid):
            town.begin(**changes)


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        (b"", b"", None),
        (b"abc", b"abc", None),
        (b"abc", b"abd", 2),
        (b"abc", b"ab", 2),
        (b"", b"x", 0),
        (b"x", b"y", 0),
    ],
)
def test_the_first_difference_is_found(one: bytes, other: bytes, place: int | None) -> None:
    assert first_difference(one, other) == place
