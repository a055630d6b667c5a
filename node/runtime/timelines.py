"""``why``: gathers what this node, the other party and the ledger have recorded of a job.

Law: the other side is asked, never presumed; what it does not tell is named as missing, beside what it has signed
before. An answer counts only under the signature of the account that the agreement names.
"""

import asyncio
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from node.clock import read_clock
from node.runtime import market_views
from node.runtime.ledger_views import account_text
from node.runtime.signer import Signer
from node.runtime.timeline_views import AttemptView, LineView, RecordedView, WhyView
from protocol.engine.inputs import AskTimeline, DropTimeline
from protocol.engine.telling import TimelineTold
from protocol.market.records import (
    ChannelLine,
    JobRecord,
    JobStatements,
    ReceiptRecord,
    Side,
    attempt_key,
    channel_log_key,
    timeline_of,
)
from protocol.market.timeline import AttemptStory, LedgerFact, Line, contradictions, facts_of, merged
from protocol.messages.effects import Table
from protocol.messages.envelope import open_as, open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import (
    Acceptance,
    Cancellation,
    Chunk,
    Failure,
    FaultKind,
    Receipt,
    Refusal,
    Timeline,
    Voucher,
)
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.units import AccountId, Hash, Height, MessageId, NodeId, format_credits

if TYPE_CHECKING:
    from node.runtime.node import Node

ANSWER_MS = 3_000
"""The other side has so long to tell; a person waits for it."""

CHANNEL_LINES_MAX = 4_096
"""Of one channel's log, read for one question."""

ATTEMPTS_MAX = 256


class _Told(msgspec.Struct, frozen=True):
    """One attempt with all that could be had about it."""

    story: AttemptStory
    missing: str
    envelope: bytes
    clock_known: bool
    statements: tuple[bytes, ...]
    receipt: ReceiptRecord | None


class TimelineDesk:
    """Answers of one node to its own user."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._signer = Signer(node.keys, node.engine.replica.state.genesis_hash)

    async def why(self, text: str) -> WhyView:
        """Everything recorded of a job and of the other attempts of its request. Raises ``ControlError``."""
        found = market_views.find_job(self._node, text)
        records = self.attempts(found)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._told(number, record)) for number, record in enumerate(records, 1)]
        told = [task.result() for task in asked]
        stories = tuple(each.story for each in told)
        facts = [fact for each in told for fact in self._facts(each, stories[0].own)]
        last = records[-1]
        return WhyView(
            request=last.request.hex() if any(last.request) else "",
            side="buyer" if last.side is Side.BUYER else "provider",
            model=market_views.model_text(self._node, last),
            state=last.state,
            reason="" if last.state == "done" else last.reason,
            counterparty=account_text(last.provider if last.side is Side.BUYER else last.buyer),
            paid=sum(record.paid for record in records),
            attempts=tuple(self._attempt_view(each) for each in told),
            lines=tuple(_line_view(line) for line in merged(stories, _once(facts))),
        )

    def attempts(self, record: JobRecord) -> tuple[JobRecord, ...]:
        """All agreements of the record's request, the first one first; at least the record itself."""
        if record.side is Side.SELLER:
            return (record,)
        node = self._node
        first, last = attempt_key(record.request, 0), attempt_key(record.request, 2**32 - 1)
        jobs = node.store.values_between(Table.JOB_OF_REQUEST, first, last, ATTEMPTS_MAX)
        found: list[JobRecord] = []
        for job in jobs:
            live = node.engine.buyer.attempt(MessageId(job))
            row = node.store.get(Table.JOB, job)
            if live is not None or row is not None:
                found.append(live or decode(row or b"", JobRecord))
        whole = node.engine.buyer.job(record.request)
        unsettled = node.store.get(Table.JOB, record.request)
        # A request that looks for its next provider, or ended in doing so, has a row of its own.
        if whole is not None and not any(whole.job):
            found.append(whole)
        elif unsettled is not None:
            found.append(decode(unsettled, JobRecord))
        return tuple(found) or (record,)

    # The other side

    async def _told(self, number: int, record: JobRecord) -> _Told:
        receipt_row = self._node.store.get(Table.RECEIPT, record.job)
        receipt = decode(receipt_row, ReceiptRecord) if receipt_row is not None else None
        statements = self._statements(record, receipt)
        if record.node is None:
            story = AttemptStory(number, record, None)
            return _Told(story, "no agreement was made", b"", False, statements, receipt)
        answer = await self._ask(record, record.node)
        if isinstance(answer, str):
            return _Told(AttemptStory(number, record, None), answer, b"", False, statements, receipt)
        _, timeline = open_as(answer.envelope, MessageKind.TIMELINE)
        assert isinstance(timeline, Timeline)
        # The answer was given some time between question and arrival: half-way is wrong by half the way at most.
        ahead_ms = timeline.told_at - (answer.asked_at + answer.heard_at) // 2
        slack_ms = (answer.heard_at - answer.asked_at + 1) // 2
        ahead_ms = 0 if abs(ahead_ms) <= slack_ms else ahead_ms
        story = AttemptStory(number, record, timeline, ahead_ms)
        return _Told(story, "", answer.envelope, True, statements, receipt)

    async def _ask(self, record: JobRecord, other_node: NodeId) -> TimelineTold | str:
        """The other side's answer, or why there is none."""
        node, unique = self._node, Hash(os.urandom(32))
        account = AccountId(record.provider if record.side is Side.BUYER else record.buyer)
        addresses = next((live.offer.addresses for live in node.engine.book.offers() if live.account == account), ())
        stream = node.announcements.open(unique)
        try:
            node.loop.feed(AskTimeline(unique, record.job, account, other_node, addresses))
            async with asyncio.timeout(ANSWER_MS / 1000):
                answer = (await stream.take())[-1]
        except TimeoutError:
            node.loop.feed(DropTimeline(unique))
            linked = any(link.node == other_node for link in node.transport.links())
            return f"{'no answer' if linked else 'its node could not be reached'} within {ANSWER_MS // 1000} s"
        finally:
            node.announcements.close(unique)
        assert isinstance(answer, TimelineTold)
        return answer

    # What was signed

    def _statements(self, record: JobRecord, receipt: ReceiptRecord | None) -> tuple[bytes, ...]:
        if receipt is not None:
            held: Iterable[bytes] = (receipt.agreement, receipt.acceptance, receipt.receipt, receipt.final_voucher)
        else:
            row = self._node.store.get(Table.JOB_STATEMENT, record.job)
            if row is None:
                return ()
            kept = decode(row, JobStatements)
            held = (kept.agreement, kept.acceptance, kept.chunk, kept.ending)
        return tuple(each for each in held if each)

    def _attempt_view(self, told: _Told) -> AttemptView:
        record = told.story.own
        own = timeline_of(record, MessageId(bytes(32)), read_clock().wall_ms)
        mine = self._signer.sign(MessageKind.TIMELINE, encode(own))
        other = AccountId(record.provider if record.side is Side.BUYER else record.buyer)
        return AttemptView(
            attempt=told.story.number,
            job=record.job.hex() if any(record.job) else "",
            provider=account_text(record.provider) if record.node is not None else "",
            state=record.state,
            fault=FaultKind(record.fault).name.lower() if record.fault is not None else None,
            reason=record.reason,
            chunks=record.chunks,
            input_units=record.input_units,
            output_units=record.output_units,
            paid=record.paid,
            price_ceiling=record.price_ceiling,
            other="missing" if told.missing else "told",
            other_missing=told.missing,
            clock_ahead_ms=told.story.ahead_ms if told.clock_known else None,
            words=tuple(word for each in told.statements if (word := _in_words(each, other))),
            contradictions=contradictions(told.story),
            recorded=_recorded(told.story),
            timelines=tuple(each.hex() for each in (mine, told.envelope) if each),
            statements=tuple(each.hex() for each in told.statements),
        )

    # The ledger

    def _facts(self, told: _Told, first: JobRecord) -> tuple[LedgerFact, ...]:
        record = told.story.own
        if record.channel is None:
            return ()
        low, high = channel_log_key(record.channel, Height(0), 0), channel_log_key(record.channel, Height(2**48), 0)
        rows = self._node.store.values_between(Table.CHANNEL_LOG, low, high, CHANNEL_LINES_MAX)
        lines = tuple(decode(row, ChannelLine) for row in rows)
        began = first.history[0].at if first.history else 0
        index = told.receipt.proof.index if told.receipt is not None else None
        return facts_of(told.story, lines, began, index)


