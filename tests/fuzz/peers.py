"""Targets on a peer's side: frames, envelopes, greetings, certificates, blocks, and an engine between hostile peers."""

import asyncio
import contextlib
import ssl
from functools import lru_cache

from aiohttp import WSMessage, WSMsgType
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate
from msgspec.structs import replace

from node.transport.certificates import WrongPeerKey, certified_node, leaf_certificate, proved_node
from node.transport.identity import NodeIdentity
from node.transport.link import Socket, greet
from protocol.engine.bodies import open_body
from protocol.engine.checks import envelope_checks
from protocol.ledger.blocks import PendingTransaction, build_block, decode_block, execute_block
from protocol.ledger.errors import BlockInvalid, NotATransaction
from protocol.ledger.light_client import verify_decided
from protocol.ledger.state import recount
from protocol.messages.blocks import Header
from protocol.messages.consensus import Certificate
from protocol.messages.envelope import Envelope, open_envelope
from protocol.messages.kinds import MessageKind, payload_type
from protocol.messages.peers import PROTOCOL_VERSION, Hello
from protocol.messages.pieces import (
    LENGTH_BYTES,
    Granted,
    ManifestWanted,
    PieceGreeting,
    PieceListWanted,
    PieceWanted,
    Refused,
    decode_piece_message,
    encode_piece_message,
    piece_message_length,
)
from protocol.messages.quorum import AuthoritySet, certificate_checks
from protocol.messages.transactions import Transaction
from protocol.messages.wire import encode_message, join_frame, split_frame
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.units import AccountId, Amount, Height, ModelId, NodeId, PublicKey, Signature, TimestampMs
from tests.engine.generated import Generator
from tests.fuzz import live_engine
from tests.fuzz.dice import InputDice
from tests.ledger.world import NAMES, Ledger, account_of, make_genesis
from tests.messages import examples
from tests.transport.network import record_of, seed_of

ERRORS: tuple[type[Exception], ...] = (RemoteProtocolError,)
BLOCK_ERRORS = ERRORS
HANDSHAKE_ERRORS: tuple[type[Exception], ...] = (ssl.SSLError,)

KINDS = tuple(MessageKind)


def no_seeds() -> list[bytes]:
    """Inputs that are dice need no good example."""
    return []


# Frames and envelopes


def split_any_frame(content: bytes) -> None:
    """One spelling: what is accepted encodes to what was received."""
    messages = split_frame(content)
    assert join_frame([encode_message(message) for message in messages]) == content


def frames() -> list[bytes]:
    """Each wire message alone, and all together."""
    encoded = [encode_message(message) for message in (*examples.WIRE, *live_engine.honest_words()[0])]
    return [*(join_frame([each]) for each in encoded), join_frame(encoded[:64])]


def decode_any_piece_message(content: bytes) -> None:
    """One spelling, as in frames."""
    message = decode_piece_message(content[LENGTH_BYTES:])
    assert piece_message_length(content[:LENGTH_BYTES]) > 0
    assert encode_piece_message(message)[LENGTH_BYTES:] == content[LENGTH_BYTES:]


def piece_messages() -> list[bytes]:
    """Each message among pieces."""
    model = ModelId(bytes(32))
    messages = (
        PieceGreeting(examples.GENESIS_HASH), ManifestWanted(model), PieceListWanted(model, 1),
        PieceWanted(model, 1, 300), Granted(1 << 20), Refused("no", True),
    )  # fmt: skip
    return [encode_piece_message(message) for message in messages]


def open_any_envelope(content: bytes) -> None:
    """Open it and list the signatures that the door would have to check."""
    envelope, payload = open_envelope(content)
    assert encode(payload) == envelope.payload
    envelope_checks(examples.GENESIS_HASH, content)


def envelopes() -> list[bytes]:
    """One of each kind, and a transaction of each action."""
    return [*(examples.sealed(kind) for kind in KINDS), *_transactions()]


