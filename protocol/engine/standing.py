"""May this authority sign? The question that every start begins with, and the answer for others.

Law: an authority signs nothing before Q − 1 other authorities have told it which of its own signatures they hold. One
that its guard lacks means a lost disk or an old backup: then it only observes. An observer takes T = the highest
decided tip, proved by its certificate, among Q other authorities that answer a fresh nonce, and signs only at heights
≥ T + 3: whatever it signed in its former life lies at T + 2 at most.

Everybody else signs at heights ≥ T only, the highest tip that the answers prove: below it all is decided, and those who
answer may have forgotten what we signed there. T itself may be undecided for all honest authorities but us.

With Q nodes up, Q − 1 others answer, so waiting costs no liveness. At genesis nobody holds a signature of ours, so a
new network starts at once. Below four authorities Q others do not exist: there a lost disk needs an operator.
"""

from collections.abc import Iterable, Iterator

from protocol.consensus.height import AuthorityHeight
from protocol.consensus.statements import GUARD_CLASSES
from protocol.messages.consensus import Attestation, Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import GuardPosition
from protocol.messages.envelope import open_envelope, seal
from protocol.messages.genesis import AuthorityRecord
from protocol.messages.kinds import MessageKind
from protocol.messages.quorum import AuthoritySet, certified_statement
from protocol.messages.wire import Standing
from protocol.primitives.codec import Message, encode
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.limits import OWN_STATEMENTS_MAX
from protocol.primitives.units import AuthorityId, AuthorityIdField, Hash, Height, PublicKey, View

OBSERVER_DISTANCE = 3
"""An observer signs from T + 3 on."""


class SignaturesLost(Message, frozen=True):
    """Event: others hold signatures of ours that our guard lacks; this authority only observes for some heights."""

    authority: AuthorityIdField


class StandingInquiry:
    """One start's question: who has answered what."""

    def __init__(
        self,
        nonce: Hash,
        own: AuthorityId,
        known: Iterable[GuardPosition],
        watermark: Height,
        observer: bool,
    ) -> None:
        self.nonce = nonce
        self.own = own
        self._known = {_position_key(position): None for position in known}
        self._watermark = watermark
        self.observer = observer
        """True once a signature of ours turned up that the guard lacks, or the disk says so already."""
        self._tips: dict[AuthorityId, Height] = {}

    def signs(self, position: GuardPosition) -> None:
        """This life is about to sign here: nobody's answer about it is a surprise."""
        self._known[_position_key(position)] = None

    def closed(self, height: Height) -> None:
        """What was signed at this height and below is of no use any more: an authority that lives long forgets it."""
        self._watermark = max(self._watermark, height)
        self._known = {key: None for key in self._known if key[0] > self._watermark}

    def recovered(self, tip: Height) -> None:
        """The heights at which signatures were lost are closed: what was signed up to the tip is of no use."""
        self.observer = False
        self._watermark = max(self._watermark, tip)

    def answer(self, standing: Standing, tip: Height) -> bool:
        """Take an answer whose signatures hold; ``tip`` is our own. True if it makes us an observer just now.

        A tip above ours counts with its proof alone, a lower one adds nothing to what we know. Answers to a question of
        an earlier life are ignored. Raises ``RemoteProtocolError`` on a proof of something else.
        """
        envelope, attestation = open_envelope(standing.attestation)
        authority = AuthorityId(envelope.sender)
        if not isinstance(attestation, Attestation):
            raise RemoteProtocolError("an answer about our standing that attests nothing")
        # Answers to others come by gossip too, our own among them where we have forgotten that we gave them.
        if attestation.nonce != self.nonce or AuthorityId(attestation.asker) != self.own:
            return False
        if authority == self.own:
            raise RemoteProtocolError("an answer about our standing that no other authority gave")
        proved = standing.certificate
        if attestation.tip <= tip:
            self._count(authority, attestation.tip)
        elif proved is not None:
            if (attestation.tip, attestation.tip_hash) != (proved.height, proved.block_hash):
                raise RemoteProtocolError("an attested tip beside the certificate of another one")
            self._count(authority, attestation.tip)
        was_observer = self.observer
        self.observer = was_observer or any(self._lacks(received) for received in standing.yours)
        return self.observer and not was_observer

    def _count(self, authority: AuthorityId, tip: Height) -> None:
        self._tips[authority] = max(self._tips.get(authority, Height(0)), tip)

    def first_height(self, tip: Height, authorities: AuthoritySet) -> Height | None:
        """From which height on we may sign, or ``None`` while too few of those who decide tip + 1 have answered."""
        answered = sum(authorities.counts(authority) for authority in self._tips)
        if not self.observer:
            if answered < authorities.quorum - 1:
                return None
            return max((Height(tip + 1), *self._tips.values()))
        if answered < authorities.quorum:
            return None
        return Height(max(*self._tips.values(), tip) + OBSERVER_DISTANCE)

    def unanswered(self, authorities: AuthoritySet) -> Iterator[AuthorityRecord]:
        """Those who decide and still owe an answer."""
        for record in authorities.records:
            if record.authority != self.own and record.authority not in self._tips:
                yield record

    def _lacks(self, received: bytes) -> bool:
        envelope, body = open_envelope(received)
        guard_class = GUARD_CLASSES.get(envelope.kind)
        if guard_class is None or AuthorityId(envelope.sender) != self.own:
            return False
        assert isinstance(body, ProposalBody | VoteBody | FinalBody)
        position = GuardPosition(body.height, body.view, guard_class)
        return body.height > self._watermark and _position_key(position) not in self._known


