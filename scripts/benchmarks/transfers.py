"""Signed transfers between accounts chosen uniformly at random, made outside any measured time."""

import random
from dataclasses import dataclass, field
from itertools import islice

from nacl.signing import SigningKey

from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.genesis import Allocation
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import Output, Transaction, Transfer
from protocol.primitives.codec import encode
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import CREDIT, AccountId, Amount, Hash, Height, Nonce, PublicKey

ACCOUNTS = 100_000
FEW = 128
_BALANCE = Amount(1_000 * CREDIT)
_SEED = 20_260_131
_FEE = Amount(100)
_VALID_UNTIL = Height(1_000_000)


def _key(number: int) -> SigningKey:
    return SigningKey(content_hash(b"benchmark account %d" % number))


def accounts(count: int) -> list[AccountId]:
    """The accounts of a purse: what a population has to give money to."""
    return [AccountId(bytes(_key(number).verify_key)) for number in range(count)]


def allocations() -> list[Allocation]:
    """What a genesis gives to the first few accounts."""
    return [Allocation(account, _BALANCE, Amount(0)) for account in accounts(FEW)]


@dataclass(slots=True)
class Purse:
    """Accounts that pay each other; the first ``payers`` of the recipients have keys."""

    genesis_hash: Hash
    payers: int
    recipients: list[AccountId]
    dice: random.Random = field(default_factory=lambda: random.Random(_SEED))
    nonces: dict[int, int] = field(default_factory=dict)

    @classmethod
    def open(cls, genesis_hash: Hash) -> "Purse":
        """The few accounts of ``allocations``, none of whose nonces has been used."""
        return cls(genesis_hash, FEW, accounts(FEW))

    def sign(self, count: int, outputs: int) -> list[bytes]:
        """So many transfers of ``outputs`` recipients each, in the order in which they have to be sent.

        All of them have to be sent: the next call goes on with the next nonces.
        """
        return [self._next(outputs) for _ in range(count)]

    def _next(self, outputs: int) -> bytes:
        payer = self.dice.randrange(self.payers)
        others = (each for each in self.dice.sample(self.recipients, outputs + 1) if each != self.recipients[payer])
        action = Transfer(tuple(Output(recipient, Amount(1)) for recipient in islice(others, outputs)))
        nonce = self.nonces.get(payer, 0)
        self.nonces[payer] = nonce + 1
        payload = encode(Transaction(Nonce(nonce), _FEE, _VALID_UNTIL, action))
        key = _key(payer)
        signature = key.sign(signing_bytes(self.genesis_hash, MessageKind.TRANSACTION, payload)).signature
        return seal(MessageKind.TRANSACTION, payload, PublicKey(bytes(key.verify_key)), signature)
