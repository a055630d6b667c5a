"""Whole networks under faults, from seeds. A failure names the seed for ``./scripts/simulate --from``."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from node.simulation.adversaries import AUTHORITIES, Adversary, EquivocatingLeader, TwoFacedVoter, Usurper
from node.simulation.profiles import PROFILES
from node.simulation.run import run_seed
from node.simulation.world import Options


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_four_authorities_under_all_faults_agree_and_settle_every_transaction(first: int) -> None:
    for seed in range(first, first + 10):
        outcome = run_seed(seed)
        assert outcome.virtual_ms >= 30_000
        assert outcome.heights >= 20
        assert outcome.strikes >= 3


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in ("all", "none", "changes")])
def test_each_set_of_faults_breaks_nothing(name: str) -> None:
    for seed in (100, 101):
        run_seed(seed, Options(profile=PROFILES[name]))


@pytest.mark.parametrize("liar", AUTHORITIES, ids=lambda liar: liar.name)
def test_a_liar_of_each_kind_breaks_nothing_and_does_what_it_is_for(liar: type[Adversary]) -> None:
    deeds = [
        run_seed(seed, Options(profile=PROFILES["network"], liar=liar)).faults.get(liar.name, 0) for seed in (0, 1)
    ]
    assert sum(deeds) > 0


@pytest.mark.parametrize("liar", [EquivocatingLeader, TwoFacedVoter, Usurper], ids=lambda liar: liar.name)
def test_who_signs_twice_is_known_for_it_before_the_run_ends(liar: type[Adversary]) -> None:
    assert run_seed(2, Options(profile=PROFILES["network"], liar=liar)).suspended == 1


def test_authorities_are_replaced_by_vote_while_faults_strike() -> None:
    for seed in range(3):
        outcome = run_seed(seed, Options(profile=PROFILES["changes"]))
        assert outcome.faults["change of authorities proposed"] > 0
        assert outcome.authority_sets > 2


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 7])
def test_other_numbers_of_authorities_agree_and_settle(nodes: int) -> None:
    run_seed(nodes, Options(authorities=nodes, transfers_per_client=6))


def test_with_nobody_disturbing_it_the_ledger_settles_while_it_is_asked() -> None:
    assert run_seed(1, Options(profile=PROFILES["none"])).healed_after_ms < 500


def test_the_same_seed_gives_the_same_trace_and_another_seed_another_one() -> None:
    assert run_seed(5).trace_hash == run_seed(5).trace_hash
    assert run_seed(5).trace_hash != run_seed(6).trace_hash


def test_the_trace_depends_on_neither_process_nor_order_of_hashing() -> None:
    program = "from node.simulation.run import run_seed; print([run_seed(seed).trace_hash for seed in (3, 4)])"
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout.strip()
        for hash_seed in ("1", "4242")
    ]
    assert said == [str([run_seed(seed).trace_hash for seed in (3, 4)])] * 2


def test_fewer_blows_of_the_nemesis_leave_the_run_before_them_as_it_was() -> None:
    lines: dict[int | None, list[str]] = {None: [], 3: []}
    for strikes_max, seen in lines.items():
        run_seed(8, replace(Options(), strikes_max=strikes_max), lambda time_ms, line, seen=seen: seen.append(line))  # type: ignore[misc]
    third = [number for number, line in enumerate(lines[None]) if line.startswith("nemesis")][2]
    assert lines[3][: third + 1] == lines[None][: third + 1]