def _transactions() -> list[bytes]:
    example = examples.PAYLOADS[MessageKind.TRANSACTION]
    assert isinstance(example, Transaction)
    payloads = (
        encode(Transaction(example.nonce, example.fee, example.valid_until, action)) for action in examples.ACTIONS
    )
    sender, signature = PublicKey(bytes(account_of("bob"))), Signature(bytes(64))
    return [encode(Envelope(MessageKind.TRANSACTION, payload, sender, signature)) for payload in payloads]


def decode_any_payload(content: bytes) -> None:
    """The first byte chooses the kind, so that mutations change payloads and not the envelope around them."""
    kind = KINDS[content[0] % len(KINDS)] if content else KINDS[0]
    assert encode(decode(content[1:], payload_type(kind))) == content[1:]


def payloads() -> list[bytes]:
    """One of each kind."""
    return [bytes((position,)) + encode(examples.PAYLOADS[kind]) for position, kind in enumerate(KINDS)]


# Links


class _Spoken:
    """The receiving half of a connection whose peer says one thing and hangs up."""

    close_code = 1000

    def __init__(self, frame: bytes) -> None:
        self._frames = [WSMessage(WSMsgType.BINARY, frame, None)]

    async def send_bytes(self, frame: bytes) -> None:
        """Nobody listens."""

    async def receive(self) -> WSMessage:
        """What the peer said, then the end."""
        return self._frames.pop() if self._frames else WSMessage(WSMsgType.CLOSED, None, None)


@lru_cache(maxsize=1)
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def _own_hello() -> Hello:
    return Hello(PROTOCOL_VERSION, examples.GENESIS_HASH, _record(), Height(0))


@lru_cache(maxsize=1)
def _record() -> bytes:
    return record_of("a", ("127.0.0.1:1",), genesis_hash=examples.GENESIS_HASH)


def greet_anybody(content: bytes) -> None:
    """The greeting of a link with a peer that has proved the key of the record's node."""
    socket: Socket = _Spoken(content)  # type: ignore[assignment]
    peer = NodeIdentity(seed_of("a")).node_id
    _runner().run(greet(socket, _own_hello(), peer))


def greetings() -> list[bytes]:
    """A good greeting, and everything that is none."""
    return [join_frame([encode_message(_own_hello())]), *frames()]


def shake_hands(content: bytes) -> None:
    """The server's side of TLS, with any bytes from the network: they prove no node."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = _server_context().wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(content)
    incoming.write_eof()
    try:
        server.do_handshake()
    finally:
        with contextlib.suppress(WrongPeerKey):
            raise AssertionError(f"a handshake of one flight proved {proved_node(server).hex()}")


@lru_cache(maxsize=1)
def _server_context() -> ssl.SSLContext:
    return NodeIdentity(seed_of("server")).server_context


def handshakes() -> list[bytes]:
    """What a good client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = NodeIdentity(seed_of("client")).client_context.wrap_bio(incoming, outgoing)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return [outgoing.read()]
    raise AssertionError("a handshake without a server")


def read_key_certificate(content: bytes) -> None:
    """The node id in a certificate that OpenSSL has accepted: its issuer's key is public, so anybody may write it."""
    certified_node(content)


def key_certificates() -> list[bytes]:
    """A node's own, and what is left of it with another version, another kind of key, another serial number."""
    own = load_pem_x509_certificate(leaf_certificate(NodeId(account_of("alice-node")))).public_bytes(Encoding.DER)
    return [own, own.replace(_VERSION_3, _VERSION_9, 1), own.replace(_ED25519, _UNKNOWN_KEY)]


_VERSION_3, _VERSION_9 = bytes.fromhex("a003020102"), bytes.fromhex("a003020108")
_ED25519, _UNKNOWN_KEY = bytes.fromhex("06032b6570"), bytes.fromhex("06032b657f")


# Consensus and blocks


