"""What a person reads about a provider."""

import pytest

from node.cli.provider_show import duration_text, origin_text, record_text, value_text
from node.runtime.record_bodies import FactView, RecordView, ScoreView

ROW = "74" * 34


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [(0, "0 s"), (61_000, "1 min 1 s"), (93_600_000, "1 d 2 h"), (2_592_000_000, "30 d"), (3_600_500, "1 h")],
)
def test_a_time_is_shown_in_its_two_largest_units(milliseconds: int, expected: str) -> None:
    assert duration_text(milliseconds) == expected


def test_every_figure_is_shown_with_its_origin_and_control_characters_of_strangers_are_not() -> None:
    facts = (
        FactView("provider", "volume", 1_500_000, "base units", f"ledger after block 7, row {ROW}: amounts"),
        FactView("provider", "last active", 61_000, "ledger ms ago", "ledger after block 7, row 74"),
        FactView("offer", "region", "eu\x1b[2J", "text", "its signed offer"),
    )
    score = ScoreView(
        "provider", 480, 500, 12, 24, 1000, 938, True, "(500 of everybody + 12 earned) × 938 ‰ = 480; earned: so"
    )
    shown = record_text(RecordView("mc1x", None, 7, 90_000, (score,), facts))
    assert "480 of 1000 (newcomer)" in shown
    assert shown.splitlines()[4].strip() == "(500 of everybody + 12 earned) × 938 ‰ = 480"
    assert "\x1b" not in shown
    for fact in facts:
        line = next(line for line in shown.splitlines() if fact.name in line)
        assert value_text(fact) in line
        assert origin_text(fact) in line


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        (f"ledger after block 7, row {ROW}: amounts redeemed", "ledger: amounts redeemed"),
        (f"ledger after block 7, no row {ROW}", "ledger"),
        (f"its signed offer {ROW}, number 3, by gossip: its own claims", "its signed offer"),
        ("this node's memory since its start", "this node's memory since its start"),
        (f"something with {ROW}", f"something with {ROW[:16]}…"),
    ],
)
def test_origins_leave_out_what_stands_above(origin: str, shown: str) -> None:
    assert origin_text(FactView("provider", "volume", 1, "jobs", origin)) == shown
