"""Receipts that a buyer still waits for: its job was delivered whole and is paid, and the receipt has not come.

Law: the job has ended for whoever asked for it; only its proof is missing. Its lane is kept for it, so that the
receipt can still be committed to; it is asked for whenever there is a link, and a good one is acknowledged by a voucher
over the same amount: nothing is ever paid twice. A wait ends: with the receipt, with the provider's word that it has
none, with the channel, or with time. What the receipt is judged by is on the disk, so the wait outlives a restart.
"""

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from protocol.market.buyer_core import BuyerCore, Whole
from protocol.market.buyer_job import BuyerState
from protocol.market.events import JobReceipted
from protocol.market.records import (
    AwaitedReceipt,
    BuyerLane,
    JobRecord,
    awaited_key,
    noted,
)
from protocol.market.requests import MarketEffect
from protocol.messages.effects import Delete, Dial, Notify, Now, Put, Table
from protocol.messages.envelope import Envelope, open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Agreement, Chunk, Failure, HistoryEntry, Receipt
from protocol.messages.wire import JobStanding
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import AccountId, Hash, MessageId, MonotonicMs, NodeId, WorkUnits
from protocol.settlement.chunks import Progress, chunk_hash
from protocol.settlement.receipts import ReceiptInvalid, check_receipt, output_commitment

AWAITED_MAX = 256
"""Receipts waited for at once, each with a lane; of more the oldest is given up."""

AWAITED_BYTES_MAX = 64 * 1024 * 1024
"""Of their inputs and outputs, which a receipt's file holds too; the same."""

WAIT_MS = 3_600_000
"""A provider that is not back by then is not waited for; it was paid, and what it signed of the job is kept."""

DIAL_MS = 15_000
"""How often a provider that is not linked is looked for."""


class _Awaited(Struct):
    """A receipt that is waited for, with what it is judged by."""

    row: AwaitedReceipt
    agreement: Agreement
    acceptance: Acceptance
    progress: Progress
    until: MonotonicMs
    commitment: Hash | None = None
    """To the output, once a receipt of the provider's was judged: the next one costs no hash over all of it again."""


