"""An offer counts as long as its provider's bond stands; the book is held against the ledger once for each block."""

from collections.abc import Callable

from msgspec.structs import replace

from protocol.messages.effects import Now
from protocol.messages.transactions import BondDeposit, BondUnlock
from protocol.primitives.units import AccountId, Amount, MessageId
from tests.engine.village import Village
from tests.ledger.world import account_of, make_genesis
from tests.market.test_order_book import OFFER

NAMES = ("auth0", "auth1", "auth2", "auth3")


def test_an_offer_goes_with_its_bond_and_the_book_is_not_searched_while_nothing_is_decided() -> None:
    village = Village(make_genesis(names=tuple(f"{name}-account" for name in NAMES)), NAMES)
    village.begin()
    state, provider = village["auth0"].replica.state, account_of("auth3-account")
    least = state.parameters.provider_bond_min
    village["auth3"].want(BondDeposit(least))
    assert village.run_until(lambda: state.bond(provider).amount >= least, 10_000)

    book, now = village["auth0"].engine.book, village.now()
    offer = replace(OFFER, expires_at=now.wall_ms + 3_000_000)
    book.consider_offer(MessageId(b"o" * 32), offer, provider, least, least, now)
    village.run(5_000)
    assert book.offer_of(provider) is not None

    searched: list[int] = []
    drop = book.drop_unbonded

    def noted(bond_of: Callable[[AccountId], Amount], bond_min: Amount, now: Now) -> tuple[AccountId, ...]:
        searched.append(state.height)
        return drop(bond_of, bond_min, now)

    book.drop_unbonded = noted  # type: ignore[method-assign]
    village.run(5_000)
    assert searched == [], "nothing was decided meanwhile"
    village["auth3"].want(BondUnlock(state.bond(provider).amount))
    assert village.run_until(lambda: book.offer_of(provider) is None, 10_000)
    assert len(searched) == 1
