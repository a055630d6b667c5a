"""Runs a batch's lines: so many at once as the market bears, never more money at stake than the ceiling leaves.

Law: what a running job may cost at most is reserved before it starts and given back when it ends, so that the total
can't be passed. A try whose end was not seen is looked up by its request's id; only what the node never started, or
ended without a result, is tried again. Capacity is no failure: it makes the batch slower.
"""

import base64
import contextlib
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

import msgspec

from node.cli.batch_input import InputFile, Task
from node.cli.batch_journal import Fault, Journal, Result, Usage
from node.cli.client import NodeClient
from node.cli.failures import CommandFailed, ExitCode
from node.cli.run import GRACE_SECONDS
from node.runtime.control import QuoteView, RequestView, RunEvent, RunRequest

TICK_SECONDS = 0.2
BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Pauses after refusals for want of capacity, one after the other; the last one again and again."""

RESOLVE_SECONDS = 20.0
"""A job whose asker is gone is cancelled at once; one that was about to be paid ends within its stall deadline."""

CANCEL_SECONDS = 10.0
CEILING_SHARES = 2
"""Without --max-price a job may cost so many times the dearest willing provider's price: room for a second provider."""

_QUOTES_MAX = 1024


class Ended(Enum):
    """How a try ended."""

    DONE = "done"
    FAILED = "failed"
    NO_CAPACITY = "no capacity"
    CANCELLED = "cancelled"
    LOST = "lost"
    """The node hung up or is gone."""


class Outcome(msgspec.Struct, frozen=True):
    """One try's end. ``paid`` in base units."""

    place: int
    ended: Ended
    paid: int
    result: Result | None
    reason: str
    stop: str = ""
    """Why no further line needs to be started, such as an empty account."""


class Options(msgspec.Struct, frozen=True):
    """How a batch is run; results do not depend on it. Amounts in base units, 0: no such bound."""

    concurrency: int
    price_max: int
    total_max: int
    timeout: float
    provider: str
    region: str
    isolation: str


class Batch:
    """One run over the lines that wait."""

    def __init__(self, client: NodeClient, source: InputFile, journal: Journal, options: Options) -> None:
        self._client = client
        self._source = source
        self._journal = journal
        self._options = options
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._running: dict[int, int] = {}
        """Place → what is reserved for it."""
        self._most = float(max(1, min(options.concurrency, self._slots())))
        """More than the market has room for would only be refused."""
        self._limit = self._most
        self._refusals = 0
        self._paused_until = 0.0
        self._progressed_at = time.monotonic()
        self._quotes: dict[tuple[str, int, int], tuple[int, int]] = {}
        self.stopped_because = ""
        """Why lines were left; empty when all have ended."""

    @property
    def running(self) -> int:
        """Jobs under way."""
        return len(self._running)

    def run(self, tell: Callable[[], None]) -> None:
        """Run until every line has ended or nothing more can be started; ``tell`` is called now and then.

        ``KeyboardInterrupt`` cancels what runs and keeps what is done. Raises ``CommandFailed`` when the node is gone.
        """
        threads = ThreadPoolExecutor(self._options.concurrency, thread_name_prefix="batch")
        try:
            self._resolve(tell)
            while self._start_more(threads) or self._running:
                tell()
                with contextlib.suppress(queue.Empty):
                    self._take(self._outcomes.get(timeout=TICK_SECONDS))
                    while True:
                        self._take(self._outcomes.get_nowait())
            tell()
        except KeyboardInterrupt:
            self._cancel_all(tell)
            raise
        finally:
            threads.shutdown(wait=not self._running, cancel_futures=True)

    # Starting

    def _start_more(self, threads: ThreadPoolExecutor) -> bool:
        """Start what may be started now; whether lines still wait for it."""
        while not self.stopped_because:
            if len(self._running) >= max(1, int(self._limit)) or time.monotonic() < self._paused_until:
                return True
            place = self._journal.take()
            if place is None:
                return False
            task = self._source.task(place)
            ceiling = self._ceiling(task.request)
            if ceiling is None:
                self._journal.give_back(place)
                return not self.stopped_because
            request = msgspec.structs.replace(
                task.request,
                price_max=ceiling,
                timeout_ms=round(self._options.timeout * 1000),
                request=self._journal.request(place),
                provider=self._options.provider,
                region=self._options.region,
                isolation=self._options.isolation,
            )
            self._running[place] = ceiling
            self._journal.started(place)
            threads.submit(self._try, place, task, request)
        return False

    def _ceiling(self, request: RunRequest) -> int | None:
        """What the job may cost, or ``None`` while the total leaves too little; then ``stopped_because`` may say so."""
        total, wanted = self._options.total_max, self._options.price_max
        if not total:
            return wanted
        least = wanted
        if not wanted:
            quoted = self._quoted(request)
            if quoted is None:
                self._wait_for_capacity()
                return None
            least, wanted = quoted
        left = total - self._journal.spent - sum(self._running.values())
        if left >= wanted:
            return wanted
        if self._running:
            return None  # what runs may turn out cheaper than what is reserved for it
        if left >= least and left > 0:
            return left
        self.stopped_because = "--max-total leaves too little for the next job"
        return None

    def _wait_for_capacity(self) -> None:
        """Nobody takes the next job now, and nothing was asked yet."""
        self._pause()
        if not self._running and time.monotonic() - self._progressed_at >= self._options.timeout:
            self.stopped_because = "nobody takes the next job; see `mercat quote`"

    def _pause(self) -> None:
        self._paused_until = time.monotonic() + BACKOFF_SECONDS[min(self._refusals, len(BACKOFF_SECONDS) - 1)]
        self._refusals += 1

    def _quoted(self, request: RunRequest) -> tuple[int, int] | None:
        """The least that a willing provider asks for such a job, and what to reserve; ``None`` if nobody is willing."""
        key = (request.model, len(request.body), request.output_units_max)
        if key not in self._quotes:
            takers = _takers(self._client.quote(request))
            if len(self._quotes) >= _QUOTES_MAX:
                self._quotes.clear()
            if not takers:
                return None
            self._quotes[key] = min(takers), CEILING_SHARES * max(takers)
        return self._quotes[key]

    def _slots(self) -> int:
        """Slots of all live offers of the batch's models."""
        wanted = self._source.models
        slots: dict[str, int] = {}
        for offer in self._client.offers():
            if offer.model in wanted:
                slots[offer.provider] = offer.slots_total
        return sum(slots.values())

    # One try, in a thread of its own

    def _try(self, place: int, task: Task, request: RunRequest) -> None:
        try:
            outcome = self._ask(place, task, request)
        except CommandFailed as error:
            outcome = self._refused(place, task, error)
        except Exception as error:  # a defect must end the batch, not hang it
            outcome = Outcome(place, Ended.LOST, 0, None, f"{type(error).__name__}: {error}", stop="a defect")
        self._outcomes.put(outcome)

    def _ask(self, place: int, task: Task, request: RunRequest) -> Outcome:
        output = bytearray()
        with contextlib.closing(self._client.run(request, self._options.timeout + GRACE_SECONDS)) as events:
            for event in events:
                if event.event == "output":
                    output += event.payload
                elif event.event in ("finished", "failed", "cancelled"):
                    return self._ended(place, task, event, bytes(output))
        return Outcome(place, Ended.LOST, 0, None, "the node hung up before the job ended")

    def _ended(self, place: int, task: Task, event: RunEvent, output: bytes) -> Outcome:
        facts = event.facts
        paid = _number(facts.get("paid", 0))
        if event.event == "cancelled":
            return Outcome(place, Ended.CANCELLED, paid, None, "cancelled")
        if event.event == "finished":
            view = RequestView(
                request="",
                state="done",
                job=str(facts.get("job", "")),
                provider=str(facts.get("provider", "")),
                paid=paid or _number(facts.get("amount", 0)),
                input_units=_number(facts.get("input_units", 0)),
                output_units=_number(facts.get("output_units", 0)),
                finish=str(facts.get("finish", "")),
                output=output,
            )
            return self._outcome(place, task, view)
        fault, reason = str(facts.get("fault", "")), str(facts.get("reason", "failed"))
        view = RequestView("", "failed", str(facts.get("job", "")), paid=paid, fault=fault, reason=reason)
        return self._outcome(place, task, view)

    def _outcome(self, place: int, task: Task, view: RequestView) -> Outcome:
        """What a request that has ended means for its line."""
        if view.state == "failed" and view.fault == "capacity" and not view.paid:
            return Outcome(place, Ended.NO_CAPACITY, 0, None, view.reason)
        if view.state not in ("done", "delivered", "failed"):
            return Outcome(place, Ended.CANCELLED, view.paid, None, view.reason)
        price = self._journal.paid(place) + view.paid
        if view.state == "failed" or view.finish == "failed":
            reason = view.reason or "the program ended with an error"
            error = Fault(view.fault or "user", reason)
            job = view.job if any(character != "0" for character in view.job) else ""
            result = Result(task.line, task.identity, price=price, provider=view.provider, job=job, error=error)
            return Outcome(place, Ended.FAILED, view.paid, result, reason)
        text, encoded = _text(view.output)
        usage = Usage(view.input_units, view.output_units)
        result = Result(
            task.line, task.identity, text, encoded, view.finish, usage, price, view.provider, view.job
        )  # fmt: skip
        return Outcome(place, Ended.DONE, view.paid, result, "")

    def _refused(self, place: int, task: Task, error: CommandFailed) -> Outcome:
        """The node did not start the job, or no more is heard of it."""
        if error.code == "request_known":
            return self._look_up(place, task)
        if error.code == "no_provider" and "slots" in error.message:
            return Outcome(place, Ended.NO_CAPACITY, 0, None, error.message)
        if error.code in ("node_unreachable", "timeout", "too_slow"):
            return Outcome(place, Ended.LOST, 0, None, error.message)
        if error.exit_code == ExitCode.KEYS_OR_FUNDS:
            return Outcome(place, Ended.CANCELLED, 0, None, error.message, stop=error.message)
        fault = "capacity" if error.exit_code == ExitCode.UNREACHABLE else "user"
        result = Result(task.line, task.identity, price=self._journal.paid(place), error=Fault(fault, error.message))
        return Outcome(place, Ended.FAILED, 0, result, error.message)

    def _look_up(self, place: int, task: Task) -> Outcome:
        """What became of a try that was made before, once it has ended."""
        until = time.monotonic() + RESOLVE_SECONDS
        request = self._journal.request(place)
        while True:
            view = self._client.request(request)
            if view.state == "unknown":
                return Outcome(place, Ended.CANCELLED, 0, None, "never started")
            if view.state in ("done", "delivered", "failed", "cancelled"):
                return self._outcome(place, task, view)
            if time.monotonic() >= until:
                message = f"the node is still busy with {request[:16]}… of an earlier run; try again in a moment"
                raise CommandFailed(message, ExitCode.TIMEOUT, "timeout")
            time.sleep(TICK_SECONDS)

    # Ends

    def _take(self, outcome: Outcome) -> None:
        place, journal = outcome.place, self._journal
        if outcome.ended is Ended.LOST:
            outcome = self._after_loss(outcome)
        self._running.pop(place, None)
        self.stopped_because = self.stopped_because or outcome.stop
        if outcome.ended is Ended.NO_CAPACITY:
            outcome = self._slow_down(outcome)
        else:
            self._progressed_at = time.monotonic()
        if outcome.result is None:
            journal.came_to_nothing(place, outcome.paid)
            return
        journal.ended(place, outcome.paid, outcome.result)
        if outcome.ended is Ended.DONE:
            self._refusals = 0
            self._limit = min(self._most, self._limit + 1 / self._limit)

    def _slow_down(self, outcome: Outcome) -> Outcome:
        """As many at once as run now: the next one starts when one of them ends, or after a pause when none runs.

        A line fails for want of capacity only when nothing at all has gone on for long.
        """
        self._limit = max(1.0, float(len(self._running)))
        if not self._running:
            self._pause()
        if time.monotonic() - self._progressed_at < self._options.timeout:
            return outcome
        task = self._source.task(outcome.place)
        error = Fault("capacity", outcome.reason)
        result = Result(task.line, task.identity, price=self._journal.paid(outcome.place), error=error)
        return Outcome(outcome.place, Ended.FAILED, 0, result, outcome.reason)

    def _after_loss(self, outcome: Outcome) -> Outcome:
        """A stream broke off: the node tells what became of the job; if it can't, the batch ends, to be resumed."""
        if outcome.stop:
            raise CommandFailed(outcome.reason, ExitCode.FAILED, "defect")
        try:
            return self._look_up(outcome.place, self._source.task(outcome.place))
        except CommandFailed as error:
            raise CommandFailed(
                f"{error.message}; nothing is lost: the same command goes on", error.exit_code, error.code
            ) from None

    def _resolve(self, tell: Callable[[], None]) -> None:
        """Before anything new: what became of the tries that an earlier process had under way."""
        for place in self._journal.unresolved():
            tell()
            self._take(self._look_up(place, self._source.task(place)))
        self._refusals, self._paused_until, self._limit = 0, 0.0, self._most

    def _cancel_all(self, tell: Callable[[], None]) -> None:
        """Ask the node to end what runs and wait for it a little; what is not heard of is looked up by the next run."""
        self.stopped_because = "interrupted"
        for place in tuple(self._running):
            with contextlib.suppress(CommandFailed):
                self._client.cancel(self._journal.request(place), CANCEL_SECONDS)
        until = time.monotonic() + CANCEL_SECONDS
        while self._running and time.monotonic() < until:
            tell()
            with contextlib.suppress(queue.Empty, CommandFailed):
                self._take(self._outcomes.get(timeout=TICK_SECONDS))


def _takers(quote: QuoteView) -> list[int]:
    return [row.price_ceiling for row in quote.rows if row.would_take]


def _number(fact: str | int | bool | None) -> int:
    return fact if isinstance(fact, int) else 0


def _text(output: bytes) -> tuple[str | None, str | None]:
    try:
        return output.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(output).decode()
