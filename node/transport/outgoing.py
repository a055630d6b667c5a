"""What waits to be sent to one peer: bounded in messages and bytes, joined into frames.

Law: ``offer`` never waits. A peer that does not read makes its own queue refuse messages and nobody else's. Small
messages are joined up to the batch caps; one above the byte cap travels in a frame of its own.
"""

from collections import deque

from protocol.messages.wire import join_frame
from protocol.primitives.limits import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, FRAME_BYTES_MAX

FRAME_OVERHEAD_BYTES = 4
"""What ``join_frame`` adds at most."""


class OutgoingQueue:
    """Encoded messages in order."""

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self._waiting: deque[bytes] = deque()
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self.waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, encoded: bytes) -> bool:
        """Queue one message; False when there is no room for it or when no frame could carry it."""
        if len(encoded) + FRAME_OVERHEAD_BYTES > FRAME_BYTES_MAX:
            return False
        if len(self._waiting) >= self._messages_max or self.waiting_bytes + len(encoded) > self._bytes_max:
            return False
        self._waiting.append(encoded)
        self.waiting_bytes += len(encoded)
        return True

    def clear(self) -> None:
        """Forget everything that waits."""
        self._waiting.clear()
        self.waiting_bytes = 0

    def take_frame(self) -> tuple[bytes, int]:
        """The next frame and how many messages are in it; only when something waits."""
        batch = [self._waiting.popleft()]
        size = len(batch[0])
        while self._waiting and len(batch) < BATCH_MESSAGES_MAX and size + len(self._waiting[0]) <= BATCH_BYTES_MAX:
            batch.append(self._waiting.popleft())
            size += len(batch[-1])
        self.waiting_bytes -= size
        return join_frame(batch), len(batch)
