"""Whatever is put to vote, voted, spent, signed twice and waited for: money is conserved and every limit holds."""

import random
from itertools import pairwise

import pytest

from protocol.ledger.blocks import PendingTransaction, execute_block
from protocol.ledger.charter import FORMER_SEATS_MAX, OUTCOMES_MAX
from protocol.ledger.motions import OPEN_PER_OPENER_MAX
from protocol.ledger.state import LedgerState
from protocol.messages.genesis import Membership
from protocol.messages.governance import (
    AuthorityChange,
    Issuance,
    ParameterChange,
    ParametersInvalid,
    Redemption,
    Subject,
    VersionChange,
    check_parameters,
)
from protocol.messages.transactions import (
    Action,
    BondDeposit,
    BondUnlock,
    EvidenceReport,
    MotionOpen,
    MotionVote,
    Output,
    Transfer,
)
from protocol.primitives.units import Amount, BlockHash, Height, TimestampMs
from tests.ledger.assembly import Assembly, X, Y, authority, ballot, final, record, settings
from tests.ledger.world import NAMES, account_of


class Crowd:
    """Draws actions of authorities and others, mostly sensible ones."""

    def __init__(self, dice: random.Random, assembly: Assembly) -> None:
        self.dice = dice
        self.assembly = assembly

    def subject(self) -> Subject:
        dice = self.dice
        some = [authority(dice.randrange(12)) for _ in range(dice.choice((0, 1, 1, 2)))]
        choices: tuple[Subject, ...] = (
            AuthorityChange(tuple(some), tuple(record(dice.randrange(12)) for _ in range(dice.choice((0, 1, 1, 2))))),
            settings(fee_min=dice.randrange(30)),
            settings(epoch_blocks=dice.choice((0, 1, 2, 9)), issuance_cap=dice.choice((0, 60_000, 10**9))),
            settings(motion_timelock_ms=dice.choice((0, 100, 20_000)), motion_ms=dice.choice((100, 60_000))),
            ParameterChange(settings(fee_min=1).values * 2),
            VersionChange(dice.choice((1, 2, 2, 3)), Height(self.assembly.state.height + dice.randrange(6))),
            Issuance(account_of(dice.choice(NAMES)), Amount(dice.choice((0, 1, 30_000, 60_000, 2**62))), "paid"),
            Redemption(Amount(dice.choice((0, 5, 40_000, 10**6))), "leaves"),
        )
        return dice.choice(choices)

    def action(self, index: int) -> Action:
        dice, state = self.dice, self.assembly.state
        numbers = [entry.number for entry in state.charter.agenda.due] or [state.charter.agenda.next_number]
        culprit, height = dice.randrange(12), dice.randrange(state.height + 2)
        said = [self.assembly.said(culprit, dice.choice((ballot, final))(height, 1, block)) for block in (X, Y)]
        actions: tuple[Action, ...] = (
            MotionOpen(dice.choice((None, authority(index), authority(index))), self.subject()),
            *(MotionVote(dice.choice(numbers), authority(index), dice.random() < 0.8) for _ in range(6)),
            EvidenceReport(said[0], said[1]) if dice.random() < 0.2 else BondDeposit(Amount(dice.randrange(90))),
            BondUnlock(Amount(dice.randrange(900))),
            Transfer((Output(account_of(dice.choice(NAMES)), Amount(dice.randrange(1, 50_000))),)),
        )
        return dice.choice(actions)

    def transactions(self) -> list[PendingTransaction]:
        drawn = []
        for _ in range(self.dice.randrange(5)):
            index = self.dice.randrange(12)
            name = self.dice.choice((f"auth{index}-account", f"auth{index}-account", self.dice.choice(NAMES)))
            drawn.append(self.assembly.transaction(name, self.action(index), fee=self.dice.choice((10, 30, 30))))
        return drawn


def _check_members(state: LedgerState, sets: list[Membership], development: bool) -> None:
    for one, other in pairwise(sets):
        left = {entry.authority for entry in one.records} - {entry.authority for entry in other.records}
        came = {entry.authority for entry in other.records} - {entry.authority for entry in one.records}
        assert max(len(left), len(came)) <= max(1, (len(one.records) - 1) // 3)
    for each in sets:
        active = len(each.records) - len(each.suspended)
        assert active >= 2 * len(each.records) // 3 + 1
        assert development or len(each.records) >= 4
        for keys in ("authority", "account", "node"):
            assert len({getattr(entry, keys) for entry in each.records}) == len(each.records)
    accused = {entry.authority for entry in sets[-1].records if state.evidence(entry.authority) is not None}
    assert accused == set(sets[-1].suspended)


def _check_limits(state: LedgerState) -> None:
    charter = state.charter
    assert len(charter.agenda.outcomes) <= OUTCOMES_MAX
    assert len(charter.seats.seats) <= FORMER_SEATS_MAX + len(state.schedule.following.records)
    on_agenda = sorted(
        (motion for motion in state.motions() if motion.on_agenda), key=lambda motion: (motion.due_at, motion.number)
    )
    openers = [motion.opener for motion in on_agenda]
    assert all(openers.count(opener) <= OPEN_PER_OPENER_MAX for opener in openers)
    assert [entry.number for entry in charter.agenda.due] == [motion.number for motion in on_agenda]
    for motion in state.motions():
        voters = [cast.authority for cast in motion.votes]
        assert len(set(voters)) == len(voters) <= len(motion.electorate)
        assert set(voters) <= {elector.authority for elector in motion.electorate}
    try:
        check_parameters(state.parameters, state.development)
    except ParametersInvalid as error:
        pytest.fail(str(error))


@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_motions_votes_and_crimes_keeps_money_and_limits(seed: int) -> None:
    dice = random.Random(seed)
    assembly = Assembly(dice.choice((1, 3, 4, 7)), epoch_blocks=7, motion_timelock_ms=dice.choice((0, 500)))
    crowd, granted = Crowd(dice, assembly), assembly.state.issued
    stored = dict(assembly.state.rows())
    done = 0
    for _ in range(150):
        state = assembly.state
        step_ms = dice.choice((20, 20, 400, 15_000, 30_000))
        built = assembly.build(crowd.transactions(), TimestampMs(state.tip.timestamp_ms + step_ms))
        if not built.transaction_ids and step_ms < 15_000:
            continue
        execution = execute_block(state, built.block)
        assert (execution.rows, execution.block_hash) == (built.rows, BlockHash(built.block_hash))
        previous = state.schedule
        state.apply(execution)
        assert (state.schedule.previous, state.schedule.current) == (previous.current, previous.following)
        _check_members(state, [state.schedule.current, state.schedule.following], development=True)
        _check_limits(state)
        supply, minting = state.supply(), state.charter.minting
        assert supply.total == supply.issued == granted + minting.issued - minting.redeemed
        for key, value in execution.rows:
            if value is None:
                del stored[key]
            else:
                stored[key] = value
        done += len(built.transaction_ids)
    assert done > 30
    assert stored == dict(assembly.state.rows())
    rebuilt = LedgerState.from_rows(assembly.genesis, stored.items(), assembly.state.tip)
    assert (rebuilt.charter, rebuilt.motions()) == (assembly.state.charter, assembly.state.motions())
