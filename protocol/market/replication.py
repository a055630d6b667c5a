"""The same job at several providers, their outputs compared byte for byte: a group of requests on top of the buyer.

Law: one ceiling for all, different providers, equal terms: the same input, settings, seed and salt, so that outputs are
equal exactly if their salted commitments are. Each provider is paid for what it delivered, whatever the comparison
says; nobody goes on behind another one's output, because then it would not be an output of its own. A group ends with
the output of more than half of those that finished, or says that there is none.

Bounded: ``REPLICAS_MAX`` replicas, each tried at so many providers, one copy of each different output.
"""

from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from protocol.market.agreement import JobRequest
from protocol.market.buyer import Buyer
from protocol.market.buyer_job import BuyerJob, RequestInvalid, check_request, clip
from protocol.market.events import (
    NO_JOB,
    JobAgreed,
    JobCancelled,
    JobDelivered,
    JobFailed,
    JobFinished,
    JobText,
    ReplicaAgreed,
    ReplicaFailed,
    ReplicaFinished,
    ReplicaOutcome,
    ReplicasCompared,
    ReplicaText,
)
from protocol.market.matching import Match, Want
from protocol.market.offer_search import best_offer, quote
from protocol.market.order_book import OrderBook
from protocol.market.records import waiting_key
from protocol.market.requests import MarketEffect
from protocol.messages.effects import Delete, Notify, Now, Put, Table
from protocol.messages.market import FaultKind, FinishReason, Receipt
from protocol.primitives.codec import Message, encode
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import CHUNK_PAYLOAD_BYTES_MAX
from protocol.primitives.units import AccountId, Amount, DurationMs, Hash, MessageId, MonotonicMs, WorkUnits

ATTEMPTS_MAX = 3
"""Providers tried for one replica."""

_REASONS_TOLD_MAX = 16

_REPLICATED = "with its replicas"
"""State of a group's row while its replicas are under way."""


class TooFewProviders(RequestInvalid):
    """Fewer different providers than wanted would do it; ``str`` says why the others would not."""


