"""Faults that a node of a development network has on command, so that its user can see what the others make of them.

Law: only a development network's node can be told to have any. A lie is told on the way out: the engine behind it stays
honest, its books stay right, and the falsified statement is signed like any other, so that whoever receives it holds
evidence. Nothing here can sign for consensus twice: authorities' statements are never touched.
"""

import asyncio
from collections import deque
from enum import Enum

from msgspec.structs import replace

from node.runtime.control import ControlError, FaultsView
from node.runtime.signer import Signer
from node.transport.link import Socket
from node.transport.listener import Greeted
from node.transport.transport import Transport
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Chunk, FinishReason, Receipt
from protocol.messages.wire import Direct, WireMessage
from protocol.primitives.codec import encode
from protocol.primitives.units import Amount, Hash, NodeId, WorkUnits

DELAY_MS_MAX = 60_000
"""Beyond a minute a link is as good as cut."""

DELAYED_MAX = 65_536
"""Messages that a slow node holds back; what comes on top is lost, as on a full queue."""


class Misconduct(Enum):
    """How a provider cheats: what it signs, or no longer sends."""

    OVERCHARGE = "overcharge"
    """Asks a tenth more for each chunk than the agreement's prices make of it."""
    MISCOUNT = "miscount"
    """Says that a chunk holds a thousand units more than it does."""
    WRONG_CHUNK = "wrong-chunk"
    """Delivers a chunk that is not linked to the one before."""
    WRONG_RECEIPT = "wrong-receipt"
    """Delivers everything, and writes a receipt for one base unit more."""
    STOP = "stop"
    """Takes the money for the input and delivers nothing."""


NO_FAULTS = FaultsView()


def check_faults(faults: FaultsView) -> None:
    """Raise ``ControlError`` for what no node can have."""
    if not 0 <= faults.delay_ms <= DELAY_MS_MAX:
        raise ControlError("bad_faults", f"a delay has 0 to {DELAY_MS_MAX} ms", 2)
    if faults.misconduct and faults.misconduct not in {kind.value for kind in Misconduct}:
        known = ", ".join(kind.value for kind in Misconduct)
        raise ControlError("bad_faults", f"unknown misconduct {faults.misconduct!r}; known: {known}", 2)


class FaultyTransport(Transport):
    """A transport that cuts, delays or falsifies on command; without faults it is the transport that it extends."""

    faults: FaultsView = NO_FAULTS

    def arm(self, signer: Signer) -> None:
        """Once, before the first link stands: ``signer`` signs the lies."""
        self._signer = signer
        self._waiting: deque[tuple[float, NodeId, WireMessage]] = deque()

    def have(self, faults: FaultsView) -> None:
        """Have exactly these faults from now on. Raises ``ControlError`` for what no node can have."""
        check_faults(faults)
        self.faults = faults
        if faults.isolated:
            for link in self.links():
                self.disconnect(link.node, "cut off by its user")

    def send(self, peer: NodeId, message: WireMessage) -> bool:
        """Queue a message as the faults leave it."""
        outgoing = falsified(message, self.faults.misconduct, self._signer)
        if outgoing is None:
            return True
        if self.faults.delay_ms or self._waiting:
            return self._hold_back(peer, outgoing)
        return super().send(peer, outgoing)

    def _hold_back(self, peer: NodeId, message: WireMessage) -> bool:
        waiting = self._waiting
        if len(waiting) >= DELAYED_MAX:
            return False
        loop = asyncio.get_running_loop()
        due = loop.time() + self.faults.delay_ms / 1000
        waiting.append((due, peer, message))
        if len(waiting) == 1:
            loop.call_at(due, self._let_go)
        return True

    def _let_go(self) -> None:
        """Send what has waited long enough, in the order in which it came, whatever the delay is by now."""
        loop, waiting = asyncio.get_running_loop(), self._waiting
        while waiting and waiting[0][0] <= loop.time():
            _, peer, message = waiting.popleft()
            super().send(peer, message)
        if waiting:
            loop.call_at(waiting[0][0], self._let_go)

    async def _attempt(self, endpoint: str, expected: NodeId | None) -> NodeId | None:
        return None if self.faults.isolated else await super()._attempt(endpoint, expected)

    async def _accept(self, socket: Socket, endpoint: str, greeted: Greeted) -> None:
        if not self.faults.isolated:
            await super()._accept(socket, endpoint, greeted)


def falsified(message: WireMessage, misconduct: str, signer: Signer) -> WireMessage | None:
    """What a provider of this misconduct sends instead of ``message``; ``None``: nothing."""
    if not misconduct or not isinstance(message, Direct):
        return message
    envelope, payload = open_envelope(message.envelope)
    match Misconduct(misconduct), payload:
        case Misconduct.OVERCHARGE, Chunk():
            lie: Chunk | Receipt = replace(payload, due=Amount(payload.due + payload.due // 10 + 1))
        case Misconduct.MISCOUNT, Chunk() if _has_output(payload):
            lie = replace(payload, output_units=WorkUnits(payload.output_units + 1_000))
        case Misconduct.WRONG_CHUNK, Chunk() if _has_output(payload):
            lie = replace(payload, previous=Hash(bytes(32)))
        case Misconduct.WRONG_RECEIPT, Receipt():
            lie = replace(payload, amount=Amount(payload.amount + 1))
        case Misconduct.STOP, _ if _is_output(payload):
            return None
        case _:
            return message
    return Direct(signer.sign(MessageKind(envelope.kind), encode(lie)))


def _is_output(payload: object) -> bool:
    return isinstance(payload, Receipt) or (isinstance(payload, Chunk) and _has_output(payload))


def _has_output(chunk: Chunk) -> bool:
    return chunk.index > 0 or chunk.finish is not FinishReason.NONE
