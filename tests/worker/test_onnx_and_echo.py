"""ONNX models and the echo runtime in the real sandbox."""

import json
from pathlib import Path

import msgpack
import pytest

from node.worker.errors import JobRefused, WorkerDied
from node.worker.models import ModelDescription, ModelId, ModelStore
from node.worker.supervisor import JobRequest, WorkerSupervisor
from tests.worker.conftest import run

ROW = 2048
THIS_SOURCE = Path(__file__).read_bytes()


def tensors(dtype: str = "int32", shape: tuple[int, ...] = (1, ROW), content: bytes | None = None) -> bytes:
    """A payload for the classifier's own signature, or something near it."""
    filling = bytes(ROW * 4) if content is None else content
    payload: bytes = msgpack.packb({"bytes": {"dtype": dtype, "shape": [*shape], "data": filling}})
    return payload


def raw_classifier(store: ModelStore, magika: ModelId) -> ModelId:
    """The classifier's graph served with tensors in and out."""
    model = {file.path: store.file_path(file) for file in store.manifest(magika).files}["model.onnx"]
    settings: dict[str, int | str] = {"pipeline": "tensors", "model_file": "model.onnx"}
    description = ModelDescription("raw-classifier", "1", "onnx", "Apache-2.0", settings)
    return store.add_local(description, {"model.onnx": model})


async def test_a_python_source_is_recognised(store: ModelStore, magika: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        (piece,) = await run(supervisor, magika, JobRequest("bytes", THIS_SOURCE, 1, 1))
        (page,) = await run(
            supervisor, magika, JobRequest("bytes", b"<!DOCTYPE html><html><body>hi</body></html>", 1, 1)
        )
    answer = json.loads(piece.payload)
    assert (answer["label"], answer["confident"], piece.finish) == ("python", True, "done")
    assert answer["score"] > 0.9
    assert json.loads(page.payload)["label"] == "html"


async def test_tensors_go_in_and_come_out(store: ModelStore, magika: ModelId) -> None:
    model = raw_classifier(store, magika)
    async with WorkerSupervisor(store) as supervisor:
        (piece,) = await run(supervisor, model, JobRequest("tensors", tensors(), 1, 1))
    answer = msgpack.unpackb(piece.payload)["target_label"]
    assert (answer["dtype"], answer["shape"], len(answer["data"])) == ("float32", [1, 214], 856)
    assert (piece.units, piece.finish) == (1, "done")


WRONG_TENSORS = {
    "dtype": tensors(dtype="float32"),
    "width": tensors(shape=(1, ROW - 1), content=bytes((ROW - 1) * 4)),
    "dimensions": tensors(shape=(ROW,)),
    "too few bytes": tensors(content=b"x"),
    "negative size": tensors(shape=(-1, ROW)),
    "tensor bomb": tensors(shape=(1 << 40, ROW)),
    "name": msgpack.packb({"other": {"dtype": "int32", "shape": [1, ROW], "data": bytes(ROW * 4)}}),
    "no map": msgpack.packb([1, 2, 3]),
    "not a tensor": msgpack.packb({"bytes": 1}),
    "no MessagePack": b"\xc1",
}


async def test_wrong_tensors_are_refused_before_the_run_with_a_reason(store: ModelStore, magika: ModelId) -> None:
    model = raw_classifier(store, magika)
    async with WorkerSupervisor(store) as supervisor:
        for name, payload in WRONG_TENSORS.items():
            with pytest.raises(JobRefused) as refused:
                await run(supervisor, model, JobRequest("tensors", payload, 1, 1))
            assert refused.value.reason, name
        assert len(await run(supervisor, model, JobRequest("tensors", tensors(), 1, 1))) == 1


async def test_a_file_that_is_no_model_is_a_provider_fault_at_load(store: ModelStore, tmp_path: Path) -> None:
    own = ModelStore(tmp_path / "store")
    (tmp_path / "junk").write_bytes(b"\x00\xff" * 5000)
    for runtime in ("onnx", "gguf"):
        settings: dict[str, int | str] = {"pipeline": "tensors", "model_file": "model", "context_tokens": 64}
        description = ModelDescription("junk", "1", runtime, "Apache-2.0", settings)
        model = own.add_local(description, {"model": tmp_path / "junk"})
        async with WorkerSupervisor(own) as supervisor:
            with pytest.raises(WorkerDied) as died:
                await supervisor.load(model)
        assert died.value.death == "start"


async def test_echo_returns_its_input_in_pieces_of_the_size_asked_for(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        pieces = await run(supervisor, echo, JobRequest("bytes", b"hello world", 100, 4))
        (cut,) = await run(supervisor, echo, JobRequest("text", b"hello world", 5, 100))
        (empty,) = await run(supervisor, echo, JobRequest("bytes", b"", 5, 100))
    assert [piece.payload for piece in pieces] == [b"hell", b"o wo", b"rld"]
    assert [piece.finish for piece in pieces] == [None, None, "done"]
    assert (cut.payload, cut.units, empty.payload) == (b"hello", 5, b"")


async def test_a_result_in_very_many_pieces_is_refused_and_spares_the_workers_memory(
    store: ModelStore, echo: ModelId
) -> None:
    async with WorkerSupervisor(store) as supervisor:
        with pytest.raises(JobRefused, match="too small"):
            await run(supervisor, echo, JobRequest("bytes", bytes(1 << 20), 1 << 20, 2))
        assert len(await run(supervisor, echo, JobRequest("bytes", bytes(1 << 20), 1 << 20, 1 << 10))) == 1 << 10