class AwaitedReceipts:
    """One buyer's waits."""

    def __init__(self, core: BuyerCore) -> None:
        self._core = core
        self._awaited: dict[MessageId, _Awaited] = {}
        self._bytes = 0
        self._next = MonotonicMs(0)

    def __contains__(self, job: MessageId) -> bool:
        return job in self._awaited

    def __len__(self) -> int:
        return len(self._awaited)

    def begin(self, row: AwaitedReceipt, now: Now) -> list[MarketEffect]:
        """A job has ended as delivered and kept its lane: wait for its receipt. ``row`` is put by the caller."""
        self._take_up(row, now)
        effects: list[MarketEffect] = []
        while len(self._awaited) > AWAITED_MAX or self._bytes > AWAITED_BYTES_MAX:
            effects += self._give_up(next(iter(self._awaited)))
        return effects

    def restore(self, lane: BuyerLane, row: Callable[[Table, bytes], bytes | None], now: Now) -> bool:
        """After a restart: True if the lane's job only waits for its receipt, and goes on doing so."""
        stored = row(Table.JOB_STATEMENT, awaited_key(lane.job)) if lane.job is not None else None
        if stored is None:
            return False
        self._take_up(decode(stored, AwaitedReceipt), now)
        return True

    def standings(self) -> list[tuple[NodeId, JobStanding]]:
        """Whose receipts are missing: named to their providers beside the jobs that are open, that is how they are
        asked for (``comparison``)."""
        return [(each.agreement.provider_node, self._standing(each)) for each in self._awaited.values()]

    def due(self, now: Now) -> list[MarketEffect]:
        """Time has passed: look for who is not linked, and end what has lasted long enough."""
        if not self._awaited or now.monotonic_ms < self._next:
            return []
        self._next = MonotonicMs(now.monotonic_ms + DIAL_MS)
        core = self._core
        effects: list[MarketEffect] = []
        for job, each in tuple(self._awaited.items()):
            if now.monotonic_ms >= each.until or core.ledger.channel(each.agreement.channel) is None:
                effects += self._give_up(job)
        away = {each.agreement.provider_node: each.agreement.provider for each in self._awaited.values()}
        for node, provider in away.items():
            live = core.order_book.offer_of(provider)
            if node not in core.linked and live is not None and live.offer.node == node:
                effects.append(Dial(node, live.offer.addresses))
        return effects

    def received(self, receipt: Receipt, envelope: Envelope, envelope_bytes: bytes, now: Now) -> list[MarketEffect]:
        """A receipt that was waited for: judge it, commit to it, give the lane back. A bad one changes nothing."""
        each = self._awaited.get(receipt.job)
        # [signer] before megabytes of output are hashed for it
        if each is None or AccountId(envelope.sender) != each.agreement.provider:
            return []
        core, row, agreement, job = self._core, each.row, each.agreement, each.row.record.job
        if each.commitment is None:
            each.commitment = output_commitment(row.salt, row.output)
        signer, accepted_at = AccountId(envelope.sender), each.acceptance.accepted_at
        try:
            check_receipt(receipt, signer, job, agreement, accepted_at, each.progress, each.commitment)
        except ReceiptInvalid:
            return []
        self._drop(job)
        whole = Whole(
            job=job,
            request=row.record.request,
            agreement=agreement,
            progress=each.progress,
            bid_bytes=row.bid,
            agreement_bytes=row.agreement,
            acceptance_bytes=row.acceptance,
            salt=row.salt,
            input=row.input,
            output=row.output,
        )
        rows, voucher = core.acknowledge(whole, envelope_bytes)
        # In this order: whatever of it a crash leaves out, the disk shows a wait or a receipt, and never neither.
        return [
            *rows,
            core.books.end(agreement.channel, agreement.lane, owed_back=False),
            Put(Table.JOB, job, encode(_receipted(row.record, now))),
            Delete(Table.JOB_STATEMENT, job),
            Delete(Table.JOB_STATEMENT, awaited_key(job)),
            core.send_voucher(voucher, agreement.provider_node),
            Notify(JobReceipted(row.record.request, job)),
        ]

    def provider_failed(self, failure: Failure, signer: AccountId) -> list[MarketEffect]:
        """The provider says that it knows nothing of the job: there will be no receipt.

        One that knows of it may have waited too long for the last voucher; the receipt it still has.
        """
        each = self._awaited.get(failure.job)
        if each is None or signer != each.agreement.provider or failure.chunks:
            return []
        return self._give_up(failure.job)

    def _give_up(self, job: MessageId) -> list[MarketEffect]:
        """The lane is free again; the row stays: it holds what was delivered."""
        core, agreement = self._core, self._drop(job).agreement
        effects: list[MarketEffect] = [core.books.end(agreement.channel, agreement.lane, owed_back=False)]
        lane = core.books.lane(agreement.channel, agreement.lane)
        voucher = core.books.last_voucher(lane) if lane is not None else None
        if voucher is not None and agreement.provider_node in core.linked:
            effects.append(core.send_voucher(voucher, agreement.provider_node))
        return effects

    def _drop(self, job: MessageId) -> _Awaited:
        each = self._awaited.pop(job)
        self._bytes -= _size(each.row)
        return each

    def _take_up(self, row: AwaitedReceipt, now: Now) -> None:
        _, agreement = open_as(row.agreement, MessageKind.AGREEMENT)
        _, acceptance = open_as(row.acceptance, MessageKind.ACCEPTANCE)
        envelope, chunk = open_as(row.last_chunk, MessageKind.CHUNK)
        assert isinstance(agreement, Agreement)
        assert isinstance(acceptance, Acceptance)
        assert isinstance(chunk, Chunk)
        progress = Progress(
            chunk.index + 1,
            chunk_hash(envelope.payload),
            WorkUnits(chunk.input_units),
            WorkUnits(chunk.output_units),
            chunk.due,
            chunk.finish,
        )
        until = MonotonicMs(now.monotonic_ms + WAIT_MS)
        self._bytes += _size(row)
        self._awaited[row.record.job] = _Awaited(row, agreement, acceptance, progress, until)

    def _standing(self, each: _Awaited) -> JobStanding:
        agreement = each.agreement
        sequence = self._core.books.position(agreement.channel, agreement.lane).sequence
        return JobStanding(each.row.record.job, agreement.channel, agreement.lane, each.progress.chunks, sequence)


def _size(row: AwaitedReceipt) -> int:
    return len(row.input) + len(row.output)


def _receipted(record: JobRecord, now: Now) -> JobRecord:
    """The job as it stands with its receipt."""
    history, cause = list(record.history), "the receipt came late and is acknowledged"
    paid = history[-1].paid if history else record.paid
    entry = HistoryEntry(
        now.wall_ms, BuyerState.DONE.value, cause, attempt=record.attempt, chunks=record.chunks, paid=paid
    )
    noted(history, entry)
    return replace(record, state=BuyerState.DONE.value, reason="", history=tuple(history))
