"""Judging a recovery document and following it: from its block on another set decides.

Law: a recovery applies on top of exactly the block that it names. A ledger that has decided another block there, or one
above it that the new set did not decide, refuses it: two histories would come of it. The state of the named block stays
what it was; the new set enters the state with the next block, so that every node comes to the same root.
"""

from collections.abc import Sequence
from itertools import pairwise

from protocol.ledger.charter import FORMER_SEATS_MAX, Seat, Seats
from protocol.ledger.rows import AuthoritySchedule
from protocol.messages.blocks import Header, header_hash
from protocol.messages.envelope import open_envelope, signature_check
from protocol.messages.quorum import AuthoritySet
from protocol.messages.recovery import Recovery
from protocol.primitives.errors import MalformedMessage, UserError
from protocol.primitives.units import AuthorityId, Hash, Height

SIGNATURES_MAX = 64
"""Envelopes in one document: more than any set has members."""


class RecoveryRefused(UserError):
    """A recovery document that does not prove itself, or that this ledger can't follow any more."""


def open_recovery(genesis_hash: Hash, envelopes: Sequence[bytes]) -> tuple[Recovery, tuple[AuthorityId, ...]]:
    """The recovery and the keys that signed it, from the envelopes of a document; all signatures are checked.

    Raises ``RecoveryRefused``.
    """
    if not 1 <= len(envelopes) <= SIGNATURES_MAX:
        raise RecoveryRefused(f"a recovery document holds 1 to {SIGNATURES_MAX} signatures, not {len(envelopes)}")
    signers: dict[AuthorityId, None] = {}
    found: list[Recovery] = []
    for received in envelopes:
        try:
            envelope, body = open_envelope(received)
        except MalformedMessage as error:
            raise RecoveryRefused(f"a recovery document that does not decode: {error}") from None
        if not isinstance(body, Recovery):
            raise RecoveryRefused(f"a recovery document holds a {envelope.kind.name}")
        if not signature_check(genesis_hash, envelope).holds():
            raise RecoveryRefused("a signature of the recovery document does not hold: another network's, or altered")
        signers[AuthorityId(envelope.sender)] = None
        found.append(body)
    if any(one != other for one, other in pairwise(found)):
        raise RecoveryRefused("the signatures of the recovery document are for different recoveries")
    try:
        ordered = AuthoritySet.of(found[0].membership).membership()
    except ValueError as error:
        raise RecoveryRefused(str(error)) from None
    if ordered != found[0].membership:  # certificates name members by their places in the state's row
        raise RecoveryRefused("the members in the recovery document are not in their order")
    return found[0], tuple(signers)


def signed_by_member(signers: Sequence[AuthorityId], replaced: AuthoritySet) -> bool:
    """True if at least one key of the replaced set, not a suspended one, has signed."""
    return any(replaced.counts(signer) for signer in signers)


def check_followed(recovery: Recovery, header: Header) -> None:
    """The block above the recovery's was decided by its set and follows its block. Raises ``RecoveryRefused``."""
    assert header.height == recovery.height + 1
    if header.parent != recovery.block_hash or header.authorities_hash != AuthoritySet.of(recovery.membership).hash():
        raise RecoveryRefused(
            f"this ledger has decided block {header.height} without the recovery: it can't follow both; take the state "
            "directory of a node that followed it, or a new one"
        )


def check_named(recovery: Recovery, header: Header) -> None:
    """This is the block that the recovery names. Raises ``RecoveryRefused``."""
    if header_hash(header) != recovery.block_hash:
        raise RecoveryRefused(f"this ledger has another block {header.height} than the recovery document names")


def recovered_schedule(schedule: AuthoritySchedule, recovery: Recovery) -> AuthoritySchedule:
    """Who decides around the recovery's block."""
    return AuthoritySchedule(schedule.previous, recovery.membership, recovery.membership)


def recovered_seats(seats: Seats, recovery: Recovery) -> Seats:
    """Who sat when: members stay, those who are gone have decided up to the recovery's block."""
    first = Height(recovery.height + 1)
    records = {record.authority: record for record in recovery.membership.records}
    present = [seat for seat in seats.seats if seat.until is None and seat.authority in records]
    left = [seat for seat in seats.seats if seat.until is None and seat.authority not in records]
    former = [seat for seat in seats.seats if seat.until is not None]
    former += [Seat(seat.authority, seat.account, seat.since, recovery.height) for seat in left if seat.since < first]
    seated = {seat.authority for seat in present}
    present += [Seat(key, record.account, first) for key, record in records.items() if key not in seated]
    return Seats((*former[-FORMER_SEATS_MAX:], *present))
