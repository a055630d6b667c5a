"""Where nodes listen: ``host:port``, with ``mcnode1…@`` before it to pin who answers there."""

from ipaddress import ip_address

import msgspec

from protocol.primitives.addresses import AddressKind, parse_address
from protocol.primitives.errors import UserError
from protocol.primitives.limits import ADDRESS_BYTES_MAX
from protocol.primitives.units import NodeId


class EndpointInvalid(UserError):
    """Text that is no ``host:port``."""


class OffLoopback(UserError):
    """A development network holds publicly known keys: it neither listens nor dials outside this machine."""


class Seed(msgspec.Struct, frozen=True):
    """A place to start from. Without ``node`` whoever answers there is taken for what its key says it is."""

    endpoint: str
    node: NodeId | None


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``. Raises ``EndpointInvalid``."""
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    plausible = separator and host and len(text) <= ADDRESS_BYTES_MAX and text.isascii() and text.isprintable()
    if not plausible or (":" in host) != bracketed or any(letter in host for letter in " /?#@%\\[]"):
        raise EndpointInvalid(f"not host:port: {text!r}")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise EndpointInvalid(f"not a port number: {port!r} in {text!r}")
    try:
        host.encode("idna")  # looking a name up does the same, and fails with no error of the system's
    except UnicodeError:
        raise EndpointInvalid(f"not a host's name: {host!r}") from None
    return host, int(port)


def format_endpoint(host: str, port: int) -> str:
    """Inverse of ``parse_endpoint``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_seed(text: str) -> Seed:
    """``host:port`` or ``mcnode1…@host:port``. Raises ``UserError``."""
    node, separator, endpoint = text.rpartition("@")
    parse_endpoint(endpoint)
    return Seed(endpoint, NodeId(parse_address(AddressKind.NODE, node)) if separator else None)


def is_loopback(host: str) -> bool:
    """True for ``localhost`` and the loopback ranges; names are not looked up, so any other name is false."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
