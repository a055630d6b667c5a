"""Faults on command: each lie is signed and found out, delays keep the order, a cut node hears and says nothing."""

import pytest
from msgspec.structs import replace

from node.cli.cluster_layout import MISCONDUCTS
from node.keystore.development import development_keys
from node.runtime.control import ControlError, FaultsView
from node.runtime.faults import FaultyTransport, Misconduct, falsified
from node.runtime.signer import Signer
from protocol.messages.envelope import open_envelope, signature_check
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Chunk, FinishReason, Receipt
from protocol.messages.wire import Direct, TipNotice, WireMessage
from protocol.primitives.codec import Message, encode
from protocol.primitives.signing import signature_holds
from protocol.primitives.units import Amount, Hash, Height, MessageId, WorkUnits
from tests.messages.examples import GENESIS_HASH, PAYLOADS
from tests.transport.network import RecordingNode, link_up

SIGNER = Signer(development_keys("provider-1", False), GENESIS_HASH)
CHUNK = Chunk(
    job=MessageId(b"j" * 32),
    index=1,
    previous=Hash(b"p" * 32),
    input_units=WorkUnits(5),
    output_units=WorkUnits(7),
    due=Amount(1_000),
    finish=FinishReason.NONE,
    payload=b"output",
)
WHOLE = replace(CHUNK, index=0, finish=FinishReason.DONE)
RECEIPT = PAYLOADS[MessageKind.RECEIPT]


def sent(payload: Message, kind: MessageKind) -> Direct:
    """A statement on its way out."""
    return Direct(SIGNER.sign(kind, encode(payload)))


@pytest.mark.parametrize("chunk", [CHUNK, WHOLE], ids=["of many", "a whole job"])
@pytest.mark.parametrize(
    ("misconduct", "field", "honest", "lie"),
    [
        (Misconduct.OVERCHARGE, "due", 1_000, 1_101),
        (Misconduct.MISCOUNT, "output_units", 7, 1_007),
        (Misconduct.WRONG_CHUNK, "previous", b"p" * 32, bytes(32)),
    ],
)
def test_a_lie_about_a_chunk_is_signed_and_changes_one_thing(
    misconduct: Misconduct, field: str, honest: object, lie: object, chunk: Chunk
) -> None:
    message = falsified(sent(chunk, MessageKind.CHUNK), misconduct.value, SIGNER)
    assert isinstance(message, Direct)
    envelope, payload = open_envelope(message.envelope)
    check = signature_check(GENESIS_HASH, envelope)
    assert signature_holds(check.key, check.message, check.signature)
    differing = {name: getattr(payload, name) for name in Chunk.__struct_fields__}
    differing = {name: value for name, value in differing.items() if value != getattr(chunk, name)}
    assert getattr(chunk, field) == honest
    assert differing == {field: lie}


def test_a_wrong_receipt_asks_for_one_unit_more() -> None:
    assert isinstance(RECEIPT, Receipt)
    message = falsified(sent(RECEIPT, MessageKind.RECEIPT), "wrong-receipt", SIGNER)
    assert isinstance(message, Direct)
    _, payload = open_envelope(message.envelope)
    assert isinstance(payload, Receipt)
    assert payload.amount == RECEIPT.amount + 1


@pytest.mark.parametrize(
    ("payload", "kind", "goes_out"),
    [
        (replace(CHUNK, index=0), MessageKind.CHUNK, True),
        (WHOLE, MessageKind.CHUNK, False),
        (CHUNK, MessageKind.CHUNK, False),
        (RECEIPT, MessageKind.RECEIPT, False),
        (PAYLOADS[MessageKind.ACCEPTANCE], MessageKind.ACCEPTANCE, True),
    ],
)
def test_who_takes_the_money_and_stops_sends_nothing_after_the_input(
    payload: Message, kind: MessageKind, goes_out: bool
) -> None:
    message = sent(payload, kind)
    assert falsified(message, "stop", SIGNER) == (message if goes_out else None)


@pytest.mark.parametrize("misconduct", [kind.value for kind in Misconduct])
def test_no_misconduct_touches_what_a_provider_does_not_deliver(misconduct: str) -> None:
    for kind in (MessageKind.VOTE, MessageKind.FINAL, MessageKind.TRANSACTION, MessageKind.VOUCHER):
        message = Direct(Signer(development_keys("authority-1", True), GENESIS_HASH).sign(kind, encode(PAYLOADS[kind])))
        assert falsified(message, misconduct, SIGNER) is message
    assert falsified(TipNotice(Height(1)), misconduct, SIGNER) == TipNotice(Height(1))


def faulty(node: RecordingNode) -> FaultyTransport:
    """Its transport, with lies to tell."""
    assert isinstance(node.transport, FaultyTransport)
    return node.transport


def armed(name: str) -> RecordingNode:
    """A node that can have faults."""
    node = RecordingNode(name, make=FaultyTransport)
    faulty(node).arm(SIGNER)
    return node


async def test_delayed_messages_keep_their_order_with_those_sent_after_the_cure() -> None:
    async with armed("a") as a, RecordingNode("b") as b:
        await link_up(a, b)
        notices: list[WireMessage] = [TipNotice(Height(height)) for height in range(20)]
        faulty(a).have(FaultsView(delay_ms=30))
        assert all(a.transport.send(b.node_id, notice) for notice in notices[:10])
        faulty(a).have(FaultsView())
        assert all(a.transport.send(b.node_id, notice) for notice in notices[10:])
        await b.until(lambda: len(b.received) == 20)
        assert [message for _, message in b.received] == notices


async def test_a_cut_node_loses_its_links_and_makes_none_until_it_is_mended() -> None:
    async with armed("a") as a, RecordingNode("b") as b:
        await link_up(a, b)
        faulty(a).have(FaultsView(isolated=True))
        await b.until(lambda: not b.linked())
        await a.until(lambda: not a.linked())
        b.transport.dial(a.node_id, (a.endpoint,), keep=True)
        await b.until(lambda: bool(b.reasons("dial.failed") or b.reasons("link.refused")))
        assert not a.linked()
        faulty(a).have(FaultsView())
        await b.until(lambda: a.node_id in b.linked())


def test_the_command_line_knows_every_misconduct() -> None:
    assert sorted(MISCONDUCTS) == sorted(kind.value for kind in Misconduct)


@pytest.mark.parametrize(
    "faults", [FaultsView(delay_ms=-1), FaultsView(delay_ms=60_001), FaultsView(misconduct="theft")]
)
def test_faults_that_no_node_can_have_are_refused(faults: FaultsView) -> None:
    with pytest.raises(ControlError):
        faulty(armed("a")).have(faults)
