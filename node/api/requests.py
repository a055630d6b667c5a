"""Bodies of the control API's requests, known to server and client alike.

Law: this module imports nothing heavy, because the command line reads it at every start.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from node.runtime.motion_bodies import SubjectBody
from protocol.primitives.units import AMOUNT_MAX

TimeoutMs = Annotated[int, Meta(ge=1, le=24 * 3600 * 1000)]
RowsMax = Annotated[int, Meta(ge=0, le=65_536)]
CountMax = Annotated[int, Meta(ge=1, le=100_000)]
Amount = Annotated[int, Meta(ge=1, le=AMOUNT_MAX)]

REQUEST_BYTES_MAX = 4 * 1024 * 1024
"""A job's input of at most 1 MiB in base64, with room to spare."""
STREAM_TYPE = "application/x-ndjson"


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of request bodies: a field that nobody reads is an error."""


class WaitBody(Body, frozen=True):
    """Something that waits for the ledger."""

    timeout_ms: TimeoutMs


class AmountBody(Body, frozen=True):
    """Bond or unbond so many base units."""

    amount: Amount
    timeout_ms: TimeoutMs


class SendBody(Body, frozen=True):
    """Send base units to an account."""

    recipient: str
    amount: Amount
    timeout_ms: TimeoutMs


class PublishBody(Body, frozen=True):
    """Register a model's manifest, given as its text."""

    manifest: str
    timeout_ms: TimeoutMs


class MotionBody(Body, frozen=True):
    """Put something to vote."""

    subject: SubjectBody
    timeout_ms: TimeoutMs


class VoteBody(Body, frozen=True):
    """Vote on a motion."""

    approve: bool
    timeout_ms: TimeoutMs


class SettledView(msgspec.Struct, frozen=True):
    """The block that anchored a job's receipt."""

    height: int


class ErrorView(msgspec.Struct, frozen=True):
    """What went wrong: a name for programs, a sentence for people, the command line's exit code."""

    code: str
    message: str
    exit_code: int


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorView
