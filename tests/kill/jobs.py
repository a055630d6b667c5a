"""A load of jobs on the buyer's node, and what the buyer's user saw of each."""

import threading
from dataclasses import dataclass, field
from types import TracebackType

from node.cli.failures import CommandFailed
from node.runtime.control import RunRequest
from tests.kill.market import MODEL, Market

JOB_MS = 15_000
RUN_BYTES_MAX = 12
PAUSE_SECONDS = 0.02
UNREACHABLE_PAUSE_SECONDS = 0.25


@dataclass(slots=True)
class Run:
    """One job as its user saw it."""

    text: str
    """The input; ``RUN_BYTES_MAX`` bytes at most."""
    request: str = ""
    output: bytes = b""
    finished: bool = False
    amount: int = 0
    job: str = ""
    failure: str = ""


@dataclass(slots=True)
class Jobs:
    """Runs one job after the other in each of some threads, from enter to exit."""

    market: Market
    threads: int = 2
    runs: list[Run] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Jobs":
        self._stop.clear()
        self._running = [threading.Thread(target=self._keep_running) for _ in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join()

    def _keep_running(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                run = Run(f"job {len(self.runs)}")
                self.runs.append(run)
            self._run(run)
            self._stop.wait(PAUSE_SECONDS if run.finished else UNREACHABLE_PAUSE_SECONDS)

    def _run(self, run: Run) -> None:
        request = RunRequest(MODEL, "text", run.text.encode(), output_units_max=64, timeout_ms=JOB_MS)
        try:
            for event in self.market.buyer.client.run(request, JOB_MS / 1000 + 5):
                run.output += event.payload
                run.request = str(event.facts.get("request") or run.request)
                run.job = str(event.facts.get("job") or run.job)
                if event.event == "finished":
                    run.finished, run.amount = True, int(event.facts.get("amount") or 0)
                elif event.event in ("failed", "cancelled"):
                    run.failure = str(event.facts)
        except CommandFailed as error:
            run.failure = f"{error.code}: {error.message}"
        if not run.finished and not run.failure:
            run.failure = "the stream ended"
