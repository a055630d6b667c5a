"""What one authority knows of one height: plain, copyable, comparable.

Law: data and pure questions about it; the rules that change it are in ``height``.
"""

from typing import Self

import msgspec

from protocol.consensus.justification import HeldCertificates
from protocol.consensus.tally import Tally
from protocol.consensus.timing import delta_ms
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import GuardClass, Now
from protocol.messages.kinds import MessageKind
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.units import (
    AuthorityId,
    BlockHash,
    DurationMs,
    Height,
    MonotonicMs,
    Signature,
    TimestampMs,
    View,
)


class HeightRules(msgspec.Struct, frozen=True):
    """What all authorities of a height share. Durations in ms."""

    authorities: AuthoritySet
    height: Height
    delta_ms: DurationMs
    delta_cap_ms: DurationMs


class SeenProposal(msgspec.Struct, frozen=True):
    """The first PROPOSAL of a view's leader, and when it came by wall clock."""

    body: ProposalBody
    signature: Signature
    received: TimestampMs


class HeightState:
    """One height. Hashable by ``fingerprint``, so that a search may walk through its states."""

    def __init__(self, rules: HeightRules) -> None:
        """A closed height that only watches: ``permit`` lets it sign, ``open`` starts it."""
        self.rules = rules
        self.own: AuthorityId | None = None
        self.opened = False
        self.current = View(0)
        self.decided: Certificate | None = None
        self.voted: dict[View, BlockHash] = {}
        self.final: dict[View, BlockHash | None] = {}
        self.proposed: dict[View, ProposalBody] = {}
        self.first_view = rules.authorities.first_view
        self.held = HeldCertificates(rules.authorities.view_base)
        self.votes = Tally()
        self.finals = Tally()
        self.proposals: dict[View, SeenProposal] = {}
        self.remembered: dict[View, SeenProposal] = {}
        """First proposals that an earlier life saw: a different one is evidence, the same one counts when it comes."""
        self.ready: dict[BlockHash, None] = {}
        self.own_envelopes: dict[tuple[View, GuardClass], bytes] = {}
        self.accused: dict[tuple[View, MessageKind, AuthorityId], None] = {}
        """What evidence has been given of: once is enough."""
        self._signers: dict[AuthorityId, None] = {}
        self._entered = MonotonicMs(0)
        self._propose_at = MonotonicMs(0)
        self._judging = False

    def copy(self) -> Self:
        """An independent machine in the same state."""
        twin = type(self)(self.rules)
        twin.__dict__.update(self.__dict__)
        copied = (
            "voted",
            "final",
            "proposed",
            "proposals",
            "remembered",
            "ready",
            "own_envelopes",
            "accused",
            "_signers",
        )
        for name in copied:
            setattr(twin, name, dict(getattr(self, name)))
        twin.held, twin.votes, twin.finals = self.held.copy(), self.votes.copy(), self.finals.copy()
        return twin

    def fingerprint(self) -> tuple[object, ...]:
        """Hashable state without times, signatures and envelopes."""
        return (
            self.own,
            self.opened,
            self.current,
            self.decided is not None and (self.decided.view, self.decided.block_hash),
            tuple(sorted(self.voted.items())),
            tuple(sorted(self.final.items())),
            tuple(sorted((view, body.block_hash, body.voted_view) for view, body in self.proposed.items())),
            tuple(sorted((view, c.block_hash) for view, c in self.held.voted.items())),
            tuple(sorted(self.held.skipped)),
            self.votes.fingerprint(),
            self.finals.fingerprint(),
            tuple(sorted((view, p.body.block_hash, p.body.voted_view) for view, p in self.proposals.items())),
            tuple(sorted(self.ready)),
        )

    def considers(self, block_hash: BlockHash) -> bool:
        """True if the proposal that counts in some view is for this block; others are unjustified or second ones."""
        return any(seen.body.block_hash == block_hash for seen in self.proposals.values())

    def counted(self, signer: AuthorityId, body: ProposalBody | VoteBody | FinalBody, signature: Signature) -> bool:
        """True if this very statement counts here; second ones don't, nor ballots of views far ahead."""
        if isinstance(body, ProposalBody):
            seen = self.proposals.get(body.view)
            return seen is not None and seen.body == body
        tally, index = (
            self.votes if isinstance(body, VoteBody) else self.finals,
            self.rules.authorities.index_of(signer),
        )
        return index is not None and tally.said(body.view, index) == (body.block_hash, signature)

    def remember(self, body: ProposalBody, signature: Signature, now: Now) -> None:
        """Take back the first proposal that an earlier life saw in a view of this height."""
        self.remembered[body.view] = SeenProposal(body, signature, now.wall_ms)

    def certified(self, body: VoteBody | FinalBody) -> tuple[Certificate, ...]:
        """Certificates held of the class and view of a statement."""
        if isinstance(body, VoteBody):
            return (self.held.voted[body.view],) if body.view in self.held.voted else ()
        decided = (self.decided,) if self.decided is not None and self.decided.view == body.view else ()
        return (*((self.held.skipped[body.view],) if body.view in self.held.skipped else ()), *decided)

    def leads(self) -> bool:
        """True if this authority leads the current view and has not given it up."""
        return (
            self.own is not None
            and self.opened
            and self.decided is None
            and self.current not in self.final
            and self.rules.authorities.leader(self.rules.height, self.current) == self.own
        )

    def delta(self, view: View) -> DurationMs:
        """Δ_v in ms."""
        return delta_ms(View(view - self.rules.authorities.view_base), self.rules.delta_ms, self.rules.delta_cap_ms)

    def unjustified(self, base: View, view: View) -> tuple[View, ...]:
        """Views whose certificate a proposal in ``view`` on ``base`` still lacks here."""
        missing = self.held.gaps(base, view)
        if base and base not in self.held.voted:
            return (base, *missing)
        return missing

    def contradicts(self, certificate: Certificate) -> bool:
        """True if no honest quorum can have signed this beside what is held: a second VC of another block in the
        same view, SC beside DC, or a VC of another block in or after the view of the DC."""
        if certificate.kind is CertificateKind.VOTED:
            held = self.held.voted.get(certificate.view)
            return held is not None and held.block_hash != certificate.block_hash
        if certificate.kind is CertificateKind.SKIPPED:
            return False
        return certificate.view in self.held.skipped or any(
            view >= certificate.view and held.block_hash != certificate.block_hash
            for view, held in self.held.voted.items()
        )
