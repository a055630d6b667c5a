"""Signature checks. Signing itself needs secret keys and lives in ``node``.

Law: one library, PyNaCl, decides every signature that nodes must agree on; implementations of Ed25519 disagree on edge
cases, and a signature that half of the nodes accept would split the ledger.
"""

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from protocol.primitives.units import PublicKey, Signature


def signature_holds(key: bytes, message: bytes, signature: bytes) -> bool:
    """True if ``signature`` (64 bytes) is ``key``'s Ed25519 signature over ``message``. Never raises on peer input."""
    if len(key) != 32 or len(signature) != 64:
        return False
    try:
        crypto_sign_open(signature + message, key)
    except (BadSignatureError, ValueError):
        return False
    return True


class SignatureCheck:
    """One check that a message still needs before it may be believed: settled at the door, off the loop."""

    __slots__ = ("key", "message", "signature")

    def __init__(self, key: PublicKey, message: bytes, signature: Signature) -> None:
        self.key = key
        self.message = message
        self.signature = signature

    def holds(self) -> bool:
        """Run the check (about 90 µs)."""
        return signature_holds(self.key, self.message, self.signature)

    def cache_key(self) -> bytes:
        """What identifies this check in a cache of checks that held: all three parts."""
        return self.signature + self.key + self.message
