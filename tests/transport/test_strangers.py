"""What strangers can make a node dial: not a third party again and again, and nothing private."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence

import pytest

from node.transport.dialing import Dialer
from node.transport.peer_store import PeerStore
from node.transport.policy import DialPolicy
from node.transport.strangers import (
    FAILED_REMEMBERED_MAX,
    FAILED_REST_MS,
    PLACE_DIAL_INTERVAL_MS,
    PLACE_DIALS_BURST,
    NotForStrangers,
    StrangersAddresses,
    is_public,
    live_privately,
)
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.units import Hash, MonotonicMs, NodeId
from tests.transport.network import GENESIS, RecordingNode, record_of

OWN, PEER, OTHER = NodeId(b"o" * 32), NodeId(b"p" * 32), NodeId(b"q" * 32)
PUBLIC = "1.1.1.1:7400"
POLICY = DialPolicy(backoff_first_ms=1, backoff_max_ms=1, rounds_max=3, dice_seed=1)

HOSTS = [
    ("1.1.1.1", True),
    ("2606:4700::1", True),
    ("127.0.0.1", False),
    ("10.1.2.3", False),
    ("192.168.1.1", False),
    ("169.254.169.254", False),
    ("100.64.0.1", False),
    ("0.0.0.0", False),
    ("224.0.0.1", False),
    ("255.255.255.255", False),
    ("::1", False),
    ("fe80::1%eth0", False),
    ("fd00::1", False),
    ("ff02::1", False),
    ("::ffff:127.0.0.1", False),
    ("64:ff9b::a00:1", False),
    ("64:ff9b::101:101", True),
    ("2002:7f00:1::1", False),
    ("::127.0.0.1", False),
    ("::ffff:0:127.0.0.1", False),
    ("fec0::1", False),
    ("64:ff9b:1::a00:1", False),
    ("2606:4700::1111", True),
]


@pytest.mark.parametrize(("host", "public"), HOSTS)
def test_an_address_is_public_exactly_if_anybody_may_have_it(host: str, public: bool) -> None:
    assert is_public(host) is public


async def dialed(
    wishes: Sequence[tuple[NodeId, tuple[str, ...]]], *, once: bool = True, keep: bool = False, private: bool = False
) -> list[str]:
    """Every address that was dialed for these wishes, one after the other; nobody answers anywhere."""
    tried: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def attempt(endpoint: str, _expected: NodeId | None) -> NodeId | None:
        tried.append(endpoint)
        if keep and len(tried) == 2:
            tasks[0].cancel()
        return None

    async with asyncio.TaskGroup() as group:

        def spawn(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
            tasks.append(group.create_task(work))
            return tasks[-1]

        policy = DialPolicy(
            backoff_first_ms=1, backoff_max_ms=1, backoff_kept_max_ms=1, rounds_max=3, dice_seed=1, private=private
        )
        store = PeerStore(None, Hash(bytes(32)))
        dialer = Dialer(policy, store, {}, attempt, spawn, lambda _name, _fields: None, OWN)
        for node, addresses in wishes:
            dialer.pursue(node, addresses, keep=keep, once=once)
            await asyncio.wait(tasks)
    return tried


async def test_an_address_that_a_bid_names_is_tried_once_and_then_left_alone_whatever_node_is_named_with_it() -> None:
    assert await dialed([(PEER, (PUBLIC,)), (PEER, (PUBLIC,)), (OTHER, (PUBLIC,))]) == [PUBLIC]


async def test_what_this_node_wants_itself_is_tried_for_some_rounds() -> None:
    assert await dialed([(PEER, (PUBLIC,))], once=False) == [PUBLIC] * POLICY.rounds_max


@pytest.mark.parametrize("address", ["127.0.0.1:22", "192.168.1.1:80", "[::1]:22", "localhost:22"])
async def test_private_addresses_are_dialed_for_strangers_only_if_the_operator_says_so(address: str) -> None:
    assert await dialed([(PEER, (address,))]) == []
    assert await dialed([(PEER, (address,))], once=False) == []
    (tried,) = await dialed([(PEER, (address,))], private=True)
    assert tried.rpartition(":")[2] == address.rpartition(":")[2]


async def test_names_that_nobody_answers_for_hold_up_neither_this_nodes_other_threads_nor_addresses_that_are_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()

    def silent(host: str, port: int, **_rest: object) -> list[tuple[object, ...]]:
        answered.wait()
        return []

    monkeypatch.setattr("socket.getaddrinfo", silent)
    addresses = StrangersAddresses(private=False, loopback_only=False)
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(64):
                group.create_task(_given_up(addresses, f"silent{number}.example.org:7400"))
            await asyncio.sleep(0)
            async with asyncio.timeout(20):
                assert await asyncio.to_thread(int) == 0
                assert await addresses.found(PUBLIC, 20) == PUBLIC
    finally:
        answered.set()


async def _given_up(addresses: StrangersAddresses, endpoint: str) -> None:
    with pytest.raises(TimeoutError):
        await addresses.found(endpoint, 0.2)


LIVES = [
    (("seed.example.org:7400", PUBLIC), False),
    ((), False),
    ((PUBLIC, f"{format_address(AddressKind.NODE, PEER)}@10.0.0.1:7400"), True),
    (("localhost:7400",), True),
    (("[fd00::1]:7400",), True),
]


@pytest.mark.parametrize(("endpoints", "private"), LIVES)
def test_a_network_is_private_if_the_operators_own_addresses_are(endpoints: tuple[str, ...], private: bool) -> None:
    assert live_privately(endpoints) is private


async def test_a_node_to_stay_linked_to_is_dialed_wherever_it_was_configured_to_be() -> None:
    assert await dialed([(PEER, ("192.168.1.1:80",))], keep=True) == ["192.168.1.1:80"] * 2


async def test_one_place_is_dialed_so_often_and_not_more_by_however_many_ports_and_nodes() -> None:
    wishes = [(NodeId(bytes([number]) * 32), (f"1.1.1.1:{9000 + number}",)) for number in range(PLACE_DIALS_BURST + 9)]
    assert len(await dialed(wishes)) == PLACE_DIALS_BURST
    assert len(await dialed([*wishes, (OTHER, (PUBLIC.replace("1.1.1.1", "1.0.0.1"),))])) == PLACE_DIALS_BURST + 1


def test_a_place_may_be_dialed_again_after_a_while_and_at_once_where_links_stood() -> None:
    strangers = StrangersAddresses(private=False, loopback_only=False)
    for _ in range(PLACE_DIALS_BURST):
        strangers.take(PUBLIC, MonotonicMs(5))
    with pytest.raises(NotForStrangers, match="too often"):
        strangers.take(PUBLIC, MonotonicMs(5))
    strangers.take(PUBLIC, MonotonicMs(5 + PLACE_DIAL_INTERVAL_MS))
    strangers.give_back(PUBLIC)
    strangers.take(PUBLIC, MonotonicMs(5 + PLACE_DIAL_INTERVAL_MS))


def test_an_address_rests_for_its_time_and_few_are_remembered() -> None:
    strangers = StrangersAddresses(private=False, loopback_only=False)
    strangers.failed(PUBLIC, MonotonicMs(7))
    assert strangers.rests(PUBLIC, MonotonicMs(6 + FAILED_REST_MS))
    assert not strangers.rests(PUBLIC, MonotonicMs(7 + FAILED_REST_MS))
    for number in range(FAILED_REMEMBERED_MAX):
        strangers.failed(f"1.0.0.1:{number}", MonotonicMs(8))
    assert not strangers.rests(PUBLIC, MonotonicMs(8))


async def test_a_record_of_a_peer_does_not_make_a_node_dial_into_its_own_network() -> None:
    store = PeerStore(None, GENESIS)
    store.learn(record_of("far", ("192.168.7.7:80",)))
    policy = DialPolicy(links_target=1, backoff_first_ms=5, backoff_max_ms=50, exchange_interval_ms=200)
    async with RecordingNode("a", store=store, dial=policy, loopback_only=False) as a:
        await a.until(lambda: bool(a.reasons("dial.failed")))
        assert "private address" in a.reasons("dial.failed")[0]
