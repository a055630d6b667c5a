"""The language-model runtime: continuous batching over llama.cpp, several jobs at once.

Law: each step evaluates one batch of at most 32 rows: one row for every job that is writing, the rest filled with
pieces of prompts in order of arrival. A job's output depends on nothing but its own request: not on its neighbours,
not on how its prompt was cut. The end token counts and is reported, so that a replay sees where the output ended.
"""

from collections import deque
from dataclasses import dataclass, field

from node.worker.child.frames import Value
from node.worker.child.llama import BATCH_ROWS, FLASH_ATTENTION, THREADS, DecodeFailed, Llama, Row
from node.worker.child.runtime import Broken, Event, Loaded, LoadFailed, Piece, Prefilled, Refused, Request, Runtime
from node.worker.child.sampling import choose
from node.worker.child.text import TEMPLATES, Template, TextStream, parse_text, parse_turns

CONTEXT_TOKENS_MAX = 1 << 17
BYTES_PER_TOKEN_MAX = 64  # a prompt with more bytes than this for each token of context can't fit
PIECES_AHEAD = 1


@dataclass(slots=True)
class _Job:
    """One sequence. `evaluated` counts tokens in the model's memory; `pending` is chosen but not evaluated yet."""

    number: int
    sequence: int
    request: Request
    prompt: list[int]
    output_max: int
    text: TextStream
    evaluated: int = 0
    pending: int | None = None
    produced: int = 0
    credit: int = 0
    finish: str | None = None
    payload: bytearray = field(default_factory=bytearray)
    tokens: list[int] = field(default_factory=list)
    ready: deque[Piece] = field(default_factory=deque)

    def reading(self) -> bool:
        return self.evaluated < len(self.prompt)

    def writing(self) -> bool:
        """Whether it has a token to evaluate and may: it stops a piece ahead of what was asked for."""
        return self.pending is not None and self.finish is None and len(self.ready) < PIECES_AHEAD

    def releasable(self) -> bool:
        return self.credit > 0 and bool(self.ready)

    def accept(self, token: int, content: bytes, ends: bool) -> None:
        """Take the chosen token into the output."""
        self.produced += 1
        self.tokens.append(token)
        if ends:
            self.finish = "stop"
        else:
            text, stopped = self.text.push(content)
            self.payload += text.encode()
            if stopped:
                self.finish = "stop"
            elif self.produced >= self.output_max:
                self.finish = "length"
        if self.finish is not None:
            self.payload += self.text.finish().encode()
            self.pending = None
        else:
            self.pending = token
        if self.finish is not None or len(self.tokens) >= self.request.chunk_units:
            self.ready.append(
                Piece(self.number, bytes(self.payload), len(self.tokens), tuple(self.tokens), self.finish)
            )
            self.payload.clear()
            self.tokens.clear()


