"""A program that submits signed transfers over a node's link and watches which block decides each.

Law: a transfer is final for its submitter when the authority it is linked to says that it has committed the block
which holds it; that word comes after the commit is on disk. The block itself is fetched to see what it holds.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from types import TracebackType

from nacl.signing import SigningKey

from node.transport.identity import NodeIdentity
from node.transport.peer_store import PeerStore
from node.transport.policy import DialPolicy
from node.transport.transport import Transport
from protocol.messages import wire
from protocol.messages.blocks import Block
from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.genesis import Genesis, genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.peers import PROTOCOL_VERSION, Hello, NodeRecord
from protocol.primitives.codec import decode, encode
from protocol.primitives.limits import BATCH_MESSAGES_MAX
from protocol.primitives.units import AccountId, Height, NodeId, PublicKey, TimestampMs

_ASK_AGAIN_S = 0.1
_DECIDED_S_MAX = 120.0


class LedgerClient:
    """Linked to one authority; an async context manager."""

    def __init__(self, genesis: Genesis, authority: NodeId, address: str) -> None:
        self.genesis_hash = genesis_hash(genesis)
        self._authority = authority
        self._address = address
        seed = os.urandom(32)
        self._key = SigningKey(seed)
        self._linked = asyncio.Event()
        self._told_at: dict[int, float] = {}
        self._known = Height(0)
        """Height up to which blocks were read."""
        self._announced = 0
        self._asked_at = 0.0
        self._waiting: dict[bytes, float] = {}
        self._progress = asyncio.Event()
        self.finality: list[float] = []
        """Seconds from submission to the word of the commit, in order of decision."""
        self.decided_at: list[float] = []
        self._transport = Transport(
            NodeIdentity(seed),
            self.genesis_hash,
            "127.0.0.1",
            0,
            make_hello=self._hello,
            on_link_up=lambda peer, hello, record: self._linked.set(),
            on_link_down=lambda peer, reason: None,
            on_messages=self._take,
            on_event=lambda name, fields: None,
            peer_store=PeerStore(None, self.genesis_hash),
            dial=DialPolicy(links_target=0, backoff_first_ms=20),
            loopback_only=True,
        )

    def _hello(self) -> Hello:
        host, port = self._transport.address
        now = TimestampMs(time.time_ns() // 1_000_000)
        record = encode(NodeRecord(now, now, (f"{host}:{port}",), AccountId(bytes(self._key.verify_key))))
        signature = self._key.sign(signing_bytes(self.genesis_hash, MessageKind.NODE_RECORD, record)).signature
        sealed = seal(MessageKind.NODE_RECORD, record, PublicKey(bytes(self._key.verify_key)), signature)
        return Hello(PROTOCOL_VERSION, self.genesis_hash, sealed, self._known)

    async def __aenter__(self) -> "LedgerClient":
        await self._transport.__aenter__()
        self._transport.dial(self._authority, (self._address,))
        async with asyncio.timeout(30):
            await self._linked.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    @property
    def waiting(self) -> int:
        """Transfers submitted and not yet decided."""
        return len(self._waiting)

    def submit(self, envelopes: Sequence[bytes]) -> None:
        """Hand transfers to the authority."""
        now = time.perf_counter()
        for start in range(0, len(envelopes), BATCH_MESSAGES_MAX):
            batch = tuple(envelopes[start : start + BATCH_MESSAGES_MAX])
            if not self._transport.send(self._authority, wire.Transactions(batch)):
                raise AssertionError("the link's queue is full")
            for envelope in batch:
                self._waiting[envelope] = now

    async def until_waiting(self, count: int) -> None:
        """Returns once at most ``count`` transfers are undecided."""
        deadline = time.perf_counter() + _DECIDED_S_MAX
        while len(self._waiting) > count:
            if time.perf_counter() > deadline:
                raise AssertionError(f"{len(self._waiting)} transfers stayed undecided for {_DECIDED_S_MAX} s")
            self._progress.clear()
            try:
                async with asyncio.timeout(_ASK_AGAIN_S):
                    await self._progress.wait()
            except TimeoutError:
                self._ask()  # an answer may have been withheld: the authority gives each peer only so many

    def _ask(self) -> None:
        now = time.perf_counter()
        if self._known < self._announced and now - self._asked_at > _ASK_AGAIN_S:
            self._asked_at = now
            self._transport.send(self._authority, wire.BlocksRequest(Height(self._known + 1)))

    def _take(self, peer: NodeId, messages: tuple[wire.WireMessage, ...], size: int) -> None:
        now = time.perf_counter()
        for message in messages:
            match message:
                case wire.TipNotice(height):
                    self._told_at.setdefault(height, now)
                    self._announced = max(self._announced, height)
                    self._ask()
                case wire.Blocks(blocks):
                    self._asked_at = 0.0
                    for decided in blocks:
                        self._read(decode(decided.block, Block))
                    self._ask()
                case _:
                    pass

    def _read(self, block: Block) -> None:
        height = block.header.height
        if height != self._known + 1:
            return
        self._known = height
        told_at = self._told_at.pop(height, time.perf_counter())
        for envelope in block.transactions:
            submitted_at = self._waiting.pop(envelope, None)
            if submitted_at is not None:
                self.finality.append(told_at - submitted_at)
                self.decided_at.append(told_at)
        self._progress.set()
