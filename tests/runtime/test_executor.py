"""Nothing leaves a node that should have been written first, and a node that failed does nothing more."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from node.keystore.development import development_keys
from node.runtime.announcements import Announcements
from node.runtime.door import Door
from node.runtime.engine_loop import EngineLoop
from node.runtime.executor import EffectExecutor
from node.runtime.signer import Signer
from node.runtime.timers import Timers
from node.runtime.turnstile import MESSAGE_US, TURN_US
from node.store.database import Store
from node.store.errors import DiskFull
from node.store.sign_guard import SignGuard
from protocol.engine.inputs import Input, LinkDown, Signed, TimerFired
from protocol.messages.consensus import VoteBody
from protocol.messages.effects import (
    CommitBlock,
    Delete,
    Effect,
    GuardClass,
    GuardPosition,
    Now,
    Put,
    Send,
    SetTimer,
    SignAndSend,
    Table,
    TimerKey,
)
from protocol.messages.envelope import open_envelope
from protocol.messages.genesis import genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Offer
from protocol.messages.wire import TipNotice
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    BlockHash,
    Height,
    MessageId,
    MonotonicMs,
    NodeId,
    SequenceNumber,
    TimestampMs,
    View,
)
from tests.engine.test_hostile_input import at, begin, make_engine
from tests.ledger.world import make_genesis

PEER = NodeId(b"p" * 32)
GREETING = Send(PEER, TipNotice(Height(1)))


class Hands:
    """Notes what was done, in order."""

    def __init__(self) -> None:
        self.done: list[Effect | bytes] = []
        self.handed_back: list[tuple[bytes, int]] = []
        """Each with how much had been done before."""

    def act(self, effect: Effect) -> None:
        self.done.append(effect)

    def send_signed(self, effect: SignAndSend, envelope: bytes) -> None:
        self.done.append(envelope)

    def hand_back(self, envelope: bytes) -> None:
        self.handed_back.append((envelope, len(self.done)))


class Bench:
    """An executor over a real store and a real guard."""

    def __init__(self, folder: Path, threads: ThreadPoolExecutor) -> None:
        genesis = make_genesis()
        self.store = Store.open(folder / "ledger.sqlite", genesis)
        self.guard = SignGuard.open(folder / "guard.sqlite")
        self.hands = Hands()
        signer = Signer(development_keys("authority-1", authority=True), genesis_hash(genesis))
        self.executor = EffectExecutor(self.store, self.guard, signer, threads, self.hands, lambda commit: None)

    def carry_out(self, *effects: Effect) -> None:
        async def run() -> None:
            self.executor.submit(effects)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(self.executor.run())
                await self.executor.drain()
                running.cancel()

        asyncio.run(run())

    def fill_disk(self) -> None:
        self.store.database.execute("PRAGMA max_page_count=1")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def bench(tmp_path: Path, threads: ThreadPoolExecutor) -> Iterator[Bench]:
    opened = Bench(tmp_path, threads)
    yield opened
    opened.store.close()
    opened.guard.close()


def vote(block: bytes, view: int = 1) -> SignAndSend:
    body = VoteBody(Height(1), View(view), BlockHash(block * 32))
    return SignAndSend(MessageKind.VOTE, encode(body), (PEER,), GuardPosition(Height(1), View(view), GuardClass.VOTE))


def offer() -> bytes:
    nothing = Offer(PEER, SequenceNumber(1), TimestampMs(0), (), "", "", 0, 0, ())
    return encode(nothing)


def acceptance() -> SignAndSend:
    accepted = Acceptance(MessageId(b"j" * 32), TimestampMs(0))
    return SignAndSend(MessageKind.ACCEPTANCE, encode(accepted), (PEER,))


def patient() -> Send:
    """What may wait for company: nobody acts on it before what follows."""
    return replace(GREETING, patient=True)


def row(size: int = 10) -> Put:
    return Put(Table.SELLER_LANE, b"k" * 33, b"v" * size)


def test_what_is_written_comes_before_what_is_sent_whatever_their_order(bench: Bench) -> None:
    bench.carry_out(GREETING, row(), vote(b"x"))
    assert bench.store.get(Table.SELLER_LANE, b"k" * 33) is not None
    assert bench.hands.done[0] is GREETING
    [_, signed] = bench.hands.done
    assert isinstance(signed, bytes)
    assert open_envelope(signed)[0].kind is MessageKind.VOTE


@pytest.mark.parametrize("commit_s", [0.0, 1.0])
def test_a_full_disk_ends_the_executor_with_nothing_sent_nor_signed_that_stood_behind_the_row(
    bench: Bench, commit_s: float
) -> None:
    bench.executor._commit_s = commit_s  # a fast disk is written to on the loop, a slow one in a thread
    bench.fill_disk()
    unguarded = SignAndSend(MessageKind.OFFER, offer(), (PEER,))
    with pytest.raises(ExceptionGroup) as raised:
        bench.carry_out(GREETING, row(10**6), GREETING, unguarded, vote(b"x"), GREETING)
    assert raised.group_contains(DiskFull)
    assert bench.hands.done == [GREETING], "what stood before the row waits for no disk"
    assert bench.guard.held() == []
    assert bench.store.get(Table.SELLER_LANE, b"k" * 33) is None


def test_a_statement_is_handed_back_behind_all_that_was_sent_with_it_and_before_the_executor_is_idle(
    bench: Bench,
) -> None:
    bench.carry_out(SignAndSend(MessageKind.OFFER, offer(), (PEER,)), GREETING, GREETING)
    assert bench.hands.handed_back == [(bench.hands.done[0], 3)]


def test_statements_are_handed_back_in_the_order_of_their_signatures_whether_they_were_sent_or_kept(
    bench: Bench,
) -> None:
    kept = SignAndSend(MessageKind.OFFER, offer())
    bench.carry_out(SignAndSend(MessageKind.OFFER, offer(), (PEER,)), GREETING, kept, GREETING)
    sent, _, unsent, _ = bench.hands.done
    assert bench.hands.handed_back == [(sent, 3), (unsent, 3)]


def test_nothing_that_happens_reaches_the_engine_before_the_statements_that_have_left(
    bench: Bench, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that comes back in the same turn, say: the engine would not know what to send again over it."""
    engine = make_engine("follower")
    begin(engine)
    genesis = genesis_hash(engine.replica.state.genesis)
    stepped: list[type[Input]] = []
    step = engine.step

    def noted(happened: Input, now: Now) -> list[Effect]:
        stepped.append(type(happened))
        return step(happened, now)

    monkeypatch.setattr(engine, "step", noted)

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            loop = EngineLoop(
                engine, genesis, lambda: at(0), Door(threads), bench.store, threads, tasks, Announcements()
            )
            loop._executor = bench.executor
            monkeypatch.setattr(bench.hands, "hand_back", loop.hand_back)
            running = tasks.create_task(bench.executor.run())
            await asyncio.sleep(0)
            bench.executor.submit([acceptance()])
            assert (len(bench.hands.done), stepped) == (1, [])
            loop.feed(LinkDown(PEER))
            await bench.executor.drain()
            running.cancel()

    asyncio.run(run())
    assert stepped == [Signed, LinkDown]


