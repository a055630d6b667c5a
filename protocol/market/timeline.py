"""Two sides' records of one request and the ledger's, put together: what ``why`` tells.

Law: nobody's word is changed, and none is dropped: where both sides say the same of the same step they share a line,
where they differ each keeps its own and the difference is named. Times of the other side are moved by what its clock is
ahead of ours, and by nothing else.
"""

from enum import Enum, IntEnum

from msgspec import Struct

from protocol.market.records import CHUNKS, LEFT_OUT, ChannelLine, JobRecord, Side
from protocol.messages.market import HistoryEntry, Timeline
from protocol.primitives.units import Amount, format_credits


class Teller(IntEnum):
    """Whose word a line is."""

    BUYER = 1
    PROVIDER = 2
    LEDGER = 3


class Step(Enum):
    """What happened, as far as both sides have a name for it."""

    REQUESTED = 1
    BEFORE_AGREEMENT = 2
    OFFERED = 3
    ACCEPTED = 4
    INPUT_PAID = 5
    CHUNKS_PAID = 6
    LAST_CHUNK = 7
    ATTEMPT_FAILED = 8
    ENDED = 9
    OTHER = 10
    BLOCK = 11


class Line(Struct, frozen=True):
    """One step of the timeline. Times are by this node's clock; ``until`` is ``at`` but for a run of chunks."""

    at: int
    until: int
    step: Step
    attempt: int
    """Which agreement of the request, from 1; 0 before any."""
    tellers: tuple[Teller, ...]
    """Who says so; both sides where they agree."""
    what: str
    cause: str
    chunks: int
    """Delivered by then in this attempt, the input's counted."""
    paid: int
    """By then, in base units: of the whole request where the buyer tells, else of the attempt."""
    height: int = 0
    """Of the block that holds it; 0 for what is on no ledger."""


class AttemptStory(Struct, frozen=True):
    """One agreement as both sides tell it. ``other`` has been verified; ``ahead_ms`` is what its clock is ahead."""

    number: int
    own: JobRecord
    other: Timeline | None
    ahead_ms: int = 0


class LedgerFact(Struct, frozen=True):
    """What a block did to the channel of an attempt, and why it is told here."""

    attempt: int
    line: ChannelLine
    cause: str
    amount: Amount


_BUYER_STEPS = {
    "choosing": (Step.BEFORE_AGREEMENT, "looked for an offer"),
    "connecting": (Step.BEFORE_AGREEMENT, "reached for the provider"),
    "opening channel": (Step.BEFORE_AGREEMENT, "funded a channel"),
    "offered": (Step.OFFERED, "signed the agreement"),
    "prefilling": (Step.ACCEPTED, "provider took the job"),
    "streaming": (Step.INPUT_PAID, "input processed"),
    CHUNKS: (Step.CHUNKS_PAID, CHUNKS),
    "settling": (Step.LAST_CHUNK, "last chunk delivered"),
    "attempt failed": (Step.ATTEMPT_FAILED, "gave up the attempt"),
    "done": (Step.ENDED, "done"),
    "delivered": (Step.ENDED, "delivered"),
    "failed": (Step.ENDED, "failed"),
    "cancelled": (Step.ENDED, "cancelled"),
}
_SELLER_STEPS = {
    "processing the input": (Step.ACCEPTED, "provider took the job"),
    CHUNKS: (Step.CHUNKS_PAID, CHUNKS),
    "awaiting the final voucher": (Step.LAST_CHUNK, "last chunk delivered"),
    "done": (Step.ENDED, "done"),
    "failed": (Step.ENDED, "failed"),
    "cancelled": (Step.ENDED, "cancelled"),
}
_SAYS_NO_MORE = (
    "requested",
    "agreement sent, attempt ",
    "accepted",
    "input processed and paid",
    "last chunk ",
    "the channel needs a deposit",
    "no link to the provider yet",
)
"""Beginnings of causes that say no more than their state does."""


