"""A replica that takes the state from a snapshot when nobody has the blocks that it lacks, and serves those it has.

Law: while a snapshot is being judged the state does not move; from the moment it is the state, everything goes on as
after the commit of its block.
"""

from protocol.engine.replica_height import ROOM
from protocol.engine.replica_sync import ReplicaSync
from protocol.engine.snapshots import TICK_MS, Fetched, SnapshotTaken, offer_checks
from protocol.ledger.state import LedgerState
from protocol.messages import wire
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import Effect, Notify, Now, SendSnapshotChunk, SendSnapshotOffer, SetTimer, TimerKey
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import MonotonicMs, NodeId

SNAPSHOT = TimerKey(ROOM, "snapshot")


class ReplicaSnapshots(ReplicaSync):
    """Snapshots on top of catching up by blocks."""

    # What runtime and door ask for

    def checks(self, message: wire.WireMessage) -> list[SignatureCheck]:
        """See ``HeightDriver``."""
        if isinstance(message, wire.SnapshotOffer):
            return offer_checks(self.genesis, self.tip, message)
        return super().checks(message)

    def resume_snapshot(self, fetched: Fetched | None) -> None:
        """What an earlier life had fetched of a snapshot; before the first input."""
        if fetched is not None and fetched.manifest.header.height > self.tip:
            self.snapshots.resume(fetched)

    def snapshot_installed(self, state: LedgerState, decided: DecidedBlock, now: Now) -> list[Effect]:
        """The snapshot holds and is on disk: ``state`` is what it says, ``decided`` the block at its height."""
        self.snapshots.installed()
        self.state.take_over(state)
        self.last_decided = decided
        self._committed_at = now.monotonic_ms
        self.mempool.block_applied(self.state, ())
        self._effects.append(Notify(SnapshotTaken(self.tip)))
        self._tell_tip(self.tip)
        self._next_height(now)
        self._previous = None
        self._ask_blocks(now)
        return self._taken()

    def _put_off(self, key: TimerKey, now: Now) -> list[Effect]:
        """A timer that came while the snapshot was being judged comes again."""
        return [SetTimer(key, MonotonicMs(now.monotonic_ms + TICK_MS))]

    def snapshot_refused(self, reason: str, now: Now) -> list[Effect]:
        """The snapshot does not hold."""
        self._effects += self.snapshots.refused(reason, self.tip, now)
        self._seek(now)
        return self._taken()

    # Messages

    def _on_snapshot_message(self, peer: NodeId, message: wire.WireMessage, now: Now) -> None:
        match message:
            case wire.SnapshotRequest():
                if self._snapshot_answers.allow(peer, now.monotonic_ms):
                    self._effects.append(SendSnapshotOffer(peer, message.above))
            case wire.SnapshotChunkRequest():
                if self._snapshot_answers.allow(peer, now.monotonic_ms):
                    self._effects.append(SendSnapshotChunk(peer, message.height, message.index))
            case wire.SnapshotOffer():
                self._effects += self.snapshots.offered(peer, message, self.tip, now)
            case wire.SnapshotChunk():
                self._effects += self.snapshots.received(peer, message, self.tip, now)
            case _:
                pass

    # Asking

    def _on_blocks(self, peer: NodeId, message: wire.Blocks, now: Now) -> None:
        """See ``ReplicaSync``; a peer that has given up the blocks that we lack says so with its first one."""
        if not message.blocks and message.first > self.tip + 1:
            self._catch_up.lacks(peer, message.first, message.tip)
            self._ask_blocks(now)
            return
        super()._on_blocks(peer, message, now)

    def _ask_blocks(self, now: Now) -> None:
        if self.snapshots.installing:
            return
        super()._ask_blocks(now)
        self._seek(now)

    def _seek(self, now: Now) -> None:
        """Go on with a snapshot, or begin with one when all peers that are ahead lack the block that comes next."""
        fetching = self.snapshots.manifest
        if fetching is not None and fetching.header.height <= self.tip:
            self.snapshots.stop()
            fetching = None
        if self._seeking or self.snapshots.installing:
            return
        if fetching is None and not self._catch_up.nobody_has_next(self.tip):
            return
        pruned = self._catch_up.pruned(self.tip)
        self._effects += self.snapshots.drive(pruned, self.seats, self.tip, now)
        self._seeking = True
        self._effects.append(SetTimer(SNAPSHOT, MonotonicMs(now.monotonic_ms + TICK_MS)))

    def _seek_again(self, now: Now) -> None:
        self._seeking = False
        self._seek(now)
