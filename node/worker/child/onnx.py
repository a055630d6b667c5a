"""The ONNX runtime: tensors in, tensors out, or a pipeline that the manifest declares.

Law: names, types and shapes are judged against the model's own signature before anything runs; one thread, a fixed
optimisation level, so that the same input gives the same bits on the same build.

Tensor format, both ways: a MessagePack map of name → {"dtype": text, "shape": [integers], "data": bytes}, row-major,
little-endian.
"""

import json
import math

import msgpack
import numpy
import onnxruntime

from node.worker.child.frames import MalformedFrame, Value, decode
from node.worker.child.runtime import Loaded, LoadFailed, Refused, Request, SingleStepRuntime, split

ELEMENTS_MAX = 1 << 24  # 64 MiB of 32-bit numbers in one tensor
TENSORS_MAX = 32
DIMENSIONS_MAX = 8
# ONNX's name of a tensor type → numpy's little-endian spelling.
DTYPES: dict[str, str] = {
    "tensor(float)": "<f4",
    "tensor(double)": "<f8",
    "tensor(float16)": "<f2",
    "tensor(int8)": "|i1",
    "tensor(int16)": "<i2",
    "tensor(int32)": "<i4",
    "tensor(int64)": "<i8",
    "tensor(uint8)": "|u1",
    "tensor(uint16)": "<u2",
    "tensor(uint32)": "<u4",
    "tensor(uint64)": "<u8",
    "tensor(bool)": "|b1",
}
NAMES: dict[str, str] = {spelling: numpy.dtype(spelling).name for spelling in DTYPES.values()}

Array = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.generic]]


