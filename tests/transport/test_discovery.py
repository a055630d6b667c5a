"""Seeds, peer exchange, the peer cache."""

import asyncio
import json
import os
import random
from pathlib import Path

import pytest

from node.transport.peer_store import FAILURES_COUNTED_MAX, PeerStore
from node.transport.policy import DialPolicy
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.limits import PEERS_STORED_MAX
from protocol.primitives.units import Hash
from tests.transport.network import GENESIS, RecordingNode, identity_of, link_up, record_of

SOCIABLE = DialPolicy(links_target=3, backoff_first_ms=5, backoff_max_ms=50, exchange_interval_ms=50, dice_seed=1)


async def test_nodes_that_know_one_seed_find_each_other() -> None:
    async with RecordingNode("seed", dial=SOCIABLE) as seed:
        seeds = (seed.endpoint,)
        async with (
            RecordingNode("a", seeds=seeds, dial=SOCIABLE) as a,
            RecordingNode("b", seeds=seeds, dial=SOCIABLE) as b,
            RecordingNode("c", seeds=seeds, dial=SOCIABLE) as c,
        ):
            everybody = (seed, a, b, c)
            for node in everybody:
                others = sorted(other.node_id for other in everybody if other is not node)
                await node.until(lambda node=node, others=others: node.linked() == others)  # type: ignore[misc]


async def test_node_to_be_linked_whose_address_is_unknown_is_dialed_once_a_peer_tells_it() -> None:
    patient = DialPolicy(links_target=0, backoff_first_ms=60_000, backoff_max_ms=60_000, exchange_interval_ms=50)
    async with RecordingNode("seed") as seed, RecordingNode("authority") as authority:
        await link_up(authority, seed)
        async with RecordingNode("a", dial=patient) as a:
            a.transport.dial(authority.node_id, ())
            a.transport.dial(seed.node_id, (seed.endpoint,))
            await a.until(lambda: authority.node_id in a.linked())


async def test_dead_seed_does_not_keep_a_node_from_the_living_one() -> None:
    async with RecordingNode("seed") as seed, RecordingNode("a", seeds=("127.0.0.1:1", seed.endpoint)) as a:
        await a.until(lambda: a.linked() == [seed.node_id])


async def test_pinned_seed_that_answers_with_another_key_is_refused() -> None:
    async with RecordingNode("seed") as seed:
        pin = format_address(AddressKind.NODE, identity_of("true seed").node_id)
        async with RecordingNode("a", seeds=(f"{pin}@{seed.endpoint}",)) as a:
            await a.until(lambda: any("another node answers" in reason for reason in a.reasons("link.refused")))
            assert a.linked() == []


async def test_restarted_node_finds_its_peers_from_the_cache_alone(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    async with RecordingNode("b") as b:
        async with RecordingNode("a", store=PeerStore(path, GENESIS)) as a:
            await link_up(a, b)
        async with RecordingNode("a", incarnation=2, store=PeerStore(path, GENESIS), dial=SOCIABLE) as again:
            await again.until(lambda: again.linked() == [b.node_id])
    assert await asyncio.to_thread(os.listdir, tmp_path) == ["peers.json"], "nothing half-written stays"


def test_higher_incarnation_wins_then_later_issue() -> None:
    store = PeerStore(None, GENESIS)
    node = identity_of("a").node_id
    for incarnation, issued_at, news in ((2, 5, True), (1, 9, False), (2, 4, False), (2, 5, False), (2, 6, True)):
        _, _, was_news = store.learn(record_of("a", ("127.0.0.1:1",), incarnation, issued_at=issued_at))
        assert was_news is news
    record = store.record(node)
    assert record is not None
    assert (record.incarnation, record.issued_at) == (2, 6)


@pytest.mark.parametrize(
    "received",
    [
        b"",
        b"noise",
        record_of("a")[:-1] + bytes((record_of("a")[-1] ^ 1,)),
        record_of("a", genesis_hash=Hash(b"h" * 32)),
    ],
    ids=["empty", "noise", "forged", "other network"],
)
def test_record_that_does_not_verify_is_never_kept(received: bytes) -> None:
    store = PeerStore(None, GENESIS)
    with pytest.raises(RemoteProtocolError):
        store.learn(received)
    assert len(store) == 0


def test_full_store_drops_strangers_before_nodes_that_were_linked() -> None:
    store = PeerStore(None, GENESIS)
    store.learn(record_of("friend", ("127.0.0.1:1",)))
    store.linked(identity_of("friend").node_id)
    for number in range(PEERS_STORED_MAX + 5):
        store.learn(record_of(f"stranger {number}", ("127.0.0.1:2",)))
    assert len(store) == PEERS_STORED_MAX
    assert store.record(identity_of("friend").node_id) is not None
    assert store.record(identity_of("stranger 0").node_id) is None


def test_sample_leaves_out_the_asker_the_unreachable_and_the_dead() -> None:
    store = PeerStore(None, GENESIS)
    for name, addresses in (("asker", ("127.0.0.1:1",)), ("inbound only", ()), ("dead", ("127.0.0.1:2",))):
        store.learn(record_of(name, addresses))
    good = record_of("good", ("127.0.0.1:3",))
    store.learn(good)
    for _ in range(FAILURES_COUNTED_MAX):
        store.failed(identity_of("dead").node_id)
    assert store.sample(10, random.Random(1), identity_of("asker").node_id) == (good,)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9}', '{"version": 1, "peers": [{"record": 5}]}'])
def test_damaged_cache_is_reported_and_costs_nothing_else(tmp_path: Path, content: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(content)
    store = PeerStore(path, GENESIS)
    assert store.load_problem is not None
    assert len(store) == 0


def test_tampered_record_in_the_cache_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    store = PeerStore(path, GENESIS)
    for name in ("a", "b"):
        store.learn(record_of(name, ("127.0.0.1:1",)))
    store.save()
    content = json.loads(path.read_text())
    content["peers"][0]["record"] = content["peers"][0]["record"][:-2] + "00"
    path.write_text(json.dumps(content))
    loaded = PeerStore(path, GENESIS)
    assert loaded.record(identity_of("a").node_id) is None
    assert loaded.record(identity_of("b").node_id) is not None
    assert "does not verify" in str(loaded.load_problem)
