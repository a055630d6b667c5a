"""Canonical mode: which models run in it, what a receipt says, and that it holds across processes and caches."""

import asyncio
import struct
import tracemalloc
from pathlib import Path

import pytest

from node.worker import process
from node.worker.errors import JobRefused, WorkerDied
from node.worker.gguf_header import HEADER_BYTES_MAX, context_bytes_per_token, has_invariant_weights
from node.worker.models import ModelDescription, ModelId, ModelStore
from node.worker.runtimes import CHILD_SOURCE
from node.worker.supervisor import JobRequest, WorkerSupervisor
from tests.worker.conftest import chat, pull, run, running, text, tokens

F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q6_K = 0, 1, 2, 3, 6, 8, 12, 14
TALE = chat("Tell me a long tale about a lighthouse keeper and the ships that pass by in the night, please. " * 2)


def string(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


def header(*tensors: tuple[int, int]) -> bytes:
    """The beginning of a GGUF file with these tensors: their dimensions and kinds."""
    entries = string("general.architecture") + struct.pack("<I", 8) + string("llama")
    entries += string("tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bc")
    infos = b"".join(
        string("weight") + struct.pack("<I", dimensions) + bytes(8 * dimensions) + struct.pack("<IQ", kind, 0)
        for dimensions, kind in tensors
    )
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2) + entries + infos


@pytest.mark.parametrize(
    ("tensors", "invariant"),
    [
        (((2, Q4_0), (2, Q4_1), (2, Q5_0), (2, Q8_0), (1, F32)), True),
        (((2, Q4_1), (2, Q6_K)), False),
        (((2, Q4_K),), False),
        (((2, F16),), False),
        (((2, F32),), False),
        (((1, F16), (2, Q8_0)), False),
        (((3, Q8_0),), False),
        ((), False),
    ],
)
def test_weights_are_judged_by_how_the_file_stores_them(
    tensors: tuple[tuple[int, int], ...], invariant: bool, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    whole = header(*tensors)
    file.write_bytes(whole + bytes(64))
    assert has_invariant_weights(file) is invariant
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        assert has_invariant_weights(file) is False


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_that_are_none_in_a_header_are_passed_over(number: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    odd = string("odd") + struct.pack("<IIQd", 9, 12, 1, float(number))
    plain = header((2, Q8_0))
    entries = plain.index(string("general.architecture"))
    file.write_bytes(plain[: entries - 8] + struct.pack("<Q", 3) + odd + plain[entries:])
    assert has_invariant_weights(file) is True
    assert context_bytes_per_token(file) is None


def test_a_long_array_in_a_header_is_passed_over_and_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    plain = header((2, Q8_0))
    long = string("llama.long") + struct.pack("<IIQ", 9, 2, 1 << 20) + b"\xff" * (2 << 20)
    file.write_bytes(plain[:16] + struct.pack("<Q", 3) + plain[24 : -len(tensor_of(plain))] + long + tensor_of(plain))
    tracemalloc.start()
    try:
        assert has_invariant_weights(file) is True
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < HEADER_BYTES_MAX + (4 << 20)


def tensor_of(plain: bytes) -> bytes:
    """The one tensor at the end of a header."""
    return plain[plain.rindex(string("weight")) :]


async def test_a_receipt_names_canonical_mode_and_the_settings_that_run(store: ModelStore, smollm: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        settings = (await supervisor.load(smollm)).settings
    assert settings["canonical"] == 1
    assert (settings["flash_attn"], settings["n_ubatch"], settings["n_threads"]) == (1, 32, 1)


async def test_a_machine_that_does_not_show_it_promises_nothing(
    store: ModelStore, smollm: ModelId, monkeypatch: pytest.MonkeyPatch
) -> None:
    unproved = "from node.worker.child import gguf; gguf.prove = lambda library: False; main()"
    monkeypatch.setattr(process, "CHILD_SOURCE", CHILD_SOURCE.replace("main()", unproved))
    async with WorkerSupervisor(store) as supervisor:
        settings = (await supervisor.load(smollm)).settings
    assert "canonical" not in settings
    assert "invariant" not in settings
    assert settings["flash_attn"] == 1


async def test_a_second_process_gives_the_same_bits_beside_other_jobs_and_with_another_cache(
    store: ModelStore, smollm: ModelId
) -> None:
    """Tokens and every logarithm: first alone and cold, then in a fresh process, warm and among neighbours."""

    def request(seed: int, chunk_units: int = 8) -> JobRequest:
        return JobRequest("chat", TALE, 24, chunk_units, seed, 900, output="tokens", logprobs=4)

    async def served(supervisor: WorkerSupervisor, seed: int, tenant: str, chunk_units: int) -> str:
        asked = request(seed, chunk_units)
        return text(await pull(await supervisor.open_job(smollm, b"j", asked, deadline_s=60, tenant=tenant)))

    async with WorkerSupervisor(store, slots=3) as supervisor:
        alone = text(await run(supervisor, smollm, request(1)))
        worker = running(supervisor, smollm)
        worker.kill("another process shall answer", "closed")
        await worker.gone.wait()
        first = await served(supervisor, 2, "ann", 24)
        beside = await asyncio.gather(
            *(served(supervisor, seed, who, chunk) for seed, who, chunk in ((1, "ann", 3), (1, "bob", 24), (3, "c", 5)))
        )
        assert running(supervisor, smollm) is not worker
    assert beside[0] == beside[1] == alone
    assert len({alone, first, beside[2]}) == 3


@pytest.mark.parametrize("name", ["canonical", "flash_attn"])
async def test_a_manifest_cannot_speak_for_the_node(name: str, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    weights = tmp_path / "weights"
    weights.write_bytes(header((2, Q8_0)))
    settings: dict[str, int | str] = {"model_file": "model.gguf", "context_tokens": 64, name: 7}
    model = store.add_local(ModelDescription("m", "1", "gguf", "none", settings), {"model.gguf": weights})
    async with WorkerSupervisor(store) as supervisor:
        with pytest.raises(WorkerDied, match=f"may not set '{name}'"):
            await supervisor.load(model)


async def test_what_a_runtime_would_have_to_ignore_is_refused(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        for asked in (
            JobRequest("bytes", b"x", 1, 1, output="tokens"),
            JobRequest("bytes", b"x", 1, 1, schema='{"type":"null"}'),
            JobRequest("bytes", b"x", 1, 1, grammar='root ::= "a"'),
            JobRequest("bytes", b"x", 1, 1, output="tokens", logprobs=1 << 40),
            JobRequest("bytes", b"x", 1, 1, logprobs=3),
        ):
            with pytest.raises(JobRefused):
                await run(supervisor, echo, asked)
        behind = await run(supervisor, echo, JobRequest("bytes", b"hello world", 20, 4, prefix=b"hello"))
        job = await supervisor.open_job(echo, b"a", JobRequest("bytes", b"abc", 5, 5, prefix=b"ab"), deadline_s=20)
        assert (await job.prefill()).input_units == 5
        await job.cancel()
    assert text(behind) == " world"
    assert tokens(behind) == ()
