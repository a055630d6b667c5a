"""Both sides of a link compare the jobs that they have open with each other.

Law: no job is under way on one side alone. What has been quiet for a while is named to the other side, and all of it
when a link stands anew; whoever does not know a job says so at once, by the statement that ends it (``Failure`` from a
provider, ``Cancellation`` from a buyer); whoever has said more than the other has heard says it again. An ordinary job
is over before it is ever named.
"""

from protocol.market.awaited_receipts import AwaitedReceipts
from protocol.market.buyer_core import BuyerCore
from protocol.market.buyer_job import HEARD, BuyerJob, BuyerState
from protocol.market.requests import MarketEffect
from protocol.market.seller_core import SellerCore
from protocol.market.seller_intake import Intake
from protocol.market.seller_job import SellerJob
from protocol.messages.effects import Now, Send, SignAndSend
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Cancellation, Failure, FaultKind
from protocol.messages.wire import Direct, JobStanding, OpenJobs
from protocol.primitives.codec import encode
from protocol.primitives.limits import OPEN_JOBS_MAX
from protocol.primitives.units import ChannelId, DurationMs, Lane, MonotonicMs, NodeId

ANSWERS_MAX = 16
"""Unknown jobs answered at once: each costs a signature, and the rest is named again."""

HEARD_EVERY_MS = 500
"""A peer is listened to no more often; honest ones speak at a link's beginning and then every few seconds."""

_UNKNOWN = "not under way here"


class _Pace:
    """When to speak, and whom to hear."""

    def __init__(self, every_ms: DurationMs) -> None:
        self._every_ms = every_ms
        self._next = MonotonicMs(0)
        self._heard: dict[NodeId, MonotonicMs] = {}

    def may_speak(self, now: Now) -> bool:
        if now.monotonic_ms < self._next:
            return False
        self._next = MonotonicMs(now.monotonic_ms + self._every_ms)
        return True

    def may_hear(self, peer: NodeId, now: Now) -> bool:
        last = self._heard.get(peer)
        if last is not None and now.monotonic_ms < last + HEARD_EVERY_MS:
            return False
        self._heard[peer] = now.monotonic_ms
        return True

    def forget(self, peer: NodeId) -> None:
        self._heard.pop(peer, None)


class BuyerComparison:
    """The buyer's part."""

    def __init__(self, core: BuyerCore, awaited: AwaitedReceipts) -> None:
        self._core = core
        self._awaited = awaited
        self._pace = _Pace(core.policy.reconcile_ms)

    def due(self, now: Now) -> list[MarketEffect]:
        """Name the jobs that stand where they stood at the last look."""
        core = self._core
        if not (core.requests or self._awaited) or not self._pace.may_speak(now):
            return []
        quiet: dict[NodeId, list[JobStanding]] = {}
        for job in core.requests.values():
            attempt = job.attempt
            if attempt is None or attempt.node not in core.linked:
                continue
            here = (job.state, attempt.progress.chunks)
            if attempt.quiet == here and _accepted(job):
                quiet.setdefault(attempt.node, []).append(self._standing(job))
            attempt.quiet = here
        for node, standing in self._awaited.standings():
            if node in core.linked:
                quiet.setdefault(node, []).append(standing)
        return [Send(node, OpenJobs(tuple(named[:OPEN_JOBS_MAX]), ())) for node, named in quiet.items()]

    def link_up(self, peer: NodeId) -> list[MarketEffect]:
        """Name all jobs that this peer has accepted, and those whose receipt it owes: it may have lost them with its
        last life."""
        self._pace.forget(peer)
        named = [
            self._standing(job)
            for job in self._core.requests.values()
            if job.attempt is not None and job.attempt.node == peer and _accepted(job)
        ]
        named += [standing for node, standing in self._awaited.standings() if node == peer]
        return [Send(peer, OpenJobs(tuple(named[:OPEN_JOBS_MAX]), ()))] if named else []

    def link_down(self, peer: NodeId) -> None:
        """The link is gone."""
        self._pace.forget(peer)

    def heard(self, peer: NodeId, selling: tuple[JobStanding, ...], now: Now) -> list[MarketEffect]:
        """A provider names what it works on for us."""
        if not selling or not self._pace.may_hear(peer, now):
            return []
        core = self._core
        effects: list[MarketEffect] = []
        sent: dict[tuple[ChannelId, Lane], None] = {}
        answers = 0
        for standing in _named_once(selling):
            name = (standing.channel, standing.lane)
            lane = core.books.lane(*name)
            if standing.job in self._awaited:
                continue  # its receipt is asked for, and its last voucher goes with that
            if lane is not None and lane.node == peer and lane.position.sequence > standing.sequence:
                voucher = core.books.last_voucher(lane)
                assert voucher is not None
                if name not in sent:
                    sent[name] = None
                    effects.append(core.send_voucher(voucher, peer))
            # What is signed about a live job could be carried to the other party: nothing is, whoever asks.
            if standing.job not in core.by_job and answers < ANSWERS_MAX:
                answers += 1
                cancellation = Cancellation(standing.job, 0, _UNKNOWN)
                effects.append(SignAndSend(MessageKind.CANCELLATION, encode(cancellation), (peer,)))
        return effects

    def _standing(self, job: BuyerJob) -> JobStanding:
        attempt = job.attempt
        assert attempt is not None
        agreement = attempt.agreement
        sequence = self._core.books.position(agreement.channel, agreement.lane).sequence
        return JobStanding(attempt.job, agreement.channel, agreement.lane, attempt.progress.chunks, sequence)


