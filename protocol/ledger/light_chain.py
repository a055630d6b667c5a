"""Following who decides without following what is decided: a light client's chain of headers.

Law: a header is believed only if a quorum of a set of authorities signed it, and a set only if a believed header names
it, or if keys of more than a third of a believed set, not all of which can be faulty, signed under it. What is believed
in the end is as old as what was trusted at first: authorities have nothing at stake after they were removed, so that
old keys can sign another history. Trust a recent checkpoint rather than an old genesis.

Source: Tendermint's light client (Braithwaite and others, "A Tendermint Light Client", 2020) for adjacent and skipping
verification; here every change of the set can also be shown by the header that names it.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from protocol.ledger.blocks import genesis_header
from protocol.messages.blocks import DecidedHeader, Header, Succession, header_hash
from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.genesis import Genesis, Membership, genesis_hash
from protocol.messages.quorum import AuthoritySet, certificate_checks
from protocol.messages.recovery import Recovery
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.units import AuthorityId, Hash, Height

FETCHES_MAX = 256
"""Headers that one walk asks for: halving the way to any height takes fewer than 49 for each change of a third."""


class ProofInvalid(RemoteProtocolError):
    """A proof that does not show what it claims."""


class TooFewInCommon(ProofInvalid):
    """The signers hold no more than a third of the trusted set: a header between the two has to be shown first."""


class TrustedHeader(NamedTuple):
    """A header that is believed, and the sets that it names."""

    genesis: Hash
    header: Header
    authorities: AuthoritySet
    """Decided the header's height."""
    following: AuthoritySet | None
    """Decides the next height; ``None`` if only its hash is known."""


def trusted_genesis(genesis: Genesis) -> TrustedHeader:
    """What somebody believes who believes a genesis."""
    authorities = AuthoritySet.from_genesis(genesis)
    return TrustedHeader(genesis_hash(genesis), genesis_header(genesis), authorities, authorities)


def trusted_checkpoint(genesis: Hash, checkpoint: DecidedHeader) -> TrustedHeader:
    """What somebody believes who was handed this header by somebody trusted. Its own signatures are checked.

    Raises ``ProofInvalid`` or ``CertificateInvalid``.
    """
    authorities = _set_of(checkpoint.authorities)
    if checkpoint.header.next_authorities_hash != checkpoint.header.authorities_hash:
        raise ProofInvalid("a header that changes the set is no checkpoint: it does not say who follows")
    verify_decided(genesis, authorities, checkpoint.header, checkpoint.certificate)
    return _believed(genesis, checkpoint.header, authorities)


def verify_decided(genesis_hash: Hash, authorities: AuthoritySet, header: Header, certificate: Certificate) -> None:
    """Check that ``authorities`` decided this header.

    Raises ``ProofInvalid``, or ``CertificateInvalid`` for a certificate of wrong structure.
    """
    if header.authorities_hash != authorities.hash():
        raise ProofInvalid("the header names another authority set")
    if certificate.kind is not CertificateKind.DECIDED:
        raise ProofInvalid(f"a {certificate.kind.name} certificate decides nothing")
    if certificate.height != header.height or certificate.block_hash != header_hash(header):
        raise ProofInvalid("the certificate is for another block")
    for signer, check in zip(
        certificate.signers, certificate_checks(genesis_hash, authorities, certificate), strict=True
    ):
        if not check.holds():
            raise ProofInvalid(f"the signature of authority {authorities.records[signer].name!r} does not hold")


def follow(trusted: TrustedHeader, succession: Succession) -> TrustedHeader:
    """One link: the set that decides after ``trusted`` decided a header that names another set.

    The header may lie any number of heights above. Raises ``ProofInvalid`` or ``CertificateInvalid``.
    """
    header, deciding = succession.header, trusted.following
    _check_above(trusted, header)
    if deciding is None:
        raise ProofInvalid(f"nothing says who decides the heights above {trusted.header.height}")
    verify_decided(trusted.genesis, deciding, header, succession.certificate)
    following = _set_of(succession.following)
    if header.next_authorities_hash == header.authorities_hash:
        raise ProofInvalid(f"header {header.height} changes nothing")
    if following.hash() != header.next_authorities_hash:
        raise ProofInvalid(f"header {header.height} names another set than the one beside it")
    return TrustedHeader(trusted.genesis, header, deciding, following)


def recovered(trusted: TrustedHeader, recovery: Recovery, signers: Iterable[AuthorityId]) -> TrustedHeader:
    """Believe, beside the header that a recovery names, that its set decides from the next height on.

    ``signers`` are those whose signatures under the recovery hold (``recovery.open_recovery``). Raises
    ``ProofInvalid`` for another header, or if none of them decides by what the header says.
    """
    if header_hash(trusted.header) != recovery.block_hash:
        raise ProofInvalid("the recovery document names another block")
    if trusted.following is None or not any(trusted.following.counts(signer) for signer in signers):
        raise ProofInvalid("nobody who would have decided the next block has signed the recovery document")
    return trusted._replace(following=_set_of(recovery.membership))


