"""The ONNX runtime: one model behind a pipeline, several jobs at once, those of one buyer in shared runs.

Law: a request is judged completely before anything of it runs; one thread and a fixed optimisation level, so that the
same input gives the same bits on the same build. A run holds at most `batch_max` rows (the node names that number in
its receipts), all of one tenant's jobs: a graph is a stranger's and could pass rows of one to another. A step is one
run, so that a cancel is seen between two. Nobody waits for a run to fill.
"""

from collections import deque
from dataclasses import dataclass, field

import onnxruntime

from node.worker.child.frames import Value
from node.worker.child.onnx_pipelines import ByteClassifier, MixedRows, Pipeline, Reading, TensorPipeline
from node.worker.child.onnx_tensors import TENSORS_MAX, Feeds, TensorSignature
from node.worker.child.onnx_text import TextPipeline
from node.worker.child.runtime import (
    Broken,
    Event,
    Loaded,
    LoadFailed,
    Piece,
    Prefilled,
    Refused,
    Rejected,
    Request,
    Runtime,
    split,
)

PIPELINES = ("tensors", "byte-classifier", "embedding", "classification")
RESULT_PIECE_BYTES = 256 << 10  # what a market's chunk holds; a result is one unit, paid with its last piece
BATCH_MAX = 64
CONFIGURATION_BYTES_MAX = 4 << 20
CPU_FACTS = "/proc/cpuinfo"
# Processor features by which the library chooses its kernels, so which output bits depend on.
CPU_FEATURES = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "sve",
)  # fmt: skip


def cpu_features(path: str = CPU_FACTS) -> str:
    """The features of this processor that matter here; empty if they can't be seen."""
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            for line in stream:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return " ".join(feature for feature in CPU_FEATURES if feature in value.split())
    except OSError:
        pass
    return ""


@dataclass(slots=True)
class _Job:
    """One job: portions that wait for a run, results that came, and in the end pieces that wait for credit."""

    number: int
    tenant: str
    reading: Reading
    results: list[Feeds | None]
    waiting: deque[int]
    alone: bool = False
    """A run of several failed with it: its portions are run one by one."""
    credit: int = 0
    prefilled: bool = False
    pieces: deque[bytes] | None = field(default=None)

    def releasable(self) -> bool:
        return not self.prefilled or (bool(self.pieces) and self.credit > 0)


