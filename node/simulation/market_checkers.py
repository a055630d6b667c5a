"""What must hold of money that changes hands off the ledger, seen from above.

Law: a voucher is signed once for each sequence; it never promises more than the provider has delivered; a provider
releases no second unpaid chunk, and what it was paid for the last one is on its disk before it releases the next; of
jobs that go out whole, what is not paid or not paid yet is within the provider's trust in what was paid. A buyer's text
has no gap and no repeat, whoever delivered it, and what a request says it paid is the price of its verified chunks to
the unit, all attempts together under the ceiling.
"""

from collections.abc import Iterable

from msgspec import Struct, field

from node.simulation.checkers import Violation
from node.simulation.disk import SimulatedDisk
from protocol.ledger.blocks import decode_block
from protocol.ledger.channels import open_voucher
from protocol.ledger.signatures import open_transaction
from protocol.ledger.track_rows import Role, Track, TrackId
from protocol.market.events import JobCancelled, JobDelivered, JobFailed, JobFinished, JobPrefilled, JobText
from protocol.market.records import SellerLane, lane_key
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import Table
from protocol.messages.envelope import message_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Agreement, Chunk, Failure, FaultKind, FinishReason, Quote, Voucher
from protocol.messages.transactions import ChannelRedeem
from protocol.primitives.codec import Message, decode
from protocol.primitives.units import Amount, ChannelId, Hash, MessageId
from protocol.settlement.pricing import amount_due

LaneName = tuple[ChannelId, int]


class _Requested(Struct):
    """One request: what it should give, what was shown of it, and what each of its jobs was metered at."""

    body: bytes
    ceiling: Amount
    text: bytes = b""
    pieces: int = 0
    input_units: dict[MessageId, int] = field(default_factory=dict)
    output_units: dict[MessageId, int] = field(default_factory=dict)