def _once(facts: Iterable[LedgerFact]) -> tuple[LedgerFact, ...]:
    """Attempts that shared a channel share its history."""
    return tuple({fact.line.transaction: fact for fact in facts}.values())


def _recorded(story: AttemptStory) -> tuple[RecordedView, ...]:
    own, other = ("buyer", "provider") if story.own.side is Side.BUYER else ("provider", "buyer")
    told = [(own, entry) for entry in story.own.history]
    told += [(other, entry) for entry in (story.other.history if story.other is not None else ())]
    return tuple(
        RecordedView(teller, entry.at, entry.until, entry.state, entry.cause, entry.chunks, entry.paid)
        for teller, entry in told
    )


def _line_view(line: Line) -> LineView:
    return LineView(
        at=line.at,
        until=line.until,
        tellers=tuple(teller.name.lower() for teller in line.tellers),
        attempt=line.attempt,
        what=line.what,
        cause=line.cause,
        chunks=line.chunks,
        paid=line.paid,
        height=line.height or None,
    )


def _in_words(envelope_bytes: bytes, signer: AccountId) -> str:
    """One statement of the other side; empty for what this node has signed itself."""
    envelope, payload = open_envelope(envelope_bytes)
    return _words(payload) if AccountId(envelope.sender) == signer else ""


def _words(payload: Message) -> str:
    match payload:
        case Acceptance():
            return "acceptance"
        case Chunk():
            return f"chunk {payload.index} ({format_credits(payload.due)} credits due)"
        case Receipt():
            return f"receipt of {payload.chunks} chunks for {format_credits(payload.amount)} credits"
        case Refusal():
            return f"refusal: {payload.reason}"
        case Failure():
            return f"failure after {payload.chunks} chunks: {payload.reason}"
        case Cancellation():
            return f"cancellation after {payload.chunks} chunks: {payload.reason}"
        case Voucher():
            return f"voucher over {format_credits(payload.cumulative)} credits on the lane"
        case _:
            return type(payload).__name__.lower()
