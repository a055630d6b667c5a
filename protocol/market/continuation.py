"""What becomes of a request whose provider stopped after it had delivered output.

Law: the person sees each byte once. Behind a runtime that can take a prefix the next provider goes on; a runtime whose
output is one thing starts again, so its output is shown when it is whole; any other job ends with what it delivered.
"""

from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from protocol.market.agreement import JobRequest
from protocol.messages.market import Continuation, JobPayload, OutputForm
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.limits import JOB_INPUT_BYTES_MAX
from protocol.primitives.units import MessageId, WorkUnits
from protocol.settlement.chunks import Progress
from protocol.settlement.continuation import make_continuation

CONTINUING_RUNTIMES = ("echo", "gguf")
"""They take output that is there already as a prefix and go on behind it."""

WHOLE_RUNTIMES = ("onnx", "wasm")
"""They compute their output at once: half of it is of no use, and a second provider gives all of it."""


class Continuity(Enum):
    """What a job can do when its provider stops after some output."""

    GOES_ON = "the next provider goes on behind what was delivered"
    STARTS_AGAIN = "the next provider starts again"
    ENDS = "the job ends with what was delivered"


def continuity_of(runtime: str) -> Continuity:
    """What the jobs of a runtime can do at best."""
    if runtime in CONTINUING_RUNTIMES:
        return Continuity.GOES_ON
    return Continuity.STARTS_AGAIN if runtime in WHOLE_RUNTIMES else Continuity.ENDS


class Asked(Struct, frozen=True):
    """What the next provider is asked for: the request less what was delivered, and what that was."""

    request: JobRequest
    continues: Continuation | None = None
    output: bytes = b""
    """Output of all attempts behind it."""
    pieces: int = 0
    """Chunks of output that this came in."""

    @property
    def units(self) -> WorkUnits:
        """Output units of all attempts behind it."""
        return self.continues.output_units if self.continues is not None else WorkUnits(0)


def asked_behind(
    asked: Asked, wanted: JobRequest, job: MessageId, progress: Progress, output: bytes, input_units_most: int
) -> Asked | None:
    """What is left to ask for once ``job``, asked for ``asked``, has delivered ``output`` and stopped.

    ``wanted`` is the request as it was made, ``input_units_most`` the largest input that any provider takes. ``None``
    when no other provider can go on: nothing is left to deliver, or the output makes the input too large.
    """
    units = WorkUnits(asked.units + progress.output_units)
    before = asked.output + output
    payload = _behind(wanted.payload, before)
    if payload is None or units >= wanted.output_units_max:
        return None
    # What this provider metered, and what it added to it, is about what the next one will meter.
    if progress.input_units + progress.output_units > input_units_most:
        return None
    # A unit of input is a byte at least; a provider's own limit may be narrower.
    input_units = max(wanted.input_units_max, min(wanted.input_units_max + len(before), input_units_most))
    request = replace(
        wanted,
        payload=payload,
        input_units_max=WorkUnits(input_units),
        output_units_max=WorkUnits(wanted.output_units_max - units),
        input_units_expected=WorkUnits((wanted.input_units_expected or wanted.input_units_max) + units),
        output_units_expected=WorkUnits(max(1, wanted.output_units_expected - units))
        if wanted.output_units_expected
        else WorkUnits(0),
    )
    continues = make_continuation(job, progress, units, wanted.salt, before)
    return Asked(request, continues, before, asked.pieces + progress.chunks - 1)


def _behind(payload: bytes, output: bytes) -> bytes | None:
    try:
        wanted = decode(payload, JobPayload)
    except MalformedMessage:
        return None
    # Lines about tokens are not the text that a model could go on from.
    if wanted.output is not OutputForm.TEXT:
        return None
    prefix = wanted.prefix + output
    if len(prefix) > JOB_INPUT_BYTES_MAX:
        return None
    behind = encode(replace(wanted, prefix=prefix))
    return behind if len(behind) <= JOB_INPUT_BYTES_MAX else None
