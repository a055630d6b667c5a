"""Which signatures the door has to verify before a message may become an input.

Law: whatever is inside a message and somebody's word is listed here, nested vouchers included; rooms behind the door
never verify again. Source of the order: structure first, it is cheap; signatures cost 90 µs each.
"""

from msgspec.structs import replace

from protocol.engine.replica import Replica
from protocol.engine.replica_gossip import parts_of, standing_of
from protocol.ledger.errors import NotATransaction
from protocol.ledger.signatures import nested_checks
from protocol.market.agreement import enclosed_envelopes
from protocol.messages.consensus import Dispatch, Inquiry, Testimony
from protocol.messages.envelope import Envelope, open_envelope, signature_check
from protocol.messages.transactions import Transaction
from protocol.messages.wire import Direct, Push, WireMessage
from protocol.primitives.codec import decode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import Hash


def envelope_checks(genesis_hash: Hash, received: bytes) -> list[SignatureCheck]:
    """The envelope's own signature and those nested in its payload. Raises ``MalformedMessage``."""
    envelope, payload = open_envelope(received)
    checks = [signature_check(genesis_hash, envelope)]
    match payload:
        case Transaction():
            try:
                checks += nested_checks(genesis_hash, envelope, payload)
            except NotATransaction as error:  # a user's error where a user sent it; here a peer did
                raise MalformedMessage(str(error)) from None
        case _:
            checks += [signature_check(genesis_hash, decode(each, Envelope)) for each in enclosed_envelopes(payload)]
    return checks


def overheard_checks(payload: Dispatch | Inquiry | Testimony, replica: Replica) -> list[SignatureCheck]:
    """What nested statements of authorities need; those without a link say the same as those with one.

    Raises ``RemoteProtocolError``.
    """
    match payload:
        case Dispatch():
            return [check for part in parts_of(payload) for check in replica.relayed_checks(part)]
        case Inquiry():
            return []
        case Testimony():
            # The proof of its tip matters to the asker alone. Nobody on the way has checked it, so nobody is to blame.
            return replica.relayed_checks(standing_of(replace(payload, certificate=None)))


def message_checks(genesis_hash: Hash, message: WireMessage, replica: Replica) -> list[SignatureCheck]:
    """All checks of one message. Raises ``RemoteProtocolError`` on a structure that is wrong already."""
    match message:
        case Push() | Direct():
            checks = envelope_checks(genesis_hash, message.envelope)
            _, payload = open_envelope(message.envelope)
            if isinstance(message, Push) and isinstance(payload, Dispatch | Inquiry | Testimony):
                checks += overheard_checks(payload, replica)
            return checks
        case _:
            return replica.checks(message)
