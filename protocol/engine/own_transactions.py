"""The transactions of this node's own account, from wish to block.

Law: a wish keeps its nonce for life. Whatever is signed again for it (after a restart, after expiry) carries the same
nonce, so the ledger can apply at most one of them: nothing is ever paid twice. One wish at a time stands between
nonce and mempool; if the mempool refuses it, the signed bytes never left this node and the nonce is free again.
A transaction that pays too little to be taken, or that blocks pass by, is signed again for a tenth more, at most
``FEE_RAISES_MAX`` times; whichever of its versions a block holds, the wish has come true.
"""

from collections import deque
from collections.abc import Iterable
from copy import copy
from typing import Annotated

from msgspec import Meta, Struct

from protocol.engine.events import TransactionDecided, TransactionFailed
from protocol.ledger.mempool import TransactionRejected
from protocol.ledger.state import LedgerState
from protocol.ledger.transition import fee_floor
from protocol.messages.blocks import Header
from protocol.messages.effects import Delete, Effect, Notify, Put, SignAndSend, Table
from protocol.messages.envelope import envelope_id, open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import Action, BondDeposit, Transaction
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.limits import TEXT_BYTES_MAX
from protocol.primitives.units import (
    AccountId,
    Amount,
    BlockHash,
    Hash,
    HashField,
    Height,
    MessageId,
    MessageIdField,
    Nonce,
)

VALID_FOR_BLOCKS = 4096
"""Blocks for which a transaction of ours may still be included: minutes under load, hours when idle."""

OUTCOME_UNKNOWN = "outcome unknown: it was decided, or replaced, in blocks that this node has skipped"
WISHES_MAX = 4096
"""Wishes waiting for their nonce; beyond it the caller is told to wait."""

RAISE_AFTER_BLOCKS = 8
"""Blocks that may pass a pending transaction by before it offers more."""

FEE_RAISES_MAX = 16
"""1.1^16: no transaction of ours ever pays more than five times the floor on its own."""

_FEE_CODES = ("fee_too_low", "mempool_full")
"""Refusals that a higher fee can cure."""


VOID = BondDeposit(Amount(1))
"""Fills a nonce whose action became impossible: valid in any state, and the smallest amount stays the account's own."""


class OwnTransactionRow(Message, frozen=True):
    """Durable before anything is signed: a wish and its nonce.

    ``filled`` is the id of the transaction whose action became impossible and whose nonce a void one fills now, and
    ``reason`` why.
    """

    request: HashField
    transaction: Transaction
    filled: MessageIdField | None
    reason: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]
    earlier: Annotated[tuple[MessageIdField, ...], Meta(max_length=FEE_RAISES_MAX)] = ()
    """Ids of this wish's transactions that paid less: a block may still hold one of them."""


class _Pending(Struct):
    request: Hash
    transaction: Transaction
    signed_at: Height
    """The tip when it was signed."""
    envelope: bytes = b""
    transaction_id: MessageId | None = None
    filled: MessageId | None = None
    reason: str = ""
    earlier: tuple[MessageId, ...] = ()
    raises_left: int = FEE_RAISES_MAX
    replaced: "_Pending | None" = None
    """What it was before its fee was raised, until the mempool has taken the raise."""

    @property
    def wished(self) -> tuple[MessageId, ...]:
        """Ids of all transactions that do what was wished."""
        last = self.transaction_id if self.filled is None else self.filled
        return self.earlier if last is None else (*self.earlier, last)


