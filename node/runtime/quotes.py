"""A quote as people see it: who would take a job, at what price and in what time, and why each other would not.

Law: from the local order book alone; nothing is signed and nobody is asked.
"""

from collections import Counter

from node.runtime.control import QuoteRow, QuoteView
from node.runtime.ledger_views import account_text
from node.runtime.wishes import Wish
from protocol.market.matching import Match, NoMatch
from protocol.primitives.units import AccountId


def quote_view(wish: Wish, rows_max: int) -> QuoteView:
    """Everybody counted, the first ``rows_max`` who would and who would not listed one by one."""
    served = wish.served()
    found = wish.quote(served, rows_max)
    refused = found.refused[: max(0, rows_max - len(found.ranked))]
    input_units, output_units = wish.limits(served)
    last = wish.want(served).demoted
    reasons = Counter(refusal.reason for refusal in found.refused)
    return QuoteView(
        model=served.name,
        rows=(*(_would(match, last) for match in found.ranked), *map(_would_not, refused)),
        input_units_max=input_units,
        output_units_max=output_units,
        price_max=wish.ceiling(),
        would=found.would,
        would_not=len(found.refused),
        reasons=tuple(sorted(reasons.items(), key=lambda counted: (-counted[1], counted[0]))),
    )


def _would(match: Match, last: tuple[AccountId, ...]) -> QuoteRow:
    scored, offer = match.scores, match.live.offer
    return QuoteRow(
        provider=account_text(match.live.account),
        would_take=True,
        price_ceiling=match.price_at_limits,
        reason="failed lately: asked only when nobody else is left" if match.live.account in last else None,
        price_expected=match.price_expected,
        expected_ms=match.expected_ms,
        slots_free=offer.slots_free,
        region=offer.region,
        isolation=offer.isolation_of(match.served),
        scores={
            "price": scored.price,
            "speed": scored.speed,
            "reputation": scored.reputation,
            "region": scored.region,
            "total": scored.total,
        },
    )


def _would_not(refusal: NoMatch) -> QuoteRow:
    return QuoteRow(account_text(refusal.account), False, 0, refusal.reason)
