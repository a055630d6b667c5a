"""Where signatures come into being.

Law: nothing is signed but through ``Signer.sign``, and an authority's signature only after the sign guard has committed
exactly those bytes for that position.
"""

from nacl.bindings import crypto_sign, crypto_sign_BYTES
from nacl.signing import SigningKey

from node.keystore.keys import NodeKeys
from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.kinds import KeyRole, MessageKind, key_role
from protocol.primitives.errors import LocalProtocolError
from protocol.primitives.units import Hash, PublicKey


class Signer:
    """The node's secret keys, each used for its own kinds of message only."""

    def __init__(self, keys: NodeKeys, genesis_hash: Hash) -> None:
        self._genesis_hash = genesis_hash
        self._keys: dict[KeyRole, tuple[bytes, PublicKey] | None] = {
            KeyRole.NODE: _parts(keys.node),
            KeyRole.ACCOUNT: _parts(keys.account),
            KeyRole.AUTHORITY: _parts(keys.authority) if keys.authority is not None else None,
        }

    def sign(self, kind: MessageKind, payload: bytes) -> bytes:
        """The bytes of the signed envelope. Raises ``LocalProtocolError`` when the node has no key for the kind."""
        key = self._keys[key_role(kind)]
        if key is None:
            raise LocalProtocolError(f"this node has no {key_role(kind).name.lower()} key to sign a {kind.name}")
        secret, public = key
        signature = crypto_sign(signing_bytes(self._genesis_hash, kind, payload), secret)[:crypto_sign_BYTES]
        return seal(kind, payload, public, signature)


def _parts(key: SigningKey) -> tuple[bytes, PublicKey]:
    """The secret key as libsodium takes it, seed and public key, and the public key."""
    public = PublicKey(bytes(key.verify_key))
    return bytes(key) + public, public
