"""The slots of one model and the jobs that wait for them, fairly between tenants (the buyers whose jobs they are).

Law: a free slot goes to the waiting tenant that holds the fewest, the one that was served longest ago among equals;
within a tenant the first comes first. A full queue is shared the same way: a tenant with few jobs waiting takes the
place of the last one of the tenant that has most.
"""

import asyncio
from collections import deque

from node.worker.errors import CapacityExceeded, JobTimedOut


class FairSlots:
    """So many jobs at once, so many waiting."""

    def __init__(self, slots: int, waiting_max: int) -> None:
        self._free = slots
        self._waiting_max = waiting_max
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        """By tenant, in the order in which they were last served."""
        self._held: dict[str, int] = {}

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return self._free

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return sum(len(queue) for queue in self._queues.values())

    async def take(self, tenant: str, until: float) -> None:
        """Wait for a slot until a time of the loop. Raises CapacityExceeded, JobTimedOut."""
        if self._free > 0:
            self._hold(tenant)
            return
        self._make_room(tenant)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(tenant, deque())
        queue.append(turn)
        try:
            async with asyncio.timeout_at(until):
                await turn
        except BaseException as error:
            self._leave_queue(tenant, turn)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back(tenant)  # its turn came in the moment in which it gave up
            if isinstance(error, TimeoutError):
                raise JobTimedOut("no slot came free before the job's deadline") from None
            raise

    def give_back(self, tenant: str) -> None:
        """A job of this tenant has ended."""
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self._free += 1
        if tenant in self._queues:
            self._queues[tenant] = self._queues.pop(tenant)  # it was served: the others come first
        waiting = [name for name, queue in self._queues.items() if queue]
        if waiting:
            chosen = min(waiting, key=lambda name: self._held.get(name, 0))
            queue = self._queues.pop(chosen)
            turn = queue.popleft()
            if queue:
                self._queues[chosen] = queue  # to the back
            self._hold(chosen)
            turn.set_result(None)

    def _hold(self, tenant: str) -> None:
        self._free -= 1
        self._held[tenant] = self._held.get(tenant, 0) + 1

    def _leave_queue(self, tenant: str, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(tenant)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._queues[tenant]

    def _make_room(self, tenant: str) -> None:
        if self.waiting < self._waiting_max:
            return
        own = len(self._queues.get(tenant, ()))
        crowd = max(self._queues, key=lambda name: len(self._queues[name]), default=tenant)
        if not self._queues or len(self._queues[crowd]) <= own + 1:
            raise CapacityExceeded(f"{self.waiting} jobs are waiting for this model already")
        latest = self._queues[crowd].pop()
        latest.set_exception(CapacityExceeded("the queue is full, and this buyer has most jobs in it"))
