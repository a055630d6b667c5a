"""A language model in the sandbox beside llama.cpp itself: one stream, eight streams, the first token, cancels."""

import asyncio
import time

import msgspec

from node.config.descriptions import description_path
from node.worker.models import ModelStore, load_description
from node.worker.packages import add_from_package
from node.worker.supervisor import JobRequest, PooledJob, WorkerSupervisor
from scripts.benchmarks.measure import PAIRS, Report, percentile
from scripts.benchmarks.network import MODEL_STORE
from scripts.benchmarks.python_process import Spoken, python_process
from scripts.benchmarks.worker_direct import Answer, Ask

MODEL = "smollm2-135m"
STREAMS = 8
TOKENS = 96
TOKENS_TOGETHER = 64
CHUNK_UNITS = 8
CANCELS = 24
DEADLINE_S = 120.0
_TOPICS = (
    "lighthouses", "bread", "railways", "glaciers", "bees", "clocks", "rivers", "maps", "bridges", "tea", "owls",
    "printing", "salt", "kites", "harbours", "volcanoes",
)  # fmt: skip


def _prompt(number: int) -> str:
    """Prompts differ, so that neither side gains from one that it has just read."""
    topic = _TOPICS[number % len(_TOPICS)]
    return f"<|im_start|>user\nTell me the long history of {topic}.<|im_end|>\n<|im_start|>assistant\n"


class _Side:
    """The sandboxed side, with a tenant of its own for each job: no prompt is kept for the next."""

    def __init__(self, supervisor: WorkerSupervisor, model_id: str) -> None:
        self._supervisor = supervisor
        self._model_id = model_id
        self._tenants = 0

    async def open(self, prompt: str, tokens: int, chunk_units: int) -> PooledJob:
        self._tenants += 1
        asked = JobRequest("text", prompt.encode(), tokens, chunk_units)
        return await self._supervisor.open_job(
            self._model_id, b"job", asked, deadline_s=DEADLINE_S, tenant=str(self._tenants)
        )

    async def answer(self, prompt: str, tokens: int, chunk_units: int = CHUNK_UNITS) -> Answer:
        """One job, pulled to its end."""
        started, used = time.perf_counter(), self.processor_seconds()
        job = await self.open(prompt, tokens, chunk_units)
        await job.prefill()
        chunk = await job.next_chunk()
        first, text, count = time.perf_counter() - started, chunk.payload, chunk.units
        while chunk.finish is None:
            chunk = await job.next_chunk()
            text, count = text + chunk.payload, count + chunk.units
        ended = int(chunk.finish == "stop")  # an end token is a unit, and no text
        seconds = time.perf_counter() - started
        return Answer(seconds, first, self.processor_seconds() - used, count - ended, text.decode())

    def processor_seconds(self) -> float:
        """What the worker and this process, which is its node, have used."""
        return self._supervisor.usage(self._model_id).cpu_ms / 1000 + time.process_time()


async def _asked(other: Spoken, prompts: list[str], tokens: int) -> Answer:
    other.say(msgspec.json.encode(Ask(prompts, tokens)).decode())
    return msgspec.json.decode(await other.heard(), type=Answer)


async def _one_stream(side: _Side, direct: Spoken, report: Report, quick: bool) -> None:
    """Whole answers of one stream, and the first tokens of answers, each side first in turn."""
    tokens = 4 if quick else TOKENS
    answers: list[tuple[Answer, Answer]] = []
    first: list[tuple[float, float]] = []
    for number in range(-1, PAIRS):
        prompt = _prompt(number)
        sides = (lambda: side.answer(prompt, tokens), lambda: _asked(direct, [prompt], tokens))  # noqa: B023
        if number % 2:
            ours, theirs = await sides[0](), await sides[1]()
        else:
            theirs, ours = await sides[1](), await sides[0]()
        assert (ours.text, ours.tokens) == (theirs.text, theirs.tokens), "the two sides did not do the same work"
        if number >= 0:
            answers.append((ours, theirs))
    for number in range(2 if quick else 2 * PAIRS):
        ours = await side.answer(_prompt(number), 1, 1)
        theirs = await _asked(direct, [_prompt(number)], 1)
        first.append((ours.first_seconds, theirs.first_seconds))
    _add_rates(report, "runtime", answers)
    over = percentile([ours - theirs for ours, theirs in first], 50)
    report.add("worker.gguf.first_token_overhead.p50", max(0.0, over) * 1000, "ms")
    report.baseline("runtime.gguf.first_token.p50", percentile([theirs for _, theirs in first], 50) * 1000, "ms")
    report.target("worker.gguf_to_runtime/streams=1", ">=", 0.97)
    report.target("worker.gguf.first_token_overhead.p50", "<=", 5.0)


