"""Start, stop, reconnect, both event loops: nothing is left behind."""

import asyncio
import gc
import socket
from collections.abc import Callable

import pytest
import uvloop

from node.transport.policy import DialPolicy
from protocol.messages.wire import TipNotice
from protocol.primitives.units import Height, NodeId
from tests.transport.network import RecordingNode, identity_of, link_up, raw_link


async def _talk_and_stop() -> None:
    async with RecordingNode("a") as a, RecordingNode("b") as b:
        await link_up(a, b)
        for height in range(300):
            assert a.transport.send(b.node_id, TipNotice(Height(height)))
        await a.transport.stop()
        await b.until(lambda: b.linked() == [])
        assert len(b.received) == 300, "what was queued is sent before the goodbye"
        assert b.reasons("link.down") == ["peer said goodbye: node is stopping"]
        assert a.log[-1][0] == "down"
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.filterwarnings("error")
def test_stop_flushes_says_goodbye_and_leaves_nothing(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_talk_and_stop())
    gc.collect()


async def test_stop_does_not_wait_for_a_peer_that_does_not_answer() -> None:
    async with RecordingNode("a") as a, raw_link("mallory", a):
        started = asyncio.get_running_loop().time()
        await a.transport.stop()
        assert asyncio.get_running_loop().time() - started < 5
    assert a.log[-1][0] == "down"


async def test_error_in_a_callback_ends_the_transport_loudly() -> None:
    def broken(peer: object, messages: object, size: int) -> None:
        raise ZeroDivisionError("a defect of ours")

    async def run_until_broken() -> None:
        async with RecordingNode("b", on_messages=broken) as b, RecordingNode("a") as a:
            await link_up(a, b)
            a.transport.send(b.node_id, TipNotice(Height(1)))
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        await run_until_broken()
    assert caught.group_contains(ZeroDivisionError)


async def test_port_in_use_is_reported_and_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = RecordingNode("a")
        node.transport._listen = ("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            await node.transport.__aenter__()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_kept_link_comes_back_when_the_peer_does() -> None:
    async with RecordingNode("a") as a:
        async with RecordingNode("b") as b:
            await link_up(a, b, keep=True)
            port = b.transport.address[1]
        await a.until(lambda: a.linked() == [])
        await a.until(lambda: bool(a.reasons("dial.failed")))
        reborn = RecordingNode("b", incarnation=2)
        reborn.transport._listen = ("127.0.0.1", port)
        async with reborn:
            await a.until(lambda: reborn.node_id in a.linked())


async def test_dial_that_need_not_be_kept_is_given_up() -> None:
    policy = DialPolicy(links_target=0, backoff_first_ms=1, backoff_max_ms=2, rounds_max=3)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with RecordingNode("a", dial=policy) as a:
        a.transport.dial(identity_of("b").node_id, (f"127.0.0.1:{port}",), keep=False)
        await a.until(lambda: any(name == "dial.given_up" for name, _ in a.events))
        assert len(a.reasons("dial.failed")) == 3


async def test_node_to_stay_linked_to_is_dialed_again_soon_however_often_it_failed() -> None:
    policy = DialPolicy(links_target=0, backoff_first_ms=1, backoff_kept_max_ms=2, backoff_max_ms=3_600_000)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    async with RecordingNode("a", dial=policy) as a:
        a.transport.dial(identity_of("b").node_id, (f"127.0.0.1:{port}",), keep=True)
        await a.until(lambda: len(a.reasons("dial.failed")) >= 25)  # doubled that often a delay would be hours


async def test_node_that_is_asked_for_as_its_link_ends_is_dialed_again_at_once() -> None:
    async with RecordingNode("a") as a, RecordingNode("b") as b:
        note = a.transport._on_link_down

        def dial_again(peer: NodeId, reason: str) -> None:
            note(peer, reason)
            a.transport.dial(b.node_id, (b.endpoint,), keep=False)

        a.transport._on_link_down = dial_again
        await link_up(a, b, keep=False)
        for _ in range(2):
            b.transport.disconnect(a.node_id, "a blink")
            await a.until(lambda: a.linked() == [])
            await a.until(lambda: a.linked() == [b.node_id])
            await b.until(lambda: b.linked() == [a.node_id])


async def test_each_round_of_dials_in_vain_is_told() -> None:
    async with RecordingNode("b") as b:
        gone = b.endpoint
    told: list[NodeId] = []
    async with RecordingNode("a") as a:
        a.transport._dialer._unreachable = told.append
        a.transport.dial(b.node_id, (gone,), keep=False)
        await a.until(lambda: "dial.given_up" in [name for name, _ in a.events])
    assert told == [b.node_id] * a.transport._dial_policy.rounds_max


async def test_disconnected_peer_is_told_why_and_kept_out_while_banned() -> None:
    async with RecordingNode("a") as a, RecordingNode("b") as b:
        await link_up(a, b, keep=True)
        b.transport.disconnect(a.node_id, "gossip score too low", 60_000)
        await a.until(lambda: a.reasons("link.down") == ["peer said goodbye: gossip score too low; banned for 60 s"])
        await a.until(lambda: any("banned for 60 s more" in reason for reason in a.reasons("link.refused")))
        assert b.linked() == []


async def test_forgotten_node_is_not_dialed_again() -> None:
    async with RecordingNode("a") as a, RecordingNode("b") as b:
        await link_up(a, b, keep=True)
        a.transport.forget(b.node_id)
        await b.until(lambda: b.linked() == [])
        assert a.transport._dialer._targets == {}


async def test_links_above_the_cap_are_turned_away_unless_wanted() -> None:
    full = DialPolicy(links_target=0, links_max=1, backoff_first_ms=5, backoff_max_ms=50)
    async with RecordingNode("hub", dial=full) as hub, RecordingNode("a") as a, RecordingNode("b") as b:
        await link_up(a, hub)
        b.transport.dial(hub.node_id, (hub.endpoint,), keep=True)
        await b.until(lambda: any("no room" in reason for reason in b.reasons("link.refused") + b.reasons("link.down")))
        assert hub.linked() == [a.node_id]
        hub.transport.dial(b.node_id, (b.endpoint,), keep=True)
        await hub.until(lambda: sorted(hub.linked()) == sorted((a.node_id, b.node_id)))
