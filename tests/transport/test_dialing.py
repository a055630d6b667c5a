"""Whom a node dials, and where: what a stranger says of an address never takes away one that we were given."""

import asyncio
from collections.abc import Coroutine

from node.transport.dialing import Dialer
from node.transport.peer_store import PeerStore
from node.transport.policy import DialPolicy
from protocol.primitives.units import Hash, NodeId

KEPT, PASSING, OWN = NodeId(b"k" * 32), NodeId(b"p" * 32), NodeId(b"o" * 32)
OURS, THEIRS = "10.0.0.1:7400", "192.0.2.1:9"


async def dialed(node: NodeId, *, keep: bool) -> list[str]:
    """Where a node is dialed once somebody has named another address of it."""
    tried: list[str] = []
    began = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def attempt(endpoint: str, _expected: NodeId | None) -> NodeId | None:
        tried.append(endpoint)
        began.set()
        return None

    async with asyncio.TaskGroup() as group:

        def spawn(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
            tasks.append(group.create_task(work))
            return tasks[-1]

        policy = DialPolicy(backoff_first_ms=1, backoff_max_ms=1, backoff_kept_max_ms=1, dice_seed=1, private=True)
        store = PeerStore(None, Hash(bytes(32)))
        dialer = Dialer(policy, store, {}, attempt, spawn, lambda _name, _fields: None, OWN)
        dialer.pursue(node, (OURS,), keep=keep)
        dialer.pursue(node, (THEIRS,), keep=False)
        await began.wait()
        for task in tasks:
            task.cancel()
    return tried[:1]


async def test_an_address_that_a_bid_or_an_offer_names_does_not_replace_that_of_a_node_to_stay_linked_to() -> None:
    assert await dialed(KEPT, keep=True) == [OURS]


async def test_of_a_node_that_is_dialed_for_once_the_last_address_told_is_tried() -> None:
    assert await dialed(PASSING, keep=False) == [THEIRS]
