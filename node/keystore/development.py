"""Development keys: publicly known, derived from a fixed label.

Law: anybody can compute them, so they guard nothing. A network that holds them says ``development`` in its genesis,
and its nodes refuse to listen or be dialled off loopback.
"""

from nacl.signing import SigningKey

from node.keystore.keys import NodeKeys
from protocol.primitives.hashing import content_hash

_LABEL = b"mercat/development-key/1/"


def development_key(label: str) -> SigningKey:
    """The one key of a label such as ``authority-1/node``."""
    return SigningKey(content_hash(_LABEL + label.encode()))


def development_keys(name: str, authority: bool) -> NodeKeys:
    """All keys of a development node such as ``authority-1``."""
    return NodeKeys(
        node=development_key(f"{name}/node"),
        account=development_key(f"{name}/account"),
        authority=development_key(f"{name}/authority") if authority else None,
    )
