"""Verdicts on gossip objects, each with its label.

Law: REJECT costs the peer that sent the object. IGNORE costs it a place in its allowance for what is of no use, and not
even that where it is ``excused``: then it is asked for less for a while, and that is all. A failure of standing (no
bond seen yet, balance not seen yet) is ``retryable`` and never REJECT.
"""

from enum import IntEnum

import msgspec


class Verdict(IntEnum):
    """What becomes of an object."""

    ACCEPT = 1
    """Keep it, serve it, announce it."""
    IGNORE = 2
    """Neither relay nor punish."""
    REJECT = 3
    """Punish whoever sent it."""


class Judgement(msgspec.Struct, frozen=True):
    """A verdict with its reason.

    ``retryable``: ask for the object again after a while. ``authentic``: the signature held (or was not the question);
    only then does the object's id count as seen.
    """

    verdict: Verdict
    reason: str
    retryable: bool = False
    authentic: bool = True
    excused: bool = False
    """The peer could not know: it is the author's doing, or the judge's."""

    @property
    def label(self) -> str:
        """Such as ``[IGNORE] already seen``."""
        return f"[{self.verdict.name}] {self.reason}"


def ignore(reason: str, *, retryable: bool = False) -> Judgement:
    """Neither relay nor punish; with ``retryable`` ask again later."""
    return Judgement(Verdict.IGNORE, reason, retryable=retryable)


def reject(reason: str) -> Judgement:
    """Correctly signed and yet against the rules."""
    return Judgement(Verdict.REJECT, reason)


ACCEPTED = Judgement(Verdict.ACCEPT, "accepted")

# The router's own checks in the order in which they run, cheapest first.
TOO_LARGE = Judgement(Verdict.REJECT, "larger than any gossip object", authentic=False)
BYTES_SEEN = ignore("these bytes are known or being checked")
MALFORMED = Judgement(Verdict.REJECT, "not a well-formed envelope", authentic=False)
KIND_NOT_GOSSIPED = Judgement(Verdict.REJECT, "this kind does not travel by gossip", authentic=False)
ALREADY_SEEN = ignore("already seen")
NOT_ASKED_FOR = ignore("body was not asked for")

# What the door adds.
SIGNATURE_BROKEN = Judgement(Verdict.REJECT, "signature does not verify", authentic=False)
EXPIRED = ignore("expired")

ROUTER_CHECKS = (TOO_LARGE, BYTES_SEEN, MALFORMED, KIND_NOT_GOSSIPED, ALREADY_SEEN, NOT_ASKED_FOR)
"""For documentation and tests: each check that the router itself makes on a body."""
