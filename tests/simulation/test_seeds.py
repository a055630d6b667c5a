"""Whole networks under faults, from seeds. A failure names the seed for ``python -m node.simulation --from``."""

import subprocess
import sys
from dataclasses import replace

import pytest

from node.simulation.nemesis import DEFAULT_FAULTS, Fault
from node.simulation.run import SimulationFailed, run_seed, run_seeds
from node.simulation.world import Options
from protocol.consensus import outputs as out
from protocol.engine.replica import Replica
from protocol.messages.effects import Now
from tests.simulation.liars import BelievesEverything, Liar, Mute, OneSignatureShort, SkipsAndFinalises

LOSSES = (*DEFAULT_FAULTS, Fault.LOSE_DISK, Fault.LOSE_DISK)


@pytest.mark.parametrize("seed", range(24))
def test_four_authorities_under_faults_agree_and_settle_every_transfer(seed: int) -> None:
    outcome = run_seed(seed)
    assert outcome.heights > 0


@pytest.mark.parametrize("seed", range(8))
def test_a_twin_with_two_disks_breaks_nothing(seed: int) -> None:
    run_seed(seed, Options(twin=True))


@pytest.mark.parametrize("seed", range(8))
def test_a_lost_disk_breaks_nothing(seed: int) -> None:
    run_seed(seed, Options(faults=LOSSES))


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 7])
def test_other_numbers_of_authorities_agree_and_settle(nodes: int) -> None:
    _run_many(2, Options(authorities=nodes, transfers_per_client=6))


def test_the_same_seed_gives_the_same_trace_and_another_seed_another_one() -> None:
    assert run_seed(5).trace_hash == run_seed(5).trace_hash
    assert run_seed(5).trace_hash != run_seed(6).trace_hash


def test_the_trace_does_not_depend_on_the_process() -> None:
    program = "from node.simulation.run import run_seed; print(run_seed(3).trace_hash)"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert other.stdout.strip() == run_seed(3).trace_hash


class ForgetsCertificates(Replica):
    """Certificates are no longer made durable."""

    def _carry_out_one(self, output: out.Output, now: Now) -> None:
        if not isinstance(output, out.Keep):
            super()._carry_out_one(output, now)


class ForgetsBodies(Replica):
    """Bodies are no longer made durable."""

    def _carry_out_one(self, output: out.Output, now: Now) -> None:
        if not isinstance(output, out.KeepBody):
            super()._carry_out_one(output, now)


CRASHLESS = (Fault.STORM, Fault.STORM, Fault.CALM, Fault.SPLIT, Fault.PAUSE)
"""Without restarts the sign guard has nothing to do, so that it does not stand in for the guard that was removed."""
LIES = Options(liar_type=Liar, faults=CRASHLESS, guarded=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (Options(guarded=False), "one key signed two"),
        (replace(LIES, replica_type=SkipsAndFinalises), "one key signed two FINALs"),
        (replace(LIES, replica_type=BelievesEverything), "two decisions|exclude each other"),
        (replace(LIES, replica_type=OneSignatureShort), "2 signers where 3"),
        (Options(replica_type=ForgetsCertificates), "before its VC was durable"),
        (Options(replica_type=ForgetsBodies), "before its body"),
    ],
    ids=["sign guard", "FINAL exclusivity", "skip check", "Q - 1", "durable certificates", "durable bodies"],
)
def test_without_its_guard_some_seed_fails_and_is_named(options: Options, reason: str) -> None:
    with pytest.raises(SimulationFailed, match=rf"seed \d+: .*({reason})"):
        _run_many(60, options)


@pytest.mark.parametrize("seed", range(5))
def test_with_all_guards_a_liar_breaks_nothing(seed: int) -> None:
    run_seed(seed, LIES)
    run_seed(seed, Options(liar_type=Liar))


@pytest.mark.parametrize("seed", range(6))
def test_with_one_authority_mute_for_good_the_others_recover_from_every_fault(seed: int) -> None:
    run_seed(seed, Options(liar_type=Mute))


def _run_many(count: int, options: Options) -> None:
    for _ in run_seeds(0, count, options):
        pass
