"""The language-model runtime: continuous batching over llama.cpp, several jobs at once.

Law: each step evaluates one batch of at most 32 rows: one row for every job that is writing, or pieces of prompts in
order of arrival, as many as the step has time for. Writers wait for readers, but never long: the library would compute
both kinds apart anyway, and jobs that start together write together. A job's output depends on nothing but its own
request: not on its neighbours, not on how its prompt was cut, not on what its sequence held. The end token counts and
is reported, so that a replay sees where the output ended.
"""

import time

from node.worker.child.frames import Value
from node.worker.child.gguf_job import TextJob, TokenFacts
from node.worker.child.gguf_pace import Pace
from node.worker.child.gguf_sequences import Sequences
from node.worker.child.llama import BATCH_ROWS, FLASH_ATTENTION, THREADS, DecodeFailed, Llama, Row
from node.worker.child.llama_proof import prove
from node.worker.child.runtime import (
    Broken,
    Event,
    Feature,
    Loaded,
    LoadFailed,
    Prefilled,
    Refused,
    Rejected,
    Request,
    Runtime,
)
from node.worker.child.sampling import Logits, NothingFits, choose, likelihoods
from node.worker.child.text import TEMPLATES, Template, TextStream, parse_prefix, parse_text, parse_turns
from node.worker.child.text_grammar import GrammarTooLarge
from node.worker.child.text_guide import GRAMMAR_RULES, SCHEMA_RULES, Guide, Vocabulary, grammar_for

TOO_OPEN = "the schema or grammar leaves too many different answers open at once"
CONTEXT_TOKENS_MAX = 1 << 17
ROWS_READ_LEAST = 8  # however long it takes: small batches are dear
BYTES_PER_TOKEN_MAX = 64  # a prompt with more bytes than this for each token of context can't fit


