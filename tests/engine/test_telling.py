"""Who is told what of a job, how often, and whose answer counts; and what is kept of a channel's blocks."""

from protocol.engine.channel_log import channel_lines
from protocol.engine.inputs import AskTimeline, JobRead
from protocol.engine.telling import ANSWERS, Telling, TimelineTold
from protocol.market.records import ChannelLine
from protocol.messages.blocks import Block
from protocol.messages.effects import Dial, Effect, Notify, Now, Put, ReadJob, SignAndSend, Table
from protocol.messages.envelope import message_id, seal
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Timeline, TimelineRequest
from protocol.messages.transactions import (
    Action,
    ChannelClose,
    ChannelFinalise,
    ChannelOpen,
    ChannelRedeem,
    ChannelTopUp,
    Transaction,
)
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Height,
    MessageId,
    MonotonicMs,
    NodeId,
    Nonce,
    PublicKey,
    Signature,
    TimestampMs,
)
from protocol.settlement.vouchers import channel_id
from tests.market.test_timeline import BOUGHT, BUYER, PROVIDER, SOLD
from tests.messages import examples

PEER, ELSEWHERE = NodeId(b"1" * 32), NodeId(b"2" * 32)
STRANGER = AccountId(b"s" * 32)
QUESTION = TimelineRequest(SOLD.job, Hash(b"u" * 32))
QUESTION_ID = MessageId(b"q" * 32)


def at(time_ms: int) -> Now:
    return Now(MonotonicMs(time_ms), TimestampMs(1_000_000 + time_ms))


def answer(effects: list[Effect]) -> Timeline:
    [sent] = effects
    assert isinstance(sent, SignAndSend)
    assert (sent.kind, sent.to) == (MessageKind.TIMELINE, (PEER,))
    return decode(sent.payload, Timeline)


def test_the_other_party_is_told_what_was_recorded() -> None:
    telling = Telling(PROVIDER)
    [read] = telling.asked(PEER, BUYER, QUESTION_ID, QUESTION, at(0))
    assert read == ReadJob(SOLD.job, PEER, BUYER, QUESTION_ID)
    told = answer(telling.read(JobRead(read, encode(SOLD)), SOLD, at(5)))
    assert (told.known, told.request, told.told_at, told.history) == (True, QUESTION_ID, 1_000_005, SOLD.history)


def test_strangers_hear_what_is_said_of_a_job_that_is_not_known() -> None:
    telling = Telling(PROVIDER)
    [read] = telling.asked(PEER, STRANGER, QUESTION_ID, QUESTION, at(0))
    assert isinstance(read, ReadJob)
    told = answer(telling.read(JobRead(read, encode(SOLD)), SOLD, at(5)))
    assert told == answer(telling.read(JobRead(read, None), None, at(5)))
    assert told == Timeline(QUESTION_ID, SOLD.job, TimestampMs(1_000_005), known=False)


def test_a_peer_that_asks_and_asks_is_answered_so_often_and_others_all_the_same() -> None:
    telling = Telling(PROVIDER)
    answered = sum(bool(telling.asked(PEER, BUYER, QUESTION_ID, QUESTION, at(0))) for _ in range(1_000))
    assert answered == ANSWERS.burst
    assert telling.asked(ELSEWHERE, BUYER, QUESTION_ID, QUESTION, at(0))
    assert telling.asked(PEER, BUYER, QUESTION_ID, QUESTION, at(1_000))


ASK = AskTimeline(Hash(b"u" * 32), BOUGHT.job, PROVIDER, PEER, ("127.0.0.1:1",))
ASKED_ID = message_id(MessageKind.TIMELINE_REQUEST, BUYER, encode(TimelineRequest(BOUGHT.job, ASK.unique)))


