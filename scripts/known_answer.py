"""Writes ``node/worker/child/known_answer.gguf``: a language model of 40 kilobytes with weights drawn from a hash.

It knows nothing. Workers run it when they start, to see whether the library computes what it computed here, and whether
on this machine its answers depend on how rows are batched. Each of the four invariant ways to store weights is in it.

Run ``python -m scripts.known_answer`` after a change; the answers stand in ``node/worker/child/llama_proof.py``.
Source: the GGUF format, version 3, and the block layouts of the ggml project.
"""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).parents[1] / "node" / "worker" / "child" / "known_answer.gguf"
WIDTH, INNER, HEADS, VOCABULARY, LAYERS = 64, 128, 2, 64, 2
KEY_WIDTH = WIDTH // HEADS
BLOCK = 32
ALIGNMENT = 32
F32, Q4_0, Q4_1, Q5_0, Q8_0 = 0, 2, 3, 6, 8
UINT32, FLOAT32, STRING = 4, 6, 8
LAYOUTS = {Q4_0: (("scale",), 16), Q4_1: (("scale", "least"), 16), Q5_0: (("scale",), 20), Q8_0: (("scale",), 32)}
# So that a product of a row of sixty-four has about the size of what went in; the last gives clear differences.
SCALES = {Q4_0: 0.03, Q4_1: 0.03, Q5_0: 0.015, Q8_0: 0.008}


def _stream() -> Iterator[bytes]:
    """Blocks of bytes that look random, always the same."""
    number = 0
    while True:
        yield hashlib.blake2b(number.to_bytes(8, "little"), digest_size=32, person=b"known answer").digest()
        number += 1


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _entry(name: str, value: str | int | float) -> bytes:
    match value:
        case str():
            return _string(name) + struct.pack("<I", STRING) + _string(value)
        case int():
            return _string(name) + struct.pack("<II", UINT32, value)
        case float():
            return _string(name) + struct.pack("<If", FLOAT32, value)


def _entries() -> list[bytes]:
    sizes = {
        "context_length": 256, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": INNER,
        "attention.head_count": HEADS, "attention.head_count_kv": 1, "rope.dimension_count": KEY_WIDTH,
        "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": VOCABULARY,
    }  # fmt: skip
    described = [_entry(f"llama.{name}", value) for name, value in sizes.items()]
    return [_entry("general.architecture", "llama"), *described, _entry("tokenizer.ggml.model", "no_vocab")]


def _tensors() -> Iterator[tuple[str, tuple[int, ...], int]]:
    yield "token_embd.weight", (WIDTH, VOCABULARY), Q8_0
    for layer in range(LAYERS):
        matrices = {
            "attn_q": (WIDTH, WIDTH, Q4_0), "attn_k": (WIDTH, KEY_WIDTH, Q4_1), "attn_v": (WIDTH, KEY_WIDTH, Q5_0),
            "attn_output": (WIDTH, WIDTH, Q4_1), "ffn_gate": (WIDTH, INNER, Q4_0), "ffn_up": (WIDTH, INNER, Q5_0),
            "ffn_down": (INNER, WIDTH, Q8_0 if layer else Q4_0),
        }  # fmt: skip
        yield f"blk.{layer}.attn_norm.weight", (WIDTH,), F32
        for name, (across, down, kind) in matrices.items():
            yield f"blk.{layer}.{name}.weight", (across, down), kind
        yield f"blk.{layer}.ffn_norm.weight", (WIDTH,), F32
    yield "output_norm.weight", (WIDTH,), F32
    yield "output.weight", (WIDTH, VOCABULARY), Q8_0


def _weights(shape: tuple[int, ...], kind: int, stream: Iterator[bytes]) -> bytes:
    count = 1
    for size in shape:
        count *= size
    if kind == F32:
        return struct.pack(f"<{count}f", *[1.0] * count)
    numbers, length = LAYOUTS[kind]
    scale = SCALES[kind]
    heads = struct.pack("<e", scale) + (struct.pack("<e", -7.5 * scale) if "least" in numbers else b"")
    return b"".join(heads + next(stream)[:length] for _ in range(count // BLOCK))


def model() -> bytes:
    """The whole file."""
    stream = _stream()
    infos, content = b"", b""
    tensors = list(_tensors())
    for name, shape, kind in tensors:
        infos += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(content))
        content += _weights(shape, kind, stream)
        content += bytes(-len(content) % ALIGNMENT)
    entries = _entries()
    opening = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + infos
    return opening + bytes(-len(opening) % ALIGNMENT) + content


if __name__ == "__main__":
    FILE.write_bytes(model())
