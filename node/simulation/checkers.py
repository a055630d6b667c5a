"""What must hold after every step of a simulated network.

Law: a checker knows what all nodes did, which no node does. It judges by its own arithmetic where that is short (the
quorum, nonces, vouchers), so that a mistake of the protocol can't excuse itself. It raises ``Violation``; the run's
seed goes with it.
"""

from collections.abc import Iterable
from math import inf

from node.simulation.disk import SimulatedDisk
from node.simulation.keys import Verifier
from node.simulation.payments import Payments
from node.simulation.violation import Violation as Violation
from protocol.ledger.blocks import decode_block
from protocol.ledger.signatures import open_transaction
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Block, Header, header_hash
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import CommitBlock, GuardPosition, Table
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind, payload_type
from protocol.messages.quorum import AuthoritySet, CertificateInvalid, certificate_checks
from protocol.messages.transactions import EvidenceReport
from protocol.primitives.codec import decode
from protocol.primitives.units import AuthorityId, BlockHash, Hash, Height, TimestampMs, View

TIMESTAMP_AHEAD_MS_MAX = 1_000
"""A decided block may be ahead of true time by its voters' precision and their own clocks' error, and no more."""

_Position = tuple[int, int, int]


class Checkers:
    """One set of checkers for the whole network."""

    def __init__(self, genesis_hash: Hash, authorities: AuthoritySet, verifier: Verifier) -> None:
        self._genesis_hash = genesis_hash
        self._verifier = verifier
        self._sets = {authorities.hash(): authorities}
        """Every authority set that an honest ledger ever named, by its hash."""
        self._payments = Payments()
        self._last: Header | None = None
        self._signed: dict[AuthorityId, dict[_Position, bytes]] = {}
        self.decided: dict[Height, BlockHash] = {}
        self._excused: dict[AuthorityId, float] = {}
        self.proved: dict[AuthorityId, None] = {}
        """Authorities that the ledger knows to have signed twice."""
        self.commits = 0
        self.signatures = 0

    def excuse(self, authority: AuthorityId, up_to: float = inf) -> None:
        """This authority lies, runs twice or has lost its disk: up to this height it may sign twice, no more."""
        self._excused[authority] = max(up_to, self._excused.get(authority, 0))

    def _is_excused(self, authority: AuthorityId, height: int) -> bool:
        return height <= self._excused.get(authority, 0)

    @property
    def authority_sets(self) -> int:
        """How many different sets an honest ledger has named."""
        return len(self._sets)

    # Blocks

    def on_commit(self, commit: CommitBlock, state: LedgerState, true_time: TimestampMs) -> None:
        """One decision for each height, proved by a certificate; block, state and supply agree.

        ``state`` is the committing node's: at this height or, when it takes several blocks at once, above it.
        """
        self.commits += 1
        height, block_hash = commit.height, commit.block_hash
        first = self.decided.get(height)
        if first is not None and first != block_hash:
            raise Violation(f"two decisions at height {height}: {first.hex()[:8]} and {block_hash.hex()[:8]}")
        block = decode_block(commit.decided.block)
        if header_hash(block.header) != block_hash:
            raise Violation(f"block {height} has another hash than was committed")
        for offset in range(3):
            known = state.authorities_at(Height(state.height + offset))
            if known is not None:
                self._sets[known.hash()] = known
        self._check_certificate(block.header, block_hash, commit.decided.certificate)
        if first is None:
            self.decided[height] = block_hash
            self._on_new_block(block, true_time)
        supply = state.supply()
        if supply.total != supply.issued:
            raise Violation(f"supply is {supply.total} of {supply.issued} issued at height {height}")

    def _check_certificate(self, header: Header, block_hash: BlockHash, certificate: Certificate) -> None:
        height = header.height
        named = (certificate.kind, certificate.height, certificate.block_hash)
        if named != (CertificateKind.DECIDED, height, block_hash):
            raise Violation(f"block {height} was committed without its certificate")
        authorities = self._sets.get(header.authorities_hash)
        if authorities is None:
            raise Violation(f"block {height} was decided by a set that no ledger named")
        distinct = len(dict.fromkeys(certificate.signers))
        if distinct < 2 * authorities.n // 3 + 1:
            raise Violation(f"block {height} was decided by {distinct} of {authorities.n} authorities")
        try:
            checks = certificate_checks(self._genesis_hash, authorities, certificate)
        except CertificateInvalid as error:
            raise Violation(f"the certificate of block {height} is none: {error}") from None
        if not self._verifier.hold(checks):
            raise Violation(f"the certificate of block {height} does not verify")

    def _on_new_block(self, block: Block, true_time: TimestampMs) -> None:
        header, last = block.header, self._last
        if header.height != len(self.decided):
            raise Violation(f"block {header.height} was decided before block {len(self.decided)}")
        if last is not None:
            if header.parent != header_hash(last):
                raise Violation(f"block {header.height} has another parent than was decided")
            if header.timestamp_ms < last.timestamp_ms:
                raise Violation(f"time went back at height {header.height}")
        if header.timestamp_ms > true_time + TIMESTAMP_AHEAD_MS_MAX:
            raise Violation(f"block {header.height} is {header.timestamp_ms - true_time} ms ahead of time")
        self._payments.on_block(block)
        for received in block.transactions:
            action = open_transaction(received)[1].action
            if isinstance(action, EvidenceReport):
                self._on_evidence(action)
        self._last = header

    def _on_evidence(self, report: EvidenceReport) -> None:
        """Nobody who keeps the rules is ever proved to have broken them."""
        envelope, body = open_envelope(report.first)
        assert isinstance(body, ProposalBody | VoteBody | FinalBody)
        accused = AuthorityId(envelope.sender)
        if not self._is_excused(accused, body.height):
            raise Violation(f"evidence of {body.height}/{body.view} against a key that signed nothing twice")
        self.proved[accused] = None

    # Signatures

    def on_guard_opened(self, authority: AuthorityId, disk: SimulatedDisk) -> None:
        """A process starts: its guard still has every signature of heights that it has not closed for good."""
        held = {_key(position): payload for position, payload in disk.guard.held()}
        watermark = disk.guard.watermark()
        for position, payload in self._signed.get(authority, {}).items():
            open_height = position[0] > watermark and not self._is_excused(authority, position[0])
            if open_height and held.get(position) != payload:
                raise Violation(f"a guard forgot what it signed at {position[0]}/{position[1]}, watermark {watermark}")

    def on_reserve(self, authority: AuthorityId, position: GuardPosition, asked: bytes, reserved: bytes) -> None:
        """The rules never need the guard to correct them: each of the two layers holds by itself."""
        if asked != reserved and not self._is_excused(authority, position.height):
            raise Violation(
                f"the rules asked for a second {position.guard_class.name} at {position.height}/{position.view}"
            )

    def on_sign(
        self, authority: AuthorityId, position: GuardPosition, kind: MessageKind, payload: bytes, disk: SimulatedDisk
    ) -> None:
        """Nothing twice at one position, and what a signature rests on is on disk before it."""
        self.signatures += 1
        signed = self._signed.setdefault(authority, {})
        first = signed.get(_key(position))
        if first is not None:
            if first != payload and not self._is_excused(authority, position.height):
                raise Violation(f"one key signed two {position.guard_class.name}s at {position.height}/{position.view}")
            return  # Said again after a restart; what it rests on was looked at the first time.
        signed[_key(position)] = payload
        if _key(position) in disk.unfounded:
            return  # Reserved, and founded, in an earlier life; its signature is made after the ledger was set back.
        at = f"{position.guard_class.name} at {position.height}/{position.view}"
        view, journal = position.view, _journal(disk, position.height)
        if view > 1 and not any(held.view >= view - 1 for held in journal):
            raise Violation(f"{at} before its view's entry certificate was durable")
        body = decode(payload, payload_type(kind))
        assert isinstance(body, ProposalBody | VoteBody | FinalBody)
        if body.block_hash is None:
            return
        if body.block_hash not in disk.tables[Table.CONSENSUS_BODY]:
            raise Violation(f"{at} before its body was durable")
        match body:
            case ProposalBody():
                justified = _justified(journal, view, body.block_hash, (body.voted_view,))
            case VoteBody():
                justified = _justified(journal, view, body.block_hash, range(view))
            case FinalBody():
                justified = any(_is_vote(held, view, body.block_hash) for held in journal)
        if not justified:
            raise Violation(f"{at} before the certificates behind it were durable")


def _key(position: GuardPosition) -> _Position:
    return int(position.height), int(position.view), int(position.guard_class)


def _journal(disk: SimulatedDisk, height: Height) -> list[Certificate]:
    """The durable certificates of one open height."""
    certificates = (decode(value, Certificate) for value in disk.tables[Table.CONSENSUS_CERTIFICATE].values())
    return [held for held in certificates if held.height == height]


def _is_vote(held: Certificate, view: int, block_hash: BlockHash) -> bool:
    return (held.kind, held.view, held.block_hash) == (CertificateKind.VOTED, view, block_hash)


def _justified(journal: list[Certificate], view: View, block_hash: BlockHash, bases: Iterable[int]) -> bool:
    """VC_w of this block (w = 0 needs none) and every SC_y, w < y < v, for some w among ``bases``."""
    skipped = {held.view for held in journal if held.kind is CertificateKind.SKIPPED}
    return any(
        (base == 0 or any(_is_vote(held, base, block_hash) for held in journal))
        and all(View(between) in skipped for between in range(base + 1, view))
        for base in bases
    )
