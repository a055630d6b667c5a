"""What lies around an ONNX model: from a job's input to rows of tensors, and from the model's rows to an output.

Law: a job is a list of portions. A portion is the least that one run of the model takes; portions with the same key may
be run as one, and each gets the rows that are its own. A request is judged completely before any portion is run.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy

from node.worker.child.frames import Value
from node.worker.child.onnx_tensors import Array, Feeds, TensorSignature, pack_tensors, read_tensors
from node.worker.child.runtime import LoadFailed, Refused, Request


@dataclass(frozen=True, slots=True)
class Portion:
    """Tensors for one run. ``cost`` is what it adds to a run, in a measure of the pipeline's own."""

    feeds: Feeds
    rows: int
    key: Hashable
    cost: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """A judged request: what it is charged for as input, and its portions."""

    input_units: int
    portions: tuple[Portion, ...]


class MixedRows(Exception):
    """The model's results are not one row for each row of its input."""


class Pipeline(ABC):
    """One kind of input and output. ``outputs`` are the model's outputs that it needs."""

    outputs: tuple[str, ...]
    cost_max: int = 0
    """Portions are run as one up to so much cost in all; 0: whatever they cost."""

    @abstractmethod
    def read(self, request: Request) -> Reading:
        """Judge a request. Raises Refused."""

    @abstractmethod
    def answer(self, reading: Reading, results: Sequence[Feeds]) -> bytes:
        """The output from the results of all portions, in their order. Raises Refused."""

    def join(self, portions: Sequence[Portion]) -> Feeds:
        """The input of one run for portions of the same key."""
        if len(portions) == 1:
            return portions[0].feeds
        return {name: numpy.concatenate([portion.feeds[name] for portion in portions]) for name in portions[0].feeds}

    def part(self, results: Feeds, portions: Sequence[Portion]) -> list[Feeds]:
        """Each portion's own rows of a run's results. Raises MixedRows."""
        if len(portions) == 1:
            return [results]
        rows = sum(portion.rows for portion in portions)
        if any(result.ndim == 0 or result.shape[0] != rows for result in results.values()):
            raise MixedRows
        parted: list[Feeds] = []
        start = 0
        for portion in portions:
            end = start + portion.rows
            parted.append({name: result[start:end] for name, result in results.items()})
            start = end
        return parted


class TensorPipeline(Pipeline):
    """Tensors in, tensors out, as the model declares them."""

    def __init__(
        self, inputs: tuple[TensorSignature, ...], outputs: tuple[TensorSignature, ...], settings: dict[str, Value]
    ) -> None:
        policy = settings.get("not_finite", "refuse")
        if policy not in ("refuse", "pass"):
            raise LoadFailed("not_finite must be 'refuse' or 'pass'")
        self._finite = policy == "refuse"
        self._inputs = inputs
        self._rows_free = all(item.rows_free() for item in (*inputs, *outputs))
        self.outputs = tuple(item.name for item in outputs)

    def read(self, request: Request) -> Reading:
        if request.input_format != "tensors":
            raise Refused("this model takes input_format 'tensors'")
        feeds = read_tensors(request.payload, self._inputs, self._finite)
        rows = {tensor.shape[0] if tensor.ndim else 0 for tensor in feeds.values()}
        if not self._rows_free or len(rows) != 1:
            return Reading(1, (Portion(feeds, 1, object()),))  # a key like no other: it is run alone
        key = tuple((name, feeds[name].shape[1:]) for name in sorted(feeds))
        return Reading(1, (Portion(feeds, rows.pop(), key),))

    def answer(self, reading: Reading, results: Sequence[Feeds]) -> bytes:
        (result,) = results
        return pack_tensors(result)


class ByteClassifier(Pipeline):
    """Bytes in, a label out: the ends of the input as numbers, one score for each label.

    The model's own configuration file says how much of the input it sees, how it is padded and what the labels are.
    """

    def __init__(
        self, inputs: tuple[TensorSignature, ...], outputs: tuple[TensorSignature, ...], content: bytes
    ) -> None:
        self._input, self.outputs = inputs[0].name, (outputs[0].name,)
        try:
            read = json.loads(content)
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

    def read(self, request: Request) -> Reading:
        if request.input_format not in ("bytes", "text"):
            raise Refused("this model takes input_format 'bytes'")
        if len(request.payload.strip()) < self.shortest:
            raise Refused(f"the input needs at least {self.shortest} bytes that aren't white space")
        return Reading(1, (Portion({self._input: self._features(request.payload)}, 1, "features"),))

    def _features(self, content: bytes) -> Array:
        """The row of numbers that the model sees: both ends without outer white space, padded."""
        head = content[: self.block].lstrip()[: self.first]
        tail = content[-self.block :].rstrip()[-self.last :]
        row = numpy.full((1, self.first + self.last), self.padding, dtype="<i4")
        row[0, : len(head)] = numpy.frombuffer(head, dtype=numpy.uint8)
        if tail:
            row[0, -len(tail) :] = numpy.frombuffer(tail, dtype=numpy.uint8)
        return row

    def answer(self, reading: Reading, results: Sequence[Feeds]) -> bytes:
        """JSON: the label to use, its score, the model's raw label, and whether the score reached its threshold."""
        (scores,) = results[0].values()
        row = [float(score) for score in numpy.asarray(scores, dtype=numpy.float64).ravel()]
        if len(row) != len(self.labels) or not all(math.isfinite(score) for score in row):
            raise Refused("the model gave no usable scores for this input")
        best = max(range(len(row)), key=row.__getitem__)
        raw = self.labels[best]
        answer = {
            "label": self.renamed.get(raw, raw),
            "score": round(row[best], 6),
            "raw_label": raw,
            "confident": row[best] >= self.thresholds.get(raw, self.threshold),
        }
        return json.dumps(answer, sort_keys=True, separators=(",", ":")).encode()
