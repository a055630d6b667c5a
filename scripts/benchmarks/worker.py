"""Jobs in sandboxed workers beside the same runtimes called directly: language models, texts, starts, memory, cancels.

Law: both sides of a ratio use the same model, the same settings and one thread, and are measured right after each
other. Each part adds its figures and its targets to one report.
"""

from collections.abc import Callable

from scripts.benchmarks import worker_starts, worker_tensors, worker_text
from scripts.benchmarks.measure import Report, note

PARTS: tuple[Callable[[Report, bool], None], ...] = (
    worker_starts.measure,
    worker_tensors.measure,
    worker_text.measure,
)


def measure(quick: bool) -> Report:
    """Every part, one after the other."""
    report = Report.start("jobs through sandboxed workers, and the same work done directly")
    for part in PARTS:
        note((part.__doc__ or "").partition("\n")[0])
        part(report, quick)
    return report
