"""Funded accounts and their signed transfers, made outside any measured time."""

from dataclasses import dataclass, field

from nacl.signing import SigningKey

from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.genesis import Allocation
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import Output, Transaction, Transfer
from protocol.primitives.codec import encode
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import CREDIT, AccountId, Amount, Hash, Height, Nonce, PublicKey

ACCOUNTS = 128
"""With at most 64 pending transfers each, so many accounts keep a ledger busy."""
_BALANCE = Amount(1_000 * CREDIT)
_FEE = Amount(100)
_VALID_UNTIL = Height(1_000_000)


@dataclass(slots=True)
class Purse:
    """Accounts that take turns in paying each other."""

    genesis_hash: Hash
    keys: list[SigningKey]
    nonces: list[int] = field(default_factory=list)
    turn: int = 0

    @classmethod
    def open(cls, genesis_hash: Hash) -> "Purse":
        """The accounts of ``allocations``, none of whose nonces has been used."""
        keys = _keys()
        return cls(genesis_hash, keys, [0] * len(keys))

    def sign(self, count: int, outputs: int) -> list[bytes]:
        """So many transfers of ``outputs`` recipients each, in the order in which they have to be sent.

        All of them have to be sent: the next call goes on with the next nonces.
        """
        return [self._next(outputs) for _ in range(count)]

    def _next(self, outputs: int) -> bytes:
        payer = self.turn % len(self.keys)
        self.turn += 1
        recipients = (bytes(self.keys[(payer + step) % len(self.keys)].verify_key) for step in range(1, outputs + 1))
        action = Transfer(tuple(Output(AccountId(recipient), Amount(1)) for recipient in recipients))
        payload = encode(Transaction(Nonce(self.nonces[payer]), _FEE, _VALID_UNTIL, action))
        self.nonces[payer] += 1
        key = self.keys[payer]
        signature = key.sign(signing_bytes(self.genesis_hash, MessageKind.TRANSACTION, payload)).signature
        return seal(MessageKind.TRANSACTION, payload, PublicKey(bytes(key.verify_key)), signature)


def _keys() -> list[SigningKey]:
    return [SigningKey(content_hash(b"benchmark account %d" % number)) for number in range(ACCOUNTS)]


def allocations() -> list[Allocation]:
    """What the genesis has to give the accounts."""
    return [Allocation(AccountId(bytes(key.verify_key)), _BALANCE, Amount(0)) for key in _keys()]