def test_a_question_waits_for_its_link_and_notes_when_it_was_asked() -> None:
    telling = Telling(BUYER)
    assert telling.ask(ASK, at(0)) == [Dial(PEER, ("127.0.0.1:1",))]
    assert telling.link_up(ELSEWHERE, at(5)) == []
    [sent] = telling.link_up(PEER, at(10))
    assert isinstance(sent, SignAndSend)
    assert (sent.kind, sent.to) == (MessageKind.TIMELINE_REQUEST, (PEER,))
    timeline = Timeline(ASKED_ID, BOUGHT.job, TimestampMs(0), known=False)
    [told] = telling.told(PROVIDER, timeline, b"signed", at(30))
    assert told == Notify(TimelineTold(ASK.unique, b"signed", TimestampMs(1_000_010), TimestampMs(1_000_030)))
    assert telling.told(PROVIDER, timeline, b"signed", at(31)) == [], "once"


def test_an_answer_counts_only_from_the_account_that_was_asked_about_the_job_that_was_asked() -> None:
    telling = Telling(BUYER)
    telling.link_up(PEER, at(0))
    telling.ask(ASK, at(0))
    right = Timeline(ASKED_ID, BOUGHT.job, TimestampMs(0), known=False)
    assert telling.told(STRANGER, right, b"", at(1)) == []
    assert telling.told(PROVIDER, Timeline(ASKED_ID, MessageId(b"x" * 32), TimestampMs(0), False), b"", at(1)) == []
    assert telling.told(PROVIDER, Timeline(QUESTION_ID, BOUGHT.job, TimestampMs(0), False), b"", at(1)) == []
    assert telling.told(PROVIDER, right, b"", at(1))


def test_nobody_is_told_what_nobody_waits_for() -> None:
    telling = Telling(BUYER)
    telling.ask(ASK, at(0))
    telling.drop(ASK.unique)
    assert telling.link_up(PEER, at(1)) == []
    assert telling.told(PROVIDER, Timeline(ASKED_ID, BOUGHT.job, TimestampMs(0), False), b"", at(2)) == []


# What the ledger did to channels

SENDER = AccountId(bytes(examples.KEY.verify_key))
OWN, THEIRS = examples.CHANNEL, ChannelId(b"z" * 32)


def block_of(*actions: Action) -> Block:
    transactions = tuple(
        seal(
            MessageKind.TRANSACTION,
            encode(Transaction(Nonce(number), Amount(1), Height(99), action)),
            PublicKey(SENDER),
            Signature(bytes(64)),
        )
        for number, action in enumerate(actions)
    )
    return Block(examples.HEADER, examples.PARENT_CERTIFICATE, transactions)


def logged(own: AccountId, block: Block) -> list[tuple[bytes, str, int]]:
    rows = channel_lines(block, own, lambda channel: channel == OWN)
    puts = [row for row in rows if isinstance(row, Put) and row.table is Table.CHANNEL_LOG]
    lines = [(put.key[:32], decode(put.value, ChannelLine)) for put in puts]
    return [(channel, line.action, line.amount) for channel, line in lines]


def test_every_transaction_on_an_own_channel_is_kept_and_no_other() -> None:
    voucher = examples.sealed(MessageKind.VOUCHER)
    block = block_of(
        ChannelOpen(PROVIDER, Amount(500)),
        ChannelTopUp(OWN, Amount(70)),
        ChannelTopUp(THEIRS, Amount(70)),
        ChannelRedeem(OWN, (voucher,)),
        ChannelClose(THEIRS),
        ChannelClose(OWN),
        ChannelFinalise(OWN),
    )
    opened = channel_id(SENDER, PROVIDER, Nonce(0))
    assert logged(PROVIDER, block) == [
        (opened, "opened", 500),
        (OWN, "topped up", 70),
        (OWN, "redeemed", 0),
        (OWN, "closed", 0),
        (OWN, "finalised", 0),
    ]
    assert [channel for channel, _, _ in logged(SENDER, block)].count(THEIRS) == 2, "what an account did itself is its"
    assert (opened, "opened", 500) not in logged(STRANGER, block)