async def _many_streams(side: _Side, server: Spoken, report: Report, quick: bool) -> None:
    """Eight answers at once, here and by the runtime's own server."""
    tokens = 1 if quick else TOKENS_TOGETHER
    answers: list[tuple[Answer, Answer]] = []
    for number in range(-1, PAIRS):
        prompts = [_prompt(number + stream) for stream in range(STREAMS)]
        if number % 2:
            ours = await _together(side, prompts, tokens)
            theirs = await _asked(server, prompts, tokens)
        else:
            theirs = await _asked(server, prompts, tokens)
            ours = await _together(side, prompts, tokens)
        if number >= 0:
            answers.append((ours, theirs))
    _add_rates(report, "server", answers)
    report.target(f"worker.gguf_to_server/streams={STREAMS}", ">=", 0.9)


async def _together(side: _Side, prompts: list[str], tokens: int) -> Answer:
    started, used = time.perf_counter(), side.processor_seconds()
    answers = await asyncio.gather(*(side.answer(prompt, tokens) for prompt in prompts))
    seconds, used = time.perf_counter() - started, side.processor_seconds() - used
    return Answer(seconds, 0.0, used, sum(answer.tokens for answer in answers), answers[0].text)


def _add_rates(report: Report, other: str, answers: list[tuple[Answer, Answer]]) -> None:
    """Tokens a second on both sides, by the clock and by processor time, which another's work disturbs less."""
    streams = f"streams={1 if other == 'runtime' else STREAMS}"
    ours, theirs = ([answer.tokens / answer.seconds for answer in side] for side in zip(*answers, strict=True))
    report.ratio(f"worker.gguf_to_{other}/{streams}", ours, theirs)
    report.add(f"worker.gguf.tokens_per_second/{streams}", percentile(ours, 50), "tokens/s")
    report.baseline(f"{other}.gguf.tokens_per_second/{streams}", percentile(theirs, 50), "tokens/s")
    ours, theirs = (
        [answer.tokens / answer.processor_seconds for answer in side] for side in zip(*answers, strict=True)
    )
    report.ratio(f"worker.gguf_to_{other}.by_processor_time/{streams}", ours, theirs)


async def _cancels(side: _Side, report: Report, quick: bool) -> None:
    """From the cancel until the worker has forgotten the job, while it reads a long prompt and while it writes."""
    long = _prompt(0) * 40
    reading, writing = [], []
    for number in range(2 if quick else CANCELS):
        job = await side.open(f"{number} {long}", 100, 100)
        await asyncio.sleep(0.05 + 0.01 * (number % 8))  # somewhere within a step
        started = time.perf_counter()
        await job.cancel()
        reading.append(time.perf_counter() - started)
        job = await side.open(_prompt(number), 1000, 1000)
        await job.prefill()
        started = time.perf_counter()
        await job.cancel()
        writing.append(time.perf_counter() - started)
    report.latencies("worker.gguf.cancel/while=reading", reading)
    report.latencies("worker.gguf.cancel/while=writing", writing)
    report.target("worker.gguf.cancel.p50/while=reading", "<=", 100.0)
    report.target("worker.gguf.cancel.p50/while=writing", "<=", 100.0)


async def _measure(report: Report, quick: bool) -> None:
    store = ModelStore(MODEL_STORE)
    model_id = await add_from_package(store, load_description(description_path(MODEL)))
    manifest = store.manifest(model_id)
    context = manifest.settings["context_tokens"]
    opening = f"{store.file_path(manifest.files[0]).resolve()} {context}"
    async with WorkerSupervisor(store, slots=STREAMS) as supervisor:
        await supervisor.load(model_id)
        side = _Side(supervisor, model_id)
        with python_process("scripts.benchmarks.worker_direct") as direct:
            direct.say(opening)
            assert await direct.heard() == "ready"
            await _one_stream(side, direct, report, quick)
        await _cancels(side, report, quick)
        with python_process("scripts.benchmarks.worker_server") as server:
            server.say(opening)
            assert await server.heard() == "ready"
            await _many_streams(side, server, report, quick)


def measure(report: Report, quick: bool) -> None:
    """A language model: one stream, first tokens and cancels, eight streams beside the runtime's own server."""
    asyncio.run(_measure(report, quick))
