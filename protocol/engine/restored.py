"""What an authority finds on its disk when it starts: the journal of the open height and its sign guard.

Law: rows of a height that has been closed meanwhile are left out here, so that a store may clear them lazily.
"""

from collections.abc import Iterable

import msgspec

from protocol.messages.blocks import Block
from protocol.messages.consensus import Certificate, CertificateKind, ProposalBody
from protocol.messages.effects import GuardPosition
from protocol.messages.envelope import open_envelope
from protocol.primitives.codec import decode
from protocol.primitives.units import Height, Signature, View

OBSERVER_KEY = b"observer"
"""Row of ``Table.STANDING`` that keeps an observer an observer over restarts."""


class RestoredConsensus(msgspec.Struct, frozen=True):
    """The journal and the guard, decoded. The default is a node that starts for the first time."""

    certificates: tuple[Certificate, ...] = ()
    bodies: tuple[bytes, ...] = ()
    guard_rows: tuple[tuple[GuardPosition, bytes], ...] = ()
    """Position and signed payload, heights above the watermark."""
    guard_watermark: Height = Height(0)
    observer: bool = False
    proposals: tuple[bytes, ...] = ()
    """Envelopes of the first proposal seen in each view: who proposes another one has signed twice."""

    @classmethod
    def from_rows(
        cls,
        tip: Height,
        certificate_rows: Iterable[tuple[bytes, bytes]],
        body_rows: Iterable[tuple[bytes, bytes]],
        standing_rows: Iterable[tuple[bytes, bytes]],
        guard_rows: Iterable[tuple[GuardPosition, bytes]],
        guard_watermark: Height,
        proposal_rows: Iterable[tuple[bytes, bytes]] = (),
    ) -> "RestoredConsensus":
        """Decode the tables ``CONSENSUS_CERTIFICATE``, ``CONSENSUS_BODY``, ``STANDING`` and ``CONSENSUS_PROPOSAL``, and
        the guard's rows."""
        certificates = [decode(value, Certificate) for _, value in certificate_rows]
        open_height = tip + 1
        kept = [
            held for held in certificates if held.height == open_height and held.kind is not CertificateKind.DECIDED
        ]
        bodies = [value for _, value in body_rows if decode(value, Block).header.height == open_height]
        return cls(
            certificates=tuple(sorted(kept, key=lambda held: (held.view, held.kind))),
            bodies=tuple(bodies),
            guard_rows=tuple(guard_rows),
            guard_watermark=guard_watermark,
            observer=any(key == OBSERVER_KEY for key, _ in standing_rows),
            proposals=tuple(value for key, value in proposal_rows if key[:8] == open_height.to_bytes(8, "big")),
        )


def seen_proposal(envelope_bytes: bytes) -> tuple[ProposalBody, Signature]:
    """A row of ``Table.CONSENSUS_PROPOSAL`` as the machine takes it back."""
    envelope, body = open_envelope(envelope_bytes)
    assert isinstance(body, ProposalBody)
    return body, envelope.signature


def certificate_key(certificate: Certificate) -> bytes:
    """Row key of ``Table.CONSENSUS_CERTIFICATE``: height, kind, view; sorts in that order."""
    return journal_key(certificate.height, certificate.kind, certificate.view)


def proposal_key(height: Height, view: View) -> bytes:
    """Row key of ``Table.CONSENSUS_PROPOSAL``."""
    return height.to_bytes(8, "big") + view.to_bytes(8, "big")


def journal_key(height: Height, kind: CertificateKind, view: View) -> bytes:
    """``certificate_key`` from its parts."""
    return height.to_bytes(8, "big") + kind.to_bytes(1, "big") + view.to_bytes(8, "big")