def merged(attempts: tuple[AttemptStory, ...], facts: tuple[LedgerFact, ...]) -> tuple[Line, ...]:
    """Everything that both sides and the ledger recorded, by time. ``attempts`` of one request, the first one first."""
    side = Side(attempts[-1].own.side)
    # A buyer's history goes on over its attempts: the last attempt's record holds all of it.
    told = attempts[-1:] if side is Side.BUYER else attempts
    lines = [line for story in told for line in _lines(story.own.history, side, story.number, 0)]
    other_side = Side.SELLER if side is Side.BUYER else Side.BUYER
    for story in attempts:
        if story.other is not None:
            lines = _joined(lines, _lines(story.other.history, other_side, story.number, story.ahead_ms))
    lines += [_fact_line(fact) for fact in facts]
    # Of one moment's lines those of this node come first, in the order in which it wrote them.
    return tuple(sorted(lines, key=lambda line: line.at))


def _lines(history: tuple[HistoryEntry, ...], side: Side, attempt: int, ahead_ms: int) -> list[Line]:
    steps, teller = (_BUYER_STEPS, Teller.BUYER) if side is Side.BUYER else (_SELLER_STEPS, Teller.PROVIDER)
    lines: list[Line] = []
    chunks_before = 0
    for place, entry in enumerate(history):
        step, what = steps.get(entry.state, (Step.OTHER, entry.state))
        if place == 0 and side is Side.BUYER:
            step, what = Step.REQUESTED, "asked for the job"
        cause = "" if entry.cause.startswith(_SAYS_NO_MORE) else entry.cause
        if entry.state == CHUNKS:
            what, cause = _chunks_text(chunks_before, entry.chunks), ""
        elif step is Step.LAST_CHUNK and entry.chunks:
            what = f"chunk {entry.chunks - 1}, the last one, delivered"
        elif entry.state == LEFT_OUT:
            what, cause = f"{entry.chunks} more lines were not kept", ""
        elif cause == what:
            cause = ""
        # What comes before an agreement is done for the next one.
        own_attempt = entry.attempt + (step is Step.BEFORE_AGREEMENT)
        of_attempt = own_attempt if side is Side.BUYER else attempt
        at = max(0, entry.at - ahead_ms)
        until = max(at, (entry.until or entry.at) - ahead_ms)
        lines.append(Line(at, until, step, of_attempt, (teller,), what, cause, entry.chunks, entry.paid))
        chunks_before = 0 if step is Step.ATTEMPT_FAILED else entry.chunks
    return lines


def _chunks_text(before: int, chunks: int) -> str:
    """``before`` and ``chunks`` count the input's chunk, which is chunk 0."""
    first, last = min(before, chunks - 1), chunks - 1
    numbers = f"chunk {last}" if first >= last else f"chunks {first}–{last}"
    return f"{numbers} delivered and paid"


def _joined(mine: list[Line], theirs: list[Line]) -> list[Line]:
    """Lines of one side with those of the other: a step that both tell alike is one line."""
    joined = list(mine)
    for line in theirs:
        place = next((place for place, own in enumerate(joined) if _same(own, line)), None)
        if place is None:
            joined.append(line)
            continue
        own = joined[place]
        buyers = own if Teller.BUYER in own.tellers else line
        joined[place] = Line(
            buyers.at if own.step is Step.CHUNKS_PAID else own.at,  # the provider's run begins with the input
            own.until,
            own.step,
            own.attempt,
            tuple(sorted((*own.tellers, *line.tellers))),
            buyers.what,
            own.cause or line.cause,
            own.chunks,
            buyers.paid,
        )
    return joined


def _same(own: Line, line: Line) -> bool:
    if own.attempt != line.attempt or len(own.tellers) != 1 or own.tellers == line.tellers:
        return False
    if {own.step, line.step} == {Step.INPUT_PAID, Step.CHUNKS_PAID}:
        return own.chunks == line.chunks == 1  # the provider's first chunk is the input
    if own.step is not line.step:
        return False
    match own.step:
        case Step.ACCEPTED:
            return True
        case Step.CHUNKS_PAID | Step.LAST_CHUNK:
            return own.chunks == line.chunks
        case Step.ENDED:
            return own.what == line.what == "done" and own.chunks == line.chunks
        case _:
            return False


def _fact_line(fact: LedgerFact) -> Line:
    line = fact.line
    what = line.action if not fact.amount else f"{line.action} {format_credits(fact.amount)} credits"
    return Line(
        line.at, line.at, Step.BLOCK, fact.attempt, (Teller.LEDGER,), f"channel {what}", fact.cause, 0, 0, line.height
    )


