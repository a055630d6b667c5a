"""The authorities of one height, their quorum, and the checks behind a certificate.

Law: a certificate counts if at least Q distinct members of *this height's* set signed one statement; everything
about its structure is settled here, so that only signatures are left to check.

Source: Simplex consensus (Chan and Pass); n ≥ 3f + 1, and two quorums of Q = ⌊2n/3⌋ + 1 share an honest member.
"""

from itertools import pairwise

from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, VoteBody
from protocol.messages.envelope import signing_bytes
from protocol.messages.genesis import AuthorityRecord, Genesis, Membership
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import encode
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import AUTHORITIES_MAX
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import AuthorityId, BlockHash, Hash, Height, PublicKey, View

NO_VIEW = View(0)
"""Views count from 1."""


class CertificateInvalid(RemoteProtocolError):
    """A certificate whose structure is wrong, before any signature is looked at."""


class AuthoritySet:
    """The authorities that decide one height, sorted by authority key. Immutable.

    ``n`` members, of which ``f`` may be faulty; ``quorum`` signatures make a certificate. A suspended member keeps its
    seat in n, f and Q: its faults are among the f, but it leads no view and its signature counts in no certificate.
    """

    __slots__ = ("_active", "_hash", "_positions", "f", "n", "quorum", "records", "suspended", "view_base")

    def __init__(
        self,
        records: tuple[AuthorityRecord, ...],
        suspended: tuple[AuthorityId, ...] = (),
        view_base: View = NO_VIEW,
    ) -> None:
        """Sorts both. Views up to ``view_base`` are void at the height, see ``messages.recovery``.

        Raises ``ValueError`` on no record, one key twice, more than ``AUTHORITIES_MAX``, a suspended key
        that is no member, or nobody left who could lead."""
        self.records = tuple(sorted(records, key=lambda record: record.authority))
        self.suspended = tuple(sorted(suspended))
        self.view_base = view_base
        self.n = len(self.records)
        self.f = (self.n - 1) // 3
        self.quorum = 2 * self.n // 3 + 1
        self._positions = {record.authority: index for index, record in enumerate(self.records)}
        if not 1 <= self.n <= AUTHORITIES_MAX:
            raise ValueError(f"an authority set has 1 to {AUTHORITIES_MAX} members, not {self.n}")
        if len(self._positions) != self.n:
            raise ValueError("an authority set names one key twice")
        if len(frozenset(self.suspended)) != len(self.suspended) or any(
            key not in self._positions for key in self.suspended
        ):
            raise ValueError("an authority set suspends a key twice, or one that is no member")
        self._active = tuple(
            record.authority for record in self.records if record.authority not in frozenset(self.suspended)
        )
        if not self._active:
            raise ValueError("an authority set in which everybody is suspended decides nothing")
        self._hash = digest(Domain.AUTHORITY_SET, encode(self.membership()))

    @classmethod
    def from_genesis(cls, genesis: Genesis) -> "AuthoritySet":
        """The set that decides from height 1 on."""
        return cls(genesis.authorities)

    @property
    def first_view(self) -> View:
        """The first view of the height."""
        return View(self.view_base + 1)

    def leader(self, height: Height, view: View) -> AuthorityId:
        """Who proposes in this view: rotates with height and view over all that are not suspended."""
        return self._active[(height + view) % len(self._active)]

    def membership(self) -> Membership:
        """The set as the ledger keeps it and headers commit to it."""
        return Membership(self.records, self.suspended)

    @classmethod
    def of(cls, membership: Membership, view_base: View = NO_VIEW) -> "AuthoritySet":
        """Inverse of ``membership``. Raises ``ValueError`` as the constructor does."""
        return cls(membership.records, membership.suspended, view_base)

    def counts(self, authority: AuthorityId) -> bool:
        """True for a member whose signatures count: one that is not suspended."""
        return authority in self._positions and authority not in self.suspended

    def index_of(self, authority: AuthorityId) -> int | None:
        """Position in the sorted set, as certificates name signers; ``None`` for a key outside it."""
        return self._positions.get(authority)

    def hash(self) -> Hash:
        """What block headers commit to."""
        return self._hash

    def __contains__(self, authority: AuthorityId) -> bool:
        return authority in self._positions


def certified_statement(
    kind: CertificateKind, height: Height, view: View, block_hash: BlockHash | None
) -> tuple[MessageKind, bytes]:
    """The message kind and the payload bytes that every signer of such a certificate signed.

    Raises ``CertificateInvalid`` when the block hash is missing, or given for a skip.
    """
    if (block_hash is None) is not (kind is CertificateKind.SKIPPED):
        raise CertificateInvalid(f"a {kind.name} certificate names a block exactly if it is no skip")
    if kind is CertificateKind.VOTED:
        assert block_hash is not None
        return MessageKind.VOTE, encode(VoteBody(height, view, block_hash))
    return MessageKind.FINAL, encode(FinalBody(height, view, block_hash))


def certificate_checks(genesis_hash: Hash, authorities: AuthoritySet, certificate: Certificate) -> list[SignatureCheck]:
    """The signature checks that make a certificate believable; all of them have to hold.

    Raises ``CertificateInvalid`` on a wrong structure: fewer than Q signers, signers that don't strictly rise or lie
    outside the set or are suspended, signatures that don't run parallel, height or view 0, a block hash where none
    belongs.
    """
    signers, signatures = certificate.signers, certificate.signatures
    if certificate.height < 1 or certificate.view <= authorities.view_base:
        raise CertificateInvalid("heights and views of certificates start at 1, after a recovery higher")
    if len(signers) != len(signatures):
        raise CertificateInvalid(f"{len(signers)} signers but {len(signatures)} signatures")
    if len(signers) < authorities.quorum:
        raise CertificateInvalid(f"{len(signers)} signers where {authorities.quorum} are needed")
    if any(left >= right for left, right in pairwise(signers)):
        raise CertificateInvalid("signers do not strictly rise")
    if signers[-1] >= authorities.n:
        raise CertificateInvalid(f"signer {signers[-1]} in a set of {authorities.n}")
    for signer in signers:
        if not authorities.counts(authorities.records[signer].authority):
            raise CertificateInvalid(f"signer {signer} is suspended")
    kind, payload = certified_statement(certificate.kind, certificate.height, certificate.view, certificate.block_hash)
    message = signing_bytes(genesis_hash, kind, payload)
    return [
        SignatureCheck(PublicKey(authorities.records[signer].authority), message, signature)
        for signer, signature in zip(signers, signatures, strict=True)
    ]