class MarketCheckers:
    """One set of checkers for all buyers and providers."""

    def __init__(self, trust_permille: int) -> None:
        self._trust_permille = trust_permille
        self.finished = self.failed = self.cancelled = 0
        self._agreements: dict[MessageId, Agreement] = {}
        self._dues: dict[MessageId, dict[int, int]] = {}
        """Job → chunk index → what the job has cost with that chunk."""
        self._vouchers: dict[tuple[LaneName, int], bytes] = {}
        self._requests: dict[Hash, _Requested] = {}
        self._released: dict[LaneName, dict[MessageId, int]] = {}
        """Lane → jobs of which something was released, in that order → price of what went out whole, else 0."""
        self.at_once = 0
        """Jobs that went out as one chunk."""
        self.continued = 0
        """Jobs that went on behind another provider's output."""
        self._given_up: dict[MessageId, None] = {}
        """Jobs that their provider has said it failed."""
        self.reported = 0
        """Failures on the ledger in the end."""
        self._quotes: dict[MessageId, Quote] = {}
        self.auctioned = 0
        """Agreements at the price of a quote."""

    def requested(self, request: Hash, body: bytes, ceiling: Amount) -> None:
        """Somebody asks for an echo of ``body``."""
        self._requests[request] = _Requested(body, ceiling)

    def on_sign(self, account: bytes, kind: MessageKind, payload: bytes) -> None:
        """An account is about to sign a statement of the market."""
        match kind:
            case MessageKind.AGREEMENT:
                agreement = decode(payload, Agreement)
                self._agreements[message_id(kind, account, payload)] = agreement
                self.continued += agreement.continues is not None
                self._on_terms(agreement)
            case MessageKind.QUOTE:
                self._quotes[message_id(kind, account, payload)] = decode(payload, Quote)
            case MessageKind.VOUCHER:
                self._on_voucher(decode(payload, Voucher), payload)
            case MessageKind.FAILURE:
                failure = decode(payload, Failure)
                if failure.fault is FaultKind.PROVIDER:
                    self._given_up[failure.job] = None
            case _:
                pass

    def _on_terms(self, agreement: Agreement) -> None:
        """What names a quote is at its price, for its bid."""
        quote = self._quotes.get(agreement.offer)
        if quote is None:
            return
        self.auctioned += 1
        if (quote.bid, quote.prices) != (agreement.bid, agreement.prices):
            raise Violation("an agreement is not what its quote says")

    def on_send(self, chunk: Chunk, disk: SimulatedDisk) -> None:
        """A chunk leaves its provider; it may have been signed while the voucher before it went to disk."""
        self._on_chunk(chunk, disk)

    def check_records(self, tracks: Iterable[tuple[TrackId, Track]]) -> None:
        """What the ledger says of buyers is what it says of providers, and no failure stands that nobody admitted."""
        sums = {role: [0, 0, 0] for role in Role}
        for identity, track in tracks:
            for place, figure in enumerate((track.jobs, track.volume, track.failures)):
                sums[Role(identity[0])][place] += figure
            for reported in track.reported:
                if reported.job not in self._given_up:
                    raise Violation("a failure was reported that its provider never signed")
        if sums[Role.BUYER] != sums[Role.PROVIDER]:
            raise Violation(f"track records differ: buyers' {sums[Role.BUYER]}, providers' {sums[Role.PROVIDER]}")
        self.reported = sums[Role.PROVIDER][2]

    def on_event(self, name: str, event: Message) -> None:
        """Somebody was told how a job ended."""
        match event:
            case JobPrefilled():
                self._requests[event.request].input_units[event.job] = event.input_units
            case JobText():
                self._on_text(event)
            case JobFinished() | JobDelivered():
                self.finished += 1
                self._on_end(event)
                if self._requests[event.request].text != self._requests[event.request].body:
                    raise Violation("a job finished with half of its text")
            case JobFailed():
                self.failed += 1
                self._on_end(event)
            case JobCancelled():
                self.cancelled += 1
                self._on_end(event)
            case _:
                pass

    def _on_text(self, text: JobText) -> None:
        asked = self._requests[text.request]
        asked.pieces += 1
        asked.text += text.payload
        if text.index != asked.pieces or text.output_units != len(asked.text):
            raise Violation(f"piece {text.index} of {text.output_units} units came as number {asked.pieces}")
        if not asked.body.startswith(asked.text):
            raise Violation(f"the text has a gap or a repeat before byte {len(asked.text)}")
        asked.output_units[text.job] = asked.output_units.get(text.job, 0) + len(text.payload)

    def _on_end(self, end: JobFinished | JobDelivered | JobFailed | JobCancelled) -> None:
        asked = self._requests[end.request]
        cost = sum(
            amount_due(self._agreements[job].prices, units, asked.output_units.get(job, 0))
            for job, units in asked.input_units.items()
        )
        if end.paid != cost:
            raise Violation(f"a request says it paid {end.paid}, its verified chunks cost {cost}")
        if end.paid > asked.ceiling:
            raise Violation(f"a request paid {end.paid}, its ceiling was {asked.ceiling}")
        if end.output_units != len(asked.text):
            raise Violation(f"a request counts {end.output_units} units, {len(asked.text)} were shown")

    def _on_chunk(self, chunk: Chunk, disk: SimulatedDisk) -> None:
        dues = self._dues.setdefault(chunk.job, {})
        if dues.setdefault(chunk.index, chunk.due) != chunk.due:
            raise Violation(f"chunk {chunk.index} was signed twice with two prices")
        agreement = self._agreements[chunk.job]
        row = disk.tables[Table.SELLER_LANE].get(lane_key(agreement.channel, agreement.lane))
        promised = decode(row, SellerLane).position.cumulative if row is not None else 0
        if chunk.index == 0:
            self._on_first(chunk, agreement, promised)
            return
        paid = promised - agreement.cumulative_start
        if paid < dues[chunk.index - 1]:
            raise Violation(f"chunk {chunk.index} was released while {dues[chunk.index - 1] - paid} were owed")

    def _on_first(self, chunk: Chunk, agreement: Agreement, promised: int) -> None:
        released = self._released.setdefault((agreement.channel, agreement.lane), {})
        whole = chunk.finish is not FinishReason.NONE
        if chunk.job in released or not whole:
            released.setdefault(chunk.job, 0)
            return
        self.at_once += 1
        released[chunk.job] = chunk.due
        # The next job counts from the last voucher: of jobs that count from the same one only the last may be paid.
        unpaid: dict[int, list[int]] = {}
        for job, due in released.items():
            unpaid.setdefault(self._agreements[job].sequence_start, []).append(due)
        lost = sum(sum(dues[:-1]) for dues in unpaid.values())
        if (lost + chunk.due) * 1000 > self._trust_permille * promised:
            raise Violation(f"{chunk.due} went out unpaid, and {lost} before, for {promised} that was paid")

    def _on_voucher(self, voucher: Voucher, payload: bytes) -> None:
        lane = (voucher.channel, voucher.lane)
        if self._vouchers.setdefault((lane, voucher.sequence), payload) != payload:
            raise Violation(f"two vouchers with sequence {voucher.sequence} on one lane")
        delivered = sum(
            max(self._dues.get(job, {0: 0}).values())
            for job, agreement in self._agreements.items()
            if (agreement.channel, agreement.lane) == lane
        )
        if voucher.cumulative > delivered:
            raise Violation(f"a voucher promises {voucher.cumulative} for {delivered} delivered")

    def check_redeemed(self, blocks: Iterable[DecidedBlock], disks: Iterable[SimulatedDisk]) -> None:
        """After all channels are closed: every provider was paid, once, exactly what its best vouchers say."""
        paid: dict[LaneName, int] = {}
        for decided in blocks:
            for received in decode_block(decided.block).transactions:
                envelope, transaction = open_transaction(received)
                if not isinstance(transaction.action, ChannelRedeem):
                    continue
                for voucher_bytes in transaction.action.vouchers:
                    _, voucher = open_voucher(voucher_bytes)
                    if bytes(voucher.payee) == bytes(envelope.sender):
                        paid[(voucher.channel, voucher.lane)] = voucher.cumulative
        for disk in disks:
            for value in disk.tables[Table.SELLER_LANE].values():
                row = decode(value, SellerLane)
                got = paid.get((row.channel, row.lane), 0)
                if got != row.position.cumulative:
                    raise Violation(f"a provider holds a voucher over {row.position.cumulative} and was paid {got}")
