"""Networks that never are as they should be: slow and lossy lines, a wrong clock, leaders that are killed."""

import random
import time
from pathlib import Path

import pytest

from tests.network.namespaces import why_unavailable
from tests.network.network import Member, Network, real_network
from tests.network.payments import Load
from tests.network.switch import Wire
from tests.network.waiting import seconds_until

REASON = why_unavailable()
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(REASON is not None, reason=f"no network namespaces here: {REASON}"),
]

HEALED_SECONDS = 10.0
BAD_LINE = Wire(loss=0.05, delay_ms=200, jitter_ms=100)
LEADERS_KILLED_SECONDS = 120.0


def report(network: Network, what: str, seconds: float) -> None:
    """Figures for people; run pytest with ``-s`` to see them."""
    took = sorted(payment.seconds for payment in network.book.decided())
    print(
        f"{what}: {len(took)} payments decided in {seconds:.0f} s at heights {network.heights()}, "
        f"half of them within {took[len(took) // 2]:.2f} s, the slowest {took[-1]:.2f} s; {network.switch.carried}"
    )


@pytest.mark.parametrize("authorities", [4, 7])
def test_slow_and_lossy_lines_slow_the_ledger_and_stop_nothing(tmp_path: Path, authorities: int) -> None:
    seconds = 60.0
    with real_network(tmp_path, authorities, seed=authorities) as network:
        network.switch.every(BAD_LINE)
        with Load(network.payers, network.book):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                network.probe(20.0)
            report(network, f"200 ms ± 100 ms and 5 % loss, {authorities} authorities", seconds)
            network.switch.heal()
            network.probe(HEALED_SECONDS)
        chain = network.audit()
        assert chain.height > 10
        banned = [member.folder.name for member in network.members if b'"peer.banned"' in member.log.read_bytes()]
        assert not banned, f"honest authorities were cut off by {banned}"


@pytest.mark.parametrize("minutes", [-5, 5])
def test_clock_that_is_minutes_off_on_one_authority_stops_nothing(tmp_path: Path, minutes: int) -> None:
    seconds = 30.0
    with real_network(tmp_path, 4, seed=3, clock_offsets_ms=[minutes * 60_000]) as network:
        skewed = network.members[0].client.status()
        straight = network.members[1].client.status()
        with Load(network.payers, network.book):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                network.probe(20.0)
        report(network, f"one clock {minutes} minutes off", seconds)
        chain = network.audit()
        tip = network.members[1].client.ledger()
        assert abs(tip.timestamp_ms - time.time() * 1000) < 20_000, "the wrong clock got into the ledger"
        assert chain.height > 10
        assert skewed.authority != straight.authority


def leader(network: Network) -> Member:
    """Who leads the first view of the height that is open now, by the highest tip that anybody tells."""
    members = [member for member in network.members if member.process is not None]
    ledgers = [member.client.ledger() for member in members if member.height() >= 0]
    best = max(ledgers, key=lambda ledger: ledger.height)
    wanted = best.authorities[(best.height + 1 + 1) % len(best.authorities)]
    return next(member for member in network.members if member.record.authority == wanted)


def test_leader_killed_every_few_seconds_stops_the_ledger_for_seconds_at_most(tmp_path: Path) -> None:
    dice = random.Random(2024)
    gaps: list[float] = []
    kills = 0
    with real_network(tmp_path, 4, seed=4) as network:
        with Load(network.payers, network.book):
            until = time.monotonic() + LEADERS_KILLED_SECONDS
            while time.monotonic() < until:
                time.sleep(dice.uniform(2.0, 5.0))  # how often is the test's input, not a wait for a condition
                victim = leader(network)
                before = max(network.heights())
                victim.kill()
                kills += 1
                gaps.append(seconds_until(lambda: max(network.heights()) > before + 1, 10.0, "no block after a kill"))  # noqa: B023
                victim.start()
                seconds_until(victim.answers, 30.0, "a killed authority serves again")
            network.probe(HEALED_SECONDS)
        report(network, f"{kills} leaders killed, longest silence {max(gaps):.2f} s", LEADERS_KILLED_SECONDS)
        network.audit()
        assert kills >= 10
