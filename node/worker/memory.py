"""Memory that a model will take, and whether this machine has it: asked before a worker is started.

Law: never sell what can't be served. A model's need (its file, its context for every slot, a margin) must fit the limit
of a worker, and what is free on the machine less what other workers were promised and have not taken yet.
"""

from dataclasses import dataclass
from pathlib import Path

from node.worker.errors import CapacityExceeded
from node.worker.gguf_header import context_bytes_per_token
from node.worker.limits import MEBIBYTE, WorkerLimits
from node.worker.models import Manifest, ModelStore
from node.worker.sandbox import cgroup

MEMORY_FACTS = Path("/proc/meminfo")
MACHINE_SPARE_BYTES = 256 * MEBIBYTE  # the node itself, and everything else on the machine
# What a runtime's packages and buffers take beside the model, as measured with some room.
RUNTIME_BYTES = {"echo": 32 * MEBIBYTE, "gguf": 160 * MEBIBYTE, "onnx": 128 * MEBIBYTE, "wasm": 128 * MEBIBYTE}
RUNTIME_BYTES_OTHER = 128 * MEBIBYTE
TEXT_BYTES = 96 * MEBIBYTE  # a tokenizer's tables, and a run of 512 tokens through a small encoder
ONNX_COPIES = 2  # weights are unpacked into memory, and once more while the graph is optimised


class MemoryShort(CapacityExceeded):
    """The model doesn't fit: into a worker's limit, or into what this machine has free."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that one worker will take: of its own, and of files that workers share."""

    private_bytes: int
    shared_bytes: int
    reason: str

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.private_bytes + self.shared_bytes


def need_of(store: ModelStore, manifest: Manifest, slots: int) -> MemoryNeed:
    """What a worker for this model will take with so many jobs at once. It reads a stranger's file: off the loop."""
    size = manifest.size_bytes()
    runtime = RUNTIME_BYTES.get(manifest.runtime, RUNTIME_BYTES_OTHER)
    if manifest.runtime == "onnx" and "tokenizer_file" in manifest.settings:
        runtime += TEXT_BYTES
    model, beside = f"a model of {_mebibytes(size)}", f"{_mebibytes(runtime)} for its runtime"
    if manifest.runtime == "onnx":
        return MemoryNeed(size * ONNX_COPIES + runtime, size, f"{model} in {ONNX_COPIES} copies and {beside}")
    context = _context_bytes(store, manifest, slots)
    if context is None:
        return MemoryNeed(runtime, size, f"{model} and {beside}")
    return MemoryNeed(
        context + runtime, size, f"{model}, {_mebibytes(context)} of context for {slots} jobs at once and {beside}"
    )


def _context_bytes(store: ModelStore, manifest: Manifest, slots: int) -> int | None:
    tokens, name = manifest.settings.get("context_tokens"), manifest.settings.get("model_file")
    if manifest.runtime != "gguf" or not isinstance(tokens, int):
        return None
    for file in manifest.files:
        if file.path == name:
            each = context_bytes_per_token(store.file_path(file))
            return each * tokens * slots if each is not None else None
    return None


def available_bytes(facts: Path = MEMORY_FACTS) -> int:
    """What new processes of this node can take: of the machine, and of the node's own control group."""
    free = 0
    for line in facts.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    headroom = cgroup.headroom_bytes()
    return free if headroom is None else min(free, headroom)


def admit(need: MemoryNeed, limits: WorkerLimits, available: int, promised: int) -> None:
    """Refuse what does not fit. ``promised``: bytes that running workers may still take. Raises MemoryShort."""
    if need.private_bytes > limits.memory_bytes:
        raise MemoryShort(
            f"it needs {_mebibytes(need.private_bytes)} of its own ({need.reason}), and a worker may have "
            f"{_mebibytes(limits.memory_bytes)}: sell fewer slots or a smaller context"
        )
    free = available - promised - MACHINE_SPARE_BYTES
    if need.total_bytes > free:
        raise MemoryShort(
            f"it needs {_mebibytes(need.total_bytes)} ({need.reason}), and {_mebibytes(max(0, free))} are free here "
            "beside what other models were promised: sell fewer models or slots"
        )


def _mebibytes(count: int) -> str:
    return f"{round(count / MEBIBYTE)} MiB"