class OnnxRuntime(Runtime):
    """One ONNX model behind one of the pipelines."""

    def __init__(self) -> None:
        self._jobs: dict[int, _Job] = {}
        self._session: onnxruntime.InferenceSession | None = None
        self._pipeline: Pipeline | None = None
        self._batch_max = 1

    def prepare(self) -> dict[str, int | str]:
        onnxruntime.disable_telemetry_events()
        onnxruntime.set_default_logger_severity(4)
        return {"threads": 1, "optimization": "all", "processor": cpu_features()}

    def load(self, files: dict[str, str], settings: dict[str, Value], slots: int) -> Loaded:
        name, model = settings.get("pipeline"), settings.get("model_file")
        if name not in PIPELINES or not isinstance(model, str) or model not in files:
            raise LoadFailed("the manifest must name the model's file and a pipeline: " + ", ".join(PIPELINES))
        batch_max = settings.get("batch_max", 1)
        if not isinstance(batch_max, int) or not 1 <= batch_max <= BATCH_MAX:
            raise LoadFailed(f"batch_max must be from 1 to {BATCH_MAX}")
        self._batch_max = batch_max
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(files[model], options, providers=["CPUExecutionProvider"])
            inputs = _signatures(self._session.get_inputs())
            outputs = _signatures(self._session.get_outputs())
        except Exception as error:  # the library raises several unrelated types
            raise LoadFailed(f"not a usable ONNX model: {str(error)[:300]}") from None
        if not 0 < len(inputs) <= TENSORS_MAX or not 0 < len(outputs) <= TENSORS_MAX:
            raise LoadFailed(f"a model has 1 to {TENSORS_MAX} inputs and as many outputs")
        match name:
            case "tensors":
                self._pipeline = TensorPipeline(inputs, outputs, settings)
            case "byte-classifier":
                self._pipeline = ByteClassifier(inputs, outputs, _configuration(files, settings))
            case "embedding" | "classification":
                self._pipeline = TextPipeline(name, inputs, outputs, settings, files)
        return Loaded(0)

    def open(self, job: int, request: Request) -> None:
        assert self._pipeline is not None
        reading = self._pipeline.read(request)
        count = len(reading.portions)
        self._jobs[job] = _Job(job, request.tenant, reading, [None] * count, deque(range(count)))

    def grant(self, job: int) -> None:
        if job in self._jobs:
            self._jobs[job].credit += 1

    def cancel(self, job: int) -> None:
        self._jobs.pop(job, None)

    def busy(self) -> bool:
        return any(state.releasable() or state.waiting for state in self._jobs.values())

    def step(self) -> list[Event]:
        """What can be said at once; else one run, and what it made possible."""
        return self._said() or [*self._run(), *self._said()]

    def _said(self) -> list[Event]:
        events: list[Event] = []
        for state in list(self._jobs.values()):
            if not state.prefilled:
                state.prefilled = True
                events.append(Prefilled(state.number, state.reading.input_units))
            while state.pieces and state.credit > 0:
                state.credit -= 1
                payload, last = state.pieces.popleft(), not state.pieces
                events.append(Piece(state.number, payload, int(last), (), "done" if last else None))
                if last:
                    del self._jobs[state.number]
        return events

    def _run(self) -> list[Event]:
        """One run for the job whose turn it is, with what fits beside it."""
        chosen = self._chosen()
        if not chosen:
            return []
        assert self._session is not None
        assert self._pipeline is not None
        portions = [state.reading.portions[index] for state, index in chosen]
        try:
            values = self._session.run(list(self._pipeline.outputs), self._pipeline.join(portions))
            results = self._pipeline.part(dict(zip(self._pipeline.outputs, values, strict=True)), portions)
        except MixedRows:
            self._batch_max = 1  # a model that doesn't keep rows apart; the receipt's number is an upper limit
            return self._apart(chosen)
        except MemoryError:
            return self._failed(chosen, Broken(chosen[0][0].number, "out of memory"))
        except Refused as refusal:
            return self._failed(chosen, Rejected(chosen[0][0].number, str(refusal)))
        except Exception as error:  # shapes that only fail inside the graph
            reason = f"the model does not take this input: {str(error)[:300]}"
            return self._failed(chosen, Rejected(chosen[0][0].number, reason))
        events: list[Event] = []
        for (state, index), result in zip(chosen, results, strict=True):
            state.results[index] = result
            if not state.waiting and all(found is not None for found in state.results):
                events += self._finish(state)
        return events

    def _chosen(self) -> list[tuple[_Job, int]]:
        """Portions of the next run, taken out of their queues: the first of the job whose turn it is, and its like."""
        first = next((state for state in self._jobs.values() if state.waiting), None)
        if first is None:
            return []
        self._jobs[first.number] = self._jobs.pop(first.number)  # to the back: jobs take turns
        lead = first.waiting.popleft()
        chosen, head = [(first, lead)], first.reading.portions[lead]
        if first.alone:
            return chosen
        rows, cost = head.rows, head.cost
        for state in [first, *(other for other in self._jobs.values() if other is not first)]:
            if state.tenant != first.tenant or state.alone:
                continue
            for index in list(state.waiting):
                portion = state.reading.portions[index]
                if portion.key == head.key and self._fits(rows + portion.rows, cost + portion.cost):
                    rows, cost = rows + portion.rows, cost + portion.cost
                    state.waiting.remove(index)
                    chosen.append((state, index))
        return chosen

    def _fits(self, rows: int, cost: int) -> bool:
        assert self._pipeline is not None
        return rows <= self._batch_max and (not self._pipeline.cost_max or cost <= self._pipeline.cost_max)

    def _failed(self, chosen: list[tuple[_Job, int]], event: Event) -> list[Event]:
        """A run failed: one portion's own run ends its job, a run of several is done again one by one."""
        return self._apart(chosen) if len(chosen) > 1 else self._end(chosen[0][0], event)

    def _apart(self, chosen: list[tuple[_Job, int]]) -> list[Event]:
        for state, index in reversed(chosen):
            state.alone = True
            state.waiting.appendleft(index)
        return []

    def _finish(self, state: _Job) -> list[Event]:
        assert self._pipeline is not None
        try:
            output = self._pipeline.answer(state.reading, [result for result in state.results if result is not None])
            state.pieces = deque(split(output, RESULT_PIECE_BYTES))
        except Refused as refusal:
            return self._end(state, Rejected(state.number, str(refusal)))
        except MemoryError:
            return self._end(state, Broken(state.number, "out of memory"))
        return []

    def _end(self, state: _Job, event: Event) -> list[Event]:
        del self._jobs[state.number]
        return [event]


def _signatures(items: list[onnxruntime.NodeArg]) -> tuple[TensorSignature, ...]:
    return tuple(TensorSignature(item.name, item.type, tuple(item.shape)) for item in items)


def _configuration(files: dict[str, str], settings: dict[str, Value]) -> bytes:
    name = settings.get("configuration_file")
    if not isinstance(name, str) or name not in files:
        raise LoadFailed("a byte-classifier needs a configuration_file")
    with open(files[name], "rb") as stream:
        return stream.read(CONFIGURATION_BYTES_MAX)