def test_a_second_statement_at_one_position_gives_the_first_signed_again(bench: Bench) -> None:
    bench.carry_out(vote(b"x"), vote(b"y"), vote(b"y", view=2))
    first, again, other = bench.hands.done
    assert first == again
    assert first != other


def test_after_a_closed_height_the_other_signatures_of_a_batch_still_go(bench: Bench) -> None:
    bench.guard.raise_watermark(Height(1))
    later = SignAndSend(
        MessageKind.VOTE,
        encode(VoteBody(Height(2), View(1), BlockHash(b"z" * 32))),
        (PEER,),
        GuardPosition(Height(2), View(1), GuardClass.VOTE),
    )
    bench.carry_out(vote(b"x"), later)
    [signed] = bench.hands.done
    assert isinstance(signed, bytes)
    assert open_envelope(signed)[1] == VoteBody(Height(2), View(1), BlockHash(b"z" * 32))


def test_an_engine_that_fails_in_a_timer_ends_the_executor_before_anything_more_is_done(
    bench: Bench, threads: ThreadPoolExecutor
) -> None:
    engine = make_engine("follower")
    begin(engine)

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        async with asyncio.TaskGroup() as tasks:
            genesis = engine.replica.state.genesis_hash
            clock = lambda: at(1_000)  # noqa: E731
            loop = EngineLoop(engine, genesis, clock, Door(threads), bench.store, threads, tasks, Announcements())
            loop._executor = bench.executor
            running = tasks.create_task(bench.executor.run())
            unknown = TimerKey("engine", "a timer that nobody set")
            asyncio.get_running_loop().call_soon(loop.feed, TimerFired(unknown))
            later: tuple[Effect, ...] = (GREETING, row())
            asyncio.get_running_loop().call_soon(bench.executor.submit, later)
            async with asyncio.timeout(5):
                await asyncio.sleep(0)
                await bench.executor.drain()
            running.cancel()

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(run())
    assert raised.group_contains(AssertionError)
    assert bench.hands.done == []
    assert bench.store.get(Table.SELLER_LANE, b"k" * 33) is None


def test_a_peer_with_ever_more_frames_leaves_the_loop_to_others_after_a_turn(
    bench: Bench, threads: ThreadPoolExecutor
) -> None:
    engine = make_engine("follower")
    begin(engine)

    async def run() -> int:
        async with asyncio.TaskGroup() as tasks:
            genesis = engine.replica.state.genesis_hash
            clock = lambda: at(1_000)  # noqa: E731
            loop = EngineLoop(engine, genesis, clock, Door(threads), bench.store, threads, tasks, Announcements())
            loop._executor = bench.executor
            turns: list[int] = []
            frames = 0
            asyncio.get_running_loop().call_soon(turns.append, 0)
            while not turns and frames < 1_000:
                await loop.receive(PEER, (TipNotice(Height(0)),) * 3, 12)
                frames += 1
            return frames

    assert asyncio.run(run()) <= TURN_US // (3 * MESSAGE_US) + 1


