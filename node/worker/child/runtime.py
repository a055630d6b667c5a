"""The one interface behind which every runtime sits.

Law: `prepare` imports and runs before the second filter; `load` reads the model's bytes and runs after it. `check`
judges a request completely before any work is done. `step` does one bounded piece of work, so that cancels and new
jobs are seen between steps. A job computes at most one piece ahead of the credit it has, and never releases it early.
"""

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Literal

from node.worker.child.frames import Value

PIECE_BYTES_MAX = 1 << 20
OUTPUT_BYTES_MAX = 16 << 20
TEXTS_MAX = 256  # of one job that takes a list of texts
PIECES_MAX = 1 << 17  # each takes a hundred bytes beside its content, from the memory of all jobs


class Refused(Exception):
    """The request itself is at fault; the message says what is wrong with it."""


class LoadFailed(Exception):
    """The model can't be loaded; the worker ends."""


@dataclass(frozen=True, slots=True)
class Request:
    """One job's input, as the node passes it on. Nothing in it is trusted."""

    input_format: str
    payload: bytes
    max_output_units: int
    chunk_units: int
    seed: int
    temperature_milli: int
    stop: tuple[str, ...]
    prefix: bytes = b""
    """Output that is there already: what comes next goes on behind it."""
    output: str = "text"
    """`text`, or `tokens`: JSON lines, one for each token."""
    schema: str = ""
    """A JSON schema for the answer; empty: any text."""
    logprobs: int = 0
    """How many of the likeliest tokens are named beside each chosen one."""
    tenant: str = ""
    """Whose job it is: what is kept of it may serve the same tenant's next job, never another's."""
    grammar: str = ""
    """A grammar in GBNF for the answer; empty: any text. Not beside a schema."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is known of a model once its bytes were read, so nothing that a receipt relies on."""

    context_tokens: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Chunk 0 is done: the input was processed and counted."""

    job: int
    input_units: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One released piece of output."""

    job: int
    payload: bytes
    units: int
    tokens: tuple[int, ...]
    finish: str | None


@dataclass(frozen=True, slots=True)
class Broken:
    """The job failed while it ran, through no fault of the request."""

    job: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request turned out to be at fault while it ran."""

    job: int
    reason: str


Event = Prefilled | Piece | Broken | Rejected

REQUEST_FIELDS = (
    "input_format", "payload", "max_output_units", "chunk_units", "seed", "temperature_milli", "stop", "prefix",
    "output", "schema", "logprobs", "tenant", "grammar",
)  # fmt: skip
OUTPUTS = ("text", "tokens")
SCHEMA_BYTES_MAX = 64 << 10
LOGPROBS_MAX = 20
OUTPUT_UNITS_MAX = 1 << 24
TEMPERATURE_MILLI_MAX = 100_000
STOP_STRINGS_MAX = 4
STOP_STRING_BYTES_MAX = 256


def _integer(value: Value, name: str, lowest: int, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise Refused(f"{name} must be a whole number from {lowest} to {highest}")
    return value


def parse_request(value: Value) -> Request:
    """A request from a frame. Raises Refused on anything that isn't exactly one."""
    if not isinstance(value, dict) or sorted(value) != sorted(REQUEST_FIELDS):
        raise Refused("a request has exactly the fields " + ", ".join(REQUEST_FIELDS))
    input_format, payload, stop = value["input_format"], value["payload"], value["stop"]
    if not isinstance(input_format, str) or not isinstance(payload, bytes):
        raise Refused("input_format must be text and payload bytes")
    if not isinstance(stop, list) or len(stop) > STOP_STRINGS_MAX:
        raise Refused(f"stop must be a list of at most {STOP_STRINGS_MAX} strings")
    strings = []
    for text in stop:
        if not isinstance(text, str) or not 0 < len(text.encode("utf-8", "replace")) <= STOP_STRING_BYTES_MAX:
            raise Refused(f"a stop string has 1 to {STOP_STRING_BYTES_MAX} bytes")
        strings.append(text)
    prefix, output = value["prefix"], value["output"]
    schema, grammar, tenant = value["schema"], value["grammar"], value["tenant"]
    if not isinstance(prefix, bytes) or not isinstance(tenant, str):
        raise Refused("prefix must be bytes and tenant text")
    if not isinstance(output, str) or output not in OUTPUTS:
        raise Refused("output must be " + " or ".join(OUTPUTS))
    if not isinstance(schema, str) or len(schema.encode("utf-8", "replace")) > SCHEMA_BYTES_MAX:
        raise Refused(f"a schema is a text of at most {SCHEMA_BYTES_MAX} bytes")
    if not isinstance(grammar, str) or len(grammar.encode("utf-8", "replace")) > SCHEMA_BYTES_MAX:
        raise Refused(f"a grammar is a text of at most {SCHEMA_BYTES_MAX} bytes")
    if schema and grammar:
        raise Refused("an answer is held to a schema or to a grammar, not to both")
    logprobs = _integer(value["logprobs"], "logprobs", 0, LOGPROBS_MAX)
    if logprobs and output != "tokens":
        raise Refused("logprobs are given with output 'tokens' only")
    return Request(
        input_format,
        payload,
        _integer(value["max_output_units"], "max_output_units", 1, OUTPUT_UNITS_MAX),
        _integer(value["chunk_units"], "chunk_units", 1, OUTPUT_UNITS_MAX),
        _integer(value["seed"], "seed", 0, (1 << 64) - 1),
        _integer(value["temperature_milli"], "temperature_milli", 0, TEMPERATURE_MILLI_MAX),
        tuple(strings),
        prefix,
        output,
        schema,
        logprobs,
        tenant,
        grammar,
    )


