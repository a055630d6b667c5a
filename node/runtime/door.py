"""The door: every signature that a message carries is checked here, once, before the engine sees the message.

Law: a check that held is remembered by the hash of key, message and signature, so that a transaction verified in gossip
costs nothing in a block; a check that failed is never remembered, nor is one of what a peer says to us alone, which
hardly ever comes again. Many checks at once go to a thread in chunks: PyNaCl releases the interpreter lock, and below a
handful the hop costs more than the check.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from hashlib import blake2b

from protocol.primitives.signing import SignatureCheck

INLINE_CHECKS_MAX = 4
"""So many are checked on the loop."""
_CHUNK_CHECKS = 64
_REMEMBERED_MAX = 100_000
"""About 10 MB; several times what the mempool can hold."""


def _all_hold(checks: Sequence[SignatureCheck]) -> bool:
    return all(check.holds() for check in checks)


class Door:
    """Verifies and remembers signature checks."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._held: dict[bytes, None] = {}

    @staticmethod
    def _fingerprint(check: SignatureCheck) -> bytes:
        return blake2b(check.cache_key(), digest_size=32).digest()

    def remember(self, check: SignatureCheck) -> None:
        """Note a check that is known to hold, such as one over our own signature."""
        self._remember(self._fingerprint(check))

    def _remember(self, fingerprint: bytes) -> None:
        self._held[fingerprint] = None
        if len(self._held) > _REMEMBERED_MAX:
            for fingerprint in list(self._held)[: _REMEMBERED_MAX // 4]:
                del self._held[fingerprint]

    async def admit(self, checks: Sequence[SignatureCheck]) -> bool:
        """True if every signature holds."""
        held, _ = await self.examine(checks)
        return held

    async def examine(self, checks: Sequence[SignatureCheck], *, once: bool = False) -> tuple[bool, int]:
        """Whether every signature holds, and how many had not been checked before; of what comes but ``once`` nothing
        is looked up or remembered."""
        named = {} if once else {self._fingerprint(check): check for check in checks}
        fresh = checks if once else [check for name, check in named.items() if name not in self._held]
        if len(fresh) <= INLINE_CHECKS_MAX:
            held = _all_hold(fresh)
        else:
            loop = asyncio.get_running_loop()
            chunks = [fresh[start : start + _CHUNK_CHECKS] for start in range(0, len(fresh), _CHUNK_CHECKS)]
            # Envelopes and certificates stand before what they vouch for: if they don't hold, the rest costs nothing.
            held = await loop.run_in_executor(self._executor, _all_hold, chunks[0]) and all(
                await asyncio.gather(*(loop.run_in_executor(self._executor, _all_hold, chunk) for chunk in chunks[1:]))
            )
        if held:
            for name in named:
                self._remember(name)
        return held, len(fresh)
