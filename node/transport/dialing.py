"""Whom to dial, and when again: nodes to stay linked to, seeds, and enough known peers.

Law: every wait between attempts grows and is drawn with jitter; no target is dialed while a link to it stands. A dial
runs its link to the link's end, so the number of tasks is bounded by targets and links. Addresses of seeds and of nodes
to stay linked to are dialed as they are; all others are strangers' words, and judged as such.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping

from node.transport.endpoints import Seed
from node.transport.link import Link
from node.transport.peer_store import PeerStore
from node.transport.policy import Backoff, DialPolicy
from node.transport.strangers import StrangersAddresses
from protocol.primitives.errors import UserError
from protocol.primitives.limits import DIAL_TARGETS_MAX
from protocol.primitives.units import MonotonicMs, NodeId

Attempt = Callable[[str, NodeId | None], Awaitable[NodeId | None]]
"""Dial one endpoint and run the link to its end: the peer when a link stood, None when the attempt failed."""
Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
Report = Callable[[str, dict[str, object]], None]

LASTING_LINK_SECONDS = 5.0
"""A link that stood so long makes the next delays start from the first again."""


def _ignore(node: NodeId) -> None:
    pass


class _Target:
    __slots__ = ("addresses", "again", "keep", "once", "task")

    def __init__(self, addresses: tuple[str, ...], keep: bool, once: bool) -> None:
        self.addresses = addresses
        self.keep = keep
        self.once = once
        """A stranger's wish: one round, which leaves out what has failed lately."""
        self.again = False
        """Asked for again after its link had ended, before the dial that made that link was over."""
        self.task: asyncio.Task[None] | None = None


