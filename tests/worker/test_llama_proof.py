"""The proof at a language model's start: a known answer, and bits that depend on nothing but a job's own tokens."""

import os
from collections.abc import Iterator

import pytest

from node.worker.child import llama, llama_proof
from node.worker.child.gguf import GgufRuntime
from node.worker.child.llama import Llama
from node.worker.child.runtime import LoadFailed
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


def test_a_library_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama_proof.ANSWERS, 33, 54)
    with pytest.raises(LoadFailed, match="computes something else"):
        llama_proof.prove(Llama())


def test_a_library_with_other_structures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama.CONTEXT_DEFAULTS, "n_ubatch", 511)
    with pytest.raises(LoadFailed, match="n_ubatch is 512, not 511"):
        Llama()
