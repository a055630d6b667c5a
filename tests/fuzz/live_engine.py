"""A whole engine between hostile peers: an input's bytes choose what they say, when, and what else happens.

Law: the peers hold two funded and bonded accounts, one of four authorities and its node, and can replay whatever honest
authorities have signed; any other signature does not hold. So whatever they bring about, real peers could: nothing may
come of it but effects or the peer's own error, and never a halt.
"""

import random
from functools import lru_cache

from protocol.engine.engine import Engine
from protocol.engine.inputs import (
    BodyBroken,
    BodyOffered,
    Input,
    LinkDown,
    LinkUp,
    Misbehaved,
    Received,
    Signed,
    StartJob,
    TimerFired,
    WorkFailed,
    WorkPiece,
    WorkPrefilled,
)
from protocol.market.agreement import JobRequest
from protocol.messages import wire
from protocol.messages.blocks import DecidedBlock
from protocol.messages.consensus import CertificateKind, ProposalBody, VoteBody
from protocol.messages.effects import (
    CancelTimer,
    CloseWork,
    Disconnect,
    Effect,
    GuardPosition,
    Halt,
    Now,
    OpenWork,
    Send,
    SetTimer,
    SignAndSend,
    TimerKey,
)
from protocol.messages.envelope import Envelope, envelope_id, open_envelope, seal
from protocol.messages.kinds import KeyRole, MessageKind, key_role, payload_type
from protocol.messages.market import FaultKind, FinishReason
from protocol.messages.peers import NodeRecord
from protocol.messages.transactions import Output, Transfer
from protocol.messages.wire import WireMessage, encode_message, join_frame, split_frame
from protocol.primitives.codec import encode
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import (
    Amount,
    Hash,
    Height,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    PublicKey,
    Salt,
    Signature,
    TimestampMs,
    View,
    WorkUnits,
)
from tests.engine.generated import Generator
from tests.engine.test_hostile_input import ADDRESSES, MODEL, begin, make_engine
from tests.fuzz.dice import InputDice
from tests.ledger.world import START_MS, Ledger, account_of, sealed

STRANGER = NodeId(account_of("stranger-node"))
HOSTILE_PEERS = (STRANGER, NodeId(account_of("bob-node")), NodeId(account_of("auth3-node")))
HOSTILE_NAMES = ("bob", "carol", "auth3", "auth3-account", "stranger-node", "bob-node", "auth3-node")
HOSTILE_KEYS = {bytes(account_of(name)): None for name in HOSTILE_NAMES}
ACTIONS_MAX = 48
EFFECTS_MAX = 4096
"""What one input may ask for: far above what any honest one does, far below what would fill memory."""
SIGNED_IN_TURN_MAX = 256
"""Own signatures that follow from one another without anything happening outside."""
_WAIT_MS = (0, 1, 20, 400, 1_000, 5_000, 61_000)


@lru_cache(maxsize=1)
def honest_words() -> tuple[tuple[WireMessage, ...], dict[bytes, None]]:
    """What honest authorities and an honest buyer have said in a short life of the network, and its signatures."""
    ledger = Ledger()
    said: list[WireMessage] = []
    decided = []
    for number in range(3):
        payment = ledger.transaction("dave", Transfer((Output(account_of("bob"), Amount(5 + number)),)))
        said += [wire.Transactions((payment.envelope_bytes,)), wire.Push(payment.envelope_bytes)]
        execution = ledger.include(payment)
        certificate = ledger.decided(execution)
        decided.append(DecidedBlock(execution.block_bytes, certificate))
        said.append(wire.CertificateNotice(certificate))
        said.append(wire.CertificateNotice(ledger.certify(execution.header, CertificateKind.VOTED)))
        for leader in ("auth0", "auth1", "auth2"):
            body = ProposalBody(Height(number + 1), View(1), execution.block_hash, View(0))
            envelope = sealed(ledger.hash, leader, MessageKind.PROPOSAL, body)
            said.append(wire.Proposal(envelope, execution.block_bytes, ()))
            vote = VoteBody(Height(number + 1), View(1), execution.block_hash)
            said.append(wire.Ballot(sealed(ledger.hash, leader, MessageKind.VOTE, vote)))
        said.append(wire.Body(Height(number + 1), execution.block_bytes))
    said += [wire.Blocks(tuple(decided), Height(3)), wire.Blocks(tuple(decided[:1]), Height(1))]
    door = make_engine("follower")
    held: dict[bytes, None] = {}
    for message in said:
        try:
            held.update((check.cache_key(), None) for check in door.checks(message) if check.holds())
        except RemoteProtocolError:
            continue  # a proposal of one who doesn't lead: as good a replay as any
    return tuple(said), held


