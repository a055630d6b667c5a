"""The limits of a worker: every number that bounds what a stranger's model or input can take, with its reason."""

from dataclasses import dataclass

from node.worker.health import DEFAULT_HEALTH, HealthLimits

MEBIBYTE = 1 << 20
INPUT_BYTES_MAX = 8 * MEBIBYTE  # one job's input: a large image or a long document
OUTPUT_FRAME_BYTES_MAX = 1 * MEBIBYTE  # one piece of output; tensors larger than this come in several pieces
STDERR_BYTES_KEPT = 4096  # enough for the last lines of a runtime's complaint; the rest is dropped
MODEL_BYTES_MAX = 64 << 30  # a model's file; bounds what an extraction can write
STOP_STRINGS_MAX = 4
STOP_STRING_BYTES_MAX = 256


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Limits of one worker process and of one job in it. All sizes in bytes, all times in seconds."""

    memory_bytes: int = 1024 * MEBIBYTE  # private memory (RLIMIT_DATA); the group's limit adds the model's size
    processes: int = 32  # threads included
    open_files: int = 64
    cpu_percent: int = 125  # of one processor, for the whole group: honest runtimes use one thread
    cpu_s: int = 24 * 3600  # over a worker's whole life; it is restarted when it is used up
    output_bytes: int = 16 * MEBIBYTE  # one job's whole output
    start_s: float = 60.0  # launch, imports and loading the model
    frame_s: float = 5.0  # a frame that has begun must be complete within this time
    cancel_grace_s: float = 1.5  # a job past its deadline must be given up within this time, else the worker is killed
    jobs_queued: int = 64  # jobs waiting for a slot of one worker
    batch_max: int = 16  # rows that an ONNX worker may run as one where the manifest lets it; no faster beyond
    health: HealthLimits = DEFAULT_HEALTH  # how many crashes are too many


DEFAULT_LIMITS = WorkerLimits()