class _State(Enum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class _Replica(Struct):
    """One of the group's places: the provider that has it now, and what came of it."""

    number: int
    request: Hash
    provider: AccountId
    ceiling: Amount
    state: _State = _State.RUNNING
    attempts: int = 1
    paid: Amount = Amount(0)
    """To all providers that had this place."""
    job: MessageId = NO_JOB
    pieces: list[bytes] = []
    output: bytes = b""
    """All of it, once it is whole."""
    receipt: Receipt | None = None


class _Group(Struct):
    request: JobRequest
    until: MonotonicMs
    replicas: list[_Replica]
    used: dict[AccountId, None]
    """Providers that had a place; nobody gets two."""
    first_error: tuple[FaultKind, str] | None = None
    cancelled: str | None = None

    def paid(self) -> Amount:
        """Price of everything so far."""
        return Amount(sum(replica.paid for replica in self.replicas))

    def left(self) -> Amount:
        """What of the ceiling is neither paid nor promised."""
        promised = sum(replica.ceiling for replica in self.replicas if replica.state is _State.RUNNING)
        return Amount(self.request.price_ceiling - self.paid() - promised)


class Replication:
    """All groups of one buyer. Whatever the buyer or a method of this class returns goes through ``follow`` once."""

    def __init__(self, buyer: Buyer, book: OrderBook) -> None:
        self._buyer = buyer
        self._book = book
        self._groups: dict[Hash, _Group] = {}
        self._places: dict[Hash, tuple[_Group, _Replica]] = {}
        """A replica's own request → where it belongs."""

    def owns(self, request: Hash) -> bool:
        """True for the request of a group under way."""
        return request in self._groups

    def start(self, request: JobRequest, now: Now) -> list[MarketEffect]:
        """Begin a group of ``request.replication`` replicas. Raises ``RequestInvalid``, or ``TooFewProviders``
        when fewer than ``request.replicas_min`` different ones would do it under the ceiling."""
        check_request(request)
        if request.request in self._groups:
            raise RequestInvalid("a request with this id is under way")
        matches = self._choose(request, now)
        if len(matches) < request.replicas_min:
            raise TooFewProviders(self._too_few(request, matches, now))
        until = MonotonicMs(now.monotonic_ms + request.total_ms)
        group = _Group(request, until, [], {match.live.account: None for match in matches})
        self._groups[request.request] = group
        effects: list[MarketEffect] = []
        for number, match in enumerate(matches):
            replica = _Replica(number, Hash(b""), match.live.account, match.price_at_limits)
            group.replicas.append(replica)
            effects += self._run(group, replica, now)
        return [*effects, self._kept(group, now)]

    def _kept(self, group: _Group, now: Now) -> MarketEffect:
        """A group is in memory alone; should this process end, its request is told to have ended with it."""
        job = BuyerJob(group.request, now)
        job.note(now.wall_ms, _REPLICATED, f"{len(group.replicas)} replicas")
        record = replace(job.record(self._buyer.own), state=_REPLICATED)
        return Put(Table.STANDING, waiting_key(group.request.request), encode(record))

    def cancel(self, request: Hash, reason: str, now: Now) -> list[MarketEffect]:
        """The asker wants no more of a group."""
        group = self._groups.get(request)
        if group is None:
            return []
        group.cancelled = reason
        effects: list[MarketEffect] = []
        for replica in group.replicas:
            if replica.state is _State.RUNNING:
                effects += self._buyer.cancel(replica.request, reason, now)
        return effects

    def follow(self, effects: list[MarketEffect], now: Now) -> list[MarketEffect]:
        """The buyer's effects, with what follows from them for groups put behind each."""
        if not self._places:
            return effects
        followed: list[MarketEffect] = []
        for effect in effects:
            followed.append(effect)
            if isinstance(effect, Notify):
                followed += self.follow(self._heard(effect.event, now), now)
        return followed

    # Choosing

    def _want(self, request: JobRequest, ceiling: int, used: tuple[AccountId, ...], now: Now) -> Want:
        policy = self._buyer.policy
        return Want(
            buyer=self._buyer.own,
            model=request.model,
            input_units_max=request.input_units_max,
            output_units_max=request.output_units_max,
            input_units_expected=request.input_units_expected or request.input_units_max,
            output_units_expected=request.output_units_expected or request.output_units_max,
            price_ceiling=Amount(max(0, ceiling)),
            unique=request.unique,
            region=request.region,
            isolation=request.isolation,
            excluded=used,
            demoted=self._buyer.demoted(now),
            weights=policy.weights,
            region_preferred=policy.region_preferred,
        )

    def _choose(self, request: JobRequest, now: Now) -> list[Match]:
        """The best providers, one after the other, as many as the ceiling pays at their limits."""
        chosen: list[Match] = []
        ceiling = int(request.price_ceiling)
        for _ in range(request.replication):
            used = tuple(match.live.account for match in chosen)
            match = best_offer(self._book, self._want(request, ceiling, used, now), now)
            if match is None:
                break
            chosen.append(match)
            ceiling -= match.price_at_limits
        return chosen

    def _too_few(self, request: JobRequest, chosen: list[Match], now: Now) -> str:
        spent = sum(match.price_at_limits for match in chosen)
        used = {match.live.account: None for match in chosen}
        want = self._want(request, request.price_ceiling - spent, tuple(used), now)
        refused = quote(self._book, want, now, whole_book=False).refused
        reasons: dict[str, int] = {}
        for refusal in refused:
            if refusal.account not in used:
                reasons[refusal.reason] = reasons.get(refusal.reason, 0) + 1
        told = "; ".join(f"{count} × {reason}" for reason, count in sorted(reasons.items())[:_REASONS_TOLD_MAX])
        wanted = f"{len(chosen)} different providers would do it together under the ceiling"
        return clip(f"{wanted}, {request.replicas_min} are wanted" + (f": {told}" if told else ""))

    def _run(self, group: _Group, replica: _Replica, now: Now) -> list[MarketEffect]:
        """Ask the replica's provider, and nobody else, under an id of its own."""
        request, place = group.request, replica.number.to_bytes(4, "big") + replica.attempts.to_bytes(4, "big")
        replica.request = digest(Domain.REPLICA, request.request, place)
        self._places[replica.request] = (group, replica)
        alone = replace(
            request,
            request=replica.request,
            unique=digest(Domain.REPLICA, request.unique, place),
            provider=replica.provider,
            price_ceiling=replica.ceiling,
            choose_ms=DurationMs(0),
            patient=False,  # another provider may have room
            group=request.request,
            total_ms=DurationMs(max(1, group.until - now.monotonic_ms)),
        )
        try:
            return self._buyer.start_job(alone, now)
        except RequestInvalid as error:
            return [
                Notify(
                    JobFailed(
                        replica.request,
                        NO_JOB,
                        FaultKind.USER,
                        clip(str(error)),
                        Amount(0),
                        WorkUnits(0),
                        FaultKind.USER,
                        clip(str(error)),
                    )
                )
            ]

    # What comes of them

    def _heard(self, event: Message, now: Now) -> list[MarketEffect]:
        match event:
            case JobDelivered():
                # A replica counts by what its provider has signed of it: without a receipt it has failed.
                return self._heard(_without_receipt(event), now)
            case JobAgreed() | JobText() | JobFinished() | JobFailed() | JobCancelled():
                place = self._places.get(event.request)
            case _:
                return []
        if place is None:
            return []
        group, replica = place
        own = group.request.request
        match event:
            case JobAgreed():
                replica.job = event.job
                agreed = ReplicaAgreed(own, replica.number, event.job, event.provider, event.price_ceiling)
                return [Notify(agreed)]
            case JobText():
                replica.pieces.append(event.payload)
                if replica.number:
                    return []
                return [Notify(ReplicaText(own, replica.attempts, event.payload, event.output_units))]
            case JobFinished():
                return self._finished(group, replica, event, now)
            case JobFailed():
                return self._failed(group, replica, event, now)
            case JobCancelled():
                replica.state = _State.FAILED
                replica.paid = Amount(replica.paid + event.paid)
                del self._places[replica.request]
                return self._perhaps_end(group, now)

    def _finished(self, group: _Group, replica: _Replica, event: JobFinished, now: Now) -> list[MarketEffect]:
        receipt = event.receipt
        replica.state, replica.receipt, replica.job = _State.DONE, receipt, event.job
        replica.paid = Amount(replica.paid + event.paid)
        replica.output, replica.pieces = b"".join(replica.pieces), []
        del self._places[replica.request]
        for other in group.replicas:  # one copy of each different output
            if (
                other is not replica
                and other.receipt is not None
                and other.receipt.output_commitment == receipt.output_commitment
            ):
                replica.output = other.output
                break
        told = ReplicaFinished(
            group.request.request,
            replica.number,
            event.job,
            receipt.provider,
            receipt.amount,
            receipt.output_units,
            receipt.output_commitment,
        )
        return [Notify(told), *self._perhaps_end(group, now)]

    def _failed(self, group: _Group, replica: _Replica, event: JobFailed, now: Now) -> list[MarketEffect]:
        """The place is given to another provider, if there is one that may have it."""
        fault, reason = FaultKind(event.first_fault), event.first_reason
        group.first_error = group.first_error or (fault, reason)
        replica.paid = Amount(replica.paid + event.paid)
        replica.state, replica.pieces = _State.FAILED, []
        del self._places[replica.request]
        told = Notify(ReplicaFailed(group.request.request, replica.number, replica.provider, fault, clip(reason)))
        match = self._another(group, replica, fault, now)
        if match is None:
            return [told, *self._perhaps_end(group, now)]
        group.used[match.live.account] = None
        replica.state, replica.provider, replica.ceiling = _State.RUNNING, match.live.account, match.price_at_limits
        replica.attempts += 1
        return [told, *self._run(group, replica, now)]

    def _another(self, group: _Group, replica: _Replica, fault: FaultKind, now: Now) -> Match | None:
        over = now.monotonic_ms >= group.until or replica.attempts >= ATTEMPTS_MAX or group.cancelled is not None
        if over or fault is FaultKind.USER:
            return None
        return best_offer(self._book, self._want(group.request, group.left(), tuple(group.used), now), now)

    def _perhaps_end(self, group: _Group, now: Now) -> list[MarketEffect]:
        if any(replica.state is _State.RUNNING for replica in group.replicas):
            return []
        request = group.request
        del self._groups[request.request]
        return [Delete(Table.STANDING, waiting_key(request.request)), *self._end(group)]

    def _end(self, group: _Group) -> list[MarketEffect]:
        request = group.request
        if group.cancelled is not None:
            return [Notify(JobCancelled(request.request, NO_JOB, clip(group.cancelled), group.paid(), WorkUnits(0)))]
        done = [replica for replica in group.replicas if replica.receipt is not None]
        if len(done) < request.replicas_min:
            fault, reason = group.first_error or (FaultKind.CAPACITY, "too few providers finished")
            return [Notify(_group_failed(group, fault, f"{len(done)} of {request.replication} finished: {reason}"))]
        agreeing = _majority(done)
        compared = Notify(_comparison(request.request, done, agreeing))
        if agreeing is None:
            reason = f"no output is that of more than half of {len(done)} replicas"
            return [compared, Notify(_group_failed(group, FaultKind.PROVIDER, reason))]
        winner = agreeing[0]
        assert winner.receipt is not None
        receipt = winner.receipt
        finished = JobFinished(request.request, winner.job, receipt, group.paid(), receipt.output_units, receipt.chunks)
        return [compared, *_told_whole(request.request, winner, receipt), Notify(finished)]


def _told_whole(request: Hash, replica: _Replica, receipt: Receipt) -> list[MarketEffect]:
    """An output in pieces no larger than a chunk's: whoever reads them has room for that much."""
    starts = range(0, max(1, len(replica.output)), CHUNK_PAYLOAD_BYTES_MAX)
    return [
        Notify(
            JobText(
                request,
                replica.job,
                number,
                replica.output[start : start + CHUNK_PAYLOAD_BYTES_MAX],
                receipt.output_units,
                FinishReason(receipt.finish),
            )
        )
        for number, start in enumerate(starts, 1)
    ]


def _majority(done: list[_Replica]) -> list[_Replica] | None:
    """Those with the output of more than half."""
    groups: dict[bytes, list[_Replica]] = {}
    for replica in done:
        assert replica.receipt is not None
        groups.setdefault(replica.receipt.output_commitment, []).append(replica)
    largest = max(groups.values(), key=len)
    return largest if 2 * len(largest) > len(done) else None


def _comparison(request: Hash, done: list[_Replica], agreeing: list[_Replica] | None) -> ReplicasCompared:
    model = (agreeing or done)[0]
    agreed = [replica.number for replica in agreeing or ()]
    outcomes = []
    for replica in done:
        assert replica.receipt is not None
        outcomes.append(
            ReplicaOutcome(
                replica.number,
                replica.job,
                replica.receipt.provider,
                replica.receipt.output_commitment,
                replica.number in agreed,
                first_difference(model.output, replica.output),
            )
        )
    return ReplicasCompared(request, len(agreed), tuple(outcomes))


def first_difference(one: bytes, other: bytes) -> int | None:
    """The place of the first byte that differs, or where the shorter one ends; ``None`` for equal ones."""
    if one == other:
        return None
    shorter = min(len(one), len(other))
    low, high = 0, shorter  # the longest common beginning, by halves
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _without_receipt(event: JobDelivered) -> JobFailed:
    fault, reason, units = event.fault, event.reason, event.output_units
    return JobFailed(event.request, event.job, fault, reason, event.paid, units, fault, reason)


def _group_failed(group: _Group, fault: FaultKind, reason: str) -> JobFailed:
    first = group.first_error or (fault, reason)
    units = sum(replica.receipt.output_units for replica in group.replicas if replica.receipt is not None)
    return JobFailed(
        group.request.request,
        NO_JOB,
        fault,
        clip(reason),
        group.paid(),
        WorkUnits(units),
        first[0],
        clip(first[1]),
    )