Feature = Literal["prefix", "tokens", "schema", "grammar"]


class Runtime(ABC):
    """What can load one model and run several jobs on it."""

    features: frozenset[Feature] = frozenset()
    """What a request may ask for beyond an input and its output."""

    def refuse_unsupported(self, request: Request) -> None:
        """Refuse what this runtime would have to ignore. Raises Refused."""
        wishes: tuple[tuple[Feature, bool, str], ...] = (
            ("prefix", bool(request.prefix), "can't go on behind output that is there already"),
            ("tokens", request.output == "tokens", "has no tokens to report"),
            ("schema", bool(request.schema), "can't hold its answer to a schema"),
            ("grammar", bool(request.grammar), "can't hold its answer to a grammar"),
        )
        for feature, wanted, lack in wishes:
            if wanted and feature not in self.features:
                raise Refused(f"this model {lack}")

    @abstractmethod
    def prepare(self) -> dict[str, int | str]:
        """Import and initialise everything; no model byte is read yet. Returns settings that decide output bits."""

    @abstractmethod
    def load(self, files: dict[str, str], settings: dict[str, Value], slots: int) -> Loaded:
        """Load the model from read-only files (name in the manifest → path here). Raises LoadFailed."""

    @abstractmethod
    def open(self, job: int, request: Request) -> None:
        """Judge a request and take the job on. Raises Refused."""

    @abstractmethod
    def grant(self, job: int) -> None:
        """One more piece may be released. An unknown job is ignored: it may just have ended."""

    @abstractmethod
    def cancel(self, job: int) -> None:
        """Forget a job."""

    @property
    def wakes(self) -> int | None:
        """A descriptor that becomes readable when work that goes on outside of `step` has ended; None if none does."""
        return None

    @abstractmethod
    def busy(self) -> bool:
        """Whether `step` has something to do."""

    @abstractmethod
    def step(self) -> list[Event]:
        """Do one bounded piece of work and return what may be sent."""


@dataclass(slots=True)
class _SingleJob:
    request: Request
    credit: int = 0
    prefilled: bool = False
    pieces: deque[tuple[bytes, int]] | None = None
    input_units: int = 1


class SingleStepRuntime(Runtime):
    """A runtime whose whole output comes from one call: it is computed once, then released piece by piece."""

    def __init__(self) -> None:
        self._jobs: dict[int, _SingleJob] = {}

    @abstractmethod
    def check(self, request: Request) -> int:
        """Judge the request before the run; returns its input units. Raises Refused."""

    @abstractmethod
    def run(self, request: Request) -> list[tuple[bytes, int]]:
        """The output as pieces with their units, at least one. Raises Refused."""

    def open(self, job: int, request: Request) -> None:
        units = self.check(request)
        self._jobs[job] = _SingleJob(request, input_units=units)

    def grant(self, job: int) -> None:
        if job in self._jobs:
            self._jobs[job].credit += 1

    def cancel(self, job: int) -> None:
        self._jobs.pop(job, None)

    def _ready(self, state: _SingleJob) -> bool:
        return not state.prefilled or state.pieces is None or state.credit > 0

    def busy(self) -> bool:
        return any(self._ready(state) for state in self._jobs.values())

    def step(self) -> list[Event]:
        for job, state in list(self._jobs.items()):
            if not self._ready(state):
                continue
            self._jobs[job] = self._jobs.pop(job)  # to the back: jobs take turns
            if not state.prefilled:
                state.prefilled = True
                return [Prefilled(job, state.input_units)]
            if state.pieces is None:
                return self._run(job, state)
            return [self._release(job, state)]
        return []

    def _run(self, job: int, state: _SingleJob) -> list[Event]:
        try:
            state.pieces = deque(self.run(state.request))
        except Refused as refusal:
            del self._jobs[job]
            return [Rejected(job, str(refusal))]
        except MemoryError:
            del self._jobs[job]
            return [Broken(job, "out of memory")]
        return []

    def _release(self, job: int, state: _SingleJob) -> Piece:
        assert state.pieces is not None
        state.credit -= 1
        payload, units = state.pieces.popleft()
        finish = None if state.pieces else "done"
        if finish is not None:
            del self._jobs[job]
        return Piece(job, payload, units, (), finish)


def split(output: bytes, piece_bytes: int) -> list[bytes]:
    """Output cut into pieces of at most this size; an empty output is one empty piece. Raises Refused if too large."""
    if len(output) > OUTPUT_BYTES_MAX:
        raise Refused(f"the result has {len(output)} bytes; one job gives at most {OUTPUT_BYTES_MAX}")
    size = min(piece_bytes, PIECE_BYTES_MAX)
    if len(output) > size * PIECES_MAX:
        raise Refused(f"the result has {len(output)} bytes: pieces of {size} are too small for it")
    return [output[start : start + size] for start in range(0, len(output), size)] or [b""]
