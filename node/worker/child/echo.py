"""The echo runtime: gives back its input. It needs no model and measures what the machinery around a job costs.

Units are bytes: `chunk_units` is the size of a piece and `max_output_units` where the output is cut. Behind a prefix
the output goes on at the prefix's length.
"""

from node.worker.child.frames import Value
from node.worker.child.runtime import Feature, Loaded, Refused, Request, SingleStepRuntime, split


class EchoRuntime(SingleStepRuntime):
    """Returns the payload of each job, split into pieces on request."""

    features: frozenset[Feature] = frozenset({"prefix"})

    def prepare(self) -> dict[str, int | str]:
        return {}

    def load(self, files: dict[str, str], settings: dict[str, Value], slots: int) -> Loaded:
        return Loaded(0)

    def check(self, request: Request) -> int:
        if request.input_format not in ("bytes", "text"):
            raise Refused("this model takes input_format 'bytes' or 'text'")
        return len(request.payload) + len(request.prefix)

    def run(self, request: Request) -> list[tuple[bytes, int]]:
        start = len(request.prefix)
        output = request.payload[start : start + request.max_output_units]
        return [(piece, len(piece)) for piece in split(output, request.chunk_units)]
