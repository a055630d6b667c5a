"""Jobs that share a run of an ONNX model: who may, who may not, and that each gets its own rows."""

from pathlib import Path

import msgpack
import numpy
import pytest

from node.worker.child import onnx_tensors
from node.worker.child.frames import Value
from node.worker.child.onnx import RESULT_PIECE_BYTES, OnnxRuntime
from node.worker.child.runtime import Event, Piece, Prefilled, Refused, Rejected, Request
from node.worker.limits import WorkerLimits
from node.worker.models import ModelDescription, ModelStore
from node.worker.runtimes import node_settings
from node.worker.supervisor import JobRequest, WorkerSupervisor
from tests.worker import onnx_models
from tests.worker.conftest import run

Rows = list[list[float]]


def loaded(folder: Path, model: bytes, **settings: Value) -> OnnxRuntime:
    """A runtime in this process: what it does between two steps is the test's to say."""
    paths = onnx_models.written(folder, model=model)
    runtime = OnnxRuntime()
    runtime.prepare()
    files = {name: str(path) for name, path in paths.items()}
    runtime.load(files, {"pipeline": "tensors", "model_file": "model.onnx", **settings}, 8)
    return runtime


def tensors(**named: Rows) -> bytes:
    packed = {}
    for name, rows in named.items():
        content = numpy.array(rows, dtype="<f4")
        packed[name] = {"dtype": "float32", "shape": list(content.shape), "data": content.tobytes()}
    payload: bytes = msgpack.packb(packed)
    return payload


def row(number: float) -> Rows:
    return [[number] * 4]


def ask(runtime: OnnxRuntime, job: int, rows: Rows, tenant: str = "buyer") -> None:
    runtime.open(job, Request("tensors", tensors(x=rows), 1, 1, 0, 0, (), tenant=tenant))
    runtime.grant(job)


def finished(runtime: OnnxRuntime) -> tuple[list[Event], int]:
    """All events until nothing is left to do, and how many steps it took."""
    events: list[Event] = []
    steps = 0
    while runtime.busy():
        events += runtime.step()
        steps += 1
    return events, steps


def outputs(events: list[Event], name: str = "y") -> dict[int, object]:
    """Each job's output tensor."""
    found: dict[int, object] = {}
    for event in events:
        if isinstance(event, Piece):
            tensor = msgpack.unpackb(event.payload)[name]
            found[event.job] = numpy.frombuffer(tensor["data"], dtype="<f4").reshape(tensor["shape"]).tolist()
    return found


def test_waiting_jobs_of_one_buyer_share_a_run_and_each_gets_its_own_rows(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, onnx_models.doubling(), batch_max=8)
    for job in range(4):
        ask(runtime, job, [[float(job)] * 4, [float(-job)] * 4])
    events, steps = finished(runtime)
    assert outputs(events) == {job: [[2.0 * job] * 4, [-2.0 * job] * 4] for job in range(4)}
    assert steps == 2  # all inputs are counted in one, all runs are one
    assert sum(isinstance(event, Prefilled) for event in events) == 4


def test_a_run_holds_no_more_rows_than_allowed(tmp_path: Path) -> None:
    for batch_max, steps in ((1, 5), (3, 3)):
        runtime = loaded(tmp_path, onnx_models.doubling(), batch_max=batch_max)
        for job in range(4):
            ask(runtime, job, row(job))
        assert finished(runtime)[1] == steps


def test_jobs_of_different_buyers_never_share_a_run(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, onnx_models.summing(), batch_max=8)
    ask(runtime, 1, row(1.0), "first")
    ask(runtime, 2, row(10.0), "second")
    ask(runtime, 3, row(100.0), "second")
    events, _ = finished(runtime)
    assert outputs(events) == {1: row(1.0), 2: row(10.0), 3: row(110.0)}  # this model mixes the rows of a run


def test_inputs_of_other_shapes_wait_for_a_run_of_their_own(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, onnx_models.pairing(), batch_max=8)
    for job, width in enumerate((3, 5, 3)):
        rows = [[1.0] * width]
        runtime.open(job, Request("tensors", tensors(a=rows, b=rows), 1, 1, 0, 0, (), tenant="buyer"))
        runtime.grant(job)
    events, steps = finished(runtime)
    assert outputs(events, "z") == {0: [[2.0] * 3], 1: [[2.0] * 5], 2: [[2.0] * 3]}
    assert steps == 3


def test_a_model_that_does_not_keep_rows_apart_is_run_alone_from_then_on(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, onnx_models.repeating(), batch_max=8)
    ask(runtime, 1, row(1.0))
    ask(runtime, 2, row(2.0))
    events, _ = finished(runtime)
    assert outputs(events) == {1: row(1.0) * 2, 2: row(2.0) * 2}
    ask(runtime, 3, row(3.0))
    ask(runtime, 4, row(4.0))
    assert finished(runtime)[1] == 3


def test_an_input_that_fails_inside_the_graph_fails_nobody_else(tmp_path: Path) -> None:
    graph = onnx_models.model(
        [onnx_models.node("Gather", ["table", "x"], "y", axis=0)],
        [onnx_models.value("x", onnx_models.INT64, ["rows"])],
        [onnx_models.value("y", onnx_models.FLOAT, ["rows"])],
        [onnx_models.constant("table", [3], [0.5, 1.5, 2.5])],
    )
    runtime = loaded(tmp_path, graph, batch_max=8)
    for job, index in enumerate((0, 99, 2)):
        content = numpy.array([index], dtype="<i8").tobytes()
        payload = msgpack.packb({"x": {"dtype": "int64", "shape": [1], "data": content}})
        runtime.open(job, Request("tensors", payload, 1, 1, 0, 0, (), tenant="buyer"))
        runtime.grant(job)
    events, _ = finished(runtime)
    assert [event.job for event in events if isinstance(event, Rejected)] == [1]
    assert outputs(events) == {0: [0.5], 2: [2.5]}