def _position_key(position: GuardPosition) -> tuple[Height, View, int]:
    return position.height, position.view, int(position.guard_class)


def open_attestation(received: bytes) -> Attestation:
    """The attestation in an answer that the door has let through."""
    _, attestation = open_envelope(received)
    assert isinstance(attestation, Attestation), "settled at the door"
    return attestation


def signatures_of(
    authority: AuthorityId,
    tip_authorities: AuthoritySet | None,
    machines: Iterable[AuthorityHeight],
    certificate: Certificate | None,
) -> tuple[bytes, ...]:
    """Envelopes that an authority signed and that we still hold, newest height first, without repetition.

    ``tip_authorities`` is the set that decided the tip, by ``certificate``.
    """
    found: dict[bytes, None] = {}
    for machine in machines:
        index = machine.rules.authorities.index_of(authority)
        if index is not None:
            found.update(dict.fromkeys(_signatures_at(machine, authority, index)))
    index = tip_authorities.index_of(authority) if tip_authorities is not None else None
    if certificate is not None and index is not None:
        found.update(dict.fromkeys(_from_certificate(certificate, authority, index)))
    return tuple(found)[:OWN_STATEMENTS_MAX]


def _signatures_at(machine: AuthorityHeight, authority: AuthorityId, index: int) -> Iterator[bytes]:
    height, key = machine.rules.height, PublicKey(authority)
    for view in machine.finals.views_of(index):
        said = machine.finals.said(view, index)
        if said is not None:
            yield seal(MessageKind.FINAL, encode(FinalBody(height, view, said[0])), key, said[1])
    for view in machine.votes.views_of(index):
        said = machine.votes.said(view, index)
        if said is not None and said[0] is not None:
            yield seal(MessageKind.VOTE, encode(VoteBody(height, view, said[0])), key, said[1])
    for view, seen in sorted(machine.proposals.items(), reverse=True):
        if machine.rules.authorities.leader(height, view) == authority:
            yield seal(MessageKind.PROPOSAL, encode(seen.body), key, seen.signature)
    for certificate in reversed(machine.held.all()):
        yield from _from_certificate(certificate, authority, index)


def _from_certificate(certificate: Certificate, authority: AuthorityId, index: int) -> Iterator[bytes]:
    if index in certificate.signers:
        kind, payload = certified_statement(
            CertificateKind(certificate.kind), certificate.height, certificate.view, certificate.block_hash
        )
        signature = certificate.signatures[certificate.signers.index(index)]
        yield seal(kind, payload, PublicKey(authority), signature)
