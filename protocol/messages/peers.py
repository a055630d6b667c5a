"""What nodes say about themselves: the greeting of a link and the signed record that travels by peer exchange."""

from typing import Annotated

from msgspec import Meta

from protocol.primitives.codec import Message
from protocol.primitives.limits import ADDRESS_BYTES_MAX, ADDRESSES_PER_NODE_MAX
from protocol.primitives.units import AccountIdField, HashField, HeightField, TimestampField

PROTOCOL_VERSION = 1

Address = Annotated[str, Meta(min_length=3, max_length=ADDRESS_BYTES_MAX)]
"""``host:port`` where a node accepts links."""
Addresses = Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_PER_NODE_MAX)]


class NodeRecord(Message, frozen=True):
    """Where a node can be reached; signed by the node's key, which the envelope names.

    ``incarnation`` grows with each start of the node: of two records the one with the higher incarnation, then the
    higher ``issued_at``, holds, so that no ghost of an earlier life survives a rejoin.
    """

    incarnation: Annotated[int, Meta(ge=0, le=2**48)]
    issued_at: TimestampField
    addresses: Addresses
    account: AccountIdField


class Hello(Message, frozen=True, tag=1):
    """First message on a link, in both directions. A peer of another genesis or version is told so and left."""

    version: Annotated[int, Meta(ge=0, le=2**16)]
    genesis_hash: HashField
    record: Annotated[bytes, Meta(max_length=4096)]
    """The sender's signed ``NodeRecord`` envelope."""
    tip: HeightField
