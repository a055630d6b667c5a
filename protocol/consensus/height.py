"""The state machine of one height at one authority: height-closed Simplex.

Law: an input gives a list of outputs; nothing else happens. The machine is told only of verified messages. What it has
signed (``voted``, ``final``, ``proposed``) never changes once set, except that the sign guard's answer overrules it.

    n authorities, f = (n−1)//3, Q = 2n//3 + 1; leader(h,v) = A[(h+v) mod n]; v = 1, 2, …
    VC_v(x): Q VOTEs for x;   SC_v: Q FINALs for ⊥;   DC_v(x): Q FINALs for x

Safety: one VOTE a view makes VC_v unique; FINAL(x) and FINAL(⊥) exclude each other, so DC_v excludes SC_v, and every
later proposal has to show SC_v or carry x.

Source: Simplex consensus (Chan and Pass). Each method begins with the rule that it carries out.
"""

from collections.abc import Mapping

from protocol.consensus.detection import against_certificates, among_signers
from protocol.consensus.height_state import HeightState, SeenProposal
from protocol.consensus.outputs import (
    BuildBlock,
    Decided,
    Equivocation,
    Forward,
    JudgeBlock,
    Keep,
    KeepBody,
    KeepProposal,
    NeedBody,
    Output,
    PullCertificate,
    SafetyBroken,
    SendBallot,
    SendProposal,
    WakeAt,
)
from protocol.consensus.statements import (
    GUARD_CLASSES,
    ballot_equivocation,
    final_to_sign,
    proposal_envelope,
    proposal_equivocation,
    proposal_to_sign,
    vote_to_sign,
)
from protocol.consensus.tally import Count, assemble
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import GuardClass, Now
from protocol.messages.envelope import seal
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import decode
from protocol.primitives.limits import VIEWS_AHEAD_MAX
from protocol.primitives.units import AuthorityId, BlockHash, MonotonicMs, PublicKey, Signature, View

GAPS_PULLED_MAX = 8
"""Missing certificates asked for at a time; the rest follows when these are here."""


