"""Matching and quoting among many live offers: the whole search, nothing kept from one wish to the next.

Every wish is another one (its size, its random bytes), as prompts are. Three kinds of book: prices all over the place,
prices that differ in the last digit, and offers that are all the same. Times are the processor's: nothing here waits.
"""

import random
import time
from collections.abc import Callable

from node.runtime.control import QUOTE_ROWS
from protocol.market.matching import Want
from protocol.market.offer_search import best_offer, quote
from protocol.market.order_book import OrderBook
from protocol.messages.effects import Now
from protocol.messages.market import ModelOffer, Offer, Prices
from protocol.primitives.units import (
    CREDIT,
    AccountId,
    Amount,
    Hash,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from scripts.benchmarks.measure import Report

MODEL = ModelId(b"m" * 32)
OFFERS = 10_000
_NOW = Now(MonotonicMs(1_000), TimestampMs(1_700_000_000_000))
_REGIONS = ("eu", "us", "ap")
_ISOLATIONS = ("strong", "strong", "strong", "fallback", "declared")


def _scattered(dice: random.Random, number: int) -> Prices:
    return Prices(
        Amount(dice.randint(500, 2_000)), Amount(dice.randint(5_000, 20_000)), Amount(dice.randint(20_000, 80_000))
    )


def _close(dice: random.Random, number: int) -> Prices:
    return Prices(Amount(1_000), Amount(10_000), Amount(40_000 + number))


def _equal(dice: random.Random, number: int) -> Prices:
    return Prices(Amount(1_000), Amount(10_000), Amount(40_000))


KINDS: dict[str, Callable[[random.Random, int], Prices]] = {"scattered": _scattered, "close": _close, "equal": _equal}


def filled_book(kind: str, offers: int, dice: random.Random) -> OrderBook:
    """A book of so many providers of one model, a tenth of them busy."""
    book = OrderBook()
    for number in range(offers):
        served = ModelOffer(
            MODEL, "model", "gguf", "build", "", KINDS[kind](dice, number), WorkUnits(4_096), WorkUnits(1_024)
        )
        slots_free = 0 if dice.random() < 0.1 else dice.randint(1, 4)
        offer = Offer(
            NodeId(dice.randbytes(32)),
            SequenceNumber(1),
            TimestampMs(_NOW.wall_ms + 60_000),
            ("127.0.0.1:7400",),
            dice.choice(_REGIONS),
            dice.choice(_ISOLATIONS),
            4,
            slots_free,
            (served,),
        )
        account = AccountId(dice.randbytes(32))
        book.consider_offer(MessageId(dice.randbytes(32)), offer, account, Amount(1), Amount(1), _NOW)
    for live in dice.sample(book.offers(), 32):
        book.paces.learn(MODEL, live.account, dice.randint(50, 500), dice.randint(5_000, 50_000))
    return book


def wish(dice: random.Random) -> Want:
    """One more wish, unlike the last."""
    input_units, output_units = WorkUnits(dice.randint(10, 2_000)), WorkUnits(dice.randint(16, 512))
    return Want(
        buyer=AccountId(bytes(32)),
        model=MODEL,
        input_units_max=input_units,
        output_units_max=output_units,
        input_units_expected=input_units,
        output_units_expected=output_units,
        price_ceiling=Amount(CREDIT),
        unique=Hash(dice.randbytes(32)),
        isolation=dice.choice(("", "strong")),
        region=dice.choice(("", "", "eu")),
        region_preferred=dice.choice(("", "us")),
    )


def measure_matching(report: Report, quick: bool = False) -> None:
    """Add what a match and a quote take to a report."""
    offers, wishes = (500, 20) if quick else (OFFERS, 200)
    for kind in KINDS:
        dice = random.Random(kind)
        key = f"offers={offers},prices={kind}"
        started = time.thread_time()
        book = filled_book(kind, offers, dice)
        report.add(f"market.offer_taken.mean/{key}", (time.thread_time() - started) / offers * 1e6, "µs")
        best_offer(book, wish(dice), _NOW)  # the index is made once and kept up from then on
        matched, quoted = [], []
        for _ in range(wishes):
            want = wish(dice)
            started = time.thread_time()
            best = best_offer(book, want, _NOW)
            matched.append(time.thread_time() - started)
            assert best is not None
        for _ in range(max(5, wishes // 10)):
            want = wish(dice)
            started = time.thread_time()
            found = quote(book, want, _NOW, ranked_max=QUOTE_ROWS)
            quoted.append(time.thread_time() - started)
            assert found.would + len(found.refused) == offers
        report.latencies(f"market.match/{key}", matched)
        report.latencies(f"market.quote/{key}", quoted)
        if not quick:
            report.target(f"market.match.p50/{key}", "<=", 1.0)
            report.target(f"market.quote.p50/{key}", "<=", 50.0)


if __name__ == "__main__":
    own = Report.start(f"Matching and quoting among {OFFERS} live offers of one model")
    measure_matching(own)
    own.tell()
