"""Queues, backpressure, and what a slow peer costs."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.transport.outgoing import OutgoingQueue
from node.transport.policy import Backoff, DialPolicy, LinkPolicy
from protocol.messages.wire import Push, TipNotice, WireMessage, encode_message, join_frame, split_frame
from protocol.primitives.limits import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, FRAME_BYTES_MAX
from protocol.primitives.units import Height, NodeId
from tests.transport.network import RecordingNode, identity_of, link_up, raw_link

SIZES = st.lists(st.sampled_from([0, 10, 1_000, 40_000, 70_000, 500_000]), min_size=1, max_size=150)


@given(sizes=SIZES)
def test_frames_keep_order_and_caps(sizes: list[int]) -> None:
    queue = OutgoingQueue(4096, 2**30)
    messages = [Push(index.to_bytes(4, "big") + bytes(size)) for index, size in enumerate(sizes)]
    for message in messages:
        assert queue.offer(encode_message(message))
    received: list[WireMessage] = []
    while len(queue):
        frame, count = queue.take_frame()
        assert count <= BATCH_MESSAGES_MAX
        assert len(frame) <= BATCH_BYTES_MAX + 4 or count == 1
        received.extend(split_frame(frame))
    assert received == messages
    assert queue.waiting_bytes == 0


def test_queue_refuses_beyond_messages_and_bytes() -> None:
    queue = OutgoingQueue(2, 100)
    assert not queue.offer(bytes(101))
    assert queue.offer(bytes(60))
    assert not queue.offer(bytes(41))
    assert queue.offer(bytes(40))
    assert not queue.offer(b"")
    queue.clear()
    assert queue.offer(bytes(100))


def test_message_that_no_frame_can_carry_is_refused() -> None:
    queue = OutgoingQueue(10, 2**30)
    assert not queue.offer(bytes(FRAME_BYTES_MAX - 3))
    assert queue.offer(bytes(FRAME_BYTES_MAX - 4))
    assert len(queue.take_frame()[0]) <= FRAME_BYTES_MAX


async def test_peer_that_does_not_read_fills_only_its_own_queue() -> None:
    policy = LinkPolicy(linger_ms=100, queue_messages_max=64, queue_bytes_max=2**22)
    async with RecordingNode("a", link=policy) as a, RecordingNode("b") as b, raw_link("mallory", a):
        await link_up(b, a)
        stuck, message = identity_of("mallory").node_id, Push(bytes(500_000))
        refused = 0
        while refused < 10:
            refused += not a.transport.send(stuck, message)
            await asyncio.sleep(0)
        assert a.transport.send(b.node_id, TipNotice(Height(7)))
        await b.until(lambda: b.received == [(a.node_id, TipNotice(Height(7)))])
        facts = {facts.node: facts for facts in a.transport.links()}[stuck]
        assert facts.messages_dropped == 10
        assert facts.queued_bytes <= policy.queue_bytes_max
        assert any(name == "link.message_dropped" for name, _ in a.events)


async def test_slow_taker_stops_the_reading_until_it_is_done() -> None:
    gate, taken = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    async def slow(peer: NodeId, messages: tuple[WireMessage, ...], size: int) -> None:
        seen.append(len(messages))
        taken.set()
        await gate.wait()

    async with RecordingNode("a") as a, RecordingNode("b", on_messages=slow) as b:
        await link_up(a, b)
        total = 0
        while a.transport.send(b.node_id, Push(bytes(200_000))):
            total += 1
            await asyncio.sleep(0)
        await taken.wait()
        assert len(seen) == 1, "the second batch waits for the first"
        assert b.transport.links()[0].bytes_received < 400_000
        gate.set()
        async with asyncio.timeout(10):
            while sum(seen) < total:
                taken.clear()
                await taken.wait()


async def test_send_without_link_is_refused() -> None:
    async with RecordingNode("a") as a:
        assert not a.transport.send(identity_of("b").node_id, TipNotice(Height(1)))


@pytest.mark.parametrize("dice_seed", [1, 2])
def test_backoff_grows_to_its_cap_with_jitter_and_repeats_from_a_seed(dice_seed: int) -> None:
    import random

    policy = DialPolicy(backoff_first_ms=100, backoff_max_ms=1_000)
    first, second = (Backoff(policy, random.Random(dice_seed)) for _ in range(2))
    delays = [first.next_ms() for _ in range(8)]
    assert delays == [second.next_ms() for _ in range(8)]
    for delay, ceiling in zip(delays, (100, 200, 400, 800, 1_000, 1_000, 1_000, 1_000), strict=True):
        assert ceiling // 2 <= delay <= ceiling
    first.reset()
    assert first.next_ms() <= 100


async def _fill(node: RecordingNode, peer: NodeId) -> None:
    """Send to a peer that does not read until its queue refuses."""
    for _ in range(10_000):
        if not node.transport.send(peer, Push(bytes(500_000))):
            return
        await asyncio.sleep(0)
    raise AssertionError("the queue never filled")


async def test_nothing_is_delivered_after_disconnect_even_while_the_link_lingers() -> None:
    policy = LinkPolicy(linger_ms=200)
    async with RecordingNode("a", link=policy) as a, raw_link("mallory", a) as socket:
        stuck = identity_of("mallory").node_id
        await _fill(a, stuck)
        a.transport.disconnect(stuck, "enough")
        await socket.send_bytes(join_frame([encode_message(TipNotice(Height(1)))]))
        await a.until(lambda: a.linked() == [])
        assert a.received == []
        assert a.reasons("link.down") == ["enough"], "the abandoned writer is not taken for a cancelled link"


async def test_kept_dial_goes_on_after_a_link_whose_peer_stopped_reading() -> None:
    gate = asyncio.Event()

    async def stuck(peer: NodeId, messages: tuple[WireMessage, ...], size: int) -> None:
        await gate.wait()

    policy = LinkPolicy(linger_ms=200)
    async with RecordingNode("a", link=policy) as a, RecordingNode("b", link=policy, on_messages=stuck) as b:
        await link_up(a, b, keep=True)
        await _fill(a, b.node_id)
        a.transport.disconnect(b.node_id, "too slow")
        await a.until(lambda: a.linked() == [])
        gate.set()
        await a.until(lambda: a.linked() == [b.node_id])
        assert [what for what, _, _ in a.log] == ["up", "down", "up"]
