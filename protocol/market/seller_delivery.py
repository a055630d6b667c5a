"""The seller's way from the first piece of work to the last voucher.

Law: a chunk goes out only when the one before is paid by a voucher that is on its way to disk before the chunk leaves,
so at most one chunk is ever released and unpaid. To a buyer that has paid many times as much, a job whose whole output
is there at once is that one chunk. The receipt goes out only once what must be known to judge the final voucher is
durable.
"""

from msgspec.structs import replace

from protocol.market.records import NO_REQUEST, ReceiptRecord, Side, receipt_rows
from protocol.market.requests import MarketEffect
from protocol.market.seller_books import Taken
from protocol.market.seller_core import ROOM, SellerCore
from protocol.market.seller_job import TAKES, Piece, SaleInput, SellerJob, SellerState
from protocol.messages.effects import Now, PullWork, Put, Send, SetTimer, SignAndSend, Table, TimerKey
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Chunk, FaultKind, FinishReason, Voucher
from protocol.messages.wire import Direct
from protocol.primitives.codec import encode
from protocol.primitives.limits import CHUNK_PAYLOAD_BYTES_MAX
from protocol.primitives.units import MonotonicMs, WorkUnits
from protocol.settlement.accumulator import receipt_leaf
from protocol.settlement.chunks import ChunkInvalid, check_chunk
from protocol.settlement.pricing import amount_due
from protocol.settlement.receipts import make_receipt, output_commitment
from protocol.settlement.vouchers import VoucherInvalid

GATHER_MS = 5
"""So long may chunk 0 wait to see whether the output is whole with it: longer than a small job's work takes, shorter
than anybody notices where it is not."""


