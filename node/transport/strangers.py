"""Addresses that strangers name, in bids, offers and records of peers: which of them this node dials, and how often.

Law: nobody aims this node at third parties. Such an address is dialed as what it stands for: a name is looked up here,
and the machine that was looked at is the one that is dialed. Outside development networks none of a private network is,
unless the operator says so. One place gets few dials, whoever names it and by however many ports; a link that stands
gives its dial back. An address that a bid named and that gave no link is left alone for long. All that is remembered is
bounded. What the operator configures, and nodes to stay linked to, are not judged here.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address, ip_address, ip_network

from node.transport.endpoints import EndpointInvalid, format_endpoint, is_loopback, parse_endpoint
from node.transport.neighbours import neighbour_of
from protocol.primitives.errors import UserError
from protocol.primitives.limits import NEIGHBOURS_REMEMBERED_MAX
from protocol.primitives.units import MonotonicMs

PLACE_DIALS_BURST = 16
PLACE_DIAL_INTERVAL_MS = 4_000
"""Dials of one place: sixteen at once, as many nodes as one line carries, and one more every four seconds."""

FAILED_REST_MS = 600_000
"""An address of a bid that gave no link: a bid lives for seconds, so nothing is lost by leaving it alone."""

FAILED_REMEMBERED_MAX = 4096
"""More than can fail within that rest, at the pace at which bids make a node dial."""

LOOKUPS_AT_ONCE = 2

TRANSLATED = ip_network("64:ff9b::/96")
"""Addresses of the old kind inside those of the new one (RFC 6052)."""


UNICAST = ip_network("2000::/3")
"""All that is given out to anybody so far (RFC 4291): the rest is of sites, or this machine in an old spelling."""


class NotForStrangers(UserError):
    """An address that is not dialed because a stranger says so."""


def is_public(host: str) -> bool:
    """True for an address that anybody may have: of no private network, not this machine, and of one machine only."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in TRANSLATED:
            return is_public(str(ip_address(int(address) & 0xFFFFFFFF)))
        if inner is not None:
            return is_public(str(inner))
        if address not in UNICAST:
            return False
    return address.is_global and not address.is_multicast


def _looked_up(host: str, port: int) -> list[str]:
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in entries))


def live_privately(endpoints: Iterable[str]) -> bool:
    """Whether one of an operator's own addresses, of nodes or of ``mcnode1…@`` seeds, is of a private network."""
    for endpoint in endpoints:
        host, _ = parse_endpoint(endpoint.rpartition("@")[2])
        with contextlib.suppress(ValueError):  # a name is not looked up for this
            if host == "localhost" or not is_public(host):
                return True
    return False


class StrangersAddresses:
    """What one node remembers of the addresses that strangers have named."""

    def __init__(self, *, private: bool, loopback_only: bool) -> None:
        """``private``: addresses of private networks are dialed, too. ``loopback_only``: a development network."""
        self._private = private or loopback_only
        self._loopback_only = loopback_only
        # Of their own: a name whose server doesn't answer keeps a thread for long, and others wait for the common ones.
        self._lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, "stranger-lookup")
        self._failed: dict[str, MonotonicMs] = {}
        self._paid_until: dict[str, int] = {}

    def rests(self, endpoint: str, now: MonotonicMs) -> bool:
        """Whether a bid's address has failed too lately to be dialed again."""
        return now < self._failed.get(endpoint, 0)

    def failed(self, endpoint: str, now: MonotonicMs) -> None:
        """A bid's address gave no link."""
        self._failed.pop(endpoint, None)
        self._failed[endpoint] = MonotonicMs(now + FAILED_REST_MS)
        if len(self._failed) > FAILED_REMEMBERED_MAX:
            del self._failed[next(iter(self._failed))]

    async def found(self, endpoint: str, timeout_s: float) -> str:
        """The machine to dial at an address, by number. Raises ``UserError``, ``OSError`` and ``TimeoutError``."""
        host, port = parse_endpoint(endpoint)
        if self._loopback_only:
            return endpoint
        hosts = await self._hosts(host, port, timeout_s)
        if not hosts:
            raise EndpointInvalid(f"no machine has this name: {host!r}")
        if not self._private and not all(map(is_public, hosts)):
            raise NotForStrangers(f"a private address is not dialed because a stranger names it: {endpoint!r}")
        return format_endpoint(hosts[0], port)

    async def _hosts(self, host: str, port: int, timeout_s: float) -> list[str]:
        """The numbers of a host's machines. One that is a number itself waits for nobody's names."""
        with contextlib.suppress(ValueError):
            return [str(ip_address(host))]
        async with asyncio.timeout(timeout_s):
            return await asyncio.get_running_loop().run_in_executor(self._lookups, _looked_up, host, port)

    def take(self, endpoint: str, now: MonotonicMs) -> None:
        """Pay for one dial of a found address, from what its place may cost. Raises ``NotForStrangers``."""
        host, _ = parse_endpoint(endpoint)
        if self._loopback_only and is_loopback(host):
            return
        place = neighbour_of(host)
        until = max(self._paid_until.pop(place, 0), now) + PLACE_DIAL_INTERVAL_MS
        if until - now > PLACE_DIALS_BURST * PLACE_DIAL_INTERVAL_MS:
            self._paid_until[place] = until - PLACE_DIAL_INTERVAL_MS
            raise NotForStrangers(f"strangers have had {place} dialed too often")
        self._paid_until[place] = until
        if len(self._paid_until) > NEIGHBOURS_REMEMBERED_MAX:
            del self._paid_until[next(iter(self._paid_until))]

    def give_back(self, endpoint: str) -> None:
        """The dial gave a link: it cost nobody anything."""
        place = neighbour_of(parse_endpoint(endpoint)[0])
        if place in self._paid_until:
            self._paid_until[place] -= PLACE_DIAL_INTERVAL_MS
