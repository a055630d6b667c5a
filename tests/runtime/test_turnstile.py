"""Links take turns and pay for what was of no use: by a clock that the test moves."""

import asyncio

import pytest

from node.runtime.turnstile import (
    AUTHORITY,
    CLEAN,
    SLOWNESS_MAX,
    STRANGER,
    STRANGERS,
    TURN_US,
    Turnstile,
    cost_us,
    measured_us,
)
from protocol.primitives.units import MonotonicMs, NodeId

HONEST, AUTHORITY_NODE = NodeId(b"h" * 32), NodeId(b"a" * 32)
HOSTILE = [NodeId(bytes((number,)) * 32) for number in range(12)]
MESSAGE_US = 115


class _Clock:
    """Time passes when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = 0.0
        self._really_sleep = asyncio.sleep
        monkeypatch.setattr("node.runtime.turnstile.asyncio.sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now_ms += seconds * 1000
        await self._really_sleep(0)

    def read(self) -> MonotonicMs:
        return MonotonicMs(int(self.now_ms))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    return _Clock(monkeypatch)


def _turnstile(clock: _Clock) -> Turnstile:
    return Turnstile(lambda peer: peer == AUTHORITY_NODE, clock.read)


async def _flood(turnstile: Turnstile, peer: NodeId, messages: int, *, useful: bool = False) -> None:
    for _ in range(messages):
        await turnstile.enter(peer)
        turnstile.pay(peer, MESSAGE_US, useful=useful)


async def test_useless_messages_are_read_at_the_strangers_rate(clock: _Clock) -> None:
    turnstile = _turnstile(clock)
    await _flood(turnstile, HONEST, 2_000)
    wasted_us = 2_000 * MESSAGE_US
    assert clock.now_ms / 1000 >= (wasted_us - STRANGER.burst - 2 * MESSAGE_US) / STRANGER.per_second


async def test_useful_messages_are_never_held_back(clock: _Clock) -> None:
    await _flood(_turnstile(clock), HONEST, 5_000, useful=True)
    assert clock.now_ms == 0


async def test_authority_may_waste_more_and_not_without_end(clock: _Clock) -> None:
    turnstile = _turnstile(clock)
    await _flood(turnstile, AUTHORITY_NODE, AUTHORITY.burst // MESSAGE_US)
    assert clock.now_ms == 0
    await _flood(turnstile, AUTHORITY_NODE, 2_000)
    assert clock.now_ms >= 2_000 * MESSAGE_US / AUTHORITY.per_second * 900


async def test_many_strangers_together_waste_no_more_than_their_common_purse(clock: _Clock) -> None:
    turnstile = _turnstile(clock)
    for _ in range(1_000):
        for peer in HOSTILE:
            await _flood(turnstile, peer, 1)
    wasted_us = 12 * 1_000 * MESSAGE_US
    assert (
        clock.now_ms / 1000
        >= (wasted_us - STRANGERS.burst - 12 * STRANGER.burst // 10)
        / (STRANGERS.per_second + 12 * CLEAN.per_second)
        * 0.95
    )


async def test_clean_stranger_does_not_wait_for_the_debts_of_others(clock: _Clock) -> None:
    turnstile = _turnstile(clock)
    for peer in HOSTILE:
        turnstile.pay(peer, 10 * STRANGERS.burst, useful=False)
    await _flood(turnstile, HONEST, 10)
    assert clock.now_ms == 0


async def test_stranger_that_mostly_helps_does_not_wait_for_the_debts_of_others(clock: _Clock) -> None:
    turnstile = _turnstile(clock)
    for peer in HOSTILE:
        turnstile.pay(peer, 10 * STRANGERS.burst, useful=False)
    for _ in range(1_000):
        await _flood(turnstile, HONEST, 1)
        await _flood(turnstile, HONEST, 1, useful=True)
    assert clock.now_ms == 0


async def test_answers_are_paid_for_by_who_asked_alone(clock: _Clock) -> None:
    turnstile = _turnstile(clock)
    turnstile.pay_for_answer(HOSTILE[0], 3 * STRANGER.burst)
    await _flood(turnstile, HONEST, STRANGERS.burst // MESSAGE_US // 4)
    assert clock.now_ms == 0
    await turnstile.enter(HOSTILE[0])
    assert clock.now_ms >= 2 * STRANGER.burst / STRANGER.per_second * 900


async def test_flood_delays_anothers_message_by_a_turn_only(clock: _Clock) -> None:
    turnstile = _turnstile(clock)
    order: list[NodeId] = []

    async def send(peer: NodeId, messages: int) -> None:
        for _ in range(messages):
            await turnstile.enter(peer)
            turnstile.pay(peer, MESSAGE_US, useful=True)
            order.append(peer)

    async with asyncio.TaskGroup() as tasks:
        for peer in HOSTILE:
            tasks.create_task(send(peer, 500))
        tasks.create_task(send(HONEST, 64))
    last = max(place for place, peer in enumerate(order) if peer == HONEST)
    turn = TURN_US // MESSAGE_US + 1
    assert last < (64 // turn + 2) * turn * 13, "sixty-four messages take their turns, not the end of the flood"


def test_cost_grows_with_bytes_and_signatures() -> None:
    assert cost_us(0, 0) < cost_us(0, 1) < cost_us(4 * 1024 * 1024, 1)


def test_slow_machine_is_paid_for_by_its_own_time_and_a_pause_is_not() -> None:
    assert measured_us(100, 0.00005) == 100
    assert measured_us(100, 0.0007) == 700
    assert measured_us(100, 3.0) == SLOWNESS_MAX * 100
