"""How a node that can't have all blocks gets the state: whom it believes a snapshot, and whom it asks for chunks.

Law: nothing of a snapshot is used before all of it has been judged: its header by the certificate of an authority set
that this node knows, each chunk by its hash, the rows together by the header's root and the supply. Whoever gave what
does not hold is named and cut off, and another peer is asked. Of several contents offered the one that most
authorities offer is fetched first, so that a liar is not even tried while the honest are there.
"""

from collections.abc import Container, Iterable

import msgspec

from protocol.engine.events import PeerMisbehaved
from protocol.ledger.light_chain import deciding_set, trusted_genesis
from protocol.messages import wire
from protocol.messages.blocks import header_hash
from protocol.messages.consensus import CertificateKind
from protocol.messages.effects import (
    Disconnect,
    Effect,
    InstallSnapshot,
    KeepSnapshot,
    KeepSnapshotChunk,
    Notify,
    Now,
    Send,
)
from protocol.messages.genesis import Genesis
from protocol.messages.quorum import certificate_checks
from protocol.messages.snapshots import SnapshotManifest
from protocol.primitives.codec import Message
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.hashing import content_hash
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import DurationMs, Height, HeightField, MonotonicMs, NodeId

OFFERS_MS = 2_000
"""So long a peer may take to say what it has; then those that have answered are chosen from."""
CHUNK_MS = 10_000
"""A chunk that has not come by then is asked of another peer: a megabyte at a megabit a second."""
CHUNKS_PER_PEER = 2
"""Asked of one peer at once: one on its way while the next is read."""
ASKED_MAX = 8
"""Peers asked for their offers at a time."""
LIAR_BAN_MS = DurationMs(600_000)
REFUSED_MAX = 64
"""Contents that turned out wrong and are not fetched again."""
TICK_MS = 1_000


class SnapshotTaken(Message, frozen=True):
    """Event: the state was taken over from a snapshot; blocks up to this height were not executed here."""

    height: HeightField


class SnapshotBegun(Message, frozen=True):
    """Event: no peer has the blocks that follow our tip; the state at this height is being fetched."""

    height: HeightField
    chunks: int


class Fetched(msgspec.Struct, frozen=True):
    """What an earlier life has fetched and this one found whole."""

    manifest: SnapshotManifest
    chunks: tuple[int, ...]


def offer_checks(genesis: Genesis, tip: Height, offer: wire.SnapshotOffer) -> list[SignatureCheck]:
    """What must hold before an offer may be believed to be of a decided block.

    The changes of the authorities that lead to it are checked here: each link says whose signatures the next one needs.
    One that the tip has overtaken on its way here is ignored when it is handled, and honest peers send such.
    Raises ``RemoteProtocolError`` on one that contradicts itself or does not start from the genesis.
    """
    manifest = offer.manifest
    if manifest is None or manifest.header.height <= tip:
        return []
    header, certificate = manifest.header, manifest.certificate
    if certificate.kind is not CertificateKind.DECIDED:
        raise RemoteProtocolError("an offered snapshot of no decided block")
    if (certificate.height, certificate.block_hash) != (header.height, header_hash(header)):
        raise RemoteProtocolError("an offered snapshot beside the certificate of another block")
    trusted = trusted_genesis(genesis)
    authorities = deciding_set(trusted, None, manifest.successions, header)
    if authorities.hash() != header.authorities_hash:
        raise RemoteProtocolError("an offered snapshot of other authorities than its changes lead to")
    return certificate_checks(trusted.genesis, authorities, certificate)


