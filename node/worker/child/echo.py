"""The echo runtime: gives back its input. It needs no model and measures what the machinery around a job costs.

Units are bytes: `chunk_units` is the size of a piece and `max_output_units` where the output is cut.
"""

from node.worker.child.frames import Value
from node.worker.child.runtime import Loaded, Refused, Request, SingleStepRuntime, split


class EchoRuntime(SingleStepRuntime):
    """Returns the payload of each job, split into pieces on request."""

    def prepare(self) -> dict[str, int | str]:
        return {}

    def load(self, files: dict[str, str], settings: dict[str, Value], slots: int) -> Loaded:
        return Loaded(0)

    def check(self, request: Request) -> int:
        if request.input_format not in ("bytes", "text"):
            raise Refused("this model takes input_format 'bytes' or 'text'")
        return len(request.payload)

    def run(self, request: Request) -> list[tuple[bytes, int]]:
        return [
            (piece, len(piece)) for piece in split(request.payload[: request.max_output_units], request.chunk_units)
        ]