# What the two sides say against each other


def contradictions(story: AttemptStory) -> tuple[str, ...]:
    """Where the other side's word differs from this node's, one sentence each."""
    own, other = story.own, story.other
    if other is None:
        return ()
    side = Side(own.side)
    they, taken = ("provider" if side is Side.BUYER else "buyer"), own.accepted_at > 0
    if not other.known:
        return (f"the {they} keeps nothing of a job that was agreed",) if taken else ()
    if _end(own.state) == _end(other.state) == "":
        return ()  # what is on its way is no difference
    found: list[str] = []
    if _end(own.state) != _end(other.state):
        found.append(f"the {they} says the job is {other.state}, for this node it is {own.state}")
    if own.chunks != other.chunks and _was_taken(own, other):
        theirs, ours = ("delivered", "has") if side is Side.BUYER else ("has", "delivered")
        found.append(f"the {they} says it {theirs} {_counted(other.chunks)}, this node {ours} {own.chunks}")
    if own.chunks == other.chunks and (own.input_units, own.output_units) != (other.input_units, other.output_units):
        found.append(
            f"the {they} counts {other.input_units} units in and {other.output_units} out,"
            f" this node {own.input_units} and {own.output_units}"
        )
    if own.paid != other.paid and _was_taken(own, other):
        theirs, ours = ("was paid", "paid") if side is Side.BUYER else ("paid", "was paid")
        found.append(
            f"the {they} says it {theirs} {format_credits(other.paid)} credits, this node {ours}"
            f" {format_credits(own.paid)}"
        )
    return tuple(found)


def _end(state: str) -> str:
    """Whether a job came to a receipt; empty while it is under way. Who gave up first is told by the lines."""
    return {"done": "done", "delivered": "ended", "failed": "ended", "cancelled": "ended"}.get(state, "")


def _was_taken(own: JobRecord, other: Timeline) -> bool:
    return own.accepted_at > 0 or other.chunks > 0


def _counted(chunks: int) -> str:
    return f"{chunks} chunk" if chunks == 1 else f"{chunks} chunks"


# What of a channel's history belongs to a job


def facts_of(
    story: AttemptStory, lines: tuple[ChannelLine, ...], began: int, receipt_index: int | None
) -> tuple[LedgerFact, ...]:
    """The channel's transactions that this attempt needed or caused.

    When it was opened, what was put in while the request went on, the first redemption that paid this job (by its
    receipt's place on the lane, else the first one after its end), and how the channel ended. ``began`` is when the
    request did, in ms.
    """
    own = story.own
    ended = own.history[-1].at if own.history else began
    facts: list[LedgerFact] = []
    before: dict[int, int] = {}
    paid_out = False
    for line in lines:
        match line.action:
            case "opened":
                facts.append(LedgerFact(story.number, line, "the buyer's deposit", line.amount))
            case "topped up" if began <= line.at <= ended:
                facts.append(LedgerFact(story.number, line, "the buyer's deposit", line.amount))
            case "redeemed":
                amount = sum(max(0, lane.cumulative - before.get(lane.lane, 0)) for lane in line.lanes)
                by_provider = line.sender == own.provider
                if not paid_out and (cause := _pays(line, own, ended, receipt_index)):
                    paid_out = by_provider
                    facts.append(LedgerFact(story.number, line, cause, Amount(amount if by_provider else 0)))
                if by_provider:
                    before.update({lane.lane: lane.cumulative for lane in line.lanes})
            case "closed" | "finalised" if line.at >= ended:
                by = "provider" if line.sender == own.provider else "buyer" if line.sender == own.buyer else "somebody"
                facts.append(LedgerFact(story.number, line, f"by the {by}", Amount(0)))
            case _:
                pass
    return tuple(facts)


def _pays(line: ChannelLine, own: JobRecord, ended: int, receipt_index: int | None) -> str:
    lanes = [lane for lane in line.lanes if lane.lane == own.lane]
    if receipt_index is not None:
        anchored = any(lane.receipts_count > receipt_index for lane in lanes)
        return "anchors this job's receipt" if anchored else ""
    return "pays what the job's lane promised" if lanes and line.at >= ended and own.paid else ""
