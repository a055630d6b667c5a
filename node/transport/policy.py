"""Numbers of one node's links. They bind this process alone; what all nodes must share lives in genesis."""

import random

import msgspec

from protocol.gossip.policy import Rate
from protocol.primitives.limits import LINK_QUEUE_BYTES_MAX, LINK_QUEUE_MESSAGES_MAX


class DialPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When to dial whom, and how many links to hold."""

    links_target: int = 8
    """Below this many links, known peers are dialed."""
    links_max: int = 64
    """Above this, connections are turned away, those of nodes that we keep dialing excepted."""
    attempt_timeout_ms: int = 5_000
    """For connecting, the TLS handshake and the WebSocket upgrade of one attempt."""
    backoff_first_ms: int = 200
    backoff_max_ms: int = 30_000
    """Delays double from the first to the last; each is drawn from its upper half."""
    backoff_kept_max_ms: int = 4_000
    """The last delay for seeds and for nodes to stay linked to, authorities above all: however long a partition was,
    with an attempt's time it leaves room for a block within ten seconds of its end."""
    rounds_max: int = 5
    """Rounds over a node's addresses before a dial that need not be kept is given up."""
    exchange_interval_ms: int = 30_000
    """How often a link is asked for more peers, and known peers are reconsidered."""
    misbehaviour_ban_ms: int = 10_000
    """How long a peer that broke the protocol is turned away. Short: the defect may be ours, the peer an authority."""
    private: bool = False
    """Addresses of private networks and of this machine are dialed though strangers name them."""
    dice_seed: int | None = None
    """For tests: makes every draw repeatable."""


class LinkPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How one link is run."""

    greeting_timeout_ms: int = 5_000
    """From the TLS handshake to the peer's Hello."""
    heartbeat_ms: int = 10_000
    """A silent peer is pinged this often and left half as long after an unanswered ping."""
    linger_ms: int = 1_000
    """For the last messages and the closing handshake of a link that ends."""
    queue_messages_max: int = LINK_QUEUE_MESSAGES_MAX
    queue_bytes_max: int = LINK_QUEUE_BYTES_MAX
    connections_per_address: Rate = Rate(10, 64)
    """New connections from one address; each may cost a TLS handshake of 3 ms."""
    links_per_address_max: int = 16
    """Accepted links from one address: a quarter of all, so that a crowd with one address leaves room for others."""
    loopback_exempt: bool = True
    """Development networks live on one address."""


class Backoff:
    """Delays between attempts: exponential, capped, with jitter so that a crowd does not return in step."""

    def __init__(self, policy: DialPolicy, dice: random.Random) -> None:
        self._policy = policy
        self._dice = dice
        self._ceiling_ms = policy.backoff_first_ms

    def reset(self) -> None:
        """After a success: start from the first delay again."""
        self._ceiling_ms = self._policy.backoff_first_ms

    def next_ms(self, *, kept: bool = False) -> int:
        """The next delay, drawn from the upper half of the present ceiling, which is lower for ``kept`` links."""
        last = self._policy.backoff_max_ms
        if kept:
            last = min(last, self._policy.backoff_kept_max_ms)
        ceiling = min(self._ceiling_ms, last)
        self._ceiling_ms = min(2 * ceiling, last)
        return self._dice.randint((ceiling + 1) // 2, ceiling)
