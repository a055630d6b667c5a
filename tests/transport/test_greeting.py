"""The greeting: another network, another version, ourselves, and two links at once."""

import pytest

from node.transport.endpoints import OffLoopback, format_endpoint, parse_endpoint, parse_seed
from node.transport.peer_store import PeerStore
from node.transport.transport import Transport
from protocol.messages.wire import TipNotice
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.errors import UserError
from protocol.primitives.units import Hash, Height
from tests.transport.network import GENESIS, RecordingNode, identity_of, link_up


async def test_another_network_is_reported_by_both_sides() -> None:
    async with RecordingNode("a") as a, RecordingNode("b", genesis_hash=Hash(b"h" * 32)) as b:
        a.transport.dial(b.node_id, (b.endpoint,), keep=False)
        await a.until(lambda: any("network" in reason for reason in a.reasons("link.refused")))
        await b.until(lambda: any("network" in reason for reason in b.reasons("link.refused")))
        assert a.log == b.log == []


async def test_another_version_is_reported_by_both_sides() -> None:
    async with RecordingNode("a") as a, RecordingNode("b", version=2) as b:
        a.transport.dial(b.node_id, (b.endpoint,), keep=False)
        await a.until(lambda: any("version 2 there, 1 here" in reason for reason in a.reasons("link.refused")))
        await b.until(lambda: any("version" in reason for reason in b.reasons("link.refused")))
        assert a.log == b.log == []


async def test_own_address_among_seeds_is_detected_and_dropped() -> None:
    async with RecordingNode("a") as a:
        a.transport._dialer.follow_seed(parse_seed(a.endpoint))
        await a.until(lambda: any("our own address" in reason for reason in a.reasons("link.refused")))
        assert a.log == []


async def test_simultaneous_dials_leave_the_link_of_the_smaller_id() -> None:
    async with RecordingNode("a") as a, RecordingNode("b") as b:
        a.transport.dial(b.node_id, (b.endpoint,))
        b.transport.dial(a.node_id, (a.endpoint,))
        small, large = sorted((a, b), key=lambda node: node.node_id)
        await small.until(lambda: [facts.outbound for facts in small.transport.links()] == [True])
        await large.until(lambda: [facts.outbound for facts in large.transport.links()] == [False])
        assert small.transport.send(large.node_id, TipNotice(Height(1)))
        assert large.transport.send(small.node_id, TipNotice(Height(2)))
        await small.until(lambda: (large.node_id, TipNotice(Height(2))) in small.received)
        await large.until(lambda: (small.node_id, TipNotice(Height(1))) in large.received)


async def test_link_from_the_larger_id_gives_way_whichever_came_first() -> None:
    async with RecordingNode("a") as a, RecordingNode("b") as b:
        small, large = sorted((a, b), key=lambda node: node.node_id)
        await link_up(large, small)
        assert [facts.outbound for facts in small.transport.links()] == [False]
        small.transport._spawn(_dial_once(small, large))
        await small.until(lambda: [facts.outbound for facts in small.transport.links()] == [True])
        await large.until(lambda: [facts.outbound for facts in large.transport.links()] == [False])
        assert [what for what, _, _ in small.log] == ["up", "down", "up"]


async def _dial_once(dialer: RecordingNode, listener: RecordingNode) -> None:
    await dialer.transport._attempt(listener.endpoint, listener.node_id)


async def test_peer_that_started_anew_replaces_the_link_of_its_earlier_life() -> None:
    small, large = sorted(("a", "b"), key=lambda name: identity_of(name).node_id)
    async with RecordingNode(small) as a, RecordingNode(large) as ghost:
        await link_up(a, ghost)
        async with RecordingNode(large, incarnation=2) as reborn:
            reborn.transport.dial(a.node_id, (a.endpoint,))
            await a.until(lambda: [facts.incarnation for facts in a.transport.links()] == [2])
            await ghost.until(lambda: ghost.linked() == [])
            assert [what for what, _, _ in a.log] == ["up", "down", "up"]


def test_development_network_refuses_to_listen_off_loopback() -> None:
    with pytest.raises(OffLoopback):
        Transport(
            identity_of("a"),
            GENESIS,
            "0.0.0.0",
            0,
            make_hello=lambda: pytest.fail("not reached"),
            on_link_up=lambda peer, hello, record: None,
            on_link_down=lambda peer, reason: None,
            on_messages=lambda peer, messages, size: None,
            on_event=lambda name, fields: None,
            peer_store=PeerStore(None, GENESIS),
            loopback_only=True,
        )


async def test_development_network_refuses_to_dial_off_loopback() -> None:
    async with RecordingNode("a") as a:
        a.transport.dial(identity_of("b").node_id, ("192.0.2.1:9",), keep=False)
        await a.until(lambda: any("off loopback" in reason for reason in a.reasons("dial.failed")))


@pytest.mark.parametrize("text", ["127.0.0.1:7000", "[::1]:7000", "node.example:65535"])
def test_endpoint_round_trips(text: str) -> None:
    assert format_endpoint(*parse_endpoint(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "host", "host:", "host:0", "host:65536", "host:-1", "::1:7000", "[host]:1", "a/b:1", "a@b:1"),
        *("a b:1", "x" * 300 + ":1", "höst:1", "host:٣", "a%2fb:1", "a?b:1", "a#b:1"),
    ],
)
def test_text_that_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_endpoint(text)


def test_seed_may_pin_its_node() -> None:
    node = identity_of("a").node_id
    pinned = parse_seed(f"{format_address(AddressKind.NODE, node)}@127.0.0.1:7000")
    assert (pinned.node, pinned.endpoint) == (node, "127.0.0.1:7000")
    assert parse_seed("127.0.0.1:7000").node is None
    with pytest.raises(UserError):
        parse_seed("mcnode1wrong@127.0.0.1:7000")
