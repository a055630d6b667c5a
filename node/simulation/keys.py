"""Ed25519 keys from a seed, and checks that are run once.

Law: signatures and their checks are the real ones. A check that held once is remembered, because in one process all
nodes check the same signatures.
"""

from hashlib import blake2b

from nacl.signing import SigningKey

from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.kinds import MessageKind
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import Hash, PublicKey


class SimulatedKey:
    """One signing key, made from a name."""

    def __init__(self, name: str) -> None:
        self._key = SigningKey(blake2b(name.encode(), digest_size=32).digest())
        self.public = PublicKey(bytes(self._key.verify_key))

    def seal(self, genesis_hash: Hash, kind: MessageKind, payload: bytes) -> bytes:
        """A signed envelope."""
        signature = self._key.sign(signing_bytes(genesis_hash, kind, payload)).signature
        return seal(kind, payload, self.public, signature)


class Verifier:
    """The door of all simulated nodes: every distinct check runs once."""

    def __init__(self) -> None:
        self._held: dict[bytes, bool] = {}
        self.checks_run = 0

    def hold(self, checks: list[SignatureCheck]) -> bool:
        """True if all of them hold."""
        return all(self._holds(check) for check in checks)

    def _holds(self, check: SignatureCheck) -> bool:
        key = check.cache_key()
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = check.holds()
            self.checks_run += 1
        return held
