"""Options of a job that say who may do it and how the price is found: they come together, as one ``JobTerms``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import Command, Session
from node.runtime.control import RunRequest
from protocol.primitives.limits import AUCTION_WINDOW_MS_MAX, REPLICAS_MAX

P = ParamSpec("P")

AUCTION_MS = 400
"""What ``--auction`` alone means: two windows of a fifth of a second."""


@dataclass(frozen=True, slots=True)
class JobTerms:
    """Who may do a job, and at whose price."""

    provider: str
    region: str
    isolation: str
    wait: float
    auction: int | None
    replicas: int
    replicas_min: int | None
    stream: bool

    def on(self, request: RunRequest) -> RunRequest:
        """The request on these terms. Raises ``CommandFailed`` where they contradict each other."""
        import msgspec

        if self.replicas > 1 and (self.provider or self.auction or self.wait):
            raise CommandFailed("--replicas takes no --provider, --auction or --wait", ExitCode.USAGE, "usage")
        if self.replicas_min is not None and self.replicas_min > self.replicas:
            raise CommandFailed("--replicas-min is above --replicas", ExitCode.USAGE, "usage")
        return msgspec.structs.replace(
            request,
            provider=self.provider,
            region=self.region,
            isolation=self.isolation,
            wait_ms=round(self.wait * 1000),
            auction_ms=self.auction,
            replicas=self.replicas,
            replicas_min=self.replicas if self.replicas_min is None else self.replicas_min,
        )


_OPTIONS = (
    click.option("--provider", default="", metavar="ADDRESS", help="Only this provider's account."),
    click.option("--region", default="", help="Only providers of this region."),
    click.option("--isolation", default="", help="At least this level of isolation, such as strong."),
    click.option("--wait", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait for a fitting offer."),
    click.option(
        "--auction",
        is_flag=False,
        flag_value=AUCTION_MS,
        type=click.IntRange(min=0, max=2 * AUCTION_WINDOW_MS_MAX),
        metavar="[MS]",
        help=f"Collect sealed quotes for so long first (alone: {AUCTION_MS}); 0: posted prices.",
    ),
    click.option(
        "--replicas",
        type=click.IntRange(min=1, max=REPLICAS_MAX),
        default=1,
        help="Do the job at so many providers, all under one ceiling, and compare their outputs.",
    ),
    click.option("--replicas-min", type=click.IntRange(min=1, max=REPLICAS_MAX), help="So many at least will do."),
    click.option("--stream", is_flag=True, help="With --replicas: show the first one's output before it is compared."),
)


def with_terms(command: Callable[Concatenate[Session, P], None]) -> Command:
    """Adds the options; the command gets them as ``terms``."""

    def wrapper(session: Session, **named: Any) -> None:
        terms = JobTerms(**{name: named.pop(name) for name in JobTerms.__slots__})
        command(session, terms=terms, **named)  # type: ignore[arg-type, call-arg]

    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    decorated: Command = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
