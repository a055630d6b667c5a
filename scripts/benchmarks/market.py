"""The market: jobs that do nothing through all of it, choosing among many offers, and how offers reach everybody."""

from scripts.benchmarks.market_jobs import measure_jobs
from scripts.benchmarks.matching import measure_matching
from scripts.benchmarks.measure import Report
from scripts.benchmarks.propagation import measure_spread


def measure(quick: bool) -> Report:
    """What a job costs beside its work, what a match and a quote take among ten thousand offers, and how a thousand
    nodes hear of theirs."""
    report = Report.start("no-op jobs, matching among many live offers, offers spreading through a simulated network")
    measure_jobs(report, quick)
    measure_matching(report, quick)
    measure_spread(report, quick)
    return report