def test_a_cancelled_job_takes_no_part_in_the_next_run(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, onnx_models.summing(), batch_max=8)
    for job in (1, 2, 3):
        ask(runtime, job, row(float(job)))
    runtime.cancel(2)
    assert outputs(finished(runtime)[0]) == {1: row(1.0), 3: row(4.0)}
    assert not runtime.busy()


def test_nothing_is_released_without_credit_and_a_large_result_comes_in_pieces(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, onnx_models.doubling())
    rows = [[1.0] * 4] * (RESULT_PIECE_BYTES // 8)
    runtime.open(1, Request("tensors", tensors(x=rows), 1, 1, 0, 0, ()))
    events, _ = finished(runtime)
    assert [type(event) for event in events] == [Prefilled]
    pieces: list[Piece] = []
    while not pieces or pieces[-1].finish is None:
        runtime.grant(1)
        (event,) = finished(runtime)[0]
        assert isinstance(event, Piece)
        pieces.append(event)
    assert [piece.units for piece in pieces] == [0, 0, 1]
    assert max(len(piece.payload) for piece in pieces) == RESULT_PIECE_BYTES
    answer = msgpack.unpackb(b"".join(piece.payload for piece in pieces))
    assert answer["y"]["shape"] == [len(rows), 4]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (tensors(a=[[1.0, 2.0]], b=[[1.0]]), "'width' is 2 in one tensor and 1"),
        (tensors(a=[[float("nan")]], b=[[1.0]]), "NaN or infinity"),
        (tensors(a=[[1.0]], b=[[float("inf")]]), "NaN or infinity"),
        (tensors(a=[[1.0]]), "exactly the tensors a, b"),
        (tensors(a=[[1.0]], b=[[1.0]], c=[[1.0]]), "exactly the tensors a, b"),
    ],
    ids=["other size", "nan", "infinity", "too few", "too many"],
)
def test_tensors_that_do_not_fit_each_other_or_the_limits_are_refused(
    tmp_path: Path, payload: bytes, reason: str
) -> None:
    runtime = loaded(tmp_path, onnx_models.pairing())
    with pytest.raises(Refused, match=reason):
        runtime.open(1, Request("tensors", payload, 1, 1, 0, 0, ()))
    assert not runtime.busy()


def test_tensors_have_a_limit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_tensors, "ELEMENTS_MAX", 6)
    runtime = loaded(tmp_path, onnx_models.pairing())
    with pytest.raises(Refused, match="more than 6 elements together"):
        runtime.open(1, Request("tensors", tensors(a=[[1.0] * 4], b=[[1.0] * 4]), 1, 1, 0, 0, ()))


def test_a_model_may_declare_that_it_takes_numbers_that_are_not_finite(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, onnx_models.doubling(), not_finite="pass")
    ask(runtime, 1, [[float("inf")] * 4])
    assert outputs(finished(runtime)[0]) == {1: [[float("inf")] * 4]}


def test_a_truth_value_is_one_of_two_bytes(tmp_path: Path) -> None:
    boolean = 9
    graph = onnx_models.model(
        [onnx_models.node("Not", ["x"], "y")],
        [onnx_models.value("x", boolean, ["rows"])],
        [onnx_models.value("y", boolean, ["rows"])],
    )
    runtime = loaded(tmp_path, graph)
    payload = msgpack.packb({"x": {"dtype": "bool", "shape": [2], "data": b"\x00\x02"}})
    with pytest.raises(Refused, match="other than 0 and 1"):
        runtime.open(1, Request("tensors", payload, 1, 1, 0, 0, ()))


def test_the_operators_limit_is_below_the_manifests_and_a_silent_manifest_means_alone() -> None:
    assert node_settings("onnx", {"batch_rows": 16}, 4) == {"batch_max": 4}
    assert node_settings("onnx", {"batch_rows": 2}, 16) == {"batch_max": 2}
    assert node_settings("onnx", {}, 16) == {"batch_max": 1}
    assert node_settings("onnx", {"batch_rows": "x", "batch_max": 9}, 16) == {"batch_max": 1}
    assert node_settings("gguf", {"batch_rows": 16}, 16) == {}


async def test_the_receipts_settings_name_library_level_and_batch(store: ModelStore, tmp_path: Path) -> None:
    paths = onnx_models.written(tmp_path, model=onnx_models.doubling())
    settings: dict[str, int | str] = {"pipeline": "tensors", "model_file": "model.onnx", "batch_rows": 8}
    model = store.add_local(ModelDescription("doubling", "1", "onnx", "MIT", settings), paths)
    async with WorkerSupervisor(store, limits=WorkerLimits(batch_max=4)) as supervisor:
        facts = await supervisor.load(model)
        (piece,) = await run(supervisor, model, JobRequest("tensors", tensors(x=row(2.0)), 1, 1))
    assert facts.runtime_build.startswith("onnxruntime ")
    assert "tokenizers" in facts.runtime_build
    assert (facts.settings["batch_max"], facts.settings["optimization"], facts.settings["threads"]) == (4, "all", 1)
    assert msgpack.unpackb(piece.payload)["y"]["shape"] == [1, 4]
