"""``mercat models``, ``offers`` and ``quote``: what the market offers now."""

import click

from node.cli.options import CREDITS, Session, with_node
from node.cli.output import Output, credits_text, printable, short, table
from node.runtime.control import QUOTE_ROWS, QuoteRow, QuoteView, RunRequest
from protocol.primitives.units import Amount, format_credits

EVERYBODY = 65_536
"""More providers than an order book holds."""


@click.command()
@with_node
def models(session: Session) -> None:
    """Models that somebody offers now, with the lowest prices in credits for 1,000 units."""
    views = session.client.models()
    rows = [
        (
            view.name,
            view.runtime,
            str(view.providers),
            str(view.slots_free),
            format_credits(view.input_per_thousand_min),
            format_credits(view.output_per_thousand_min),
            format_credits(view.request_min),
            short(view.model, 18),
        )
        for view in views
    ]
    headers = ("MODEL", "RUNTIME", "PROVIDERS", "SLOTS FREE", "INPUT/1K", "OUTPUT/1K", "REQUEST", "ID")
    session.output.show(views, table(headers, rows), (view.model for view in views))


@click.command()
@with_node
def offers(session: Session) -> None:
    """Every model of every live offer, with prices in credits for 1,000 units."""
    views = session.client.offers()
    rows = [
        (
            short(view.provider),
            view.name,
            view.runtime,
            view.isolation,
            view.region or "-",
            f"{view.slots_free}/{view.slots_total}",
            format_credits(view.input_per_thousand),
            format_credits(view.output_per_thousand),
            format_credits(view.request),
            format_credits(view.bond),
        )
        for view in views
    ]
    headers = (
        "PROVIDER", "MODEL", "RUNTIME", "ISOLATION", "REGION", "SLOTS", "INPUT/1K", "OUTPUT/1K", "REQUEST", "BOND",
    )  # fmt: skip
    session.output.show(views, table(headers, rows), dict.fromkeys(view.provider for view in views))


@click.command()
@with_node
def bids(session: Session) -> None:
    """Requests of other nodes' buyers that wait for an offer: what is wanted, and what they would pay."""
    views = session.client.bids()
    rows = [
        (
            short(view.buyer),
            view.model if len(view.model) < 24 else short(view.model, 18),
            str(view.input_units_max),
            str(view.output_units_max),
            format_credits(view.price_ceiling),
        )
        for view in views
    ]
    headers = ("BUYER", "MODEL", "INPUT UNITS", "OUTPUT UNITS", "PAYS AT MOST")
    session.output.show(views, table(headers, rows), (view.buyer for view in views))


def print_quote(output: Output, quote_view: QuoteView) -> None:
    """Who would take the job, best first, and why others would not."""
    rows = [
        (
            short(row.provider),
            "yes" if row.would_take else "no",
            credits_text(row.price_expected) if row.would_take else "-",
            credits_text(row.price_ceiling) if row.would_take else "-",
            _time_text(row) if row.would_take else "-",
            _scores_text(row) if row.would_take else "-",
            row.reason or "",
        )
        for row in quote_view.rows
    ]
    takers = [row.provider for row in quote_view.rows if row.would_take]
    headers = ("PROVIDER", "TAKES IT", "EXPECTED", "AT MOST", "TIME", "SCORE", "BECAUSE")
    lines = [table(headers, rows)]
    if len(quote_view.rows) < quote_view.would + quote_view.would_not:
        lines.append(f"{quote_view.would} would take it, {quote_view.would_not} would not; --all lists everybody")
        lines += [f"  {count} x {printable(reason)}" for reason, count in quote_view.reasons]
    output.show(quote_view, "\n".join(lines), takers)
    if takers:
        output.note("score: price/speed/reputation/region, 1000 is best; `?` was never measured here")


def _time_text(row: QuoteRow) -> str:
    if row.expected_ms is None:
        return "?"
    return f"{row.expected_ms} ms" if row.expected_ms < 1000 else f"{row.expected_ms / 1000:.1f} s"


def _scores_text(row: QuoteRow) -> str:
    return "/".join(str(row.scores.get(factor, 0)) for factor in ("price", "speed", "reputation", "region"))


@click.command()
@click.argument("model")
@click.option("--max-price", type=CREDITS, help="Ceiling on all that the job may cost, in credits.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Output units at most.")
@click.option("--input-bytes", type=click.IntRange(min=0, max=1_000_000), default=0, help="Size of the input.")
@click.option("--provider", default="", metavar="ADDRESS", help="Only this provider's account.")
@click.option("--region", default="", help="Only providers of this region.")
@click.option("--isolation", default="", help="At least this level of isolation, such as strong.")
@click.option("--all", "everybody", is_flag=True, help="List every provider, however many.")
@with_node
def quote(
    session: Session,
    model: str,
    max_price: Amount | None,
    max_tokens: int,
    input_bytes: int,
    provider: str,
    region: str,
    isolation: str,
    everybody: bool,
) -> None:
    """Who would take a job on MODEL, at what price and in what time, and why each other provider would not.

    Answered by the node from its own order book: nobody is asked and nothing is signed.
    """
    request = RunRequest(
        model=model,
        format="bytes",
        body=bytes(input_bytes),
        output_units_max=max_tokens,
        price_max=int(max_price or 0),
        provider=provider,
        region=region,
        isolation=isolation,
    )
    print_quote(session.output, session.client.quote(request, EVERYBODY if everybody else QUOTE_ROWS))