class OwnTransactions:
    """Queue and book of this account's transactions. Pure; effects are returned."""

    def __init__(self, account: AccountId) -> None:
        self._account = account
        self._wishes: deque[tuple[Hash, Action]] = deque()
        self._signing: _Pending | None = None
        self._pending: dict[Nonce, _Pending] = {}

    def restore(self, rows: Iterable[bytes], state: LedgerState) -> list[Effect]:
        """Take up the rows of an earlier life: each is signed again, to the same bytes; what was decided goes."""
        effects: list[Effect] = []
        next_nonce = state.account(self._account).nonce
        for row in sorted((decode(row, OwnTransactionRow) for row in rows), key=lambda row: row.transaction.nonce):
            nonce = row.transaction.nonce
            if nonce < next_nonce:
                effects.append(Delete(Table.OWN_TRANSACTION, _row_key(nonce)))
                continue
            self._pending[nonce] = _Pending(
                row.request,
                row.transaction,
                state.height,
                filled=row.filled,
                reason=row.reason,
                earlier=row.earlier,
                raises_left=FEE_RAISES_MAX - len(row.earlier),
            )
            effects.append(_sign(row.transaction))
        return effects

    def want(self, request: Hash, action: Action, state: LedgerState) -> list[Effect]:
        """Queue an action. The fee is the ledger's floor; the outcome comes as an event named by ``request``."""
        if len(self._wishes) >= WISHES_MAX:
            return [Notify(TransactionFailed(request, "too many transactions of this node are waiting", "sender_cap"))]
        self._wishes.append((request, action))
        return self._next(state)

    def signed(self, envelope_bytes: bytes) -> tuple[MessageId, Transaction]:
        """Note a transaction of ours that was handed back signed; the engine then submits it to the mempool."""
        envelope, payload = open_as(envelope_bytes, MessageKind.TRANSACTION)
        assert isinstance(payload, Transaction)
        pending = self._of(payload)
        if pending is not None:
            pending.envelope = envelope_bytes
            pending.transaction_id = envelope_id(envelope)
        return envelope_id(envelope), payload

    def admitted(self, transaction: Transaction, state: LedgerState) -> list[Effect]:
        """The mempool took it: the nonce is used, the next wish may go on."""
        if self._signing is not None and self._signing.transaction == transaction:
            self._pending[transaction.nonce] = self._signing
            self._signing = None
        pending = self._of(transaction)
        if pending is not None:
            pending.replaced = None
        return self._next(state)

    def rejected(self, transaction: Transaction, error: TransactionRejected, state: LedgerState) -> list[Effect]:
        """The mempool refused it.

        A first attempt never left this node: its nonce is free again. An older one may still be in somebody's mempool,
        so its nonce is filled by a void transaction once the ledger waits for it, and the wish has failed only when
        that one is decided.
        """
        if error.code == "nonce_gap":
            return []  # an earlier one of ours is on its way back into the mempool; this one is brought up after it
        refused = self._of(transaction)
        if refused is not None and error.code in _FEE_CODES and refused.raises_left:
            return self._raise_fee(refused, state)
        reason = str(error)[:TEXT_BYTES_MAX]
        signing = self._signing
        if signing is not None and signing.transaction == transaction:
            self._signing = None
            return [
                Delete(Table.OWN_TRANSACTION, _row_key(transaction.nonce)),
                Notify(TransactionFailed(signing.request, reason, error.code)),
                *self._next(state),
            ]
        pending = self._pending.get(transaction.nonce)
        if pending is None or pending.transaction != transaction:
            return []
        if pending.replaced is not None:
            return self._take_back(pending)
        if pending.filled is not None or error.code in _FEE_CODES:
            return []  # it is brought up again until there is room
        if state.account(self._account).nonce != transaction.nonce:
            return []
        pending.filled, pending.reason = pending.transaction_id, reason
        return self._sign_again(pending, VOID, state)

    def block_decided(
        self, header: Header, block_hash: BlockHash, decided: dict[MessageId, None], state: LedgerState
    ) -> list[Effect]:
        """Settle what the block contains, sign again what expired.

        A node that catches up hands over several blocks at once, each with the state after the last of them: a nonce
        that is used may stand in a block that is told next.
        """
        effects: list[Effect] = []
        next_nonce = state.account(self._account).nonce
        more_to_come = header.height < state.height
        for nonce in [nonce for nonce in self._pending if nonce < next_nonce]:
            if more_to_come and not _is_in(self._pending[nonce], decided):
                continue
            effects.append(Delete(Table.OWN_TRANSACTION, _row_key(nonce)))
            effects.append(Notify(_outcome(self._pending.pop(nonce), header, block_hash, decided)))
        for pending in self._pending.values():
            if pending.transaction.nonce >= next_nonce and pending.transaction.valid_until < header.height:
                effects.extend(self._sign_again(pending, pending.transaction.action, state))
        if not more_to_come:
            effects += self._raise_if_passed_by(next_nonce, state)
        return effects + self._next(state)

    def jumped(self, state: LedgerState) -> list[Effect]:
        """The state was taken from a snapshot: what became of a nonce that is used stands in blocks we don't have."""
        effects: list[Effect] = []
        next_nonce = state.account(self._account).nonce
        for nonce in [nonce for nonce in self._pending if nonce < next_nonce]:
            effects.append(Delete(Table.OWN_TRANSACTION, _row_key(nonce)))
            effects.append(Notify(TransactionFailed(self._pending.pop(nonce).request, OUTCOME_UNKNOWN)))
        for pending in self._pending.values():
            if pending.transaction.valid_until < state.height:
                effects.extend(self._sign_again(pending, pending.transaction.action, state))
        return effects + self._next(state)

    def unfinished(self) -> list[tuple[MessageId, bytes]]:
        """Signed envelopes that no block holds yet, in nonce order: for a mempool that has lost them."""
        ordered = [self._pending[nonce] for nonce in sorted(self._pending)]
        if self._signing is not None:
            ordered.append(self._signing)
        return [(pending.transaction_id, pending.envelope) for pending in ordered if pending.transaction_id is not None]

    def _of(self, transaction: Transaction) -> _Pending | None:
        for pending in (self._signing, self._pending.get(transaction.nonce)):
            if pending is not None and pending.transaction == transaction:
                return pending
        return None

    def _next(self, state: LedgerState) -> list[Effect]:
        if self._signing is not None or not self._wishes:
            return []
        request, action = self._wishes.popleft()
        fee = fee_floor(state.parameters, action)
        nonce = Nonce(max(state.account(self._account).nonce, max(self._pending, default=-1) + 1))
        transaction = Transaction(nonce, fee, Height(state.tip.height + VALID_FOR_BLOCKS), action)
        self._signing = _Pending(request, transaction, state.height)
        return [_row(self._signing), _sign(transaction)]

    def _raise_if_passed_by(self, next_nonce: Nonce, state: LedgerState) -> list[Effect]:
        """Blocks that leave out the one that the ledger waits for are full of others, or authorities lack it."""
        pending = self._pending.get(next_nonce)
        if pending is None or pending.transaction_id is None or not pending.raises_left:
            return []
        return self._raise_fee(pending, state) if state.height - pending.signed_at >= RAISE_AFTER_BLOCKS else []

    def _raise_fee(self, pending: _Pending, state: LedgerState) -> list[Effect]:
        """Offer a tenth more for the same; a version that may be in somebody's mempool is remembered."""
        pending.raises_left -= 1
        before = copy(pending)
        if pending.filled is None and pending.transaction_id is not None:
            pending.earlier = (*pending.earlier, pending.transaction_id)
        effects = self._sign_again(pending, pending.transaction.action, state)
        pending.replaced = before
        return effects

    def _take_back(self, pending: _Pending) -> list[Effect]:
        """The mempool does not take the raise: what it was raised from still waits, and is left to it."""
        before = pending.replaced
        assert before is not None
        before.raises_left, before.replaced = 0, None
        self._pending[pending.transaction.nonce] = before
        return [_row(before)]

    def _sign_again(self, pending: _Pending, action: Action, state: LedgerState) -> list[Effect]:
        old = pending.transaction
        # The mempool's price of a replacement, and never below what the ledger asks now.
        fee = Amount(max(old.fee + old.fee // 10 + 1, fee_floor(state.parameters, action)))
        pending.transaction = Transaction(old.nonce, fee, Height(state.tip.height + VALID_FOR_BLOCKS), action)
        pending.envelope, pending.transaction_id, pending.signed_at = b"", None, state.height
        return [_row(pending), _sign(pending.transaction)]


def _outcome(
    pending: _Pending, header: Header, block_hash: BlockHash, decided: dict[MessageId, None]
) -> TransactionDecided | TransactionFailed:
    for wished in pending.wished:
        if wished in decided:
            return TransactionDecided(pending.request, Hash(wished), header.height, block_hash)
    reason = pending.reason or "its nonce was used by another transaction of this account"
    return TransactionFailed(pending.request, reason)


def _is_in(pending: _Pending, decided: dict[MessageId, None]) -> bool:
    """True if a block holds the wish's transaction or the one that fills its nonce."""
    return any(known in decided for known in (*pending.wished, pending.transaction_id))


def _row_key(nonce: int) -> bytes:
    return nonce.to_bytes(8, "big")


def _row(pending: _Pending) -> Put:
    row = OwnTransactionRow(pending.request, pending.transaction, pending.filled, pending.reason, pending.earlier)
    return Put(Table.OWN_TRANSACTION, _row_key(pending.transaction.nonce), encode(row))


def _sign(transaction: Transaction) -> SignAndSend:
    return SignAndSend(MessageKind.TRANSACTION, encode(transaction))