class SnapshotSync:
    """One node's way to a snapshot: gathers offers, fetches chunks, has the whole judged."""

    def __init__(self) -> None:
        self._authorities: Container[NodeId] = ()
        self.manifest: SnapshotManifest | None = None
        """What is being fetched."""
        self.installing = False
        """Everything is here and is being judged: the state must not move."""
        self._kept: dict[int, None] = {}
        self._givers: dict[NodeId, None] = {}
        """Who is asked for chunks."""
        self._vouched: dict[NodeId, None] = {}
        """Everybody who has offered this content: they answer for it."""
        self._asked: dict[NodeId, MonotonicMs] = {}
        self._offers: dict[NodeId, SnapshotManifest] = {}
        self._under_way: dict[int, tuple[NodeId, MonotonicMs]] = {}
        self._refused: dict[tuple[bytes, ...], None] = {}
        self._turns: dict[NodeId, int] = {}
        self._turn = 0

    def resume(self, fetched: Fetched) -> None:
        """Take up what an earlier life has fetched; before the first input."""
        self.manifest = fetched.manifest
        self._kept = dict.fromkeys(fetched.chunks)

    def has_asked(self, peer: NodeId) -> bool:
        """True if an offer or a chunk of this peer may come: it was asked on the link that stands."""
        return peer in self._turns

    def forget(self, peer: NodeId) -> None:
        """The link is gone."""
        self._asked.pop(peer, None)
        self._turns.pop(peer, None)
        self._dismiss(peer)

    def _dismiss(self, peer: NodeId) -> None:
        self._givers.pop(peer, None)
        self._offers.pop(peer, None)
        self._under_way = {index: asked for index, asked in self._under_way.items() if asked[0] != peer}

    def stop(self) -> None:
        """Blocks are to be had after all."""
        if not self.installing:
            self.manifest = None
            self._kept.clear()
            self._givers.clear()
            self._vouched.clear()
            self._asked.clear()
            self._offers.clear()
            self._under_way.clear()

    # What the peers say

    def offered(self, peer: NodeId, offer: wire.SnapshotOffer, tip: Height, now: Now) -> list[Effect]:
        """A peer's offer, the signatures of which hold."""
        if self._asked.pop(peer, None) is None or self.installing:
            return []
        manifest = offer.manifest
        if manifest is not None and manifest.header.height > tip and manifest.content not in self._refused:
            self._offers[peer] = manifest
            if self.manifest is not None and manifest.content == self.manifest.content:
                self._givers[peer] = self._vouched[peer] = None
        return self._go_on(tip, now)

    def received(self, peer: NodeId, chunk: wire.SnapshotChunk, tip: Height, now: Now) -> list[Effect]:
        """A chunk that we asked this peer for, or something else."""
        manifest = self.manifest
        if manifest is None or self.installing or chunk.height != manifest.header.height:
            return []
        asked = self._under_way.get(chunk.index)
        if asked is None or asked[0] != peer:
            return []
        del self._under_way[chunk.index]
        if not chunk.payload:
            self._dismiss(peer)
            return self._go_on(tip, now)
        if content_hash(chunk.payload) != manifest.chunks[chunk.index]:
            return [*self._blame(peer, "a chunk of a snapshot that is not the one it offered"), *self._go_on(tip, now)]
        self._kept[chunk.index] = None
        return [KeepSnapshotChunk(chunk.index, chunk.payload), *self._go_on(tip, now)]

    def _blame(self, peer: NodeId, reason: str) -> list[Effect]:
        self.forget(peer)
        return [Notify(PeerMisbehaved(peer, reason)), Disconnect(peer, reason, LIAR_BAN_MS)]

    def refused(self, reason: str, tip: Height, now: Now) -> list[Effect]:
        """The whole was judged and does not hold: none of those who offered it is believed any more."""
        manifest = self.manifest
        assert manifest is not None
        self.installing = False
        self._refused[manifest.content] = None
        if len(self._refused) > REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        liars, self._vouched = self._vouched, {}
        effects = [each for peer in liars for each in self._blame(peer, f"a snapshot that does not hold: {reason}")]
        self.stop()
        return effects

    def installed(self) -> None:
        """The snapshot is the state now."""
        self.installing = False
        self.stop()

    # What is asked

    def drive(self, peers: Iterable[NodeId], authorities: Container[NodeId], tip: Height, now: Now) -> list[Effect]:
        """Go on, with these linked peers that can't give us blocks; call it again every ``TICK_MS``."""
        self._authorities = authorities
        if self.installing:
            return []
        late = [peer for peer, asked_at in self._asked.items() if now.monotonic_ms - asked_at >= OFFERS_MS]
        for peer in late:
            del self._asked[peer]
        for index, (peer, asked_at) in list(self._under_way.items()):
            if now.monotonic_ms - asked_at >= CHUNK_MS and index in self._under_way:
                self._dismiss(peer)
        effects: list[Effect] = []
        if not self._givers and not self._asked and not self._offers:
            effects += self._ask_offers(peers, tip, now)
        return effects + self._go_on(tip, now)

    def _ask_offers(self, peers: Iterable[NodeId], tip: Height, now: Now) -> list[Effect]:
        waiting = sorted(peers, key=lambda peer: (self._turns.get(peer, 0), peer not in self._authorities, peer))
        for peer in waiting[:ASKED_MAX]:
            self._turn += 1
            self._turns[peer] = self._turn
            self._asked[peer] = now.monotonic_ms
        return [Send(peer, wire.SnapshotRequest(tip)) for peer in self._asked]

    def _go_on(self, tip: Height, now: Now) -> list[Effect]:
        if self._asked and not self._givers:
            return []
        effects: list[Effect] = []
        if not self._givers:
            effects += self._choose()
        manifest = self.manifest
        if manifest is None:
            return effects
        if manifest.header.height <= tip:  # blocks were faster: the state never goes back
            self.stop()
            return []
        if len(self._kept) == len(manifest.chunks):
            self.installing = True
            return [*effects, InstallSnapshot(manifest)]
        for index in range(len(manifest.chunks)):
            if index in self._kept or index in self._under_way:
                continue
            peer = self._free_giver()
            if peer is None:
                break
            self._under_way[index] = (peer, now.monotonic_ms)
            effects.append(Send(peer, wire.SnapshotChunkRequest(manifest.header.height, index)))
        return effects

    def _choose(self) -> list[Effect]:
        """Most authorities, then the content that has been begun, then most peers, then the highest."""
        contents: dict[tuple[bytes, ...], list[NodeId]] = {}
        for peer, offered in self._offers.items():
            contents.setdefault(offered.content, []).append(peer)
        if not contents:
            return []
        begun = self.manifest.content if self.manifest is not None else None

        def merit(content: tuple[bytes, ...]) -> tuple[int, bool, int, int, tuple[bytes, ...]]:
            givers = contents[content]
            authorities = sum(peer in self._authorities for peer in givers)
            return authorities, content == begun, len(givers), self._offers[givers[0]].header.height, content

        best = max(contents, key=merit)
        self._offers = {peer: offered for peer, offered in self._offers.items() if offered.content == best}
        self._givers = dict.fromkeys(contents[best])
        if best == begun:
            self._vouched.update(self._givers)
            return []
        self._vouched = dict(self._givers)
        self.manifest = self._offers[contents[best][0]]
        self._kept.clear()
        self._under_way.clear()
        begun_event = SnapshotBegun(self.manifest.header.height, len(self.manifest.chunks))
        return [KeepSnapshot(self.manifest), Notify(begun_event)]

    def _free_giver(self) -> NodeId | None:
        busy = dict.fromkeys(self._givers, 0)
        for peer, _ in self._under_way.values():
            if peer in busy:
                busy[peer] += 1
        free = [peer for peer, count in busy.items() if count < CHUNKS_PER_PEER]
        return min(free, key=lambda peer: (busy[peer], peer)) if free else None