def follow_all(trusted: TrustedHeader, successions: Iterable[Succession]) -> TrustedHeader:
    """All links in their order; see ``follow``."""
    for succession in successions:
        trusted = follow(trusted, succession)
    return trusted


def deciding_set(
    start: TrustedHeader, checkpoint: TrustedHeader | None, successions: tuple[Succession, ...], header: Header
) -> AuthoritySet:
    """Who decides a header, by the successions between it and what is trusted.

    That is the checkpoint if it is given and lies below the header, else ``start``: whoever trusts a checkpoint need
    not believe keys of before, and can follow a ledger that was recovered below it. Raises ``ProofInvalid`` or
    ``CertificateInvalid``, also for a succession that has no bearing on the header.
    """
    if successions and successions[-1].header.height >= header.height:
        raise ProofInvalid(f"the change at {successions[-1].header.height} has no bearing on header {header.height}")
    trusted = trusted_below(start, checkpoint, header)
    later = [succession for succession in successions if succession.header.height > trusted.header.height]
    deciding = follow_all(trusted, later).following
    if deciding is None:
        raise ProofInvalid(f"no set is known that could decide header {header.height}")
    return deciding


def trusted_below(start: TrustedHeader, checkpoint: TrustedHeader | None, header: Header) -> TrustedHeader:
    """The checkpoint if it lies below the header, else ``start``."""
    return checkpoint if checkpoint is not None and checkpoint.header.height < header.height else start


def trusted_text(trusted: TrustedHeader) -> str:
    """What was believed, for people."""
    authorities, height = trusted.authorities, trusted.header.height
    source = f"block {height} of network" if height else "genesis"
    return f"{source} {trusted.genesis.hex()}: {authorities.quorum} of {authorities.n} authorities"


def reach(trusted: TrustedHeader, target: DecidedHeader) -> TrustedHeader:
    """Step to a higher header in one go: the next one, one that a known set decided, or by skipping.

    Skipping takes a quorum of the target's own set in which there are keys of more than a third of the trusted one.
    Raises ``TooFewInCommon`` if that is all that is missing, else ``ProofInvalid`` or ``CertificateInvalid``.
    """
    header = target.header
    _check_above(trusted, header)
    authorities = _set_of(target.authorities)
    verify_decided(trusted.genesis, authorities, header, target.certificate)
    expected = trusted.following.hash() if trusted.following is not None else trusted.header.next_authorities_hash
    if header.authorities_hash != expected:
        if header.height == trusted.header.height + 1:
            raise ProofInvalid(f"header {header.height} names another set than the header before it promised")
        base = trusted.following or trusted.authorities
        signers = (authorities.records[signer].authority for signer in target.certificate.signers)
        common = sum(base.counts(signer) for signer in signers)
        if 3 * common <= base.n:
            raise TooFewInCommon(
                f"header {header.height} is signed by {common} of the {base.n} keys trusted at {trusted.header.height}"
            )
    return _believed(trusted.genesis, header, authorities)


def walk(trusted: TrustedHeader, height: Height, source: Callable[[Height], DecidedHeader]) -> list[TrustedHeader]:
    """The shortest way that skipping finds to ``height``, the target last; asks ``source`` for every header it needs.

    Where two headers have too little in common, one halfway between is shown first. Raises ``ProofInvalid`` or
    ``CertificateInvalid`` on a header that can't be believed, and what ``source`` raises.
    """
    if height <= trusted.header.height:
        raise ProofInvalid(f"header {height} does not lie above {trusted.header.height}, which is trusted")
    steps: list[TrustedHeader] = []
    ahead = [height]
    for _ in range(FETCHES_MAX):
        wanted = source(ahead[-1])
        if wanted.header.height != ahead[-1]:
            raise ProofInvalid(f"asked for header {ahead[-1]}, got {wanted.header.height}")
        try:
            trusted = reach(trusted, wanted)
        except TooFewInCommon:
            ahead.append(Height((trusted.header.height + ahead[-1]) // 2))
            continue
        steps.append(trusted)
        ahead.pop()
        if not ahead:
            return steps
    raise ProofInvalid(f"no way to header {height} in {FETCHES_MAX} steps")


def _check_above(trusted: TrustedHeader, header: Header) -> None:
    if header.height <= trusted.header.height:
        raise ProofInvalid(f"header {header.height} does not lie above {trusted.header.height}, which is trusted")


def _believed(genesis: Hash, header: Header, authorities: AuthoritySet) -> TrustedHeader:
    unchanged = header.next_authorities_hash == header.authorities_hash
    return TrustedHeader(genesis, header, authorities, authorities if unchanged else None)


def _set_of(membership: Membership) -> AuthoritySet:
    try:
        found = AuthoritySet.of(membership)
    except ValueError as error:
        raise ProofInvalid(str(error)) from None
    if found.membership() != membership:
        raise ProofInvalid("the members of a set are not in their order")
    return found
