"""Small ONNX models made by hand, and tokenizers to go with them: what is needed to see a rule kept or broken.

The format is protobuf (tag = field number and wire type, varints, length-delimited fields), as the ONNX specification
numbers its fields; nothing but a few operators is spelled here.
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

FLOAT, INT64 = 1, 7
Dimension = int | str


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _part(field: int, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def value(name: str, kind: int, shape: Sequence[Dimension]) -> bytes:
    """A named input or output."""
    dimensions = b"".join(_part(1, _part(2, size) if isinstance(size, str) else _number(1, size)) for size in shape)
    return _part(1, name) + _part(2, _part(1, _number(1, kind) + _part(2, dimensions)))


def constant(name: str, shape: Sequence[int], numbers: Sequence[float] | Sequence[int], kind: int = FLOAT) -> bytes:
    """A tensor that is part of the model."""
    raw = struct.pack(f"<{len(numbers)}{'f' if kind == FLOAT else 'q'}", *numbers)
    return b"".join(_number(1, size) for size in shape) + _number(2, kind) + _part(8, name) + _part(9, raw)


def node(operator: str, inputs: Sequence[str], output: str, **attributes: int) -> bytes:
    """One operation; its attributes are whole numbers."""
    content = b"".join(_part(1, name) for name in inputs) + _part(2, output) + _part(4, operator)
    for name, number in attributes.items():
        content += _part(5, _part(1, name) + _number(3, number) + _number(20, 2))
    return content


def model(
    nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], constants: Sequence[bytes] = ()
) -> bytes:
    """A whole model of operator set 13."""
    graph = b"".join(_part(1, each) for each in nodes) + _part(2, "graph")
    graph += b"".join(_part(5, each) for each in constants)
    graph += b"".join(_part(11, each) for each in inputs) + b"".join(_part(12, each) for each in outputs)
    return _number(1, 8) + _part(7, graph) + _part(8, _part(1, "") + _number(2, 13))


def doubling() -> bytes:
    """y = x + x, row by row."""
    return model([node("Add", ["x", "x"], "y")], [value("x", FLOAT, ["rows", 4])], [value("y", FLOAT, ["rows", 4])])


def summing() -> bytes:
    """y = running sum over the rows: each row holds what the rows before it held."""
    return model(
        [node("CumSum", ["x", "axis"], "y")],
        [value("x", FLOAT, ["rows", 4])],
        [value("y", FLOAT, ["rows", 4])],
        [constant("axis", [], [0], INT64)],
    )


def repeating() -> bytes:
    """y = x twice, one below the other: more rows out than in."""
    return model(
        [node("Concat", ["x", "x"], "y", axis=0)], [value("x", FLOAT, ["rows", 4])], [value("y", FLOAT, ["more", 4])]
    )


def pairing() -> bytes:
    """Two inputs that share a dimension: z = a + b."""
    return model(
        [node("Add", ["a", "b"], "z")],
        [value("a", FLOAT, ["rows", "width"]), value("b", FLOAT, ["rows", "width"])],
        [value("z", FLOAT, ["rows", "width"])],
    )


WORDS = ("[PAD]", "[UNK]", "bad", "good", "fine", "film")
WEIGHTS = {"bad": (2.0, -2.0, 0.0), "good": (-2.0, 2.0, 0.0), "fine": (-1.0, 1.0, 1.0), "film": (0.0, 0.0, 0.5)}


def word_scores() -> bytes:
    """Three scores for each text: the sum of its words' weights, where the mask says that there is text."""
    table = [number for word in WORDS for number in WEIGHTS.get(word, (0.0, 0.0, 0.0))]
    return model(
        [
            node("Gather", ["table", "input_ids"], "vectors"),
            node("Cast", ["attention_mask"], "mask", to=FLOAT),
            node("Unsqueeze", ["mask", "last"], "wide"),
            node("Mul", ["vectors", "wide"], "masked"),
            node("ReduceSum", ["masked", "tokens"], "logits", keepdims=0),
        ],
        [value("input_ids", INT64, ["texts", "tokens"]), value("attention_mask", INT64, ["texts", "tokens"])],
        [value("logits", FLOAT, ["texts", 3])],
        [
            constant("table", [len(WORDS), 3], table),
            constant("last", [1], [2], INT64),
            constant("tokens", [1], [1], INT64),
        ],
    )


def word_vectors() -> bytes:
    """One vector for each word and no mask: padding would be text."""
    table = [number for word in WORDS for number in WEIGHTS.get(word, (7.0, 7.0, 7.0))]
    return model(
        [node("Gather", ["table", "input_ids"], "vectors")],
        [value("input_ids", INT64, ["texts", "tokens"])],
        [value("vectors", FLOAT, ["texts", "tokens", 3])],
        [constant("table", [len(WORDS), 3], table)],
    )


def word_sums() -> bytes:
    """The sum of all words' vectors, and no mask: padding is text to it."""
    table = [number for word in WORDS for number in WEIGHTS.get(word, (7.0, 7.0, 7.0))]
    return model(
        [node("Gather", ["table", "input_ids"], "vectors"), node("ReduceSum", ["vectors", "axis"], "sums", keepdims=0)],
        [value("input_ids", INT64, ["texts", "tokens"])],
        [value("sums", FLOAT, ["texts", 3])],
        [constant("table", [len(WORDS), 3], table), constant("axis", [1], [1], INT64)],
    )


def word_tokenizer(**parts: object) -> bytes:
    """A tokenizer that splits at white space and knows ``WORDS``; it asks for padding to 128 and cutting at 2."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    plain: dict[str, object] = {
        "version": "1.0",
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }  # fmt: skip
    return json.dumps({**plain, **parts}).encode()


def written(folder: Path, **files: bytes) -> dict[str, Path]:
    """Files by the names that a manifest gives them: ``model`` is model.onnx, the others are JSON."""
    paths = {}
    for name, content in files.items():
        path = folder / (f"{name}.onnx" if name == "model" else f"{name}.json")
        path.write_bytes(content)
        paths[path.name] = path
    return paths
