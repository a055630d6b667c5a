"""The market at scale, without a network: choosing among many offers, and how offers reach everybody."""

from scripts.benchmarks.matching import measure_matching
from scripts.benchmarks.measure import Report
from scripts.benchmarks.propagation import measure_spread


def measure(quick: bool) -> Report:
    """What a match and a quote take among ten thousand offers, and how a thousand nodes hear of theirs."""
    report = Report.start("matching among many live offers, and offers spreading through a simulated network")
    measure_matching(report, quick)
    measure_spread(report, quick)
    return report
