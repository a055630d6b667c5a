"""How much one address may take of a listener: new connections a second, and links.

Law: keys cost nothing, addresses do: whoever comes with a thousand keys from one place gets no more room than one place
may have. An IPv6 neighbour is a /64, which is what one customer has. This machine's own addresses are exempt unless the
policy says otherwise: a whole development network shares them.
"""

from ipaddress import IPv6Address, ip_address, ip_network

from node.transport.policy import LinkPolicy
from protocol.gossip.token_bucket import TokenBucket
from protocol.primitives.limits import NEIGHBOURS_REMEMBERED_MAX
from protocol.primitives.units import MonotonicMs

NEIGHBOURHOOD_BITS = 64


def neighbour_of(host: str) -> str:
    """The place that an address belongs to; text that is no address is a place of its own."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, NEIGHBOURHOOD_BITS), strict=False))
    return str(address)


class Neighbours:
    """Counts and allowances by place."""

    def __init__(self, policy: LinkPolicy) -> None:
        self._policy = policy
        self._allowances: dict[str, TokenBucket] = {}
        self._links: dict[str, int] = {}

    def _exempt(self, host: str) -> bool:
        try:
            return self._policy.loopback_exempt and ip_address(host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def may_connect(self, host: str, now: MonotonicMs) -> bool:
        """Take one new connection from the place's allowance."""
        if self._exempt(host):
            return True
        place, rate = neighbour_of(host), self._policy.connections_per_address
        allowance = self._allowances.pop(place, None) or TokenBucket.full(rate, now)
        self._allowances[place] = allowance
        if len(self._allowances) > NEIGHBOURS_REMEMBERED_MAX:
            del self._allowances[next(iter(self._allowances))]
        return allowance.take(rate, now, 1)

    def has_room(self, host: str) -> bool:
        """True if the place may have one more link."""
        return self._exempt(host) or self._links.get(neighbour_of(host), 0) < self._policy.links_per_address_max

    def linked(self, host: str) -> None:
        """An accepted link stands."""
        place = neighbour_of(host)
        self._links[place] = self._links.get(place, 0) + 1

    def unlinked(self, host: str) -> None:
        """An accepted link is gone."""
        place = neighbour_of(host)
        left = self._links.get(place, 0) - 1
        if left > 0:
            self._links[place] = left
        else:
            self._links.pop(place, None)