class AuthorityHeight(HeightState):
    """The rules of one height."""

    # What other rooms may ask

    @property
    def waits_for_block(self) -> bool:
        """True while this authority leads the current view and nothing has been proposed."""
        return self.leads() and self.current not in self.proposed

    # Inputs

    def open(self, now: Now) -> list[Output]:
        """Start view 1: there is work, a heartbeat is due, or other authorities have started. Opening twice is fine."""
        outputs: list[Output] = []
        if not self.opened and self.decided is None:
            self._enter(self.first_view, now, outputs)
        return outputs

    def permit(self, own: AuthorityId, guard: Mapping[tuple[View, GuardClass], bytes], now: Now) -> list[Output]:
        """Let this authority sign, given what its guard holds at this height.

        Restart: current = 1 + highest durable VC or SC; what the guard holds is signed and sent again; the view is
        entered with new timers. With an empty guard, no certificate and no earlier opening nothing starts.
        """
        outputs: list[Output] = []
        self.own = own
        guard = {position: payload for position, payload in guard.items() if position[0] >= self.first_view}
        for (view, guard_class), payload in sorted(guard.items()):
            match guard_class:
                case GuardClass.PROPOSAL:
                    self.proposed[view] = decode(payload, ProposalBody)
                case GuardClass.VOTE:
                    self.voted[view] = decode(payload, VoteBody).block_hash
                case GuardClass.FINAL:
                    self.final[view] = decode(payload, FinalBody).block_hash
        if self.decided is not None or not (guard or self.opened or self.held.highest()):
            return outputs
        for view, block_hash in sorted(self.voted.items()):
            outputs.append(vote_to_sign(self.rules.height, view, block_hash))
        for view, decision in sorted(self.final.items()):
            outputs.append(final_to_sign(self.rules.height, view, decision))
        current = View(max(self.current, self.held.highest() + 1, self.first_view))
        if current in self.proposed:
            outputs += [KeepBody(self.proposed[current].block_hash), proposal_to_sign(self.proposed[current])]
        self._enter(current, now, outputs)
        for view in sorted(self.held.voted):
            self._finalise(view, outputs)
        self._consider(now, outputs)
        return outputs

    def restore(self, certificates: tuple[Certificate, ...], now: Now) -> list[Output]:
        """Take back the durable certificates of this height after a restart, before ``permit``."""
        for certificate in certificates:
            if certificate.view >= self.first_view:
                self.held.of(certificate.kind)[certificate.view] = certificate
        outputs: list[Output] = []
        if self.held.all():
            self._enter(View(self.held.highest() + 1), now, outputs)
        return outputs

    def proposal(
        self, body: ProposalBody, signature: Signature, certificates: tuple[Certificate, ...], now: Now
    ) -> list[Output]:
        """A PROPOSAL of ``leader(h, v)``.

        The certificates that it carries come first, highest view first: they enter its view. Then it counts as having
        arrived there. In view 1 it opens the height. A second, different one is evidence and makes this view be
        skipped.
        """
        outputs: list[Output] = []
        for certificate in sorted(certificates, key=lambda held: -held.view):
            self._certificate(certificate, now, outputs)
        if self.decided is not None:
            return outputs
        leader = self.rules.authorities.leader(self.rules.height, body.view)
        self._signed_here(leader, now, outputs)
        if body.view == self.first_view and not self.opened:
            self._enter(self.first_view, now, outputs)
        if not self.first_view <= body.view <= self.current:
            return outputs
        first = self.proposals.get(body.view) or self.remembered.get(body.view)
        if first is not None and first.body != body:
            evidence = proposal_equivocation(leader, (first.body, first.signature), (body, signature))
            self._accuse(body.view, MessageKind.PROPOSAL, evidence, outputs)
            if body.view == self.current:
                self._skip(body.view, outputs)
        elif body.view not in self.proposals:
            self.proposals[body.view] = SeenProposal(body, signature, now.wall_ms)
            if first is None:
                outputs.append(KeepProposal(body.view, proposal_envelope(leader, body, signature)))
            if body.view == self.current:
                self._consider(now, outputs)
        return outputs

    def ballot(self, signer: AuthorityId, body: VoteBody | FinalBody, signature: Signature, now: Now) -> list[Output]:
        """A VOTE or FINAL. Kept only for views ≤ current + K; Q equal ones of a view make its certificate.

        A closed height still remembers who signed: that is evidence, and what a lost disk is recognised by.
        """
        outputs: list[Output] = []
        index = self.rules.authorities.index_of(signer)
        if index is None:
            return outputs
        if self.decided is None:
            self._signed_here(signer, now, outputs)
        if not self.first_view <= body.view <= max(self.current, self.first_view) + VIEWS_AHEAD_MAX:
            return outputs
        is_vote = isinstance(body, VoteBody)
        tally = self.votes if is_vote else self.finals
        match tally.add(body.view, index, body.block_hash, signature):
            case Count.NEW:
                for evidence in against_certificates(self, index, signer, body, signature):
                    self._accuse(body.view, MessageKind.VOTE if is_vote else MessageKind.FINAL, evidence, outputs)
                if self.decided is None:
                    self._assemble(is_vote, body.view, body.block_hash, now, outputs)
            case Count.CONFLICT:
                said = tally.said(body.view, index)
                assert said is not None
                kind = MessageKind.VOTE if is_vote else MessageKind.FINAL
                self._accuse(body.view, kind, ballot_equivocation(signer, said, body, signature), outputs)
            case Count.KNOWN:
                pass
        return outputs

    def certificate(self, certificate: Certificate, now: Now) -> list[Output]:
        """A verified certificate of this height, for any view."""
        outputs: list[Output] = []
        self._certificate(certificate, now, outputs)
        return outputs

    def tick(self, now: Now) -> list[Output]:
        """2Δ_v and not voted → skip(v); 3Δ_v and final[v] = none → skip(v); a leader's delayed proposal."""
        outputs: list[Output] = []
        if not self.opened or self.decided is not None:
            return outputs
        view = self.current
        delta = self.delta(view)
        waited = now.monotonic_ms - self._entered
        if (waited >= 2 * delta and view not in self.voted) or waited >= 3 * delta:
            self._skip(view, outputs)
        self._lead(now, outputs)
        self._wake(now, outputs)
        return outputs

    def work_arrived(self, now: Now) -> list[Output]:
        """There may be something to put into a block now: a leader that had nothing to propose tries again."""
        outputs: list[Output] = []
        self._lead(now, outputs)
        return outputs

    def built(self, view: View, block_hash: BlockHash, now: Now) -> list[Output]:
        """The replica has built a new block for this view, executed it and holds it."""
        outputs: list[Output] = []
        if view == self.current and self.waits_for_block:
            self._propose(block_hash, View(0), outputs)
        return outputs

    def judged(self, view: View, block_hash: BlockHash, good: bool, now: Now) -> list[Output]:
        """Answer to ``JudgeBlock``: good → vote; bad → skip(v)."""
        outputs: list[Output] = []
        self._judging = False
        if self.decided is not None:
            return outputs
        if view == self.current:
            if not good:
                self._skip(view, outputs)
            elif self._in_time_to_vote(now):
                self._vote(view, block_hash, outputs)
        if good:
            self._body_ready(block_hash, now, outputs)
        return outputs

    def body_ready(self, block_hash: BlockHash, now: Now) -> list[Output]:
        """Answer to ``NeedBody``: this body is executed and durable."""
        outputs: list[Output] = []
        if self.decided is None:
            self._body_ready(block_hash, now, outputs)
        return outputs

    def own_signed(self, kind: MessageKind, payload: bytes, signature: Signature, now: Now) -> list[Output]:
        """An own envelope comes back signed. What the guard let be signed holds, whatever was asked for.

        A leader handles its own messages as received.
        """
        if self.own is None or self.decided is not None:
            return []
        envelope = seal(kind, payload, PublicKey(self.own), signature)
        if kind is MessageKind.PROPOSAL:
            body = decode(payload, ProposalBody)
            self.proposed[body.view] = body
            self.own_envelopes[(body.view, GuardClass.PROPOSAL)] = envelope
            if body.view != self.current:
                return []
            certificates = self.held.justification(body.voted_view, body.view)
            return [SendProposal(envelope, body.block_hash, certificates), *self.proposal(body, signature, (), now)]
        ballot = decode(payload, VoteBody) if kind is MessageKind.VOTE else decode(payload, FinalBody)
        if isinstance(ballot, VoteBody):
            self.voted[ballot.view] = ballot.block_hash
        else:
            self.final[ballot.view] = ballot.block_hash
        self.own_envelopes[(ballot.view, GUARD_CLASSES[kind])] = envelope
        return self.ballot(self.own, ballot, signature, now)

    def resend(self, now: Now) -> list[Output]:
        """Undecided: repeat the own PROPOSAL, VOTE and FINAL of the current view and the whole entry justification."""
        outputs: list[Output] = []
        if not self.opened or self.decided is not None:
            return outputs
        base, _ = self.held.base(self.current)
        outputs.extend(Forward(certificate) for certificate in self.held.justification(base, self.current))
        envelope = self.own_envelopes.get((self.current, GuardClass.PROPOSAL))
        if envelope is not None:
            body = self.proposed[self.current]
            certificates = self.held.justification(body.voted_view, self.current)
            outputs.append(SendProposal(envelope, body.block_hash, certificates))
        for guard_class in (GuardClass.VOTE, GuardClass.FINAL):
            envelope = self.own_envelopes.get((self.current, guard_class))
            if envelope is not None:
                outputs.append(SendBallot(envelope))
        self._lead(now, outputs)
        self._consider(now, outputs)
        return outputs

    # Rules

    def _enter(self, view: View, now: Now, outputs: list[Output]) -> None:
        """enter(v): old timers end, v's start; its leader proposes.

        A leader that comes here by a VC first gives that view's FINALs half a Δ to arrive: in the good case the height
        is decided by then, and proposing the same block again would only cost bandwidth.
        """
        self.opened = True
        self.current = view
        self._judging = False
        self._entered = now.monotonic_ms
        self._propose_at = now.monotonic_ms
        if View(view - 1) in self.held.voted:
            self._propose_at = MonotonicMs(now.monotonic_ms + self.delta(view) // 2)
        self._wake(now, outputs)
        self._lead(now, outputs)

    def _lead(self, now: Now, outputs: list[Output]) -> None:
        """Leader: w = highest VC below v (else 0), block = that VC's block if w, else a new one.

        Something missing → pull it; propose when complete while final[v] = none.
        """
        view = self.current
        if not self.waits_for_block or now.monotonic_ms < self._propose_at:
            return
        base, gaps = self.held.base(view)
        if gaps:
            outputs.extend(PullCertificate(gap) for gap in gaps[:GAPS_PULLED_MAX])
        elif base == 0:
            outputs.append(BuildBlock(view))
        else:
            certificate = self.held.voted[base]
            assert certificate.block_hash is not None
            if certificate.block_hash in self.ready:
                self._propose(certificate.block_hash, base, outputs)
            else:
                outputs.append(NeedBody(certificate.block_hash, certificate.signers))

    def _propose(self, block_hash: BlockHash, base: View, outputs: list[Output]) -> None:
        """One PROPOSAL a view; its block is durable first, because its leader votes for it next."""
        body = ProposalBody(self.rules.height, self.current, block_hash, base)
        self.proposed[self.current] = body
        outputs += [KeepBody(block_hash), proposal_to_sign(body)]

    def _consider(self, now: Now, outputs: list[Output]) -> None:
        """First PROPOSAL of leader(h,v) in v, before 2Δ_v, voted[v] = final[v] = none.

        VC_w must match the block and every SC_y, w < y < v, must be held: what is missing is pulled. w = 0 needs full
        validation, execution and a timely timestamp. Good → vote; bad → skip(v).
        """
        view = self.current
        seen = self.proposals.get(view)
        if seen is None or self.own is None or self._judging or not self._in_time_to_vote(now):
            return
        base, block_hash = seen.body.voted_view, seen.body.block_hash
        certificate = self.held.voted.get(base)
        if base >= view or (certificate is not None and certificate.block_hash != block_hash):
            self._skip(view, outputs)
            return
        missing = self.unjustified(base, view)
        if missing:
            outputs.extend(PullCertificate(gap) for gap in missing[:GAPS_PULLED_MAX])
        elif base == 0:
            self._judging = True
            outputs.append(JudgeBlock(view, block_hash, seen.received))
        else:
            self._vote(view, block_hash, outputs)

    def _in_time_to_vote(self, now: Now) -> bool:
        """Before 2Δ_v, and neither voted nor finalised or skipped in v: one VOTE a view."""
        return (
            self._may_vote(self.current)
            and self.current not in self.final
            and now.monotonic_ms - self._entered < 2 * self.delta(self.current)
        )

    def _may_vote(self, view: View) -> bool:
        """One VOTE a view, which makes VC_v unique."""
        return view not in self.voted

    def _may_finalise(self, view: View) -> bool:
        """FINAL(x) and FINAL(⊥) exclude each other, which makes DC_v exclude SC_v."""
        return view not in self.final

    def _vote(self, view: View, block_hash: BlockHash, outputs: list[Output]) -> None:
        """voted[v] = x; body durable; VOTE(x)."""
        if self.own is None or not self._may_vote(view):
            return
        self.voted[view] = block_hash
        outputs.append(KeepBody(block_hash))
        outputs.append(vote_to_sign(self.rules.height, view, block_hash))

    def _skip(self, view: View, outputs: list[Output]) -> None:
        """skip(v): if final[v] = none: final[v] = ⊥; FINAL(⊥)."""
        if self.own is None or not self._may_finalise(view):
            return
        self.final[view] = None
        outputs.append(final_to_sign(self.rules.height, view, None))

    def _finalise(self, view: View, outputs: list[Output]) -> None:
        """VC_v(x) held, its body executed and durable, final[v] = none → final[v] = x; FINAL(x).

        For any v, also after leaving it. VC_v is durable already: ``Keep`` went out before.
        """
        certificate = self.held.voted.get(view)
        if certificate is None or self.own is None or not self._may_finalise(view):
            return
        block_hash = certificate.block_hash
        assert block_hash is not None
        if block_hash not in self.ready:
            outputs.append(NeedBody(block_hash, certificate.signers))
            return
        self.final[view] = block_hash
        outputs.append(final_to_sign(self.rules.height, view, block_hash))

    def _body_ready(self, block_hash: BlockHash, now: Now, outputs: list[Output]) -> None:
        """An executed body lets this authority finalise every VC on it, and lets a leader propose it."""
        if block_hash not in self.ready:
            outputs.append(KeepBody(block_hash))
            self.ready[block_hash] = None
        for view, certificate in sorted(self.held.voted.items()):
            if certificate.block_hash == block_hash:
                self._finalise(view, outputs)
        self._lead(now, outputs)

    def _certificate(self, certificate: Certificate, now: Now, outputs: list[Output]) -> None:
        """On VC_v or SC_v: keep, make durable, forward; if v ≥ current: enter(v+1). On DC_v, any v: forward, close.

        One of a void view was made by the set that a recovery replaced, whoever let it in.
        """
        if self.decided is not None or certificate.view < self.first_view:
            return
        if self.contradicts(certificate):
            outputs.append(SafetyBroken(f"certificates exclude each other at height {self.rules.height}"))
            return
        if certificate.kind is CertificateKind.DECIDED:
            self._accuse_signers(certificate, outputs)
            self.decided = certificate
            outputs.append(Forward(certificate))
            outputs.append(Decided(certificate))
            return
        shelf = self.held.of(certificate.kind)
        if certificate.view in shelf:
            return
        shelf[certificate.view] = certificate
        outputs.append(Keep(certificate))
        self._accuse_signers(certificate, outputs)
        self._finalise(certificate.view, outputs)
        outputs.append(Forward(certificate))
        if certificate.view >= self.current:
            self._enter(View(certificate.view + 1), now, outputs)
        else:
            self._lead(now, outputs)
            self._consider(now, outputs)

    def _assemble(
        self, is_vote: bool, view: View, block_hash: BlockHash | None, now: Now, outputs: list[Output]
    ) -> None:
        """Q distinct signers of one statement make VC, SC or DC."""
        if is_vote:
            kind, tally = CertificateKind.VOTED, self.votes
        else:
            kind = CertificateKind.SKIPPED if block_hash is None else CertificateKind.DECIDED
            tally = self.finals
        if kind is not CertificateKind.DECIDED and view in self.held.of(kind):
            return
        certificate = assemble(
            kind,
            self.rules.height,
            view,
            block_hash,
            tally.signatures(view, block_hash),
            self.rules.authorities.quorum,
        )
        if certificate is not None:
            self._certificate(certificate, now, outputs)

    def _accuse_signers(self, certificate: Certificate, outputs: list[Output]) -> None:
        kind = MessageKind.VOTE if certificate.kind is CertificateKind.VOTED else MessageKind.FINAL
        for evidence in among_signers(self, certificate):
            self._accuse(certificate.view, kind, evidence, outputs)

    def _accuse(self, view: View, kind: MessageKind, evidence: Equivocation, outputs: list[Output]) -> None:
        """Two different statements of one key at one (h, v) and class: reported once."""
        accused = (view, kind, AuthorityId(evidence.authority))
        if accused not in self.accused:
            self.accused[accused] = None
            outputs.append(evidence)

    def _signed_here(self, signer: AuthorityId, now: Now, outputs: list[Output]) -> None:
        """f + 1 authorities signed at this height, so an honest one did: open it."""
        if self.opened:
            return
        self._signers[signer] = None
        if len(self._signers) > self.rules.authorities.f:
            self._enter(self.first_view, now, outputs)

    # Small parts

    def _wake(self, now: Now, outputs: list[Output]) -> None:
        """The next deadline of the current view that still lies ahead."""
        delta = self.delta(self.current)
        for at in (self._propose_at, self._entered + 2 * delta, self._entered + 3 * delta):
            if at > now.monotonic_ms:
                outputs.append(WakeAt(MonotonicMs(at)))
                return
