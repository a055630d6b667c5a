"""Golden vectors: the wire is pinned byte for byte. A test that fails here means a new protocol version.

To add a vector, add its example and run this module with ``MERCAT_WRITE_VECTORS=1``; review the difference by eye.
"""

import json
import os
from pathlib import Path
from typing import get_args

import pytest

from protocol.messages.blocks import header_hash
from protocol.messages.envelope import envelope_bytes_hash, envelope_id, open_as, open_envelope, signature_check
from protocol.messages.genesis import genesis_hash
from protocol.messages.governance import Subject
from protocol.messages.kinds import MessageKind, key_role, payload_type
from protocol.messages.transactions import Action, MotionOpen, Transaction
from protocol.messages.wire import WireMessage, encode_message, join_frame, split_frame
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import Amount, Hash, Height, Nonce
from tests.messages import examples

FILE = Path(__file__).with_name("vectors.json")
ENVELOPES = {f"envelope/{kind.name}": examples.sealed(kind) for kind in MessageKind}
MESSAGES = {f"wire/{type(message).__name__}": encode_message(message) for message in examples.WIRE}
TRANSACTIONS = {
    f"transaction/{type(action).__name__}": encode(Transaction(Nonce(5), Amount(100), Height(1_000), action))
    for action in examples.ACTIONS
}
SUBJECTS = {
    f"motion/{type(subject).__name__}": encode(MotionOpen(examples.AUTHORITY, subject)) for subject in examples.SUBJECTS
}
DIGESTS: dict[str, bytes] = {
    "digest/message id": envelope_id(open_envelope(examples.sealed(MessageKind.BID))[0]),
    "digest/envelope bytes": envelope_bytes_hash(examples.sealed(MessageKind.BID)),
    "digest/header": header_hash(examples.HEADER),
    "digest/genesis": genesis_hash(examples.GENESIS),
}
RECORDS = {"genesis": encode(examples.GENESIS), "job payload": encode(examples.JOB_PAYLOAD)}
CURRENT = {**ENVELOPES, **MESSAGES, **TRANSACTIONS, **SUBJECTS, **DIGESTS, **RECORDS}

if os.environ.get("MERCAT_WRITE_VECTORS"):
    FILE.write_text(json.dumps({name: content.hex() for name, content in CURRENT.items()}, indent=1) + "\n")
PINNED: dict[str, str] = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", sorted({**PINNED, **CURRENT}))
def test_bytes_are_those_of_the_vector(name: str) -> None:
    assert CURRENT[name].hex() == PINNED[name]


def test_every_kind_message_and_action_has_a_vector() -> None:
    assert list(examples.PAYLOADS) == list(MessageKind)
    assert [type(message) for message in examples.WIRE] == list(get_args(WireMessage))
    assert [type(action) for action in examples.ACTIONS] == list(get_args(Action))
    assert [type(subject) for subject in examples.SUBJECTS] == list(get_args(Subject))


@pytest.mark.parametrize("kind", list(MessageKind))
def test_envelope_opens_to_what_was_sealed_and_its_signature_holds(kind: MessageKind) -> None:
    received = bytes.fromhex(PINNED[f"envelope/{kind.name}"])
    envelope, payload = open_as(received, kind)
    assert payload == examples.PAYLOADS[kind]
    assert type(payload) is payload_type(kind)
    assert key_role(kind).name in ("NODE", "ACCOUNT", "AUTHORITY")
    assert signature_check(examples.GENESIS_HASH, envelope).holds()
    assert not signature_check(Hash(b"h" * 32), envelope).holds(), "a signature holds on one network only"


def test_envelope_of_another_kind_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        open_as(examples.sealed(MessageKind.VOTE), MessageKind.FINAL)


def test_signature_does_not_carry_over_to_another_kind() -> None:
    vote, _ = open_envelope(examples.sealed(MessageKind.VOTE))
    relabelled = encode([int(MessageKind.FINAL), vote.payload, vote.sender, vote.signature])
    envelope, _ = open_envelope(relabelled)
    assert not signature_check(examples.GENESIS_HASH, envelope).holds()


def test_frame_gives_back_its_messages() -> None:
    for batch in (examples.WIRE[:1], examples.WIRE[:15], examples.WIRE[:16], examples.WIRE):
        assert split_frame(join_frame([encode_message(message) for message in batch])) == batch


def test_id_leaves_the_signature_out_and_the_whole_hash_does_not() -> None:
    received = examples.sealed(MessageKind.BID)
    broken = received[:-1] + bytes((received[-1] ^ 1,))
    assert envelope_id(open_envelope(received)[0]) == envelope_id(open_envelope(broken)[0])
    assert envelope_bytes_hash(received) != envelope_bytes_hash(broken)


def test_genesis_decodes_to_itself() -> None:
    assert decode(bytes.fromhex(PINNED["genesis"]), type(examples.GENESIS)) == examples.GENESIS
