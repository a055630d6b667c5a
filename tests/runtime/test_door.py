"""What the door spends on a message whose first signatures do not hold."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from nacl.signing import SigningKey

from node.runtime.door import Door
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import PublicKey, Signature


class _Counted(SignatureCheck):
    __slots__ = ()
    run = 0

    def holds(self) -> bool:
        _Counted.run += 1
        return super().holds()


@pytest.fixture
def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


async def test_behind_a_broken_envelope_no_transaction_of_the_block_is_checked(threads: ThreadPoolExecutor) -> None:
    _Counted.run = 0
    checks = [_Counted(PublicKey(b"k" * 32), number.to_bytes(4, "big"), Signature(bytes(64))) for number in range(4096)]
    with threads:
        assert not await Door(threads).admit(checks)
    assert _Counted.run == 1


async def test_what_comes_but_once_is_checked_each_time_and_not_remembered(threads: ThreadPoolExecutor) -> None:
    key = SigningKey(b"k" * 32)
    check = SignatureCheck(PublicKey(bytes(key.verify_key)), b"chunk", Signature(key.sign(b"chunk").signature))
    broken = SignatureCheck(check.key, b"another chunk", check.signature)
    with threads:
        door = Door(threads)
        for _ in range(2):
            assert await door.examine([check], once=True) == (True, 1)
            assert await door.examine([check, broken], once=True) == (False, 2)
        assert await door.examine([check]) == (True, 1)
        assert await door.examine([check]) == (True, 0)
        assert await door.examine([check], once=True) == (True, 1)
