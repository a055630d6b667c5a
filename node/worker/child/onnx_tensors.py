"""Tensors as they travel: judged on the way in against what a model declares, and packed on the way out.

Law: names, types, shapes, sizes and numbers are judged before anything runs. Numbers that are not finite are refused
unless the manifest says that the model takes them.

Format, both ways: a MessagePack map of name → {"dtype": text, "shape": [integers], "data": bytes}, row-major,
little-endian.
"""

import math
from dataclasses import dataclass

import msgpack
import numpy

from node.worker.child.frames import MalformedFrame, Value, decode
from node.worker.child.runtime import Refused

ELEMENTS_MAX = 1 << 24  # of all tensors of one input: 64 MiB of 32-bit numbers
TENSORS_MAX = 32
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
Feeds = dict[str, Array]


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """What a model declares of one input or output: its name, ONNX's name of its type, and its shape.

    A dimension is a size, a name that stands for any size (the same one wherever it appears), or None for any size.
    """

    name: str
    kind: str
    shape: tuple[int | str | None, ...]

    def rows_free(self) -> bool:
        """Whether the first dimension may have any size."""
        return bool(self.shape) and not isinstance(self.shape[0], int)


def read_tensors(payload: bytes, signature: tuple[TensorSignature, ...], finite: bool) -> Feeds:
    """The tensors of a payload. ``finite``: NaN and infinity are refused. Raises Refused."""
    try:
        given = decode(payload)
    except MalformedFrame as error:
        raise Refused(f"the payload is not a map of tensors: {error}") from None
    wanted = {item.name: item for item in signature}
    if not isinstance(given, dict) or len(given) > TENSORS_MAX or sorted(given) != sorted(wanted):
        raise Refused("the payload must be a map with exactly the tensors " + ", ".join(sorted(wanted)))
    named: dict[str, int] = {}
    feeds: Feeds = {}
    elements = 0
    for name, value in given.items():
        feeds[name] = tensor = _tensor(wanted[name], value, named)
        elements += tensor.size
        if elements > ELEMENTS_MAX:
            raise Refused(f"the tensors have more than {ELEMENTS_MAX} elements together")
        if finite and tensor.dtype.kind == "f" and not numpy.isfinite(tensor).all():
            raise Refused(f"tensor {name!r} holds NaN or infinity, which this model does not take")
    return feeds


def _tensor(signature: TensorSignature, value: Value, named: dict[str, int]) -> Array:
    name = signature.name
    if not isinstance(value, dict) or sorted(value) != ["data", "dtype", "shape"]:
        raise Refused(f"tensor {name!r} must have exactly data, dtype and shape")
    spelling = DTYPES.get(signature.kind)
    if spelling is None:
        raise Refused(f"tensor {name!r} is of a type that can't be passed in: {signature.kind}")
    if value["dtype"] != NAMES[spelling]:
        raise Refused(f"tensor {name!r} must be of dtype {NAMES[spelling]}, not {str(value['dtype'])[:40]!r}")
    content, dtype = value["data"], numpy.dtype(spelling)
    shape = _shape(signature, value["shape"], named)
    elements = math.prod(shape)
    if not isinstance(content, bytes):
        raise Refused(f"the data of tensor {name!r} must be bytes")
    if elements > ELEMENTS_MAX or len(content) != elements * dtype.itemsize:
        raise Refused(f"tensor {name!r} of shape {shape} takes {elements * dtype.itemsize} bytes, not {len(content)}")
    tensor: Array = numpy.frombuffer(content, dtype=dtype).reshape(shape)
    if dtype.kind == "b" and content.strip(b"\x00\x01"):
        raise Refused(f"tensor {name!r} of dtype bool holds bytes other than 0 and 1")
    return tensor


def _shape(signature: TensorSignature, shape: Value, named: dict[str, int]) -> list[int]:
    """A tensor's dimensions. ``named`` holds what was given for each named one so far."""
    name = signature.name
    if not isinstance(shape, list) or len(shape) != len(signature.shape):
        raise Refused(f"tensor {name!r} must have {len(signature.shape)} dimensions")
    sizes: list[int] = []
    for size, expected in zip(shape, signature.shape, strict=True):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= ELEMENTS_MAX:
            raise Refused(f"tensor {name!r} has a dimension that is not a whole number from 1 to {ELEMENTS_MAX}")
        if isinstance(expected, int) and size != expected:
            raise Refused(f"tensor {name!r} must have shape {list(signature.shape)}, not {shape}")
        if isinstance(expected, str) and named.setdefault(expected, size) != size:
            raise Refused(f"dimension {expected!r} is {named[expected]} in one tensor and {size} in {name!r}")
        sizes.append(size)
    return sizes


def pack_tensors(results: Feeds) -> bytes:
    """Output tensors in the format above. Raises Refused on what is no tensor of numbers."""
    packed = {}
    for name, result in results.items():
        if result.dtype.name not in NAMES.values():
            raise Refused(f"output {name!r} is not a tensor of numbers")
        little = numpy.ascontiguousarray(result, dtype=result.dtype.newbyteorder("<"))
        packed[name] = {"dtype": result.dtype.name, "shape": list(result.shape), "data": little.tobytes()}
    output: bytes = msgpack.packb(packed, use_bin_type=True)
    return output
