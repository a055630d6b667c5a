"""The proof at a language model's start: a known answer, and bits that depend on nothing but a job's own tokens."""

import os
from collections.abc import Iterator
from itertools import count

import numpy
import pytest

from node.worker.child import llama, llama_proof
from node.worker.child.gguf import GgufRuntime
from node.worker.child.gguf_job import TextJob
from node.worker.child.gguf_pace import WRITERS_WAIT_S
from node.worker.child.llama import Llama, Logits, Row
from node.worker.child.runtime import LoadFailed, Request
from node.worker.child.text import TextStream
from node.worker.gguf_header import has_invariant_weights
from scripts.known_answer import FILE, model


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The library describes every model at length."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    yield
    os.dup2(kept, 2)
    os.close(kept)


def test_the_packaged_model_is_what_its_script_writes() -> None:
    assert FILE.read_bytes() == model()
    assert llama_proof.MODEL == FILE
    assert has_invariant_weights(FILE)


def test_this_machine_gives_the_known_answer_and_the_same_bits_however_rows_are_batched() -> None:
    assert llama_proof.prove(Llama()) is True


def test_settings_whose_bits_depend_on_the_batch_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With larger batches attention switches its kernel, which is why batches have thirty-two rows."""
    monkeypatch.setattr(llama, "BATCH_ROWS", 128)
    monkeypatch.setattr(llama_proof, "BATCH_ROWS", 128)
    assert llama_proof.prove(Llama()) is False


def test_where_it_is_not_so_no_prompt_is_kept_and_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.worker.child.gguf.prove", lambda library: False)
    runtime = GgufRuntime()
    assert runtime.prepare()["invariant"] == 0
    runtime.load({"m": str(FILE)}, {"model_file": "m", "context_tokens": 64, "canonical": 1}, 1)
    for tenant in ("ann", "ann"):
        sequence, held = runtime._sequences.take(tenant, list(range(50)))
        assert held == 0
        runtime._sequences.give_back(sequence, tenant, list(range(50)))


def test_rows_in_any_order_are_computed_as_one_run_of_sequences_and_answered_in_their_own_order() -> None:
    """The library reads the whole model once for each run of sequences whose numbers follow each other."""
    library = Llama()
    library.load(str(FILE), 64, 4)
    try:
        rows = [Row(sequence, 20 + sequence + at, at, at == 1) for sequence in range(4) for at in range(2)]
        by_sequence = library.evaluate(rows)
        for order in ([2, 3, 0, 1], [3, 2, 1, 0]):
            for sequence in range(4):
                library.keep(sequence, 0)
            mixed = library.evaluate([rows[2 * sequence + at] for at in range(2) for sequence in order])
            assert [library._batch.seq_id[number][0] for number in range(len(rows))] == [0, 0, 1, 1, 2, 2, 3, 3]
            assert [library._batch.pos[number] for number in range(len(rows))] == [0, 1] * 4
            for place, sequence in enumerate(order):
                assert numpy.array_equal(mixed[place], by_sequence[sequence])
        assert not numpy.array_equal(by_sequence[0], by_sequence[1]), "else their order would show nothing"
    finally:
        library.unload()


def test_more_jobs_than_a_batch_has_rows_take_turns_and_new_ones_are_still_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = GgufRuntime()
    runtime.prepare()
    runtime.load({"m": str(FILE)}, {"model_file": "m", "context_tokens": 256, "canonical": 1}, 48)
    monkeypatch.setattr(runtime._llama, "text_of", lambda token: b"x")  # this model has no texts
    monkeypatch.setattr(runtime._llama, "ends", lambda token: False)
    jobs = [
        TextJob(number, number, Request("text", b"", 200, 200, 0, 0, ()), [number, 1], 200, TextStream(()))
        for number in range(41)
    ]
    runtime._jobs = {job.number: job for job in jobs[:40]}
    while any(job.reading() for job in jobs[:40]):
        runtime.step()
    before = [job.produced for job in jobs[:40]]
    runtime._jobs[40] = jobs[40]
    for _ in range(8):
        runtime.step()
    assert not jobs[40].reading()
    written = [job.produced - earlier for job, earlier in zip(jobs, before, strict=False)]
    assert max(written) <= 8
    assert min(written) >= 4


def test_a_step_reads_or_writes_and_a_long_prompt_does_not_silence_those_who_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = count()
    monkeypatch.setattr("node.worker.child.gguf.time.process_time", lambda: next(ticks) * WRITERS_WAIT_S * 0.6)
    runtime = GgufRuntime()
    runtime.prepare()
    runtime.load({"m": str(FILE)}, {"model_file": "m", "context_tokens": 256, "canonical": 1}, 2)
    monkeypatch.setattr(runtime._llama, "text_of", lambda token: b"x")  # this model has no texts
    monkeypatch.setattr(runtime._llama, "ends", lambda token: False)
    evaluate, seen = runtime._llama.evaluate, []

    def watched(rows: list[Row]) -> list[Logits]:
        seen.append({row.sequence for row in rows})
        return evaluate(rows)

    monkeypatch.setattr(runtime._llama, "evaluate", watched)
    for number, prompt in enumerate(([1, 2], [3] * 90)):
        request = Request("text", b"", 200, 200, 0, 0, ())
        runtime._jobs[number] = TextJob(number, number, request, prompt, 200, TextStream(()))
    while runtime._jobs[1].reading():
        runtime.step()
    assert seen[0] == {0, 1}, "prompts are read together"
    assert seen[1:7] == [{1}, {0}, {1}, {1}, {0}, {1}]
    runtime.step()
    runtime.step()
    assert {0, 1} in seen[-2:], "whoever writes, writes together"


def test_a_library_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama_proof.ANSWERS, 33, 54)
    with pytest.raises(LoadFailed, match="computes something else"):
        llama_proof.prove(Llama())


def test_a_library_with_other_structures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama.CONTEXT_DEFAULTS, "n_ubatch", 511)
    with pytest.raises(LoadFailed, match="n_ubatch is 512, not 511"):
        Llama()
