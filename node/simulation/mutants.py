"""Is every guard needed? Each is removed in turn, and the checkers must notice.

Law: a mutant changes the shipped code inside this process alone, for as long as its runs last, and nothing on disk. It
counts as caught if a seed among its first few breaks a rule, and the same seeds with the guard in place break none; or
if the search finds a state that must not be, and finds none with the guard in place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from msgspec.structs import replace as with_fields

from node.simulation.adversaries import Adversary, Usurper
from node.simulation.counterfeit import Counterfeiter, generous_ledger
from node.simulation.profiles import PROFILES
from node.simulation.run import SimulationFailed, run_seed
from node.simulation.search import Disagreement, Search
from node.simulation.world import Options
from node.store.connection import transaction
from node.store.sign_guard import SignGuard
from protocol.consensus import outputs as out
from protocol.consensus.height import AuthorityHeight
from protocol.consensus.height_state import HeightState
from protocol.engine import replica_height
from protocol.engine.replica_height import HeightDriver
from protocol.ledger import blocks, channels
from protocol.messages.effects import CommitBlock, Delete, Effect, GuardPosition, Now, Put
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.units import Height, SequenceNumber, View
from protocol.settlement.vouchers import check_voucher


class Escaped(Exception):
    """A mutant that no seed caught, or a seed that fails with every guard in place."""


Patch = Callable[[], AbstractContextManager[None]]


class Mutant(NamedTuple):
    """One guard, how it is taken away, and the network in which that must show."""

    name: str
    patch: Patch
    options: Options
    seeds_max: int
    """It must be caught within so many seeds."""
    notices: str
    """Part of what the checker says."""
    setting: Patch = nullcontext
    """A fault of the code itself that the guard is there to stop; present with and without the guard."""


class SearchMutant(NamedTuple):
    """A guard of the machine of one height whose absence the search finds, with authority 2 lying in two views."""

    name: str
    machine_type: type[AuthorityHeight] = AuthorityHeight
    short: int = 0
    """Signatures taken from the quorum."""


class Caught(NamedTuple):
    """How a mutant was found out."""

    mutant: str
    by: str
    """``seed N of M allowed`` or ``search after N states``."""
    reason: str


@contextmanager
def replaced(owner: Any, name: str, substitute: Any) -> Iterator[None]:
    """Another attribute for as long as the context lasts."""
    original = getattr(owner, name)
    setattr(owner, name, substitute)
    try:
        yield
    finally:
        setattr(owner, name, original)


def catch(mutant: Mutant, first: int = 0) -> Caught:
    """Run seeds from ``first`` on until one fails without the guard. Raises ``Escaped``."""
    for seed in range(first, first + mutant.seeds_max):
        try:
            with mutant.setting():
                run_seed(seed, mutant.options)
        except SimulationFailed as failed:
            raise Escaped(f"{mutant.name}: fails with its guard in place: {failed}") from None
        try:
            with mutant.setting(), mutant.patch():
                run_seed(seed, mutant.options)
        except SimulationFailed as failed:
            if mutant.notices not in failed.reason:
                raise Escaped(f"{mutant.name}: something else broke: {failed}") from None
            return Caught(mutant.name, f"seed {seed}, {mutant.seeds_max} allowed", failed.reason)
    raise Escaped(f"{mutant.name}: not caught by seeds {first} to {first + mutant.seeds_max - 1}")


def find(mutant: SearchMutant) -> Caught:
    """Search without the guard. Raises ``Escaped`` if nothing is found; ``find_nothing`` has searched with it."""
    search = Search(LIAR, VIEWS, mutant.machine_type, mutant.short)
    try:
        search.run()
    except Disagreement as found:
        return Caught(mutant.name, f"search, {len(search.seen):,} states", str(found))
    raise Escaped(f"{mutant.name}: no state of {len(search.seen)} shows that it is gone")


def find_nothing() -> int:
    """Search with every guard in place; the number of states. Raises ``Disagreement`` or ``Stuck``."""
    return Search(LIAR, VIEWS).run()


LIAR, VIEWS = 2, 2


# How each guard is taken away


class _VotesAgain(AuthorityHeight):
    def _may_vote(self, view: View) -> bool:
        return True


class _FinalisesSkippedViews(AuthorityHeight):
    def _may_finalise(self, view: View) -> bool:
        return True


class _BelievesUnjustified(AuthorityHeight):
    def unjustified(self, base: View, view: View) -> tuple[View, ...]:
        return ()


def _always(self: object, view: int) -> bool:
    return True


def _nothing_missing(self: object, base: int, view: int) -> tuple[int, ...]:
    return ()


def _one_signature_less() -> AbstractContextManager[None]:
    make = AuthoritySet.__init__

    def make_short(self: AuthoritySet, *arguments: Any) -> None:
        make(self, *arguments)
        self.quorum -= 1

    return replaced(AuthoritySet, "__init__", make_short)


def _reserve_nothing(self: SignGuard, positions: Sequence[tuple[GuardPosition, bytes]]) -> list[bytes]:
    return [payload for _, payload in positions]


def _prune_first(self: SignGuard, height: Height) -> None:
    with self._using() as connection:
        with transaction(connection):
            connection.execute("DELETE FROM signatures WHERE height <= ?", (height,))
        with transaction(connection):
            connection.execute("UPDATE watermark SET height = max(height, ?)", (height,))


def _send_before_writing() -> AbstractContextManager[None]:
    taken = HeightDriver._taken

    def reordered(self: HeightDriver) -> list[Effect]:
        effects = taken(self)
        return sorted(effects, key=lambda effect: isinstance(effect, Put | Delete | CommitBlock))

    return replaced(HeightDriver, "_taken", reordered)


def _without(unwritten: type) -> Patch:
    def patch() -> AbstractContextManager[None]:
        carry_out = HeightDriver._carry_out_one

        def carry_out_others(self: HeightDriver, output: out.Output, now: Now) -> None:
            if not isinstance(output, unwritten):
                carry_out(self, output, now)

        return replaced(HeightDriver, "_carry_out_one", carry_out_others)

    return patch


def _any_time(*arguments: object) -> bool:
    return True


def _any_sequence() -> AbstractContextManager[None]:
    check = check_voucher

    def check_others(voucher: Any, *, position: Any, **others: Any) -> None:
        check(voucher, position=with_fields(position, sequence=SequenceNumber(0)), **others)

    return replaced(channels, "check_voucher", check_others)


def _no_difference(*arguments: object) -> int:
    return 0


_CRASHES = Options(profile=PROFILES["crashes"])
_NETWORK = Options(profile=PROFILES["network"])


def _with_liar(options: Options, liar: type[Adversary]) -> Options:
    return replace(options, liar=liar)


MUTANTS = (
    Mutant(
        "FINAL(x) and FINAL(⊥) exclude each other",
        lambda: replaced(AuthorityHeight, "_may_finalise", _always),
        _NETWORK,
        30,  # two seeds in five meet it, so thirty in a row miss it once in ten million times
        "asked for a second FINAL",
    ),
    Mutant(
        "skip certificates below a proposal",
        lambda: replaced(HeightState, "unjustified", _nothing_missing),
        _with_liar(_NETWORK, Usurper),
        20,
        "before the certificates behind it",
    ),
    Mutant("Q signatures make a certificate", _one_signature_less, _NETWORK, 5, "was decided by 2 of 4"),
    Mutant(
        "the sign guard",
        lambda: replaced(SignGuard, "reserve", _reserve_nothing),
        _CRASHES,
        10,
        "a guard forgot",
    ),
    Mutant(
        "the guard's watermark rises before its rows go",
        lambda: replaced(SignGuard, "raise_watermark", _prune_first),
        _CRASHES,
        60,
        "a guard forgot",
    ),
    Mutant("written before it is sent", _send_before_writing, _NETWORK, 5, "durable"),
    Mutant("certificates are durable", _without(out.Keep), _NETWORK, 5, "durable"),
    Mutant("bodies are durable", _without(out.KeepBody), _NETWORK, 5, "before its body was durable"),
    Mutant(
        "blocks have a timely timestamp",
        lambda: replaced(replica_height, "is_timely", _any_time),
        Options(profile=PROFILES["clocks"]),
        20,
        "ahead of time",
    ),
    Mutant("a voucher's sequence rises", _any_sequence, _NETWORK, 20, "of a lane was decided after"),
    Mutant(
        "no block makes money",
        lambda: replaced(blocks, "supply_difference", _no_difference),
        _with_liar(_NETWORK, Counterfeiter),
        10,
        "supply is",
        generous_ledger,
    ),
)
"""All guards that the gate takes away. The last one needs a ledger with a mistake in it, since without one no
transaction makes money: ``setting`` gives transfers one, and a liar that knows of it."""

SEARCH_MUTANTS = (
    SearchMutant("one VOTE a view", _VotesAgain),
    SearchMutant("FINAL(x) and FINAL(⊥) exclude each other", _FinalisesSkippedViews),
    SearchMutant("skip certificates below a proposal", _BelievesUnjustified),
    SearchMutant("Q signatures make a certificate", short=1),
)
"""The first is a matter of the search alone: seeds meet the restart that it takes about once in a hundred."""
