"""What must be true of the jobs of a buyer and a provider that were killed in the middle of them.

Law: once nothing runs, both sides hold the same vouchers, and all of them are redeemed; a job that both saw end well
costs its price on both sides, and no job more than its price, whoever died when; what a user saw finish was the right
answer. Vouchers are worth at least the jobs that ended well, and at most all jobs together: what was paid for the input
of a job that its provider's death cut short is owed, and set against a later one. Of such a job a provider may know
less than its buyer: the voucher that was on its way comes with the lane's state when the job is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from node.runtime.control import ChannelView, JobView
from tests.kill.jobs import RUN_BYTES_MAX, Run
from tests.kill.market import Market
from tests.network.waiting import seconds_until

SETTLED_SECONDS = 60.0
JOBS_MAX = 100_000
"""All of them: a list of the latest thousand would leave out jobs that the other side's list has."""
ENDED = ("done", "delivered", "failed", "cancelled")
REQUEST, INPUT_PER_THOUSAND, OUTPUT_PER_THOUSAND = 1_000, 10_000, 40_000
"""The prices that a cluster's provider asks, in base units."""


@dataclass(frozen=True, slots=True)
class Found:
    """Figures of one audit."""

    jobs: int
    done: int
    charged: int
    cut_short_charged: int
    """Jobs that did not end well and yet cost something: their input's processing, or chunks that arrived."""
    set_off: int
    """What providers owed for such jobs and later ones were spared."""


def _price(input_units: int, output_units: int) -> int:
    return REQUEST + -(-(input_units * INPUT_PER_THOUSAND + output_units * OUTPUT_PER_THOUSAND) // 1_000)


PRICE_MAX = REQUEST + (INPUT_PER_THOUSAND + OUTPUT_PER_THOUSAND) * RUN_BYTES_MAX // 1_000
"""Of any job of the load; less than the dearest one costs twice."""


def _by_id(views: Sequence[JobView]) -> dict[str, JobView]:
    found = {view.job: view for view in views}
    assert len(found) == len(views), "a node tells of one job twice"
    return found


def _promised(channels: Sequence[ChannelView]) -> dict[str, int]:
    return {channel.channel: channel.promised for channel in channels}


def wait_settled(market: Market) -> None:
    """Until no job runs and everything owed is redeemed."""

    def settled() -> bool:
        providers = market.role("provider")
        jobs = [view for node in (market.buyer, *providers) for view in node.client.jobs(JOBS_MAX)]
        channels = [channel for provider in providers for channel in provider.client.channels()]
        return all(job.state in ENDED for job in jobs) and all(
            channel.redeemed == channel.promised for channel in channels
        )

    seconds_until(settled, SETTLED_SECONDS, "every job ended and every voucher redeemed")


def audit_jobs(market: Market, runs: Sequence[Run]) -> Found:
    """All of the above. All nodes run, no job does."""
    bought = _by_id(market.buyer.client.jobs(JOBS_MAX))
    sold: dict[str, JobView] = {}
    promised: dict[str, int] = {}
    for provider in market.role("provider"):
        sold.update(_by_id(provider.client.jobs(JOBS_MAX)))
        promised.update(_promised(provider.client.channels()))
    for job, view in sold.items():
        other = bought.get(job)
        assert other is not None or view.amount == 0, f"job {job} was charged and its buyer knows nothing of it"
        if other is not None:
            assert view.amount <= other.amount, f"job {job}: buyer paid {other.amount}, provider has {view.amount}"
            if view.state == other.state == "done":
                price = _price(view.input_units, view.output_units)
                assert view.amount == other.amount == price, f"job {job}: {other.amount}, {view.amount}, not {price}"
    for job, view in bought.items():
        assert job in sold or view.amount == 0, f"job {job} was paid and no provider knows of it"
        assert view.amount <= PRICE_MAX, f"job {job} was charged {view.amount}"
    bought_promised = _promised(market.buyer.client.channels())
    assert bought_promised == promised, f"buyer promised {bought_promised}, providers hold {promised}"
    charged = sum(view.amount for view in bought.values())
    delivered = sum(view.amount for view in bought.values() if view.state == "done")
    total = sum(promised.values())
    assert delivered <= total <= charged, f"{delivered} were delivered, {total} promised, {charged} charged"
    for run in runs:
        if run.finished:
            assert run.output == run.text.encode(), f"{run}: a wrong answer"
            assert bought[run.job].amount == run.amount == sold[run.job].amount, f"{run}: another price in the books"
    done = [view for view in bought.values() if view.state == "done"]
    cut_short = [view for view in bought.values() if view.state != "done" and view.amount]
    return Found(len(bought), len(done), charged, len(cut_short), charged - total)
