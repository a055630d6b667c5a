"""Two nodes, one link: messages both ways, batching, bounds, ends."""

from protocol.messages.wire import Announce, Push, TipNotice
from protocol.primitives.units import Hash, Height
from tests.transport.network import RecordingNode, link_up


async def test_messages_pass_in_order_both_ways() -> None:
    async with RecordingNode("a") as a, RecordingNode("b") as b:
        await link_up(a, b)
        for height in range(500):
            assert a.transport.send(b.node_id, TipNotice(Height(height)))
            assert b.transport.send(a.node_id, TipNotice(Height(1000 + height)))
        await b.until(lambda: len(b.received) == 500)
        await a.until(lambda: len(a.received) == 500)
        assert b.received == [(a.node_id, TipNotice(Height(height))) for height in range(500)]
        assert a.received == [(b.node_id, TipNotice(Height(1000 + height))) for height in range(500)]


async def test_large_message_arrives_among_small_ones() -> None:
    async with RecordingNode("a") as a, RecordingNode("b") as b:
        await link_up(a, b)
        large = Push(b"x" * 500_000)
        assert a.transport.send(b.node_id, Announce((Hash(b"1" * 32),)))
        assert a.transport.send(b.node_id, large)
        assert a.transport.send(b.node_id, Announce((Hash(b"2" * 32),)))
        await b.until(lambda: len(b.received) == 3)
        assert b.received[1] == (a.node_id, large)