def check_any_certificate(content: bytes) -> None:
    """Structure and signatures of a certificate beside a header that may or may not belong to it."""
    dice = InputDice(content)
    ledger = _ledger()
    generator = Generator(dice, {32: [ledger.state.tip_hash, ledger.state.tip.parent, bytes(32)]})
    certificate: Certificate = generator.value(Certificate)
    if dice.random() < 0.8:  # well-formed, so that what it says is looked at
        signers = tuple(sorted(dice.sample(range(4), dice.randint(1, 4))))
        certificate = replace(certificate, signers=signers, signatures=(Signature(bytes(64)),) * len(signers))
    header: Header = ledger.state.tip if dice.random() < 0.5 else generator.value(Header)
    authorities = AuthoritySet.from_genesis(ledger.genesis)
    certificate_checks(ledger.hash, authorities, certificate)
    verify_decided(ledger.hash, authorities, header, certificate)


@lru_cache(maxsize=1)
def _ledger() -> Ledger:
    ledger = Ledger(make_genesis())
    ledger.open_channel("alice", "bob", 10_000)
    return ledger


def execute_any_blocks(content: bytes) -> None:
    """Blocks of any transactions of any accounts: what is built executes alike elsewhere and keeps the supply."""
    dice = InputDice(content)
    ledger = Ledger(make_genesis())
    channel = ledger.open_channel("alice", "bob", 10_000)
    keys = [account_of(name) for name in (*NAMES, "auth0")]
    generator = Generator(dice, {32: [channel, ledger.state.tip_hash, *keys]})
    for _ in range(4):
        candidates = [_candidate(generator, dice, keys, ledger) for _ in range(dice.randint(0, 6))]
        timestamp = TimestampMs(ledger.state.tip.timestamp_ms + dice.choice((0, 20, 6_000, 40_000)))
        built = ledger.build([candidate for candidate in candidates if candidate is not None], timestamp)
        if not built.block.transactions and timestamp - ledger.state.tip.timestamp_ms < 15_000:
            continue
        executed = execute_block(ledger.state, built.block)
        assert (executed.rows, executed.block_hash) == (built.rows, built.block_hash)
        ledger.state.apply(executed)
        if dice.used_up:
            break
    supply = recount(ledger.state)
    assert supply.total == supply.issued


def _candidate(
    generator: Generator, dice: InputDice, keys: list[AccountId], ledger: Ledger
) -> PendingTransaction | None:
    sender = dice.choice(keys)
    body: Transaction = generator.value(Transaction)
    if dice.random() < 0.9:  # else any nonce, fee and expiry
        account = ledger.state.account(sender)
        body = Transaction(account.nonce, Amount(dice.choice((10, 11, 1_000))), Height(1_000), body.action)
    envelope = encode(Envelope(MessageKind.TRANSACTION, encode(body), PublicKey(sender), Signature(bytes(64))))
    try:
        return PendingTransaction.from_bytes(envelope)
    except NotATransaction:
        return None


def execute_block_bytes(content: bytes) -> None:
    """A body as a peer sends it: opened, then judged and executed. Beyond decoding only ``BlockInvalid`` may come."""
    decode_block(content)
    block, _ = open_body(content)
    try:
        execute_block(_start().state, block)
    except BlockInvalid:
        return


@lru_cache(maxsize=1)
def _start() -> Ledger:
    return Ledger(make_genesis())


def block_bytes() -> list[bytes]:
    """A good block, an empty one, and one whose transactions are of every action."""
    ledger = Ledger(make_genesis())
    pending = [PendingTransaction.from_bytes(received) for received in _transactions()]
    built = build_block(ledger.state, pending, TimestampMs(ledger.state.tip.timestamp_ms + 20), None)
    words = live_engine.honest_words()[0]
    return [built.block_bytes, *(message.block for message in words if hasattr(message, "block"))]


def besiege(content: bytes) -> None:
    """An engine between hostile peers."""
    live_engine.besiege(content)
