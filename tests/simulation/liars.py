"""An authority that lies, and authorities that lack one guard: for runs that have to fail."""

from protocol.consensus import outputs as out
from protocol.consensus.height import AuthorityHeight
from protocol.consensus.justification import HeldCertificates
from protocol.engine.replica import Replica
from protocol.messages import wire
from protocol.messages.consensus import FinalBody, VoteBody
from protocol.messages.effects import Effect, Now, SignAndSend
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.codec import encode
from protocol.primitives.units import Hash, NodeId, View


class _NothingHeld(HeldCertificates):
    """Claims that nothing was ever voted for."""

    __slots__ = ()

    def base(self, view: View) -> tuple[View, tuple[View, ...]]:
        return View(0), ()


class _LyingHeight(AuthorityHeight):
    """As a leader proposes a new block, whatever has been voted for or decided before."""

    def _lead(self, now: Now, outputs: list[out.Output]) -> None:
        held, self.held = self.held, _shadow(self.held)
        super()._lead(now, outputs)
        self.held = held


def _shadow(held: HeldCertificates) -> HeldCertificates:
    shadow = _NothingHeld()
    shadow.voted, shadow.skipped = held.voted, held.skipped
    return shadow


class Liar(Replica):
    """Votes for everything and finalises everything that it hears of, and skips it too, without asking its guard."""

    machine_type = _LyingHeight

    def receive(self, peer: NodeId, message: wire.WireMessage, now: Now) -> list[Effect]:
        effects = super().receive(peer, message, now)
        if isinstance(message, wire.Ballot):
            body = open_envelope(message.envelope)[1]
            assert isinstance(body, VoteBody | FinalBody)
            if body.block_hash is not None:
                halves = self._linked_authorities()[::2], self._linked_authorities()[1::2]
                vote = encode(VoteBody(body.height, body.view, body.block_hash))
                final = encode(FinalBody(body.height, body.view, body.block_hash))
                skip = encode(FinalBody(body.height, body.view, None))
                effects += [
                    SignAndSend(MessageKind.VOTE, vote, halves[0] + halves[1]),
                    SignAndSend(MessageKind.FINAL, final, halves[0]),
                    SignAndSend(MessageKind.FINAL, skip, halves[1]),
                ]
        return effects


class Mute(Replica):
    """Runs, is linked, and never says a word."""

    def _taken(self) -> list[Effect]:
        self._effects.clear()
        return []


class _Unjustified(AuthorityHeight):
    def unjustified(self, base: View, view: View) -> tuple[View, ...]:
        return ()


class BelievesEverything(Replica):
    """Votes without looking at the skip certificates."""

    machine_type = _Unjustified


class _SkipsAndFinalises(AuthorityHeight):
    def _may_finalise(self, view: View) -> bool:
        return True


class SkipsAndFinalises(Replica):
    """FINAL(x) and FINAL(⊥) no longer exclude each other."""

    machine_type = _SkipsAndFinalises


class _OneShort(AuthoritySet):
    __slots__ = ()

    @classmethod
    def shortened(cls, authorities: AuthoritySet) -> "_OneShort":
        made = cls(authorities.records)
        made.quorum -= 1
        return made


class OneSignatureShort(Replica):
    """Takes Q − 1 signatures for a certificate."""

    def start(self, nonce: Hash, now: Now) -> list[Effect]:
        self.authorities = _OneShort.shortened(self.authorities)
        self.door._authorities = self.authorities
        return super().start(nonce, now)
