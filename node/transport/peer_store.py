"""Node records that this node has verified, kept on disk so that a restart needs no seed.

Law: a record enters only with a signature that holds, under its sender's own id; of two records of one node the one
with the higher (incarnation, issued_at) holds. What cannot be verified is never kept and so never passed on.
"""

import json
import os
import random
from pathlib import Path

from protocol.messages.envelope import open_as, signature_check
from protocol.messages.kinds import MessageKind
from protocol.messages.peers import NodeRecord
from protocol.primitives.errors import RemoteProtocolError, SignatureInvalid
from protocol.primitives.limits import PEERS_STORED_MAX
from protocol.primitives.units import Hash, NodeId

FILE_VERSION = 1
FAILURES_COUNTED_MAX = 16


def claimed_record(received: bytes) -> tuple[NodeId, NodeRecord]:
    """What a node record says, not yet believed. Raises ``MalformedMessage``."""
    envelope, record = open_as(received, MessageKind.NODE_RECORD)
    assert isinstance(record, NodeRecord)
    return NodeId(envelope.sender), record


def open_record(genesis_hash: Hash, received: bytes) -> tuple[NodeId, NodeRecord]:
    """A node record and the node that signed it.

    Raises ``MalformedMessage`` or ``SignatureInvalid``.
    """
    envelope, record = open_as(received, MessageKind.NODE_RECORD)
    assert isinstance(record, NodeRecord)
    if not signature_check(genesis_hash, envelope).holds():
        raise SignatureInvalid("node record's signature does not hold")
    return NodeId(envelope.sender), record


class _Known:
    __slots__ = ("failures", "linked", "received", "record")

    def __init__(self, received: bytes, record: NodeRecord) -> None:
        self.received = received
        self.record = record
        self.failures = 0
        """Dials that failed since the last link."""
        self.linked = False
        """A link to it has once stood: strangers' records never push such a node out."""


class PeerStore:
    """Known nodes, least recently useful first. ``path`` None keeps them in memory only."""

    def __init__(self, path: Path | None, genesis_hash: Hash) -> None:
        self._path = path
        self._genesis_hash = genesis_hash
        self._known: dict[NodeId, _Known] = {}
        self._dirty = False
        self.load_problem: str | None = None
        """Why the file could not be read, for an event; a damaged cache costs a bootstrap, never a start."""
        if path is not None and path.exists():
            self._load(path)

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, received: bytes) -> tuple[NodeId, NodeRecord, bool]:
        """Verify a record and keep it if it is news: the node, its record, and whether it was news.

        Raises ``RemoteProtocolError``: whoever sent it passed on something that it cannot have verified.
        """
        node, record = claimed_record(received)
        known = self._known.get(node)
        if known is not None and known.received == received:
            return node, known.record, False
        open_record(self._genesis_hash, received)
        return node, record, self.learn_verified(node, record, received)

    def learn_verified(self, node: NodeId, record: NodeRecord, received: bytes) -> bool:
        """Keep a record whose signature the caller has checked; True when it was news."""
        known = self._known.get(node)
        if known is None:
            if len(self._known) >= PEERS_STORED_MAX:
                self._evict()
            self._known[node] = _Known(received, record)
        elif (record.incarnation, record.issued_at) > (known.record.incarnation, known.record.issued_at):
            known.received, known.record, known.failures = received, record, 0
        else:
            return False
        self._dirty = True
        return True

    def holds(self, received: bytes) -> bool:
        """True when this very record is held, so that it needs no second verification."""
        node, _ = claimed_record(received)
        known = self._known.get(node)
        return known is not None and known.received == received

    def record(self, node: NodeId) -> NodeRecord | None:
        """What the node says about itself."""
        known = self._known.get(node)
        return None if known is None else known.record

    def nodes(self) -> list[NodeId]:
        """All known nodes, those with the fewest failed dials first."""
        return sorted(self._known, key=lambda node: self._known[node].failures)

    def failures(self, node: NodeId) -> int:
        """Dials that failed since the last link."""
        known = self._known.get(node)
        return 0 if known is None else known.failures

    def linked(self, node: NodeId) -> None:
        """A link to this node stands: it moves to the end of the eviction order."""
        known = self._known.pop(node, None)
        if known is not None:
            known.failures, known.linked = 0, True
            self._known[node] = known
            self._dirty = True

    def failed(self, node: NodeId) -> None:
        """A dial failed."""
        known = self._known.get(node)
        if known is not None:
            known.failures = min(known.failures + 1, FAILURES_COUNTED_MAX)
            self._dirty = True

    def sample(self, count: int, dice: random.Random, leave_out: NodeId) -> tuple[bytes, ...]:
        """Up to ``count`` records to pass on; reachable nodes only, nodes that have been linked first."""
        useful = [
            (not known.linked, known.failures, dice.random(), known.received)
            for node, known in self._known.items()
            if node != leave_out and known.record.addresses and known.failures < FAILURES_COUNTED_MAX
        ]
        return tuple(received for *_, received in sorted(useful)[:count])

    def _evict(self) -> None:
        worst = min(
            enumerate(self._known.items()),
            key=lambda entry: (entry[1][1].linked, -entry[1][1].failures, entry[0]),
        )
        del self._known[worst[1][0]]

    def _load(self, path: Path) -> None:
        try:
            content = json.loads(path.read_bytes())
            if content["version"] != FILE_VERSION:
                raise ValueError(f"version {content['version']}")
            entries = [(bytes.fromhex(entry["record"]), int(entry["failures"])) for entry in content["peers"]]
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            self.load_problem = f"peer cache is unreadable, starting without it: {error}"
            return
        for received, failures in entries[-PEERS_STORED_MAX:]:
            try:
                node, record = open_record(self._genesis_hash, received)
            except RemoteProtocolError as error:
                self.load_problem = f"peer cache holds a record that does not verify: {error}"
                continue
            self.learn_verified(node, record, received)
            self._known[node].failures = max(0, min(failures, FAILURES_COUNTED_MAX))
        self._dirty = False

    def save(self) -> None:
        """Replace the file as a whole; nothing to do when nothing changed. Blocking: call it off the loop.

        Raises ``OSError``.
        """
        if self._path is None or not self._dirty:
            return
        peers = [{"record": known.received.hex(), "failures": known.failures} for known in list(self._known.values())]
        self._dirty = False
        beside = self._path.with_name(self._path.name + ".new")
        with beside.open("w") as file:
            json.dump({"version": FILE_VERSION, "peers": peers}, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