class Selling:
    """Steps from PREFILL to DONE."""

    def __init__(self, core: SellerCore) -> None:
        self._core = core

    def prefilled(self, job: SellerJob, input_units: int, now: Now) -> list[MarketEffect]:
        """The worker has processed the input: release chunk 0."""
        job.pulling = False
        most = job.agreement.input_units_max
        if input_units < 0:
            return self._core.fail(job, FaultKind.PROVIDER, "worker metered less than nothing", now, ours=True)
        if input_units > most:
            reason = f"input has {input_units} units, at most {most} were agreed"
            return self._core.fail(job, FaultKind.USER, reason, now, ours=True)
        self._core.kept.first_output_took(job.agreement.model, now.monotonic_ms - job.since)
        job.metered = WorkUnits(input_units)
        if self._core.policy.work_ahead and self._trusted(job, WorkUnits(0)):
            job.gathering_since, job.pulling = now.monotonic_ms, True
            job.deadline = MonotonicMs(min(job.deadline, now.monotonic_ms + GATHER_MS))
            return [PullWork(job.job), SetTimer(TimerKey(ROOM, "deadline", job.job), job.deadline)]
        return self.release_input(job, now)

    def release_input(self, job: SellerJob, now: Now) -> list[MarketEffect]:
        """Chunk 0 goes out by itself."""
        job.gathering_since = None
        return self._release(job, Piece(b"", 0, FinishReason.NONE), job.metered, now)

    def piece(self, job: SellerJob, piece: Piece, now: Now) -> list[MarketEffect]:
        """The worker has more output: release it, or hold it until the chunk before is paid."""
        gathered = job.gathering_since
        if not job.pulling or (job.state is SellerState.PREFILL and gathered is None):
            return self._core.fail(job, FaultKind.PROVIDER, "worker broke its order of pieces", now, ours=True)
        job.pulling = False
        if gathered is not None:
            whole = piece.finish is not FinishReason.NONE and 0 <= piece.units <= job.agreement.chunk_units
            if whole and self._trusted(job, WorkUnits(piece.units)):
                job.gathering_since = None
                self._core.kept.chunk_took(job.agreement.model, piece.units, now.monotonic_ms - gathered)
                return self._release(job, piece, job.metered, now)
            job.held = piece
            return self.release_input(job, now)
        if job.state is SellerState.WORKING:
            self._core.kept.chunk_took(job.agreement.model, piece.units, now.monotonic_ms - job.since)
            return self._release(job, piece, job.progress.input_units, now)
        assert job.state is SellerState.AWAIT_VOUCHER
        assert job.held is None
        job.held = piece
        return []

    def missed(self, job: SellerJob, now: Now) -> None:
        """The worker let a deadline of the agreement pass: one as short is not promised again soon."""
        model, waited_ms = job.agreement.model, now.monotonic_ms - job.since
        if job.state is SellerState.PREFILL:
            self._core.kept.first_output_missed(model, waited_ms)
        elif job.state is SellerState.WORKING:
            self._core.kept.chunk_missed(model, job.agreement.chunk_units, waited_ms)

    def voucher(self, voucher: Voucher, sender: bytes, envelope_bytes: bytes, now: Now) -> list[MarketEffect]:
        """The buyer pays, for a live job or late."""
        core = self._core
        lane = core.books.lane(voucher.channel, voucher.lane)
        # [IGNORE] for a lane that we know, from its buyer, newer than the best one
        if lane is None or lane.buyer != sender or voucher.sequence <= lane.position.sequence:
            return []
        facts = core.ledger.channel(voucher.channel)
        # [IGNORE] on a channel that the ledger still has
        if facts is None:
            return []
        job = core.jobs.get(lane.job) if lane.job is not None else None
        # [IGNORE] for a chunk that is not out yet
        if job is not None and SaleInput.VOUCHER not in TAKES[job.state]:
            return []
        released = job.progress if job is not None else None
        try:
            taken = core.books.take(
                voucher, envelope_bytes, core.own, facts.deposit, facts.redeemed, released, now.wall_ms
            )
        except VoucherInvalid as error:
            return core.fail(job, FaultKind.USER, str(error), now, ours=False) if job is not None else []
        effects: list[MarketEffect] = [taken.put, *self._complete_receipt(voucher, envelope_bytes, taken)]
        if job is None:
            return [*effects, *core.paid_late(voucher.channel, voucher.lane, voucher.cumulative, now)]
        paid = self._paid(job, taken, facts.closing, now)
        # A signature that stays here may be made while the voucher goes to disk; what it signs leaves behind that.
        signed = [effect for effect in paid if isinstance(effect, SignAndSend) and not effect.to]
        return [*signed, *effects, *(effect for effect in paid if effect not in signed)]

    def signed_receipt(self, job: SellerJob, envelope_bytes: bytes) -> list[MarketEffect]:
        """Our receipt is signed: make durable what the final voucher will be judged by, then send it.

        The last chunk goes with it and no earlier: whoever has all of the output can get its receipt for sure.
        """
        core, agreement = self._core, job.agreement
        if job.state is not SellerState.AWAIT_FINAL:
            return []
        leaf = receipt_leaf(envelope_bytes)
        lane = core.books.lane(agreement.channel, agreement.lane)
        assert lane is not None
        record = ReceiptRecord(
            job=job.job,
            request=NO_REQUEST,
            side=Side.SELLER,
            channel=agreement.channel,
            lane=agreement.lane,
            bid=job.bid_bytes,
            agreement=job.agreement_bytes,
            acceptance=job.acceptance_bytes,
            receipt=envelope_bytes,
            final_voucher=b"",
            leaf=leaf,
            proof=lane.accumulator.append_proved(leaf)[1],
            salt=job.salt,
            input=job.input,
            output=b"".join(job.output),
            last_chunk=job.unanswered[-1] if job.unanswered else b"",
        )
        core.pending[(agreement.channel, agreement.lane)] = record
        last_chunk = [Send(agreement.buyer_node, Direct(sent)) for sent in job.unanswered[-1:]]
        job.unanswered.append(envelope_bytes)
        return [
            core.books.expect_receipt(agreement.channel, agreement.lane, job.job, leaf),
            *receipt_rows(record),
            Put(Table.JOB, job.job, encode(job.record())),
            *last_chunk,
            Send(agreement.buyer_node, Direct(envelope_bytes)),
        ]

    def cancelled(self, job: SellerJob, reason: str, now: Now) -> list[MarketEffect]:
        """The buyer wants no more; what was released was worked for."""
        return self._core.end(job, SellerState.CANCELLED, None, reason or "cancelled", job.progress.due, now)

    def _paid(self, job: SellerJob, taken: Taken, closing: bool, now: Now) -> list[MarketEffect]:
        core = self._core
        job.paid = job.progress.due
        job.chunks_paid = job.progress.chunks
        job.unanswered.clear()
        if job.state is SellerState.AWAIT_FINAL:
            cause = "paid and receipt acknowledged" if taken.receipted == job.job else "paid without the receipt"
            return core.end(job, SellerState.DONE, None, cause, job.progress.due, now)
        if closing:
            # What comes after the channel's end pays nothing, and redeeming each voucher until then costs a fee each.
            return core.fail(job, FaultKind.USER, "the buyer has closed the channel", now, ours=False)
        if job.held is not None:
            held, job.held = job.held, None
            core.kept.chunk_took(job.agreement.model, held.units, 0)
            return self._release(job, held, job.progress.input_units, now)
        effects = [core.enter(job, SellerState.WORKING, f"chunk {job.progress.chunks - 1} paid", now)]
        if not job.pulling:
            job.pulling = True
            effects.append(PullWork(job.job))
        return effects

    def _release(self, job: SellerJob, piece: Piece, input_units: WorkUnits, now: Now) -> list[MarketEffect]:
        core, agreement, before = self._core, job.agreement, job.progress
        assert before.chunks == job.chunks_paid, "a chunk goes out only when all before it are paid"
        output_units = WorkUnits(before.output_units + piece.units)
        too_large = (
            len(piece.payload) > CHUNK_PAYLOAD_BYTES_MAX
            or job.output_bytes + len(piece.payload) > core.policy.output_bytes_max
        )
        if too_large:
            return core.fail(job, FaultKind.PROVIDER, "output is too large", now, ours=True)
        if not 0 <= piece.units <= agreement.chunk_units:
            reason = f"worker broke the agreement: {piece.units} units in a chunk of {agreement.chunk_units} at most"
            return core.fail(job, FaultKind.PROVIDER, reason, now, ours=True)
        due = amount_due(agreement.prices, input_units, output_units)
        chunk = Chunk(
            job=job.job,
            index=before.chunks,
            previous=before.last_chunk,
            input_units=input_units,
            output_units=output_units,
            due=due,
            finish=piece.finish,
            payload=piece.payload,
        )
        payload = encode(chunk)
        try:
            progress = check_chunk(job.job, agreement, before, chunk, payload)
        except ChunkInvalid as error:
            return core.fail(job, FaultKind.PROVIDER, f"worker broke the agreement: {error}", now, ours=True)
        job.progress = progress
        job.output.append(piece.payload)
        job.output_bytes += len(piece.payload)
        if piece.finish is not FinishReason.NONE:
            # Signed here, sent with the receipt: so both wait for the disk together.
            return [SignAndSend(MessageKind.CHUNK, payload), *self._finish(job, now)]
        released: list[MarketEffect] = [SignAndSend(MessageKind.CHUNK, payload, (agreement.buyer_node,))]
        if core.policy.work_ahead and not job.pulling and job.held is None:
            job.pulling = True
            released.append(PullWork(job.job))
        return [*released, core.enter(job, SellerState.AWAIT_VOUCHER, f"chunk {chunk.index} released", now)]

    def _trusted(self, job: SellerJob, output_units: WorkUnits) -> bool:
        """Whether input and so much output may go out as one chunk, before anything of the job is paid."""
        core, agreement = self._core, job.agreement
        facts = core.ledger.channel(agreement.channel)
        if facts is None or facts.closing:
            return False
        due = amount_due(agreement.prices, job.metered, output_units)
        return core.books.trusts(agreement.channel, agreement.lane, due, core.policy.trust_permille)

    def _finish(self, job: SellerJob, now: Now) -> list[MarketEffect]:
        core = self._core
        output = output_commitment(job.salt, b"".join(job.output))
        receipt = make_receipt(job.job, job.agreement, job.progress, output, job.accepted_at, now.wall_ms)
        return [
            SignAndSend(MessageKind.RECEIPT, encode(receipt)),
            *core.close_work(job),
            core.enter(job, SellerState.AWAIT_FINAL, "last chunk released", now),
        ]

    def _complete_receipt(self, voucher: Voucher, envelope_bytes: bytes, taken: Taken) -> list[MarketEffect]:
        if taken.receipted is None:
            return []
        record = self._core.pending.pop((voucher.channel, voucher.lane), None)
        assert record is not None
        assert record.job == taken.receipted
        assert record.proof == taken.proof
        return [Put(Table.RECEIPT, record.job, encode(replace(record, final_voucher=envelope_bytes, last_chunk=b"")))]
