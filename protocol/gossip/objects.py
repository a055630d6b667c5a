"""Live objects with their bodies, and the memory of what has been seen.

Law: an id enters ``seen`` only for an authentic object; unauthentic bytes are remembered by the hash of the whole
envelope. All three memories are bounded; of live objects the next to expire goes first.
"""

from collections import deque
from heapq import heappop, heappush

import msgspec

from protocol.primitives.limits import (
    GOSSIP_LIFETIME_MS_MAX,
    GOSSIP_OBJECT_BYTES_TOTAL_MAX,
    GOSSIP_OBJECTS_MAX,
    GOSSIP_SEEN_MAX,
)
from protocol.primitives.units import Hash, MessageId, TimestampMs


class LiveObject(msgspec.Struct, frozen=True):
    """An accepted object: the bytes of its envelope as received."""

    envelope: bytes
    expires_at: TimestampMs


class BoundedMemory:
    """Remembers the latest ``size_max`` keys."""

    def __init__(self, size_max: int) -> None:
        self._keys: dict[bytes, int] = {}
        self._size_max = size_max

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def since(self, key: bytes) -> int | None:
        """The epoch in which a key was added first, or ``None`` if it is not remembered."""
        return self._keys.get(key)

    def add(self, key: bytes, epoch: int = 0) -> None:
        """Remember a key; the oldest goes when there are too many."""
        self._keys.setdefault(key, epoch)
        if len(self._keys) > self._size_max:
            del self._keys[next(iter(self._keys))]

    def discard(self, key: bytes) -> None:
        """Forget a key."""
        self._keys.pop(key, None)


class BoundedCounts:
    """Counts for the latest ``size_max`` keys."""

    def __init__(self, size_max: int) -> None:
        self._counts: dict[bytes, int] = {}
        self._size_max = size_max

    def add(self, key: bytes, count: int = 1) -> None:
        """So many more; the key counted first goes when there are too many."""
        self._counts[key] = self._counts.get(key, 0) + count
        if len(self._counts) > self._size_max:
            del self._counts[next(iter(self._counts))]

    def take(self, key: bytes) -> bool:
        """One less; False if there was none."""
        count = self._counts.pop(key, 0)
        if count > 1:
            self._counts[key] = count - 1
        return count > 0

    def take_all(self, key: bytes) -> int:
        """The key's count, which is none from now on."""
        return self._counts.pop(key, 0)


class Objects:
    """Everything about objects that does not depend on peers."""

    def __init__(self, objects_max: int = GOSSIP_OBJECTS_MAX, bytes_max: int = GOSSIP_OBJECT_BYTES_TOTAL_MAX) -> None:
        self.live: dict[MessageId, LiveObject] = {}
        """In order of arrival."""
        self.seen = BoundedMemory(GOSSIP_SEEN_MAX)
        """Ids of authentic objects, live or not."""
        self.broken = BoundedMemory(GOSSIP_SEEN_MAX)
        """Whole-envelope hashes of what turned out not to be authentic."""
        self.live_bytes = 0
        self._objects_max = objects_max
        self._bytes_max = bytes_max
        self._expiries: list[tuple[TimestampMs, MessageId]] = []
        self._recent: deque[tuple[int, MessageId]] = deque(maxlen=4096)

    def add(self, object_id: MessageId, envelope: bytes, expires_at: TimestampMs, now: TimestampMs, epoch: int) -> bool:
        """Keep an accepted object until it expires; False if it has expired already."""
        expires_at = TimestampMs(min(expires_at, now + GOSSIP_LIFETIME_MS_MAX))
        self.seen.add(object_id, epoch)
        if expires_at <= now or object_id in self.live:
            return False
        self.live[object_id] = LiveObject(envelope, expires_at)
        self.live_bytes += len(envelope)
        heappush(self._expiries, (expires_at, object_id))
        self._recent.append((epoch, object_id))
        while len(self.live) > self._objects_max or self.live_bytes > self._bytes_max:
            self._drop_next_to_expire()
        return object_id in self.live

    def expire(self, now: TimestampMs) -> None:
        """Drop what has expired."""
        while self._expiries and self._expiries[0][0] <= now:
            self._drop_next_to_expire()

    def _drop_next_to_expire(self) -> None:
        _, object_id = heappop(self._expiries)
        dropped = self.live.pop(object_id)
        self.live_bytes -= len(dropped.envelope)

    def recent(self, since_epoch: int) -> list[Hash]:
        """Live ids that were accepted in ``since_epoch`` or later, oldest first."""
        while self._recent and self._recent[0][0] < since_epoch:
            self._recent.popleft()
        return [Hash(object_id) for _, object_id in self._recent if object_id in self.live]