class ByteClassifier:
    """Bytes in, a label out: the ends of the input as numbers, one score for each label.

    The model's own configuration file says how much of the input it sees, how it is padded and what the labels are.
    """

    def __init__(self, configuration: bytes) -> None:
        try:
            read = json.loads(configuration)
            self.first = int(read["beg_size"])
            self.last = int(read["end_size"])
            self.padding = int(read["padding_token"])
            self.block = int(read["block_size"])
            self.shortest = int(read["min_file_size_for_dl"])
            self.labels = [str(label) for label in read["target_labels_space"]]
            self.thresholds = {str(label): float(value) for label, value in read["thresholds"].items()}
            self.threshold = float(read["medium_confidence_threshold"])
            self.renamed = {str(label): str(name) for label, name in read["overwrite_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadFailed(f"the classifier's configuration is not usable: {error!r}") from None
        if read.get("mid_size") or not 0 < self.first < self.block or not 0 < self.last < self.block:
            raise LoadFailed("the classifier's configuration asks for features that this pipeline doesn't have")

    def features(self, content: bytes) -> Array:
        """The row of numbers that the model sees: both ends without outer white space, padded."""
        head = content[: self.block].lstrip()[: self.first]
        tail = content[-self.block :].rstrip()[-self.last :]
        row = numpy.full((1, self.first + self.last), self.padding, dtype="<i4")
        row[0, : len(head)] = numpy.frombuffer(head, dtype=numpy.uint8)
        if tail:
            row[0, -len(tail) :] = numpy.frombuffer(tail, dtype=numpy.uint8)
        return row

    def answer(self, scores: Array) -> bytes:
        """JSON: the label to use, its score, the model's raw label, and whether the score reached its threshold."""
        row = [float(score) for score in numpy.asarray(scores, dtype=numpy.float64).ravel()]
        if len(row) != len(self.labels) or not all(math.isfinite(score) for score in row):
            raise Refused("the model gave no usable scores for this input")
        best = max(range(len(row)), key=row.__getitem__)
        raw = self.labels[best]
        sure = row[best] >= self.thresholds.get(raw, self.threshold)
        answer = {
            "label": self.renamed.get(raw, raw),
            "score": round(row[best], 6),
            "raw_label": raw,
            "confident": sure,
        }
        return json.dumps(answer, sort_keys=True, separators=(",", ":")).encode()


class OnnxRuntime(SingleStepRuntime):
    """One ONNX model behind a pipeline: `tensors` or `byte-classifier`."""

    def __init__(self) -> None:
        super().__init__()
        self._session: onnxruntime.InferenceSession | None = None
        self._pipeline = "tensors"
        self._classifier: ByteClassifier | None = None

    def prepare(self) -> dict[str, int | str]:
        onnxruntime.disable_telemetry_events()
        onnxruntime.set_default_logger_severity(4)
        return {"threads": 1, "optimization": "all"}

    def load(self, files: dict[str, str], settings: dict[str, Value], slots: int) -> Loaded:
        pipeline, model = settings.get("pipeline"), settings.get("model_file")
        if pipeline not in ("tensors", "byte-classifier") or not isinstance(model, str) or model not in files:
            raise LoadFailed("the manifest must name a pipeline and the model's file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(files[model], options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises several unrelated types
            raise LoadFailed(f"not a usable ONNX model: {str(error)[:300]}") from None
        self._pipeline = str(pipeline)
        if pipeline == "byte-classifier":
            configuration = settings.get("configuration_file")
            if not isinstance(configuration, str) or configuration not in files:
                raise LoadFailed("a byte-classifier needs a configuration_file")
            with open(files[configuration], "rb") as stream:
                self._classifier = ByteClassifier(stream.read())
        return Loaded(0)

    def check(self, request: Request) -> int:
        if self._pipeline == "byte-classifier":
            if request.input_format != "bytes":
                raise Refused("this model takes input_format 'bytes'")
            assert self._classifier is not None
            if len(request.payload.strip()) < self._classifier.shortest:
                raise Refused(f"the input needs at least {self._classifier.shortest} bytes that aren't white space")
        elif request.input_format != "tensors":
            raise Refused("this model takes input_format 'tensors'")
        else:
            self._tensors(request.payload)
        return 1

    def run(self, request: Request) -> list[tuple[bytes, int]]:
        assert self._session is not None
        if self._classifier is not None:
            feeds = {self._session.get_inputs()[0].name: self._classifier.features(request.payload)}
        else:
            feeds = self._tensors(request.payload)
        names = [output.name for output in self._session.get_outputs()]
        try:
            results = self._session.run(names, feeds)
        except Exception as error:  # shapes that only fail inside the graph
            raise Refused(f"the model does not take this input: {str(error)[:300]}") from None
        if self._classifier is not None:
            return [(self._classifier.answer(results[0]), 1)]
        output = _pack(dict(zip(names, results, strict=True)))
        pieces = split(output, len(output) if request.chunk_units == 1 else request.chunk_units)
        return [(piece, int(number == len(pieces) - 1)) for number, piece in enumerate(pieces)]

    def _tensors(self, payload: bytes) -> dict[str, Array]:
        """The input tensors, judged against the model's signature. Raises Refused."""
        assert self._session is not None
        try:
            given = decode(payload)
        except MalformedFrame as error:
            raise Refused(f"the payload is not a map of tensors: {error}") from None
        wanted = {item.name: item for item in self._session.get_inputs()}
        if not isinstance(given, dict) or len(given) > TENSORS_MAX or sorted(given) != sorted(wanted):
            raise Refused("the payload must be a map with exactly the tensors " + ", ".join(sorted(wanted)))
        return {name: _tensor(name, value, wanted[name].type, wanted[name].shape) for name, value in given.items()}


def _tensor(name: str, value: Value, kind: str, signature: list[int | str | None]) -> Array:
    if not isinstance(value, dict) or sorted(value) != ["data", "dtype", "shape"]:
        raise Refused(f"tensor {name!r} must have exactly data, dtype and shape")
    spelling = DTYPES.get(kind)
    if spelling is None:
        raise Refused(f"tensor {name!r} is of a type that can't be passed in: {kind}")
    if value["dtype"] != NAMES[spelling]:
        raise Refused(f"tensor {name!r} must be of dtype {NAMES[spelling]}, not {str(value['dtype'])[:40]!r}")
    shape, content = value["shape"], value["data"]
    if not isinstance(shape, list) or not isinstance(content, bytes) or len(shape) != len(signature):
        raise Refused(f"tensor {name!r} must have {len(signature)} dimensions")
    sizes: list[int] = []
    for size, expected in zip(shape, signature, strict=True):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= ELEMENTS_MAX:
            raise Refused(f"tensor {name!r} has a dimension that is not a whole number from 1 to {ELEMENTS_MAX}")
        if isinstance(expected, int) and size != expected:
            raise Refused(f"tensor {name!r} must have shape {signature}, not {shape}")
        sizes.append(size)
    elements = math.prod(sizes)
    dtype = numpy.dtype(spelling)
    if elements > ELEMENTS_MAX or len(content) != elements * dtype.itemsize:
        raise Refused(f"tensor {name!r} of shape {shape} takes {elements * dtype.itemsize} bytes, not {len(content)}")
    return numpy.frombuffer(content, dtype=dtype).reshape(sizes)


def _pack(results: dict[str, object]) -> bytes:
    packed = {}
    for name, result in results.items():
        if not isinstance(result, numpy.ndarray) or result.dtype.name not in NAMES.values():
            raise Refused(f"output {name!r} is not a tensor of numbers")
        little = numpy.ascontiguousarray(result, dtype=result.dtype.newbyteorder("<"))
        packed[name] = {"dtype": result.dtype.name, "shape": list(result.shape), "data": little.tobytes()}
    output: bytes = msgpack.packb(packed, use_bin_type=True)
    return output