class GgufRuntime(Runtime):
    """One GGUF model; jobs share batches."""

    features: frozenset[Feature] = frozenset({"prefix", "tokens", "schema", "grammar"})

    def __init__(self) -> None:
        self._jobs: dict[int, TextJob] = {}
        self._template: Template | None = None
        self._vocabulary: Vocabulary | None = None
        self._turn = 0
        self.rows_evaluated = 0
        """Tokens that went through the model so far, whosever they were."""

    def prepare(self) -> dict[str, int | str]:
        self._llama = Llama()
        self._invariant = prove(self._llama)
        return {
            "flash_attn": FLASH_ATTENTION,
            "n_ubatch": BATCH_ROWS,
            "n_threads": THREADS,
            "invariant": int(self._invariant),
            "schema_rules": SCHEMA_RULES,
            "grammar_rules": GRAMMAR_RULES,
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
        canonical = self._invariant and bool(settings.get("canonical"))
        self._sequences = Sequences(slots, self._llama.keep, remember=canonical)
        self._pace = Pace(follows_the_clock=canonical)
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
        guide = self._guide(request)
        if not self._sequences.any_idle():
            raise Refused("every sequence of this worker is in use")
        sequence, held = self._sequences.take(request.tenant, prompt)
        output_max = min(request.max_output_units, room)
        text = TextStream(request.stop)
        self._jobs[job] = TextJob(job, sequence, request, prompt, output_max, text, guide, evaluated=held)

    def _prompt(self, request: Request) -> list[int]:
        """Tokens of the input and of the output that is there already, cut where the first worker's were."""
        limit = self._llama.context_tokens
        size = len(request.payload) + len(request.prefix)
        if size > limit * BYTES_PER_TOKEN_MAX:
            raise Refused(f"the prompt is too long: {size} bytes can't fit the context of {limit} tokens")
        try:
            if request.input_format == "text":
                pieces = [(parse_text(request.payload), True)]
            elif request.input_format == "chat" and self._template is not None:
                pieces = self._template(parse_turns(request.payload))
            else:
                raise Refused("this model takes input_format 'text'" + (" or 'chat'" if self._template else ""))
            tokens = self._llama.begin()
            for text, marker in [*pieces, (parse_prefix(request.prefix), False)]:
                tokens += self._llama.tokenize(text, markers=marker, limit=limit) if text else []
        except DecodeFailed as error:
            raise Refused(str(error)) from None
        return tokens

    def _guide(self, request: Request) -> Guide | None:
        if not request.schema and not request.grammar:
            return None
        if request.stop:
            raise Refused("an answer that is held to a schema or grammar can't have stop strings: they would cut it")
        grammar = grammar_for(request)
        if self._vocabulary is None:
            pieces = [self._llama.text_of(token) for token in range(self._llama.tokens)]
            self._vocabulary = Vocabulary(pieces, [token for token in range(len(pieces)) if self._llama.ends(token)])
        try:
            return Guide(grammar, self._vocabulary, request.prefix)
        except GrammarTooLarge:
            raise Refused(TOO_OPEN) from None

    def grant(self, job: int) -> None:
        if job in self._jobs:
            self._jobs[job].credit += 1

    def cancel(self, job: int) -> None:
        if job in self._jobs:
            self._end(job)

    def _end(self, job: int) -> None:
        state = self._jobs.pop(job)
        self._sequences.give_back(state.sequence, state.request.tenant, state.remembered())

    def busy(self) -> bool:
        return any(state.reading() or state.writing() or state.releasable() for state in self._jobs.values())

    def step(self) -> list[Event]:
        events = self._release()
        rows, asked = self._batch()
        if not rows:
            return events
        began = time.process_time()
        try:
            logits = self._llama.evaluate(rows)
        except DecodeFailed as error:
            touched = sorted({row.sequence for row in rows})
            return events + self._break(touched, str(error))
        self._pace.took(len(rows), time.process_time() - began)
        self.rows_evaluated += len(rows)
        for state, scores in zip(asked, logits, strict=True):
            if state.produced == 0:
                events.append(Prefilled(state.number, len(state.prompt)))
            events += self._write(state, scores)
        return events + self._release()

    def _write(self, state: TextJob, logits: Logits) -> list[Event]:
        """Choose the next token of a job."""
        request = state.request
        try:
            token = choose(logits, request.temperature_milli, request.seed, state.evaluated, state.guide)
            if state.guide is not None:
                state.guide.take(token)
        except GrammarTooLarge:
            self._end(state.number)
            return [Rejected(state.number, TOO_OPEN)]
        except NothingFits:
            self._end(state.number)
            return [
                Rejected(
                    state.number, "this model has no token with which an answer of this schema or grammar could go on"
                )
            ]
        ends = self._llama.ends(token)
        facts = None
        if request.output == "tokens":
            chosen, top = likelihoods(logits, token, request.logprobs)
            facts = TokenFacts(chosen, tuple((each, self._llama.text_of(each.token)) for each in top))
        state.accept(token, b"" if ends else self._llama.text_of(token), ends, facts)
        return []

    def _batch(self) -> tuple[list[Row], list[TextJob]]:
        """Rows of the next batch, and the jobs whose logits it asks for, in the order of those rows."""
        unread = sum(len(state.prompt) - state.evaluated for state in self._jobs.values() if state.reading())
        writers = [state for state in self._jobs.values() if state.writing()]
        reads = self._pace.reads(unread=unread, writers=len(writers))
        return self._rows_read(unread) if reads else self._rows_written(writers)

    def _rows_read(self, unread: int) -> tuple[list[Row], list[TextJob]]:
        """Pieces of prompts, in order of arrival."""
        rows: list[Row] = []
        asked: list[TextJob] = []
        room = min(max(self._pace.room(unread), ROWS_READ_LEAST), BATCH_ROWS)
        for state in self._jobs.values():
            while state.reading() and len(rows) < room:
                token, position = state.prompt[state.evaluated], state.evaluated
                state.evaluated += 1
                wanted = not state.reading()
                rows.append(Row(state.sequence, token, position, wanted))
                if wanted:
                    asked.append(state)
        return rows, asked

    def _rows_written(self, writers: list[TextJob]) -> tuple[list[Row], list[TextJob]]:
        """One row for each job that writes; in turn where a batch can't hold them."""
        if len(writers) > BATCH_ROWS:
            self._turn = (self._turn + BATCH_ROWS) % len(writers)
            writers = [*writers[self._turn :], *writers[: self._turn]][:BATCH_ROWS]
        rows: list[Row] = []
        for state in writers:
            assert state.pending is not None
            rows.append(Row(state.sequence, state.pending, state.evaluated, True))
            state.evaluated += 1
        return rows, writers

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
                del self._jobs[state.number]
                self._sequences.forget(state.sequence)
                broken.append(Broken(state.number, reason))
        return broken
