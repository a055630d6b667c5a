"""Ledgers with many accounts, made as any is made: by decided blocks, each signed with a development network's keys.

A store that is filled this way before its node starts is indistinguishable from one that the node has filled itself.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path

from nacl.signing import SigningKey

from node.keystore.development import development_key
from node.store.database import Store
from node.store.sign_guard import SignGuard
from protocol.ledger.blocks import PendingTransaction, build_block
from protocol.ledger.checkpoints import CHECKPOINT_INTERVAL
from protocol.ledger.execution import Execution
from protocol.ledger.lattice import lattice_bytes
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import DecidedBlock
from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.effects import CommitBlock
from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.genesis import Allocation, Genesis
from protocol.messages.kinds import MessageKind
from protocol.messages.quorum import AuthoritySet, certified_statement
from protocol.messages.transactions import Output, Transaction, Transfer
from protocol.primitives.codec import encode
from protocol.primitives.hashing import content_hash
from protocol.primitives.limits import TRANSFER_OUTPUTS_MAX
from protocol.primitives.units import (
    CREDIT,
    AccountId,
    Amount,
    Hash,
    Height,
    Nonce,
    PublicKey,
    Signature,
    TimestampMs,
    View,
)

BALANCE = Amount(CREDIT // 10)
"""What each account is given."""
_TREASURY = SigningKey(content_hash(b"benchmark treasury"))
_FEE = Amount(100)
STORE_NAME = "ledger.sqlite"
_BLOCK_TRANSFERS = 90
"""With 256 outputs each they just fit a block."""


def treasury() -> Allocation:
    """What the genesis has to give whoever fills the ledger."""
    return Allocation(AccountId(bytes(_TREASURY.verify_key)), Amount(10_000_000 * CREDIT), Amount(0))


def stranger(number: int) -> AccountId:
    """An account whose key nobody has."""
    return AccountId(content_hash(b"benchmark stranger %d" % number))


class Founder:
    """Decides blocks alone, with all the authorities' keys."""

    def __init__(self, genesis: Genesis, store: Store) -> None:
        self._store = store
        self._state: LedgerState = store.load_state()
        self._nonce = int(self._state.account(treasury().account).nonce)
        keys = [development_key(f"{record.name}/authority") for record in genesis.authorities]
        self._keys = {bytes(key.verify_key): key for key in keys}
        self._certificate: Certificate | None = None

    def give(self, recipients: Iterable[AccountId], transfers: int = _BLOCK_TRANSFERS) -> None:
        """Pay every account its balance, in blocks of so many transfers."""
        transactions = self._payments(iter(recipients))
        while candidates := list(islice(transactions, transfers)):
            timestamp = TimestampMs(self._state.tip.timestamp_ms + 1)
            self._decide(build_block(self._state, candidates, timestamp, self._certificate))

    def reach_checkpoint(self) -> None:
        """A few small blocks up to a checkpoint, where the state tree is stored whole."""
        for number in count():
            if self._state.height % CHECKPOINT_INTERVAL == 0:
                return
            self.give([stranger(number)])

    def _payments(self, recipients: Iterator[AccountId]) -> Iterator[PendingTransaction]:
        while paid := tuple(islice(recipients, TRANSFER_OUTPUTS_MAX)):
            action = Transfer(tuple(Output(recipient, BALANCE) for recipient in paid))
            payload = encode(Transaction(Nonce(self._nonce), _FEE, Height(1_000_000), action))
            self._nonce += 1
            signature = _signature(_TREASURY, self._state.genesis_hash, MessageKind.TRANSACTION, payload)
            key = PublicKey(bytes(_TREASURY.verify_key))
            yield PendingTransaction.from_bytes(seal(MessageKind.TRANSACTION, payload, key, signature))

    def _decide(self, execution: Execution) -> None:
        assert not execution.refused
        header, ids = execution.header, execution.transaction_ids
        self._certificate = self._certified(header.height, execution)
        decided = DecidedBlock(execution.block_bytes, self._certificate)
        lattice, tree = lattice_bytes(execution.lattice), self._state.apply(execution)
        commit = CommitBlock(header.height, execution.block_hash, decided, execution.rows, ids, lattice, tree)
        self._store.commit([commit])
        self._store.committed(header.height)

    def _certified(self, height: Height, execution: Execution) -> Certificate:
        authorities: AuthoritySet = self._state.authorities
        kind, payload = certified_statement(CertificateKind.DECIDED, height, View(1), execution.block_hash)
        signers = tuple(range(authorities.quorum))
        signatures = tuple(
            _signature(self._keys[authorities.records[signer].authority], self._state.genesis_hash, kind, payload)
            for signer in signers
        )
        return Certificate(CertificateKind.DECIDED, height, View(1), execution.block_hash, signers, signatures)


def _signature(key: SigningKey, genesis: Hash, kind: MessageKind, payload: bytes) -> Signature:
    return Signature(key.sign(signing_bytes(genesis, kind, payload)).signature)


def copy_store(directories: Sequence[Path], height: Height) -> None:
    """Give every other state directory the ledger of the first, whose store is closed.

    All sign guards then know that the heights are closed, or their authorities would miss signatures of their own.
    """
    first = directories[0] / STORE_NAME
    for directory in directories:
        if directory != directories[0]:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copyfile(first, directory / STORE_NAME)
        guard = SignGuard.open(directory / "guard.sqlite")
        guard.raise_watermark(height)
        guard.close()


def fill_stores(directories: Sequence[Path], genesis: Genesis, recipients: Iterable[AccountId]) -> None:
    """Make the same ledger in each state directory: every recipient holds ``BALANCE``."""
    directories[0].mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store.open(directories[0] / STORE_NAME, genesis)
    try:
        founder = Founder(genesis, store)
        founder.give(recipients)
        founder.reach_checkpoint()
        height = store.height()
    finally:
        store.close()
    copy_store(directories, height)