class SellerComparison:
    """The seller's part."""

    def __init__(self, core: SellerCore, intake: Intake) -> None:
        self._core = core
        self._intake = intake
        self._pace = _Pace(core.policy.reconcile_ms)
        self._linked: dict[NodeId, None] = {}

    def due(self, now: Now) -> list[MarketEffect]:
        """Name the jobs that stand where they stood at the last look."""
        if not self._core.jobs or not self._pace.may_speak(now):
            return []
        quiet: dict[NodeId, list[JobStanding]] = {}
        for job in self._core.jobs.values():
            here = (job.state, job.progress.chunks)
            if job.quiet == here and job.agreement.buyer_node in self._linked:
                quiet.setdefault(job.agreement.buyer_node, []).append(self._standing(job))
            job.quiet = here
        return [Send(node, OpenJobs((), tuple(named[:OPEN_JOBS_MAX]))) for node, named in quiet.items()]

    def link_up(self, peer: NodeId) -> list[MarketEffect]:
        """Name all jobs of this buyer's node: it may have lost them with its last life."""
        self._linked[peer] = None
        self._pace.forget(peer)
        named = [self._standing(job) for job in self._core.jobs.values() if job.agreement.buyer_node == peer]
        return [Send(peer, OpenJobs((), tuple(named[:OPEN_JOBS_MAX])))] if named else []

    def link_down(self, peer: NodeId) -> None:
        """The link is gone."""
        self._linked.pop(peer, None)
        self._pace.forget(peer)

    def heard(self, peer: NodeId, buying: tuple[JobStanding, ...], now: Now) -> list[MarketEffect]:
        """A buyer names what it waits for from us."""
        if not buying or not self._pace.may_hear(peer, now):
            return []
        effects: list[MarketEffect] = []
        answers = 0
        for standing in _named_once(buying):
            job = self._core.jobs.get(standing.job)
            if job is not None:
                # Nothing is said or signed about a live job to anybody but its buyer's node.
                if job.agreement.buyer_node == peer and (job.progress.chunks > standing.chunks or job.receipt_out):
                    effects += [Send(peer, Direct(said)) for said in job.unanswered]
            elif said := self._core.said_last(standing, peer):
                effects += [Send(peer, Direct(statement)) for statement in said]
            elif answers < ANSWERS_MAX and not self._intake.holds(standing.job):
                answers += 1
                effects.append(SignAndSend(MessageKind.FAILURE, encode(self._ended(peer, standing)), (peer,)))
        return effects

    def _ended(self, peer: NodeId, standing: JobStanding) -> Failure:
        told = self._core.ended.get(standing.job)
        if told is not None and told[0] == peer:
            return told[1]
        # Not the provider's fault: a job that ended well is as unknown as one that never was.
        return Failure(standing.job, FaultKind.NETWORK, 0, _UNKNOWN)

    def _standing(self, job: SellerJob) -> JobStanding:
        agreement = job.agreement
        lane = self._core.books.lane(agreement.channel, agreement.lane)
        assert lane is not None
        return JobStanding(job.job, lane.channel, lane.lane, job.progress.chunks, lane.position.sequence)


def _named_once(standings: tuple[JobStanding, ...]) -> tuple[JobStanding, ...]:
    """Each job is answered once: a short question must not buy the same chunk many times over."""
    return tuple({standing.job: standing for standing in standings}.values())


def _accepted(job: BuyerJob) -> bool:
    return job.state in HEARD and job.state is not BuyerState.OFFERED
