"""Four authorities' machines of one height, joined without a network; signatures are stand-ins.

The machine never checks signatures (they are settled at the door), so a stand-in derived from the statement will do.
"""

from dataclasses import dataclass, field

from node.simulation.statements import DELTA_MS as DELTA_MS
from node.simulation.statements import HEIGHT as HEIGHT
from node.simulation.statements import X as X
from node.simulation.statements import Y as Y
from node.simulation.statements import at as at
from node.simulation.statements import authority_set as authority_set
from node.simulation.statements import certificate as certificate
from node.simulation.statements import proposal as proposal
from node.simulation.statements import stand_in as stand_in
from protocol.consensus import outputs as out
from protocol.consensus.height import AuthorityHeight
from protocol.consensus.height_state import HeightRules
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import GuardClass, Now
from protocol.messages.kinds import MessageKind
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    AuthorityId,
    BlockHash,
    DurationMs,
    View,
)

DELTA = DELTA_MS

_KINDS: dict[type[ProposalBody | VoteBody | FinalBody], MessageKind] = {
    ProposalBody: MessageKind.PROPOSAL,
    VoteBody: MessageKind.VOTE,
    FinalBody: MessageKind.FINAL,
}


def vote(view: int, block_hash: BlockHash) -> VoteBody:
    return VoteBody(HEIGHT, View(view), block_hash)


def final(view: int, block_hash: BlockHash | None) -> FinalBody:
    return FinalBody(HEIGHT, View(view), block_hash)


def voted(view: int, block_hash: BlockHash) -> Certificate:
    return certificate(CertificateKind.VOTED, view, block_hash)


def skipped(view: int) -> Certificate:
    return certificate(CertificateKind.SKIPPED, view, None)


def decided(view: int, block_hash: BlockHash) -> Certificate:
    return certificate(CertificateKind.DECIDED, view, block_hash)


@dataclass
class Member:
    """One machine and a replica that finds every block good and has every body."""

    machine: AuthorityHeight
    number: int
    statements: list[tuple[MessageKind, bytes]] = field(default_factory=list)
    """What it has signed, in order."""
    asked: list[out.Output] = field(default_factory=list)
    builds: BlockHash | None = None
    good: bool = True
    has_bodies: bool = True
    decision: Certificate | None = None
    broken: list[str] = field(default_factory=list)

    @property
    def key(self) -> AuthorityId:
        return self.machine.rules.authorities.records[self.number].authority

    def take(self, outputs: list[out.Output], now: Now) -> list[out.Output]:
        """Answer what a replica would answer; own signatures come back at once."""
        self.asked += outputs
        for output in outputs:
            match output:
                case out.Sign():
                    self.statements.append((output.kind, output.payload))
                    signature = stand_in(output.payload, self.number)
                    self.take(self.machine.own_signed(output.kind, output.payload, signature, now), now)
                case out.BuildBlock() if self.builds is not None:
                    self.take(self.machine.built(output.view, self.builds, now), now)
                case out.JudgeBlock():
                    self.take(self.machine.judged(output.view, output.block_hash, self.good, now), now)
                case out.NeedBody() if self.has_bodies:
                    self.take(self.machine.body_ready(output.block_hash, now), now)
                case out.Decided():
                    self.decision = output.certificate
                case out.SafetyBroken():
                    self.broken.append(output.reason)
                case _:
                    pass
        return outputs

    def decided_by(self) -> tuple[int, ...]:
        """Signers of the decision; empty while there is none."""
        return self.decision.signers if self.decision is not None else ()

    # Shorthands: everything arrives verified.

    def proposes(self, body: ProposalBody, now: Now, certificates: tuple[Certificate, ...] = ()) -> None:
        self.take(self.machine.proposal(body, stand_in(body), certificates, now), now)

    def ballots(self, signers: tuple[int, ...], body: VoteBody | FinalBody, now: Now) -> None:
        for signer in signers:
            key = self.machine.rules.authorities.records[signer].authority
            self.take(self.machine.ballot(key, body, stand_in(body, signer), now), now)

    def holds(self, held: Certificate, now: Now) -> None:
        self.take(self.machine.certificate(held, now), now)

    def tick(self, now: Now) -> None:
        self.take(self.machine.tick(now), now)

    def signed(self, body: ProposalBody | VoteBody | FinalBody) -> bool:
        """True if this very statement was signed. VOTE(x) and FINAL(x) have equal payloads and differ by their kind."""
        return (_KINDS[type(body)], encode(body)) in self.statements


def member(
    number: int,
    machine_type: type[AuthorityHeight] = AuthorityHeight,
    authorities: AuthoritySet | None = None,
    guard: dict[tuple[View, GuardClass], bytes] | None = None,
) -> Member:
    """An authority that may sign, with what its guard holds."""
    rules = HeightRules(authorities or authority_set(4), HEIGHT, DurationMs(DELTA), DurationMs(10 * DELTA))
    made = Member(machine_type(rules), number)
    made.take(made.machine.permit(made.key, guard or {}, at(0)), at(0))
    return made
