"""What one address may take: new connections, unfinished ones, links."""

import asyncio
import contextlib

import pytest
from aiohttp import WSMsgType

from node.transport.neighbours import Neighbours, neighbour_of
from node.transport.policy import LinkPolicy
from protocol.gossip.policy import Rate
from protocol.messages.peers import PROTOCOL_VERSION, Hello
from protocol.messages.wire import Goodbye, encode_message, join_frame, split_frame
from protocol.primitives.limits import NEIGHBOURS_REMEMBERED_MAX
from protocol.primitives.units import Height, MonotonicMs
from tests.transport.network import GENESIS, RecordingNode, identity_of, raw_link, raw_socket, record_of

HERE = "192.0.2.1"


def _greeting(name: str) -> bytes:
    record = record_of(name, ("127.0.0.1:1",))
    return join_frame([encode_message(Hello(PROTOCOL_VERSION, GENESIS, record, Height(0)))])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (HERE, "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        (f"::ffff:{HERE}", HERE, True),
        ("fe80::1%eth0", "fe80::2", True),
        ("somewhere", "elsewhere", False),
    ],
)
def test_neighbours_are_those_whom_one_customer_could_be(one: str, other: str, same: bool) -> None:
    assert (neighbour_of(one) == neighbour_of(other)) is same


def test_allowance_refills_and_belongs_to_one_address() -> None:
    neighbours = Neighbours(LinkPolicy(connections_per_address=Rate(1, 2)))
    now = MonotonicMs(0)
    assert [neighbours.may_connect(HERE, now) for _ in range(3)] == [True, True, False]
    assert neighbours.may_connect("192.0.2.2", now)
    assert neighbours.may_connect(HERE, MonotonicMs(1_000))


def test_this_machine_is_exempt_by_default() -> None:
    neighbours = Neighbours(LinkPolicy(connections_per_address=Rate(1, 1), links_per_address_max=1))
    assert all(neighbours.may_connect("127.0.0.1", MonotonicMs(0)) for _ in range(9))
    neighbours.linked("127.0.0.1")
    assert neighbours.has_room("127.0.0.1")


def test_no_more_addresses_are_remembered_than_the_cap() -> None:
    neighbours = Neighbours(LinkPolicy(connections_per_address=Rate(1, 1)))
    for number in range(NEIGHBOURS_REMEMBERED_MAX + 10):
        neighbours.may_connect(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", MonotonicMs(0))
    assert len(neighbours._allowances) == NEIGHBOURS_REMEMBERED_MAX


async def test_one_address_gets_no_more_links_than_its_share() -> None:
    narrow = LinkPolicy(links_per_address_max=2, loopback_exempt=False, linger_ms=300)
    async with RecordingNode("b", link=narrow) as b, raw_link("one", b):
        async with raw_link("two", b), raw_socket("three", b) as socket:
            await socket.send_bytes(_greeting("three"))
            said = [await socket.receive(), await socket.receive()]
            last = next(frame for frame in reversed(said) if frame.type is WSMsgType.BINARY)
            assert split_frame(last.data) == (Goodbye("no room for more links from one address"),)
        await b.until(lambda: len(b.linked()) == 1)
        async with raw_link("four", b):
            await b.until(lambda: len(b.linked()) == 2)


async def test_one_address_opens_no_more_connections_than_its_allowance() -> None:
    narrow = LinkPolicy(connections_per_address=Rate(1, 3), loopback_exempt=False, linger_ms=300)
    async with RecordingNode("b", link=narrow) as b:
        opened = [await asyncio.open_connection(*b.transport.address) for _ in range(8)]
        async with asyncio.timeout(5):
            for reader, _ in opened[4:]:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
        assert not opened[0][0].at_eof()
        for _, writer in opened:
            writer.transport.abort()


async def test_connection_that_goes_on_is_not_crowded_out_by_those_that_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.transport.listener.PENDING_CONNECTIONS_MAX", 3)
    patient = LinkPolicy(greeting_timeout_ms=60_000, linger_ms=300)
    async with RecordingNode("b", link=patient) as b, raw_socket("friend", b) as socket:
        silent = [await asyncio.open_connection(*b.transport.address) for _ in range(12)]
        async with asyncio.timeout(5):
            for reader, _ in silent[:9]:
                assert await reader.read() == b""
        await socket.send_bytes(_greeting("friend"))
        await b.until(lambda: b.linked() == [identity_of("friend").node_id])
        for _, writer in silent:
            writer.transport.abort()
