"""What must hold after every step of a simulated network.

Law: a checker knows what all nodes did, which no node does. It raises ``Violation``; the run's seed goes with it.
"""

from node.simulation.disk import SimulatedDisk
from node.simulation.keys import Verifier
from protocol.ledger.blocks import decode_block
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import header_hash
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import CommitBlock, GuardPosition, Table
from protocol.messages.kinds import MessageKind, payload_type
from protocol.messages.quorum import AuthoritySet, CertificateInvalid, certificate_checks
from protocol.primitives.codec import decode
from protocol.primitives.units import AuthorityId, BlockHash, Hash, Height, View


class Violation(Exception):
    """A rule of the protocol was broken."""


class Checkers:
    """One set of checkers for the whole network."""

    def __init__(self, genesis_hash: Hash, authorities: AuthoritySet, verifier: Verifier) -> None:
        self._genesis_hash = genesis_hash
        self._authorities = authorities
        self._verifier = verifier
        self.decided: dict[Height, BlockHash] = {}
        self._signed: dict[tuple[AuthorityId, int, int, int], bytes] = {}
        self.excused: set[AuthorityId] = set()
        """Authorities that lost their disk or run twice: they may sign twice, nothing else may break."""
        self.commits = 0
        self.signatures = 0

    def on_commit(self, commit: CommitBlock, state: LedgerState) -> None:
        """One decision for each height, proved by a certificate; block, state and supply agree."""
        self.commits += 1
        height, block_hash, certificate = commit.height, commit.block_hash, commit.decided.certificate
        first = self.decided.setdefault(height, block_hash)
        if first != block_hash:
            raise Violation(f"two decisions at height {height}: {first.hex()[:8]} and {block_hash.hex()[:8]}")
        if (certificate.kind, certificate.height, certificate.block_hash) != (
            CertificateKind.DECIDED,
            height,
            block_hash,
        ):
            raise Violation(f"block {height} was committed without its certificate")
        try:
            checks = certificate_checks(self._genesis_hash, self._authorities, certificate)
        except CertificateInvalid as error:
            raise Violation(f"the certificate of block {height} is none: {error}") from None
        if not self._verifier.hold(checks):
            raise Violation(f"the certificate of block {height} does not verify")
        header = decode_block(commit.decided.block).header
        if header_hash(header) != block_hash:
            raise Violation(f"block {height} has another hash than was committed")
        supply = state.supply()
        if supply.total != supply.issued:
            raise Violation(f"supply is {supply.total} of {supply.issued} issued at height {height}")

    def on_sign(
        self, authority: AuthorityId, position: GuardPosition, kind: MessageKind, payload: bytes, disk: SimulatedDisk
    ) -> None:
        """Nothing twice at one position, and what a signature rests on is on disk before it."""
        self.signatures += 1
        key = (authority, int(position.height), int(position.view), int(position.guard_class))
        first = self._signed.setdefault(key, payload)
        if first != payload and authority not in self.excused:
            raise Violation(f"one key signed two {position.guard_class.name}s at {position.height}/{position.view}")
        body = decode(payload, payload_type(kind))
        if position.view > 1 and not _entered(disk, position.height, position.view):
            raise Violation(f"signed in view {position.view} before its entry certificate was durable")
        match body:
            case ProposalBody() | VoteBody():
                self._needs_body(disk, body.block_hash, position)
            case FinalBody() if body.block_hash is not None:
                self._needs_body(disk, body.block_hash, position)
                if not _holds(disk, CertificateKind.VOTED, position.height, position.view, body.block_hash):
                    raise Violation(f"FINAL at {position.height}/{position.view} before its VC was durable")
            case _:
                pass

    def _needs_body(self, disk: SimulatedDisk, block_hash: BlockHash, position: GuardPosition) -> None:
        if block_hash not in disk.tables[Table.CONSENSUS_BODY]:
            raise Violation(f"{position.guard_class.name} at {position.height}/{position.view} before its body")


def _certificates(disk: SimulatedDisk) -> list[Certificate]:
    return [decode(value, Certificate) for value in disk.tables[Table.CONSENSUS_CERTIFICATE].values()]


def _entered(disk: SimulatedDisk, height: Height, view: View) -> bool:
    """After a restart this node would stand in this view or a later one: a VC of ``view`` itself will do for FINAL."""
    return any(held.height == height and held.view >= view - 1 for held in _certificates(disk))


def _holds(disk: SimulatedDisk, kind: CertificateKind, height: Height, view: View, block_hash: BlockHash) -> bool:
    return any(
        (held.kind, held.height, held.view, held.block_hash) == (kind, height, view, block_hash)
        for held in _certificates(disk)
    )
