"""The beginning of a GGUF file: how much memory a token of context takes, and how its weights are stored.

Law: the file is a stranger's. Nothing is believed but that its numbers bound our own estimate; everything read is
capped, in bytes and in steps, and whatever is not as it should be gives None, never another error. It is still work:
nobody reads a header on the node's loop.

Source: the GGUF format, version 3 (`docs/gguf.md` of the ggml project).
"""

import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = b"GGUF"
HEADER_BYTES_MAX = 16 << 20  # a large vocabulary with its merges takes about eight megabytes
ENTRIES_MAX = 4096
ITEMS_MAX = 1 << 20
STEPS_MAX = 1 << 20  # texts, values and tensors of one header; a vocabulary of 256,000 tokens with merges has 770,000
STRING_KIND, ARRAY_KIND = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
FLOATS = (6, 12)
LAYERS_MAX = 4096  # no longer array is of use here; the node's loop waits for this
HALF_FLOAT_BYTES = 2
TENSORS_MAX = 1 << 16
FLOAT_KIND = 0
# Q4_0, Q4_1, Q5_0, Q8_0: measured to give the same bits however rows are batched. Others do not, or nobody looked.
INVARIANT_KINDS = (2, 3, 6, 8)
Entry = str | int | list[int] | None
_LENGTH = struct.Struct("<Q")


class _Malformed(Exception):
    """Not a header that we understand."""


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.tensor_count = 0
        self.steps = 0
        """Texts, numbers and tensors read so far."""
        self._content = content
        self._position = 0

    def _step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps > STEPS_MAX:
            raise _Malformed

    def take(self, count: int) -> bytes:
        end = self._position + count
        if count < 0 or end > len(self._content):
            raise _Malformed
        piece = self._content[self._position : end]
        self._position = end
        return piece

    def number(self, layout: str) -> int:
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return int(value) if value == value and abs(value) < 2**63 else 0  # floats are of no use here

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def _skip_text(self) -> None:
        """As ``text``, for the hundred thousand texts of a vocabulary."""
        (length,) = _LENGTH.unpack_from(self._content, self._position)
        self._position += 8 + length
        if self._position > len(self._content):
            raise _Malformed

    def value(self, kind: int) -> Entry:
        if kind == STRING_KIND:
            return self.text()
        if kind != ARRAY_KIND:
            return self.number(self._layout(kind))
        inner, count = self.number("<I"), self.number("<Q")
        if not 0 <= count <= ITEMS_MAX:
            raise _Malformed
        if inner == STRING_KIND:
            self._step(count)
            for _ in range(count):
                self._skip_text()
            return None
        layout = self._layout(inner)
        items = self.take(count * struct.calcsize(layout))
        if inner in FLOATS or count > LAYERS_MAX:
            return None
        self._step(count)
        return [int(item) for (item,) in struct.iter_unpack(layout, items)]

    @staticmethod
    def _layout(kind: int) -> str:
        if kind not in SCALARS:
            raise _Malformed
        return SCALARS[kind]

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Names and values, in order."""
        if self.take(4) != MAGIC or self.number("<I") not in (2, 3):
            raise _Malformed
        self.tensor_count = self.number("<Q")
        count = self.number("<Q")
        if count > ENTRIES_MAX:
            raise _Malformed
        for _ in range(count):
            self._step()
            name = self.text()
            yield name, self.value(self.number("<I"))

    def tensors(self) -> Iterator[tuple[int, int]]:
        """Dimensions and kind of every tensor, once all entries were read."""
        if not 0 < self.tensor_count <= TENSORS_MAX:
            raise _Malformed
        for _ in range(self.tensor_count):
            self._step()
            self.take(self.number("<Q"))
            dimensions = self.number("<I")
            self.take(8 * dimensions)
            kind = self.number("<I")
            self.take(8)
            yield dimensions, kind


def has_invariant_weights(path: Path) -> bool:
    """Whether every matrix of the file is of a kind whose products don't depend on what else is in a batch.

    Vectors of plain floats are multiplied element by element. Stacks of matrices (of experts) were not measured.
    """
    try:
        with path.open("rb") as file:
            reader = _Reader(file.read(HEADER_BYTES_MAX))
        for _ in reader.entries():
            pass
        return all(
            (dimensions == 2 and kind in INVARIANT_KINDS) or (dimensions == 1 and kind == FLOAT_KIND)
            for dimensions, kind in reader.tensors()
        )
    except (OSError, _Malformed, struct.error, OverflowError):
        return False


def context_bytes_per_token(path: Path) -> int | None:
    """Bytes of key and value memory for one token of context; None when the header doesn't say."""
    try:
        with path.open("rb") as file:
            found = _wanted(_Reader(file.read(HEADER_BYTES_MAX)))
    except (OSError, _Malformed, struct.error, OverflowError):
        return None
    layers, heads = found.get("block_count"), found.get("attention.head_count")
    width = found.get("embedding_length")
    if not isinstance(layers, int) or not isinstance(heads, int) or not isinstance(width, int) or heads < 1:
        return None
    sharing = found.get("attention.head_count_kv", heads)
    key, value = (found.get(f"attention.{name}_length", width // heads) for name in ("key", "value"))
    if not isinstance(key, int) or not isinstance(value, int):
        return None
    kept = sum(sharing) if isinstance(sharing, list) else layers * sharing if isinstance(sharing, int) else 0
    return max(0, kept * (key + value) * HALF_FLOAT_BYTES)


def _wanted(reader: _Reader) -> dict[str, Entry]:
    """Entries of the model's own architecture, by their name within it."""
    architecture = ""
    found: dict[str, Entry] = {}
    for name, value in reader.entries():
        if name == "general.architecture" and isinstance(value, str):
            architecture = value
        elif architecture and name.startswith(f"{architecture}."):
            found[name.removeprefix(f"{architecture}.")] = value
        elif name.startswith("tokenizer.") and "embedding_length" in found:
            break  # the long part, and nothing in it is wanted
    return found
