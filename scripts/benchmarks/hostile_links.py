"""A process full of hostile links: each sends valid statements that are of no use, as fast as they are taken.

``python -m scripts.benchmarks.hostile_links GENESIS ADDRESS LINKS`` prints ``ready`` once all links stand. A link
that is cut off is made again at once, under another key: keys cost nothing.
"""

import asyncio
import os
import sys
from pathlib import Path

import aiohttp
from nacl.signing import SigningKey

from node.config.genesis_file import load_genesis
from node.transport.identity import NodeIdentity
from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.genesis import genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Voucher
from protocol.messages.peers import PROTOCOL_VERSION, Hello, NodeRecord
from protocol.messages.wire import Direct, encode_message, join_frame
from protocol.primitives.codec import Message, encode
from protocol.primitives.limits import BATCH_MESSAGES_MAX, FRAME_BYTES_MAX
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Height,
    Lane,
    PublicKey,
    SequenceNumber,
    TimestampMs,
)

STATEMENTS = 128 * 1024
"""Signed beforehand, and more than a node remembers to have checked: each costs it a check again."""
_AGAIN_S = 0.05


class Arsenal:
    """What all attackers share."""

    def __init__(self, genesis: Hash, statements: int) -> None:
        self._genesis = genesis
        self._key = SigningKey(os.urandom(32))
        count = max(1, statements // BATCH_MESSAGES_MAX)
        self.frames = [join_frame([self._useless(n * BATCH_MESSAGES_MAX + m) for m in range(64)]) for n in range(count)]
        self._next = 0

    def frame(self) -> bytes:
        """The next frame: no two links send the same at the same time."""
        self._next = (self._next + 1) % len(self.frames)
        return self.frames[self._next]

    def greeting(self, key: SigningKey) -> bytes:
        """A good Hello of a new node."""
        record = NodeRecord(1, TimestampMs(1), ("127.0.0.1:9",), AccountId(bytes(key.verify_key)))
        sealed = self._sealed(key, MessageKind.NODE_RECORD, record)
        return join_frame([encode_message(Hello(PROTOCOL_VERSION, self._genesis, sealed, Height(0)))])

    def _sealed(self, key: SigningKey, kind: MessageKind, body: Message) -> bytes:
        payload = encode(body)
        signature = key.sign(signing_bytes(self._genesis, kind, payload)).signature
        return seal(kind, payload, PublicKey(bytes(key.verify_key)), signature)

    def _useless(self, number: int) -> bytes:
        """A voucher of a channel that nobody has: a good signature over nothing."""
        payee = AccountId(bytes(self._key.verify_key))
        body = Voucher(ChannelId(bytes(32)), payee, Lane(0), SequenceNumber(1 + number), Amount(1), Hash(bytes(32)), 0)
        return encode_message(Direct(self._sealed(self._key, MessageKind.VOUCHER, body)))


async def _attack(session: aiohttp.ClientSession, address: str, arsenal: Arsenal, linked: asyncio.Event) -> None:
    while True:
        seed = os.urandom(32)
        try:
            context = NodeIdentity(seed).client_context
            async with session.ws_connect(f"wss://{address}/", ssl=context, max_msg_size=FRAME_BYTES_MAX) as socket:
                await socket.send_bytes(arsenal.greeting(SigningKey(seed)))
                await socket.receive()
                linked.set()
                async with asyncio.TaskGroup() as tasks:
                    listening = tasks.create_task(_until_closed(socket))
                    while not listening.done():
                        await socket.send_bytes(arsenal.frame())
                        await asyncio.sleep(0)
        except (aiohttp.ClientError, OSError, ExceptionGroup):
            pass
        await asyncio.sleep(_AGAIN_S)


async def _until_closed(socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
    async for _ in socket:
        pass


async def _attack_all(genesis: Path, address: str, links: int) -> None:
    arsenal = Arsenal(genesis_hash(load_genesis(genesis)), STATEMENTS)
    events = [asyncio.Event() for _ in range(links)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as tasks:
        for linked in events:
            tasks.create_task(_attack(session, address, arsenal, linked))
        for linked in events:
            await linked.wait()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        os._exit(0)  # attackers don't say goodbye


if __name__ == "__main__":
    os.nice(19)  # real attackers use machines of their own
    asyncio.run(_attack_all(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
