"""What refuses to start, and whom a running node refuses to talk to."""

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest
from nacl.signing import SigningKey

from node.config.genesis_file import genesis_to_json, load_genesis
from node.transport.identity import NodeIdentity
from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.genesis import genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.peers import PROTOCOL_VERSION, Hello, NodeRecord
from protocol.messages.wire import encode_message, join_frame
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, Hash, Height, PublicKey, TimestampMs
from tests.e2e.network import WAIT_SECONDS, Network, wait_until
from tests.e2e.people import Person


@pytest.fixture(scope="module")
def person(cluster: Network, place: Path) -> Person:
    """Somebody whose configuration is good."""
    somebody = Person.settle(place / "somebody")
    somebody.join(cluster.genesis, [cluster.record("authority-1").address], "--role", "follower")
    return somebody


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("state = ", "sate = ", "sate"),
        ("state = ", "state == ", "not TOML"),
        ("roles = []", 'roles = ["king"]', "king"),
        ('listen = "127.0.0.1:0"', 'listen = "127.0.0.1"', "listen"),
        ('listen = "127.0.0.1:0"', 'listen = "0.0.0.0:0"', "loopback"),
        ('genesis = "genesis.json"', 'genesis = "nothing.json"', "nothing.json"),
    ],
    ids=["unknown key", "no TOML", "unknown role", "no port", "exposed development node", "no genesis"],
)
def test_bad_configuration_ends_with_2_and_names_the_fault(
    person: Person, tmp_path: Path, before: str, after: str, named: str
) -> None:
    good = person.config.read_text()
    assert before in good
    bad = person.folder / "bad.toml"
    bad.write_text(good.replace(before, after))
    refused = person.mercat("node", "run", "--config", str(bad), expect=2)
    assert named in refused.err
    assert "Traceback" not in refused.err


def test_damaged_genesis_is_refused(person: Person) -> None:
    damaged = person.folder / "damaged.json"
    damaged.write_text((person.folder / "genesis.json").read_text()[:-20])
    bad = person.folder / "bad.toml"
    bad.write_text(person.config.read_text().replace("genesis.json", "damaged.json"))
    refused = person.mercat("node", "run", "--config", str(bad), expect=2)
    assert "damaged.json" in refused.err


def test_port_in_use_ends_with_1_and_names_it(network: Network, person: Person) -> None:
    taken = network.record("authority-1").address
    refused = person.mercat("node", "run", "--config", str(person.config), "--listen", taken, expect=1)
    assert taken.partition(":")[2] in refused.err
    assert "in use" in refused.err
    assert "Traceback" not in refused.err


def test_state_of_another_network_is_refused(network: Network, person: Person) -> None:
    with person.running():
        pass
    original = (person.folder / "genesis.json").read_bytes()
    try:
        (person.folder / "genesis.json").write_bytes(_other_genesis(network.genesis))
        refused = person.mercat("node", "run", "--config", str(person.config), expect=None)
    finally:
        (person.folder / "genesis.json").write_bytes(original)
    assert refused.code in (1, 2)
    assert "network" in refused.err or "genesis" in refused.err


def _other_genesis(path: Path) -> bytes:
    """The same network but for its name: another hash."""
    return genesis_to_json(msgspec.structs.replace(load_genesis(path), network="elsewhere"))


def test_node_of_another_network_is_refused_and_both_sides_say_so(network: Network, place: Path) -> None:
    stranger = Person.settle(place / "stranger")
    genesis = place / "elsewhere.json"
    genesis.write_bytes(_other_genesis(network.genesis))
    stranger.join(genesis, [network.record("buyer-1").address], "--role", "follower")
    with stranger.running():
        wait_until(lambda: bool(_refusals(stranger.events("link.refused"))), "the stranger logs the refusal")
        wait_until(lambda: bool(_refusals(network.events("buyer-1", "link.refused"))), "so does the node it dialed")
        status = stranger.status()
        assert status is not None
        assert status.peers == ()
    assert network.mercat("run", "echo", "unimpressed").out.rstrip("\n") == "unimpressed"


def _refusals(events: list[dict[str, object]]) -> list[str]:
    return [str(event["reason"]) for event in events if "network" in str(event["reason"])]


async def test_peer_that_sends_garbage_is_named_and_the_node_goes_on(network: Network) -> None:
    key = SigningKey(b"mallory's key, thirty-two bytes!")
    identity = NodeIdentity(bytes(key))
    network_id = genesis_hash(load_genesis(network.genesis))
    target = network.record("provider-1").address
    for garbage in (b"\xff" * 1000, b"", b"\x91\x90"):
        await _greet_and_send(identity, _hello(key, network_id), target, garbage)
    own = identity.node_id.hex()

    def named() -> list[str]:
        return [event["reason"] for event in network.events("provider-1", "peer.misbehaved") if event["peer"] == own]

    await asyncio.to_thread(wait_until, lambda: bool(named()), "the provider names the peer that sent garbage")
    assert all(peer.node != own for peer in network.client("provider-1").status().peers)
    ended = await asyncio.to_thread(network.mercat, "run", "echo", "still here")
    assert ended.out.rstrip("\n") == "still here"


def _hello(key: SigningKey, network_id: Hash) -> bytes:
    payload = encode(NodeRecord(1, TimestampMs(1), (), AccountId(b"a" * 32)))
    signature = key.sign(signing_bytes(network_id, MessageKind.NODE_RECORD, payload)).signature
    record = seal(MessageKind.NODE_RECORD, payload, PublicKey(bytes(key.verify_key)), signature)
    return join_frame([encode_message(Hello(PROTOCOL_VERSION, network_id, record, Height(0)))])


async def _greet_and_send(identity: NodeIdentity, hello: bytes, target: str, garbage: bytes) -> None:
    """A valid TLS link with a valid greeting, then bytes that are no message; until the node hangs up."""
    async with (
        asyncio.timeout(WAIT_SECONDS),
        aiohttp.ClientSession() as session,
        session.ws_connect(f"wss://{target}/", ssl=identity.client_context) as socket,
    ):
        await socket.send_bytes(hello)
        await socket.send_bytes(garbage)
        async for _ in socket:
            pass
        assert socket.closed