@pytest.mark.parametrize("statements", [0, 1], ids=["a row", "a row and what is sent patiently"])
def test_what_nobody_waits_for_shares_the_commit_of_what_follows_and_waits_for_none_for_long(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, statements: int
) -> None:
    bench.executor._commit_s = 0.0
    commits: list[int] = []
    commit = bench.store.commit

    def counted(effects: Sequence[Put | Delete | CommitBlock]) -> None:
        commits.append(len(effects))
        commit(effects)

    monkeypatch.setattr(bench.store, "commit", counted)
    waiting: list[Effect] = [row(), *(patient() for _ in range(statements))]

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(bench.executor.run())
            await asyncio.sleep(0)
            bench.executor.submit(waiting)
            for _ in range(5):
                await asyncio.sleep(0)
            assert (commits, bench.hands.done) == ([], []), "nothing waits for it"
            bench.executor.submit([Put(Table.SELLER_LANE, b"l" * 33, b"v"), GREETING])
            await bench.executor.drain()
            assert commits == [2]
            bench.executor.submit(waiting)
            await bench.executor.drain()
            running.cancel()

    asyncio.run(run())
    assert commits == [2, 1], "and alone if nothing else comes"
    assert bench.hands.done == [*[patient()] * statements, GREETING, *[patient()] * statements]


def test_more_that_is_patient_puts_off_no_commit_and_no_other_statement_waits_for_company(bench: Bench) -> None:
    bench.executor._commit_s = 0.0
    offered = SignAndSend(MessageKind.OFFER, offer(), (PEER,))

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(bench.executor.run())
            await asyncio.sleep(0)
            bench.executor.submit([row(), patient()])
            due = bench.executor._flush_due
            assert due is not None
            bench.executor.submit([row(), patient()])
            assert bench.executor._flush_due is due
            assert not due.cancelled()
            bench.executor.submit([row(), offered])
            await asyncio.sleep(0)
            assert len(bench.hands.done) == 3, "what is urgent takes along all that waits"
            running.cancel()

    asyncio.run(run())


def test_nothing_is_drained_before_what_was_sent_has_been_handed_back(bench: Bench) -> None:
    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(bench.executor.run())
            await asyncio.sleep(0)
            bench.executor.submit([acceptance()])
            await bench.executor.drain()
            assert len(bench.hands.handed_back) == 1
            running.cancel()

    asyncio.run(run())


def test_what_stays_in_the_process_waits_for_no_disk(bench: Bench) -> None:
    timer = SetTimer(TimerKey("seller", "deadline"), MonotonicMs(1))

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(bench.executor.run())
            await asyncio.sleep(0)
            bench.executor.submit([row(), timer, GREETING])
            assert bench.hands.done == [timer]
            await bench.executor.drain()
            running.cancel()

    asyncio.run(run())
    assert bench.hands.done == [timer, GREETING]


def test_a_long_log_is_copied_into_the_file_in_the_background(bench: Bench) -> None:
    bench.carry_out(*(Put(Table.SELLER_LANE, number.to_bytes(33, "big"), b"v" * 300) for number in range(4000)))
    bench.executor._threads.shutdown()
    assert not bench.store.wants_checkpoint
    assert bench.store.path.stat().st_size > 300_000


def test_timers_fire_once_at_their_last_moment_in_the_order_of_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    fired: list[tuple[int, TimerKey]] = []
    first, second, third = (TimerKey("seller", name) for name in ("first", "second", "third"))

    async def run() -> None:
        nonlocal now
        timers = Timers(lambda: at(now), lambda due: fired.append((now, due)))
        loop = asyncio.get_running_loop()
        armed: list[float] = []

        def noted(delay_s: float, look: Callable[..., None]) -> asyncio.Handle:
            armed.append(delay_s)
            return loop.call_soon(lambda: None)

        monkeypatch.setattr(loop, "call_later", noted)
        timers.set(first, MonotonicMs(10))
        timers.set(second, MonotonicMs(40))
        timers.set(first, MonotonicMs(30))
        timers.set(third, MonotonicMs(20))
        timers.cancel(third)
        assert armed == [0.01], "putting off and cancelling cost the loop nothing"
        now = 9
        timers._look()
        assert fired == [], "the loop was early"
        assert armed[-1] == 0.021
        timers.set(second, MonotonicMs(15))
        assert armed[-1] == 0.006, "one that is due earlier than the loop looks is armed anew"
        timers.set(second, MonotonicMs(29))
        for moment in (15, 29, 31, 50):
            now = moment
            timers._look()
        for number in range(1000):
            timers.set(first, MonotonicMs(60 + number))
            timers.set(second, MonotonicMs(1500))
        assert len(timers._entries) < 100
        timers.cancel_all()
        now = 2000
        timers._look()

    asyncio.run(run())
    assert fired == [(29, second), (31, first)]
