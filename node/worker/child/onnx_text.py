"""Text through an ONNX model: the packaged tokenizer, padded batches with their mask, and embeddings or labels out.

Law: what a text costs is the number of its tokens, special ones included, padding never. The tokenizer's own wishes to
truncate or pad are not followed: a text that is too long is refused as the sender's fault, unless the manifest says
`over_length = "truncate"`. Each text's result depends on the model and that text; whether it may be run beside others
is the manifest's to declare (`batch_rows`), because some graphs mix their rows.

Input formats: `text` (or `bytes`: UTF-8), one text; `texts`, a JSON list of texts. Output, always for a list:
`{"embeddings":[[…],…],"tokens":[n,…]}` or `{"labels":[[{"label":…,"score":…},…],…],"tokens":[n,…]}`, best label first.
"""

import json
from collections.abc import Sequence
from typing import Literal

import numpy
import tokenizers
from numpy.typing import NDArray

from node.worker.child.frames import Value
from node.worker.child.onnx_pipelines import Pipeline, Portion, Reading
from node.worker.child.onnx_tensors import DTYPES, Array, Feeds, TensorSignature
from node.worker.child.runtime import TEXTS_MAX, LoadFailed, Refused, Request

TOKENS_MAX = 1 << 13  # of one text: attention's memory grows with its square
BYTES_PER_TOKEN_MAX = 64  # a text with more bytes than this for each token that is taken can't fit
BATCH_TOKENS_MAX = 512  # of one run, padding included: beyond it a run of several texts was no faster than one by one
LENGTH_STEP = 16  # texts whose lengths round up to the same multiple may be run as one: padding costs as text does
LABELS_MAX = 1024
TOKENIZER_FILE_BYTES_MAX = 64 << 20
TEXT_INPUTS = ("attention_mask", "input_ids", "token_type_ids")

Task = Literal["embedding", "classification"]


def _choice(settings: dict[str, Value], name: str, choices: tuple[str, ...]) -> str:
    """A setting that is one of a few words; the first of them when it is absent. Raises LoadFailed."""
    value = settings.get(name, choices[0])
    if not isinstance(value, str) or value not in choices:
        raise LoadFailed(f"{name} must be one of: " + ", ".join(choices))
    return value


def read_labels(content: bytes) -> tuple[str, ...]:
    """Labels from a JSON list, or from the `id2label` of a model's configuration. Raises LoadFailed."""
    try:
        read = json.loads(content)
        if isinstance(read, dict):
            read = [read["id2label"][str(number)] for number in range(len(read["id2label"]))]
        "".join(read).encode()  # JSON lets half a character pair through, which no answer could be spelled with
    except (ValueError, RecursionError, KeyError, TypeError):
        read = None
    if not isinstance(read, list) or not all(isinstance(label, str) for label in read):
        raise LoadFailed("the labels file must be a JSON list of texts, or an object with id2label")
    return tuple(read)


class TextPipeline(Pipeline):
    """Texts in; one embedding, or one list of labels with scores, out for each."""

    cost_max = BATCH_TOKENS_MAX

    def __init__(
        self,
        task: Task,
        inputs: tuple[TensorSignature, ...],
        outputs: tuple[TensorSignature, ...],
        settings: dict[str, Value],
        files: dict[str, str],
    ) -> None:
        self._inputs = {item.name: numpy.dtype(DTYPES.get(item.kind, "O")) for item in inputs}
        if "input_ids" not in self._inputs or not set(self._inputs) <= set(TEXT_INPUTS):
            raise LoadFailed("a text model's inputs are input_ids and perhaps " + ", ".join(TEXT_INPUTS[::2]))
        for item in inputs:
            if self._inputs[item.name].kind != "i" or len(item.shape) != 2 or not item.rows_free():
                raise LoadFailed(f"{item.name} must be whole numbers of the shape [texts, tokens]")
        self._output = _output_of(outputs, settings)
        self.outputs = (self._output.name,)
        tokens_max = settings.get("tokens_max")
        if not isinstance(tokens_max, int) or not 1 <= tokens_max <= TOKENS_MAX:
            raise LoadFailed(f"tokens_max must be from 1 to {TOKENS_MAX}")
        self._tokens_max = tokens_max
        self._truncate = _choice(settings, "over_length", ("refuse", "truncate")) == "truncate"
        self._tokenizer = _tokenizer_of(settings, files, tokens_max if self._truncate else None)
        self._pooling = _choice(settings, "pooling", ("none",) if task == "classification" else ("mean", "cls", "none"))
        self._normalize = settings.get("normalize", 1 if task == "embedding" else 0) == 1
        self._sigmoid = _choice(settings, "scores", ("softmax", "sigmoid")) == "sigmoid"
        self._labels = _labels_of(settings, files) if task == "classification" else ()
        rank = 2 if self._pooling == "none" else 3
        if len(self._output.shape) != rank:
            raise LoadFailed(f"output {self._output.name} must have {rank} dimensions for pooling {self._pooling!r}")
        width = self._output.shape[-1]
        if self._labels and isinstance(width, int) and width != len(self._labels):
            raise LoadFailed(f"the model scores {width} labels, and {len(self._labels)} are named")

    def read(self, request: Request) -> Reading:
        portions = []
        for number, text in enumerate(self._texts(request)):
            ids = self._encode(text, f"text {number + 1}" if request.input_format == "texts" else "the text")
            step = LENGTH_STEP if "attention_mask" in self._inputs else 1  # without a mask padding would be text
            padded = -(-len(ids) // step) * step
            portions.append(Portion({"input_ids": numpy.array([ids], dtype=numpy.int64)}, 1, padded, padded))
        return Reading(sum(portion.feeds["input_ids"].size for portion in portions), tuple(portions))

    def _texts(self, request: Request) -> list[str]:
        try:
            content = request.payload.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("the payload is not UTF-8 text") from None
        if request.input_format in ("text", "bytes"):
            return [content]
        if request.input_format != "texts":
            raise Refused("this model takes input_format 'text', or 'texts': a JSON list of texts")
        try:
            texts = json.loads(content)
        except (ValueError, RecursionError):
            texts = None
        if not isinstance(texts, list) or not 0 < len(texts) <= TEXTS_MAX:
            raise Refused(f"the payload must be a JSON list of 1 to {TEXTS_MAX} texts")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
                raise Refused(f"text {number + 1} of the list is not a Unicode text")
        return texts

    def _encode(self, text: str, name: str) -> list[int]:
        size = len(text.encode())
        if size > self._tokens_max * BYTES_PER_TOKEN_MAX:
            raise Refused(f"{name} is too long: {size} bytes can't fit the {self._tokens_max} tokens this model takes")
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except (MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # plain exceptions, and panics of native code that are none
            raise Refused(f"the model's tokenizer does not take {name}: {str(error)[:200]}") from None
        if not ids:
            raise Refused(f"{name} has no tokens")
        if len(ids) > self._tokens_max:
            raise Refused(f"{name} is too long: it has {len(ids)} tokens, and this model takes {self._tokens_max}")
        return ids

    def join(self, portions: Sequence[Portion]) -> Feeds:
        """Rows padded to the longest text; the mask says what is text."""
        rows = [portion.feeds["input_ids"][0] for portion in portions]
        shape = (len(rows), max(len(row) for row in rows))
        feeds: Feeds = {name: numpy.zeros(shape, dtype=dtype) for name, dtype in self._inputs.items()}
        for number, row in enumerate(rows):
            feeds["input_ids"][number, : len(row)] = row
            if "attention_mask" in feeds:
                feeds["attention_mask"][number, : len(row)] = 1
        return feeds

    def part(self, results: Feeds, portions: Sequence[Portion]) -> list[Feeds]:
        """One row of numbers for each text."""
        (result,) = results.values()
        parted = []
        for portion, row in zip(portions, super().part({"rows": result}, portions), strict=True):
            parted.append({"row": self._pooled(row["rows"], portion.feeds["input_ids"].shape[1])})
        return parted

    def _pooled(self, result: Array, tokens: int) -> Array:
        values = numpy.asarray(result, dtype=numpy.float32)
        if values.shape[0] != 1 or values.ndim != len(self._output.shape):
            raise Refused("the model gave no usable numbers for this text")
        if self._pooling == "mean":
            return numpy.asarray(values[0, :tokens].mean(axis=0, dtype=numpy.float64), dtype=numpy.float32)
        row: Array = values[0, 0] if self._pooling == "cls" else values[0]
        return row

    def answer(self, reading: Reading, results: Sequence[Feeds]) -> bytes:
        """JSON as documented above. Raises Refused when the numbers are unusable."""
        rows = [numpy.asarray(result["row"], dtype=numpy.float64) for result in results]
        if not all(row.ndim == 1 and row.size and numpy.isfinite(row).all() for row in rows):
            raise Refused("the model gave no usable numbers for this input")
        tokens = [portion.feeds["input_ids"].size for portion in reading.portions]
        if self._labels:
            answer = {"labels": [self._scored(row) for row in rows], "tokens": tokens}
            return json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode()
        spelled = ",".join(self._embedding(row) for row in rows)
        return f'{{"embeddings":[{spelled}],"tokens":{json.dumps(tokens, separators=(",", ":"))}}}'.encode()

    def _embedding(self, row: NDArray[numpy.float64]) -> str:
        """A JSON list. Nine digits give back every number of 32 bits, and are spelled three times as fast as fewest."""
        length = float(numpy.sqrt((row * row).sum()))
        scaled = row / length if self._normalize and length > 0 else row
        return "[" + ",".join([f"{value:.9g}" for value in scaled.astype(numpy.float32).tolist()]) + "]"

    def _scored(self, row: NDArray[numpy.float64]) -> list[dict[str, object]]:
        if row.size != len(self._labels):
            raise Refused("the model gave no usable scores for this input")
        if self._sigmoid:
            scores = 1.0 / (1.0 + numpy.exp(-row))
        else:
            powers = numpy.exp(row - row.max())
            scores = powers / powers.sum()
        order = sorted(range(row.size), key=lambda number: (-scores[number], number))
        return [{"label": self._labels[number], "score": round(float(scores[number]), 6)} for number in order]


def _output_of(outputs: tuple[TensorSignature, ...], settings: dict[str, Value]) -> TensorSignature:
    named = settings.get("output", outputs[0].name if outputs else "")
    for output in outputs:
        if output.name == named and output.kind in ("tensor(float)", "tensor(float16)", "tensor(double)"):
            return output
    raise LoadFailed(f"the model has no output {str(named)[:80]!r} of floating-point numbers")


def _content_of(settings: dict[str, Value], files: dict[str, str], role: str) -> bytes:
    name = settings.get(role)
    if not isinstance(name, str) or name not in files:
        raise LoadFailed(f"the setting {role} must name one of the model's files")
    with open(files[name], "rb") as stream:
        content = stream.read(TOKENIZER_FILE_BYTES_MAX + 1)
    if len(content) > TOKENIZER_FILE_BYTES_MAX:
        raise LoadFailed(f"{name} is larger than {TOKENIZER_FILE_BYTES_MAX} bytes")
    return content


def _tokenizer_of(settings: dict[str, Value], files: dict[str, str], cut: int | None) -> tokenizers.Tokenizer:
    content = _content_of(settings, files, "tokenizer_file")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if cut is not None:
            tokenizer.enable_truncation(cut)
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # plain exceptions, and panics of native code that are none
        raise LoadFailed(f"not a usable tokenizer: {str(error)[:300]}") from None
    return tokenizer


def _labels_of(settings: dict[str, Value], files: dict[str, str]) -> tuple[str, ...]:
    listed = settings.get("labels")
    labels = (
        tuple(label.strip() for label in listed.split(","))
        if isinstance(listed, str)
        else read_labels(_content_of(settings, files, "labels_file"))
    )
    if not 1 < len(labels) <= LABELS_MAX or len(set(labels)) != len(labels) or not all(labels):
        raise LoadFailed(f"there must be 2 to {LABELS_MAX} labels, each once")
    return labels
