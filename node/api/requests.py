"""Bodies of the control API's requests, known to server and client alike.

Law: this module imports nothing heavy, because the command line reads it at every start.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from node.runtime.control import RunEvent
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


SESSION_RUNS_MAX = 256
"""Jobs of one session at a time; as many as wait for a provider's ledger at most."""


class SessionRun(Body, frozen=True, tag="run"):
    """Run a job under a number of the client's choice, which the answers carry."""

    number: int
    request: msgspec.Raw
    """A ``RunRequest``; one that is none ends this run and no other."""


class SessionCancel(Body, frozen=True, tag="cancel"):
    """Cancel a job of this session; unknown numbers are fine."""

    number: int


SessionAsk = SessionRun | SessionCancel
"""What a client of a session may send: one in each frame."""


class SessionAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is new of one run; a frame holds a list of these."""

    number: int
    events: tuple[RunEvent, ...] = ()
    error: ErrorView | None = None
    """Why the run is over without an event that says so."""
    ended: bool = False
    """Nothing more comes of this run: its number is free."""
