"""Chains of headers whose authorities change, with every key at hand."""

from collections.abc import Iterable, Sequence

import msgspec

from protocol.ledger.light_chain import TrustedHeader, trusted_genesis
from protocol.messages.blocks import DecidedHeader, Header, Succession, header_hash
from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.envelope import signing_bytes
from protocol.messages.genesis import AuthorityRecord, Genesis, genesis_hash
from protocol.messages.quorum import AuthoritySet, certified_statement
from protocol.primitives.units import AuthorityId, BlockHash, Height, NodeId, Signature, TimestampMs, View
from tests.ledger.world import START_MS, account_of, key_of, make_genesis


def set_of(names: Iterable[str], suspended: Iterable[str] = ()) -> AuthoritySet:
    """The set of the authorities with these names."""
    records = tuple(
        AuthorityRecord(
            AuthorityId(account_of(name)), account_of(f"{name}-account"), NodeId(account_of(f"{name}-node")), name
        )
        for name in names
    )
    return AuthoritySet(records, tuple(AuthorityId(account_of(name)) for name in suspended))


def certify(genesis: Genesis, authorities: AuthoritySet, header: Header, signers: Sequence[str] = ()) -> Certificate:
    """A certificate by the named members, or the first that make a quorum, whatever stands in the header."""
    active = [record for record in authorities.records if authorities.counts(record.authority)]
    named = [record for record in active if record.name in signers] if signers else active[: authorities.quorum]
    statement, payload = certified_statement(CertificateKind.DECIDED, header.height, View(1), header_hash(header))
    message = signing_bytes(genesis_hash(genesis), statement, payload)
    places = {record.authority: place for place, record in enumerate(authorities.records)}
    return Certificate(
        CertificateKind.DECIDED,
        header.height,
        View(1),
        header_hash(header),
        tuple(places[record.authority] for record in named),
        tuple(Signature(key_of(record.name).sign(message).signature) for record in named),
    )


class Dynasty:
    """Headers of heights 1, 2, … where ``sets[h]`` decides height h; the last set goes on."""

    def __init__(self, reigns: Sequence[tuple[int, AuthoritySet]], height: int) -> None:
        """``reigns``: from which height on which set decides, the genesis's own set from height 1."""
        self.genesis = make_genesis(authorities=4)
        self.trusted: TrustedHeader = trusted_genesis(self.genesis)
        self.reigns = [(1, self.trusted.authorities), *reigns]
        self.headers: list[Header] = [self.trusted.header]
        for number in range(1, height + 1):
            self.headers.append(self._next(Height(number)))

    def _next(self, height: Height) -> Header:
        return msgspec.structs.replace(
            self.headers[-1],
            height=height,
            parent=BlockHash(header_hash(self.headers[-1])),
            timestamp_ms=TimestampMs(START_MS + 1000 * height),
            authorities_hash=self.set_at(height).hash(),
            next_authorities_hash=self.set_at(height + 1).hash(),
        )

    def set_at(self, height: int) -> AuthoritySet:
        """Who decides a height."""
        return [each for since, each in self.reigns if since <= height][-1]

    def decided(self, height: int, signers: Sequence[str] = ()) -> DecidedHeader:
        """A header with its certificate and set."""
        authorities, header = self.set_at(height), self.headers[height]
        return DecidedHeader(header, certify(self.genesis, authorities, header, signers), authorities.membership())

    def successions(self) -> tuple[Succession, ...]:
        """Every change up to the last header."""
        return tuple(
            Succession(header, self.decided(header.height).certificate, self.set_at(header.height + 1).membership())
            for header in self.headers[1:]
            if header.authorities_hash != header.next_authorities_hash
        )