class Dialer:
    """Owns no link: it calls ``attempt`` and watches ``links``."""

    def __init__(
        self,
        policy: DialPolicy,
        store: PeerStore,
        links: Mapping[NodeId, Link],
        attempt: Attempt,
        spawn: Spawn,
        report: Report,
        own: NodeId,
        unreachable: Callable[[NodeId], None] = _ignore,
        *,
        loopback_only: bool = False,
    ) -> None:
        """``unreachable`` is told each time that no address of a node that is dialed on purpose gave a link."""
        self._strangers = StrangersAddresses(private=policy.private, loopback_only=loopback_only)
        self._policy = policy
        self._store = store
        self._links = links
        self._attempt = attempt
        self._spawn = spawn
        self._report = report
        self._own = own
        self._unreachable = unreachable
        self.dice = random.Random(policy.dice_seed)
        self._targets: dict[NodeId, _Target] = {}
        self._exploring: dict[NodeId, None] = {}
        self._retry_at: dict[NodeId, float] = {}
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        """Set, and replaced, whenever links or known peers change."""

    def wants(self, node: NodeId) -> bool:
        """True for nodes that are being dialed on purpose: they have room even when links are full."""
        return node in self._targets

    def pursue(self, node: NodeId, addresses: tuple[str, ...], *, keep: bool, once: bool = False) -> None:
        """Dial a node; with ``keep`` for ever again, else until a link stood or some rounds have failed.

        ``once``: a stranger asks for it, so there is one round, and none of addresses that have failed lately.
        """
        if node == self._own:
            return
        target = self._targets.get(node)
        if target is not None:
            # Bids and offers name any node and any address: they don't lead us away from one that we were given.
            if addresses and (keep or not target.keep):
                target.addresses = addresses
            target.keep = target.keep or keep
            target.once = target.once and once
            target.again = node not in self._links
            return
        if len(self._targets) >= DIAL_TARGETS_MAX:
            self._report("dial.refused", {"peer": node.hex(), "reason": "too many nodes to dial"})
            return
        target = self._targets[node] = _Target(addresses, keep, once and not keep)
        target.task = self._spawn(self._run_target(node, target))

    def forget(self, node: NodeId) -> None:
        """Stop to dial a node. A link that stands is left alone, unless this dial made it."""
        target = self._targets.pop(node, None)
        if target is not None and target.task is not None:
            target.task.cancel()

    def follow_seed(self, seed: Seed) -> None:
        """Keep a link to whoever answers at a seed, or to the node that it pins."""
        if seed.node is not None:
            self.pursue(seed.node, (seed.endpoint,), keep=True)
        else:
            self._spawn(self._run_seed(seed.endpoint))

    def reconsider(self) -> None:
        """Links or known peers changed: look again whether more links are wanted."""
        for node, target in self._targets.items():
            target.again = target.again and node not in self._links
        self._wake.set()
        self._news.set()
        self._news = asyncio.Event()

    async def _unlinked(self, node: NodeId) -> None:
        while (link := self._links.get(node)) is not None:
            await link.ended.wait()

    async def _run_target(self, node: NodeId, target: _Target) -> None:
        backoff = Backoff(self._policy, self.dice)
        failed_rounds = 0
        while target.keep or failed_rounds < (1 if target.once else self._policy.rounds_max):
            if node in self._links:
                await self._unlinked(node)
                if target.again:
                    target.again = False
                    continue
                if not target.keep:
                    break
            elif target.keep and not self._endpoints(node, target.addresses):
                await self._news.wait()  # its record may come by peer exchange; there is nothing to back off from
                continue
            elif await self._round(node, target, backoff):
                failed_rounds = 0
                if target.again:
                    target.again = False
                    continue
                if not target.keep:
                    break
            else:
                failed_rounds += 1
                if node not in self._links:
                    self._unreachable(node)
            await asyncio.sleep(backoff.next_ms(kept=target.keep) / 1000)
        else:
            self._report("dial.given_up", {"peer": node.hex(), "rounds": failed_rounds})
        if self._targets.get(node) is target:
            del self._targets[node]

    async def _run_seed(self, endpoint: str) -> None:
        backoff = Backoff(self._policy, self.dice)
        while True:
            started = asyncio.get_running_loop().time()
            peer = await self._attempt(endpoint, None)
            if peer == self._own:
                return
            if peer is not None:
                await self._unlinked(peer)
                self._reset_if_lasting(backoff, started)
            await asyncio.sleep(backoff.next_ms(kept=True) / 1000)

    def _endpoints(self, node: NodeId, addresses: tuple[str, ...]) -> list[str]:
        """The addresses that we were told and those of the node's own record, without repetition."""
        record = self._store.record(node)
        return list(dict.fromkeys((*addresses, *(() if record is None else record.addresses))))

    async def _round(self, node: NodeId, target: _Target | None, backoff: Backoff | None) -> bool:
        """Try each address once; True when a link stood (it has ended by then)."""
        for endpoint in self._endpoints(node, target.addresses if target is not None else ()):
            started = asyncio.get_running_loop().time()
            if target is not None and target.keep:
                peer = await self._attempt(endpoint, node)
            else:
                peer = await self._attempt_strangers(endpoint, node, once=target is not None and target.once)
            if peer is not None:
                if backoff is not None:
                    self._reset_if_lasting(backoff, started)
                return True
            if node in self._links:
                return False
        self._store.failed(node)
        return False

    async def _attempt_strangers(self, endpoint: str, node: NodeId, *, once: bool) -> NodeId | None:
        """Dial where a stranger says that a node is, if that is not asked too much."""
        strangers = self._strangers
        if once and strangers.rests(endpoint, self._now()):
            return None
        try:
            found = await strangers.found(endpoint, self._policy.attempt_timeout_ms / 1000)
            strangers.take(found, self._now())
        except (OSError, UserError) as error:
            if once:
                strangers.failed(endpoint, self._now())
            fields: dict[str, object] = {"endpoint": endpoint, "peer": node.hex()}
            self._report("dial.failed", {**fields, "reason": str(error) or type(error).__name__})
            return None
        peer = await self._attempt(found, node)
        if peer is not None:
            strangers.give_back(found)
        elif once and node not in self._links:
            strangers.failed(endpoint, self._now())
        return peer

    @staticmethod
    def _now() -> MonotonicMs:
        return MonotonicMs(int(asyncio.get_running_loop().time() * 1000))

    def _reset_if_lasting(self, backoff: Backoff, started: float) -> None:
        if asyncio.get_running_loop().time() - started >= LASTING_LINK_SECONDS:
            backoff.reset()

    async def discover(self) -> None:
        """Dial known peers while there are fewer links than the target. Runs until cancelled."""
        while True:
            self._wake.clear()
            wait_seconds = self._explore_some()
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _explore_some(self) -> float:
        """Start dials for the links that are missing; the seconds after which to look again."""
        wait_seconds = self._policy.exchange_interval_ms / 1000
        missing = self._policy.links_target - len(self._links) - len(self._exploring)
        if missing <= 0:
            return wait_seconds
        now = asyncio.get_running_loop().time()
        nodes = self._store.nodes()
        self._retry_at = {node: at for node, at in self._retry_at.items() if at > now}
        for node in nodes:
            busy = node == self._own or node in self._links or node in self._targets or node in self._exploring
            record = self._store.record(node)
            if busy or record is None or not record.addresses:
                continue
            if node in self._retry_at:
                wait_seconds = min(wait_seconds, self._retry_at[node] - now)
            elif missing > 0:
                missing -= 1
                self._exploring[node] = None
                self._spawn(self._explore(node))
        return max(wait_seconds, 0.001)

    async def _explore(self, node: NodeId) -> None:
        try:
            await self._round(node, None, None)
        finally:
            del self._exploring[node]
            ceiling = self._policy.backoff_first_ms << min(self._store.failures(node), 16)
            delay_ms = min(ceiling, self._policy.backoff_max_ms)
            delay_ms = self.dice.randint((delay_ms + 1) // 2, delay_ms)
            self._retry_at[node] = asyncio.get_running_loop().time() + delay_ms / 1000
            self.reconsider()