class GgufRuntime(Runtime):
    """One GGUF model; jobs share batches."""

    def __init__(self) -> None:
        self._jobs: dict[int, _Job] = {}
        self._free: list[int] = []
        self._template: Template | None = None

    def prepare(self) -> dict[str, int | str]:
        self._llama = Llama()
        return {
            "flash_attn": FLASH_ATTENTION,
            "n_ubatch": BATCH_ROWS,
            "n_threads": THREADS,
            "processor": self._llama.processor.strip(" |"),
        }

    def load(self, files: dict[str, str], settings: dict[str, Value], slots: int) -> Loaded:
        model, context_tokens = settings.get("model_file"), settings.get("context_tokens")
        template = settings.get("chat_template")
        if not isinstance(model, str) or model not in files:
            raise LoadFailed("the manifest must name the model's file")
        if not isinstance(context_tokens, int) or not 1 <= context_tokens <= CONTEXT_TOKENS_MAX:
            raise LoadFailed(f"context_tokens must be from 1 to {CONTEXT_TOKENS_MAX}")
        if template is not None:
            if not isinstance(template, str) or template not in TEMPLATES:
                raise LoadFailed("unknown chat_template; known: " + ", ".join(TEMPLATES))
            self._template = TEMPLATES[template]
        self._llama.load(files[model], context_tokens, slots)
        self._free = list(range(slots))
        return Loaded(self._llama.context_tokens)

    def open(self, job: int, request: Request) -> None:
        prompt = self._prompt(request)
        room = self._llama.context_tokens - len(prompt)
        if room < 1:
            raise Refused(
                f"the prompt is too long: it has {len(prompt)} tokens or more, and the model's context of "
                f"{self._llama.context_tokens} must also hold the answer"
            )
        if not prompt:
            raise Refused("the prompt is empty")
        if not self._free:
            raise Refused("every sequence of this worker is in use")
        output_max = min(request.max_output_units, room)
        self._jobs[job] = _Job(job, self._free.pop(0), request, prompt, output_max, TextStream(request.stop))

    def _prompt(self, request: Request) -> list[int]:
        limit = self._llama.context_tokens
        if len(request.payload) > limit * BYTES_PER_TOKEN_MAX:
            raise Refused(
                f"the prompt is too long: {len(request.payload)} bytes can't fit the context of {limit} tokens"
            )
        try:
            if request.input_format == "text":
                text = parse_text(request.payload)
                return self._llama.begin() + self._llama.tokenize(text, markers=True, limit=limit)
            if request.input_format != "chat" or self._template is None:
                raise Refused("this model takes input_format 'text'" + (" or 'chat'" if self._template else ""))
            tokens = self._llama.begin()
            for text, marker in self._template(parse_turns(request.payload)):
                tokens += self._llama.tokenize(text, markers=marker, limit=limit)
        except DecodeFailed as error:
            raise Refused(str(error)) from None
        return tokens

    def grant(self, job: int) -> None:
        if job in self._jobs:
            self._jobs[job].credit += 1

    def cancel(self, job: int) -> None:
        if job in self._jobs:
            self._end(job)

    def _end(self, job: int) -> None:
        state = self._jobs.pop(job)
        self._llama.forget(state.sequence)
        self._free.append(state.sequence)

    def busy(self) -> bool:
        return any(state.reading() or state.writing() or state.releasable() for state in self._jobs.values())

    def step(self) -> list[Event]:
        events = self._release()
        rows, asked = self._batch()
        if not rows:
            return events
        try:
            logits = self._llama.evaluate(rows)
        except DecodeFailed as error:
            touched = sorted({row.sequence for row in rows})
            return events + self._break(touched, str(error))
        for state, scores in zip(asked, logits, strict=True):
            if state.produced == 0:
                events.append(Prefilled(state.number, len(state.prompt)))
            request = state.request
            token = choose(scores, request.temperature_milli, request.seed, state.evaluated)
            ends = self._llama.ends(token)
            state.accept(token, b"" if ends else self._llama.text_of(token), ends)
        return events + self._release()

    def _batch(self) -> tuple[list[Row], list[_Job]]:
        """Rows of the next batch, and the jobs whose logits it asks for, in the order of those rows."""
        rows: list[Row] = []
        asked: list[_Job] = []
        for state in self._jobs.values():
            if state.writing() and len(rows) < BATCH_ROWS:
                assert state.pending is not None
                rows.append(Row(state.sequence, state.pending, state.evaluated, True))
                state.evaluated += 1
                asked.append(state)
        for state in self._jobs.values():
            while state.reading() and len(rows) < BATCH_ROWS:
                token, position = state.prompt[state.evaluated], state.evaluated
                state.evaluated += 1
                wanted = not state.reading()
                rows.append(Row(state.sequence, token, position, wanted))
                if wanted:
                    asked.append(state)
        return rows, asked

    def _release(self) -> list[Event]:
        events: list[Event] = []
        for state in list(self._jobs.values()):
            while state.releasable():
                state.credit -= 1
                piece = state.ready.popleft()
                events.append(piece)
                if piece.finish is not None:
                    self._end(state.number)
                    break
        return events

    def _break(self, sequences: list[int], reason: str) -> list[Event]:
        broken: list[Event] = []
        for state in list(self._jobs.values()):
            if state.sequence in sequences:
                self._end(state.number)
                broken.append(Broken(state.number, reason))
        return broken