def _holds(check: SignatureCheck) -> bool:
    return check.key in HOSTILE_KEYS or check.cache_key() in honest_words()[1]


class Siege:
    """One engine and the world around it, all driven by one input's dice."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.engine: Engine = make_engine(dice.choice(("follower", "auth0")))
        self._now_ms = 0
        self._timers: dict[TimerKey, int] = {}
        self._guard: dict[GuardPosition, bytes] = {}
        self._work: dict[MessageId, None] = {}
        self._key_of = {
            KeyRole.NODE: account_of("alice-node"),
            KeyRole.ACCOUNT: self.engine.account,
            KeyRole.AUTHORITY: account_of("auth0"),
        }
        keys = [*HOSTILE_KEYS, account_of("dave"), account_of("auth1"), self.engine.account]
        self._ids = [MODEL, bytes(32), self.engine.replica.state.tip_hash, *keys]
        self._generator = Generator(dice, {32: self._ids})
        begin(self.engine)
        for peer in HOSTILE_PEERS:
            self._link_up(peer)

    @property
    def now(self) -> Now:
        """The engine's two clocks."""
        return Now(MonotonicMs(self._now_ms), TimestampMs(START_MS + self._now_ms))

    def act(self) -> None:
        """One thing that happens, whatever the dice say."""
        dice = self._dice
        match dice.randint(0, 15):
            case 0 | 1:
                self._pass_time(dice.choice(_WAIT_MS))
            case 2:
                self._use_worker()
            case 3:
                self._link_down(dice.choice(HOSTILE_PEERS))
            case 4:
                self._ask_for_job()
            case 5 | 6:
                self._frame(dice.choice(HOSTILE_PEERS), self._mangled_frame())
            case 7 | 8:
                self._frame(dice.choice(HOSTILE_PEERS), _framed(dice.choice(honest_words()[0])))
            case _:
                self._frame(dice.choice(HOSTILE_PEERS), _framed(self._message()))

    # What peers say

    def _message(self) -> WireMessage:
        kind = self._dice.choice(wire.WireMessage.__args__)
        message = self._generator.value(kind)
        if "envelope" in kind.__struct_fields__:
            fields = [getattr(message, name) for name in kind.__struct_fields__]
            fields[kind.__struct_fields__.index("envelope")] = self._statement(kind)
            return kind(*fields)  # type: ignore[no-any-return]
        if "envelopes" in kind.__struct_fields__:
            return kind((self._statement(kind),))  # type: ignore[no-any-return]
        return message  # type: ignore[no-any-return]

    def _statement(self, kind: type) -> bytes:
        signed_kind = self._dice.choice(tuple(MessageKind))
        if kind is wire.Ballot:
            signed_kind = self._dice.choice((MessageKind.VOTE, MessageKind.FINAL))
        payload = encode(self._generator.value(payload_type(signed_kind)))
        sender = self._dice.choice((*HOSTILE_KEYS, bytes(self.engine.account)))
        envelope = Envelope(signed_kind, payload, PublicKey(sender), Signature(bytes(64)))
        self._ids.append(envelope_id(envelope))  # whoever made it knows its id
        return encode(envelope)

    def _mangled_frame(self) -> bytes:
        content = bytearray(_framed(self._message()))
        for _ in range(self._dice.randint(1, 3)):
            content[self._dice.randint(0, len(content) - 1)] ^= self._dice.randint(1, 255)
        return bytes(content)

    def _frame(self, peer: NodeId, frame: bytes) -> None:
        """As a link and the door treat it; a peer that breaks a rule is left and comes back."""
        try:
            for message in split_frame(frame):
                self._receive(peer, message)
        except RemoteProtocolError:
            self._link_down(peer)

    def _receive(self, peer: NodeId, message: WireMessage) -> None:
        if isinstance(message, wire.Push):
            self._step(BodyOffered(peer, message.envelope))
            if not self.engine.body_wanted:
                return
        if not self.engine.expects(peer, message):
            return
        readable = self.engine.readable(message)
        if all(_holds(check) for check in self.engine.checks(readable)):
            self._step(Received(peer, readable))
        elif isinstance(message, wire.Push):
            self._step(BodyBroken(peer, message.envelope))
        else:
            self._step(Misbehaved(peer, "a signature that does not hold"))

    # What else happens

    def _link_up(self, peer: NodeId) -> None:
        record = NodeRecord(1, TimestampMs(START_MS), ADDRESSES, account_of("bob"))
        self._step(LinkUp(peer, record, self._dice.choice((0, 1, 3, 2**40))))

    def _link_down(self, peer: NodeId) -> None:
        self._step(LinkDown(peer))
        self._link_up(peer)

    def _ask_for_job(self) -> None:
        unique = Hash(self._dice.randbytes(32))
        request = JobRequest(
            request=unique,
            model=ModelId(MODEL),
            payload=b"prompt",
            salt=Salt(bytes(32)),
            unique=unique,
            input_units_max=WorkUnits(10),
            output_units_max=WorkUnits(50),
            price_ceiling=Amount(1_000),
        )
        self._step(StartJob(request))

    def _use_worker(self) -> None:
        if not self._work:
            return
        dice, job = self._dice, self._dice.choice(tuple(self._work))
        happened = dice.choice(
            (
                WorkPrefilled(job, WorkUnits(5)),
                WorkPiece(job, b"text", WorkUnits(1), dice.choice(tuple(FinishReason))),
                WorkFailed(job, FaultKind.PROVIDER, "worker died"),
            )
        )
        self._step(happened)

    def _pass_time(self, duration_ms: int) -> None:
        self._now_ms += duration_ms
        for key in [key for key, due in self._timers.items() if due <= self._now_ms]:
            if self._timers.pop(key, None) is not None:
                self._step(TimerFired(key))

    # What follows

    def _step(self, happened: Input) -> None:
        waiting = [happened]
        for _ in range(SIGNED_IN_TURN_MAX):
            if not waiting:
                return
            effects = self.engine.step(waiting.pop(0), self.now)
            assert len(effects) <= EFFECTS_MAX, f"{len(effects)} effects of one input"
            for effect in effects:
                waiting += self._follow(effect)
        raise AssertionError("own signatures beget each other without end")

    def _follow(self, effect: Effect) -> list[Input]:
        match effect:
            case Halt(reason):
                raise AssertionError(f"peers can halt a node: {reason}")
            case SetTimer(key, due):
                self._timers[key] = due
            case CancelTimer(key):
                self._timers.pop(key, None)
            case SignAndSend(kind, payload, _, position):
                if position is not None:
                    payload = self._guard.setdefault(position, payload)
                envelope = seal(kind, payload, PublicKey(self._key_of[key_role(kind)]), bytes(64))
                self._ids.append(envelope_id(open_envelope(envelope)[0]))
                return [Signed(envelope)]
            case OpenWork(job):
                self._work[job] = None
            case CloseWork(job):
                self._work.pop(job, None)
            case Send(_, wire.Pull(ids)):
                self._ids += ids
            case Disconnect(peer) if peer in HOSTILE_PEERS:
                return [LinkDown(peer)]
            case _:
                pass
        return []


def _framed(message: WireMessage) -> bytes:
    return join_frame([encode_message(message)])


def besiege(content: bytes) -> None:
    """Run one input to its end, then let a minute pass: what peers left behind must not break later."""
    dice = InputDice(content)
    siege = Siege(dice)
    for _ in range(ACTIONS_MAX):
        if dice.used_up:
            break
        siege.act()
    for _ in range(3):
        siege._pass_time(20_000)
