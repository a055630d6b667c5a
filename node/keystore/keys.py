"""The keys of one node in memory.

Law: three roles, three keys. The node key names a machine to its peers, the account key moves money, the authority key
decides blocks; losing one must not mean losing another.
"""

from dataclasses import dataclass, field
from enum import Enum

from nacl.signing import SigningKey

from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.units import AccountId, AuthorityId, NodeId


class KeyPurpose(Enum):
    """What a key is for; also the name of its file."""

    NODE = "node"
    ACCOUNT = "account"
    AUTHORITY = "authority"

    @property
    def address_kind(self) -> AddressKind:
        """The human-readable part of this key's address."""
        return AddressKind[self.name]


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """What a running node signs with. ``authority`` is None unless the node is one."""

    node: SigningKey = field(repr=False)
    account: SigningKey = field(repr=False)
    authority: SigningKey | None = field(repr=False, default=None)

    @property
    def node_id(self) -> NodeId:
        """Public node key."""
        return NodeId(bytes(self.node.verify_key))

    @property
    def account_id(self) -> AccountId:
        """Public account key."""
        return AccountId(bytes(self.account.verify_key))

    @property
    def authority_id(self) -> AuthorityId | None:
        """Public authority key, if this node has one."""
        return AuthorityId(bytes(self.authority.verify_key)) if self.authority is not None else None


def address_of(purpose: KeyPurpose, key: SigningKey) -> str:
    """The bech32m address of a key's public half."""
    return format_address(purpose.address_kind, bytes(key.verify_key))
