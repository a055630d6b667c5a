"""Peers tell each other of peers: signed node records, asked for, verified, bounded.

Law: an answer is read only when it was asked for, and one record in it that does not verify ends the link: whoever
passes a record on must have verified it.
"""

import asyncio
from collections.abc import Mapping

from node.transport.dialing import Dialer, Report
from node.transport.link import Link
from node.transport.peer_store import PeerStore, open_record
from node.transport.policy import DialPolicy
from protocol.messages.peers import NodeRecord
from protocol.messages.wire import Peers, PeersRequest, encode_message
from protocol.primitives.limits import PEER_RECORDS_MAX
from protocol.primitives.units import Hash, NodeId

REQUEST = encode_message(PeersRequest())


class PeerExchange:
    """Asks linked peers for more peers at times, answers them, and keeps the cache on disk."""

    def __init__(
        self, store: PeerStore, genesis_hash: Hash, dialer: Dialer, policy: DialPolicy, report: Report
    ) -> None:
        self._store = store
        self._genesis_hash = genesis_hash
        self._dialer = dialer
        self._policy = policy
        self._report = report

    def _now_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    def ask(self, link: Link) -> None:
        """Send a request unless an answer is still due."""
        if link.peers_asked_ms < 0 and link.send(REQUEST):
            link.peers_asked_ms = self._now_ms()

    def tell(self, link: Link) -> None:
        """Answer a request, at most twice an interval; asking more often gets no answer."""
        now = self._now_ms()
        if link.peers_told_ms >= 0 and now - link.peers_told_ms < self._policy.exchange_interval_ms // 2:
            return
        link.peers_told_ms = now
        link.send(encode_message(Peers(self._store.sample(PEER_RECORDS_MAX, self._dialer.dice, link.peer))))

    async def learn(self, link: Link, records: tuple[bytes, ...]) -> None:
        """Verify what a peer sent, off the loop, and keep what is news. Raises ``RemoteProtocolError``."""
        if link.peers_asked_ms < 0:
            self._report("peers.unasked", {"peer": link.peer.hex(), "records": len(records)})
            return
        link.peers_asked_ms = -1
        unknown = [received for received in records if not self._store.holds(received)]
        opened = await asyncio.to_thread(self._open_all, unknown)
        news = sum(self._store.learn_verified(node, record, received) for node, record, received in opened)
        if news:
            self._report("peers.learned", {"peer": link.peer.hex(), "records": news, "known": len(self._store)})
            self._dialer.reconsider()

    def _open_all(self, records: list[bytes]) -> list[tuple[NodeId, NodeRecord, bytes]]:
        return [(*open_record(self._genesis_hash, received), received) for received in records]

    async def save(self) -> None:
        """Write the cache; a full disk costs the cache, not the node."""
        try:
            await asyncio.to_thread(self._store.save)
        except OSError as error:
            self._report("peers.cache_not_saved", {"reason": str(error)})

    async def run(self, links: Mapping[NodeId, Link]) -> None:
        """Ask around and save, once an interval. Runs until cancelled."""
        while True:
            await asyncio.sleep(self._policy.exchange_interval_ms / 1000)
            for link in list(links.values()):
                self.ask(link)
            await self.save()
