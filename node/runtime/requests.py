"""Requests that a program has named itself, so that it can ask what became of one after it was killed.

Law: one name, one request, for as long as its row is kept: whoever sends a request again under its name never pays
twice, it is told that the name is known.
"""

from typing import TYPE_CHECKING

from node.runtime import control
from node.runtime.control import ControlError
from node.runtime.ledger_views import account_text
from node.runtime.timelines import TimelineDesk
from protocol.market.buyer_job import BuyerState
from protocol.market.records import AwaitedReceipt, JobRecord, ReceiptRecord, Side, attempt_key, awaited_key
from protocol.messages.effects import Table
from protocol.messages.envelope import open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Chunk, FaultKind, FinishReason, JobPayload, Receipt
from protocol.primitives.codec import decode
from protocol.primitives.units import Hash

if TYPE_CHECKING:
    from node.runtime.node import Node

CLAIMED_MAX = 65_536
"""Names of this life that are remembered, 4 MB; those of requests that started are on disk by the time one goes."""

_ENDS = {
    BuyerState.DONE.value,
    BuyerState.DELIVERED.value,
    BuyerState.FAILED.value,
    BuyerState.CANCELLED.value,
}


def request_name(text: str) -> Hash:
    """A request's id as its program wrote it: 64 hex digits. Raises ``ControlError``."""
    try:
        name = bytes.fromhex(text)
    except ValueError:
        name = b""
    if len(name) != 32 or len(text) != 64:
        raise ControlError("bad_request", "a request's id is 64 hex digits", 2)
    return Hash(name)


class RequestDesk:
    """Names in use, and what became of them."""

    def __init__(self, node: "Node", timelines: TimelineDesk) -> None:
        self._node = node
        self._timelines = timelines
        self._claimed: dict[Hash, None] = {}

    def claim(self, name: Hash) -> None:
        """Take a name for a request that is about to start. Raises ``ControlError`` if it was taken before."""
        if name in self._claimed or self._record(name) is not None:
            raise ControlError("request_known", f"a request {name.hex()[:16]}… was made before", 2)
        while len(self._claimed) >= CLAIMED_MAX:
            del self._claimed[next(iter(self._claimed))]
        self._claimed[name] = None

    def release(self, name: Hash) -> None:
        """The request never started."""
        self._claimed.pop(name, None)

    def view(self, text: str) -> control.RequestView:
        """What became of a request; ``unknown`` if this node never started one of that name."""
        name = request_name(text)
        found = self._record(name)
        if found is None:
            return control.RequestView(name.hex(), "starting" if name in self._claimed else "unknown")
        records = self._timelines.attempts(found)
        last = records[-1]
        receipt = self._receipt(last)
        delivered = self._delivered(last) if receipt is None else None
        return control.RequestView(
            request=name.hex(),
            state=last.state if last.state in _ENDS else "running",
            job=last.job.hex() if any(last.job) else "",
            provider=account_text(last.provider) if last.node is not None else "",
            paid=sum(record.paid for record in records),
            fault=FaultKind(last.fault).name.lower() if last.fault is not None else "",
            reason=last.reason,
            input_units=last.input_units,
            output_units=last.output_units,
            finish=_finish(receipt, delivered),
            output=_whole_output(kept) if (kept := receipt or delivered) is not None else b"",
        )

    def _record(self, name: Hash) -> JobRecord | None:
        node = self._node
        live = node.engine.buyer.job(name)
        if live is not None:
            return live
        row = node.store.get(Table.JOB, name)
        if row is not None:
            return decode(row, JobRecord)
        first, last = attempt_key(name, 0), attempt_key(name, 2**32 - 1)
        jobs = node.store.values_between(Table.JOB_OF_REQUEST, first, last, 1)
        row = node.store.get(Table.JOB, jobs[0]) if jobs else None
        return decode(row, JobRecord) if row is not None else None

    def _receipt(self, record: JobRecord) -> ReceiptRecord | None:
        row = self._node.store.get(Table.RECEIPT, record.job) if record.side is Side.BUYER else None
        return decode(row, ReceiptRecord) if row is not None else None

    def _delivered(self, record: JobRecord) -> AwaitedReceipt | None:
        """What was delivered whole, and has no receipt."""
        if record.state != BuyerState.DELIVERED.value:
            return None
        row = self._node.store.get(Table.JOB_STATEMENT, awaited_key(record.job))
        return decode(row, AwaitedReceipt) if row is not None else None


def _finish(receipt: ReceiptRecord | None, delivered: AwaitedReceipt | None) -> str:
    if receipt is not None:
        return FinishReason(_receipt_of(receipt).finish).name.lower()
    if delivered is None:
        return ""
    _, chunk = open_as(delivered.last_chunk, MessageKind.CHUNK)
    assert isinstance(chunk, Chunk)
    return FinishReason(chunk.finish).name.lower()


def _receipt_of(record: ReceiptRecord) -> Receipt:
    _, receipt = open_as(record.receipt, MessageKind.RECEIPT)
    assert isinstance(receipt, Receipt)
    return receipt


def _whole_output(record: ReceiptRecord | AwaitedReceipt) -> bytes:
    """What earlier providers had delivered stands before what the last one added."""
    return decode(record.input, JobPayload).prefix + record.output
