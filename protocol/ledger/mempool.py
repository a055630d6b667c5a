"""Transactions that wait for a block.

Law: whatever is in here executes on the present state together with its sender's earlier pending transactions, so a
node with a non-empty mempool has work. Nonces of one sender have no gaps. Everything is capped, per sender and in
all. Order is a function of the sequence of calls, never of hashing or clocks.

Fairness: in each block a sender's first ``FAIR_BYTES`` come before anybody's later bytes, whatever those pay. So one
account, however rich, has less than ``FAIR_BYTES`` and one transaction ahead of another account's first ``FAIR_BYTES``:
as long as what all others wait with fits into the rest of a block, it stands in the next one that a correct authority
builds. Among equals the higher fee goes first, then who came first.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence

from protocol.ledger.blocks import PendingTransaction
from protocol.ledger.errors import TransactionExpired, TransactionInvalid
from protocol.ledger.errors import TransactionRejected as TransactionRejected
from protocol.ledger.motions import motion_due
from protocol.ledger.rows import Account
from protocol.ledger.state import LedgerState
from protocol.ledger.transition import apply_transaction
from protocol.ledger.view import Context, Overlay
from protocol.messages.envelope import Envelope, envelope_id
from protocol.messages.genesis import Genesis, Parameters
from protocol.messages.transactions import (
    Action,
    BondRelease,
    BondUnlock,
    ChannelClose,
    ChannelFinalise,
    ChannelRedeem,
    ChannelTopUp,
    EvidenceReport,
    FailureReport,
    ModelRegister,
    MotionOpen,
    MotionVote,
    Transaction,
)
from protocol.primitives.limits import (
    PENDING_BYTES_PER_SENDER_MAX,
    PENDING_BYTES_TOTAL_MAX,
    PENDING_PER_SENDER_MAX,
    PENDING_TOTAL_MAX,
    TRANSACTION_BYTES_MAX,
)
from protocol.primitives.units import AccountId, Height, MessageId, Nonce

SYSTEM_LANE_SHARE = 5
"""One fifth of each block is kept for what has a deadline or guards the ledger itself."""
FAIR_BYTES = 16 * 1024
"""Some seventy transfers: what a sender may put into a block before others who have put in less."""

_SYSTEM_ACTIONS = (ChannelClose, ChannelFinalise, MotionOpen, MotionVote, EvidenceReport)
_SHARED_ACTIONS = (
    ChannelRedeem,
    ChannelClose,
    ChannelFinalise,
    ChannelTopUp,
    BondUnlock,
    BondRelease,
    MotionOpen,
    MotionVote,
    EvidenceReport,
    ModelRegister,
    FailureReport,
)
"""Actions that other accounts' transactions can make invalid; all others depend on their sender alone."""


def is_system(state: LedgerState, action: Action) -> bool:
    """True for what belongs into the system lane: evidence, governance, ends of channels, redeems on closing ones."""
    if isinstance(action, ChannelRedeem):
        channel = state.channel(action.channel)
        return channel is not None and channel.closing_at is not None
    return isinstance(action, _SYSTEM_ACTIONS)


class _Queue:
    """One sender's pending transactions, nonces rising by one."""

    __slots__ = ("account", "bytes_total", "overlay", "transactions")

    def __init__(self, account: Account) -> None:
        self.account = account
        """The sender's row that the transactions were last checked against."""
        self.transactions: list[PendingTransaction] = []
        self.bytes_total = 0
        self.overlay: Overlay | None = None
        """The state after these transactions; ``None`` until somebody asks."""

    @property
    def next_nonce(self) -> Nonce:
        return Nonce(self.account.nonce + len(self.transactions))


def _context(state: LedgerState) -> Context:
    """The earliest block that a pending transaction may stand in."""
    return Context(Height(state.height + 1), state.ledger_time_ms, state.tip.timestamp_ms)


def _executed(
    state: LedgerState, transactions: Iterable[PendingTransaction]
) -> tuple[Overlay, int, TransactionInvalid | None]:
    """The overlay after as many of one sender's transactions as execute, their number, and what stopped them."""
    overlay, count = Overlay(state), 0
    for pending in transactions:
        attempt = Overlay(overlay)
        try:
            apply_transaction(attempt, _context(state), pending.sender, pending.transaction)
        except TransactionInvalid as error:
            return overlay, count, error
        overlay.take_from(attempt)
        count += 1
    return overlay, count, None


class Mempool:
    """Pending transactions of all senders."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self._queues: dict[AccountId, _Queue] = {}
        self._by_id: dict[MessageId, PendingTransaction] = {}
        self._arrivals: dict[MessageId, int] = {}
        self._arrival_next = 0
        self._bytes_total = 0
        self._parameters: Parameters | None = None
        """The parameters that everything was last checked against."""
        self._cheapest: list[tuple[int, int, MessageId]] = []
        """Heap of (fee, −arrival, id) with stale entries among them: whom to evict from a full pool."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, transaction_id: object) -> bool:
        return transaction_id in self._by_id

    def get(self, transaction_id: MessageId) -> PendingTransaction | None:
        """A pending transaction, or ``None``."""
        return self._by_id.get(transaction_id)

    def pending(self) -> tuple[PendingTransaction, ...]:
        """All pending transactions, in order of arrival."""
        return tuple(self._by_id[transaction_id] for transaction_id in self._arrivals)

    def pending_for(self, account_id: AccountId) -> tuple[PendingTransaction, ...]:
        """One sender's pending transactions in order of their nonces."""
        queue = self._queues.get(account_id)
        return tuple(queue.transactions) if queue is not None else ()

    def next_nonce(self, account_id: AccountId, state: LedgerState) -> Nonce:
        """The nonce that the sender's next transaction must have, pending ones counted."""
        queue = self._queues.get(account_id)
        return queue.next_nonce if queue is not None else state.account(account_id).nonce

    def has_work(self, state: LedgerState) -> bool:
        """True if a block on top of the state would change something. The state is the one last given.

        Every pending transaction was checked against it; a motion that is due needs no transaction.
        """
        return bool(self._by_id) or motion_due(state, state.ledger_time_ms)

    def add(self, envelope_bytes: bytes, envelope: Envelope, transaction: Transaction, state: LedgerState) -> MessageId:
        """Take a transaction whose signatures, those of nested vouchers included, have been checked.

        Raises ``TransactionRejected``; the mempool is then as before.
        """
        pending = PendingTransaction(envelope_id(envelope), envelope_bytes, AccountId(envelope.sender), transaction)
        if len(envelope_bytes) > TRANSACTION_BYTES_MAX:
            raise TransactionRejected("too_large", f"{len(envelope_bytes)} of {TRANSACTION_BYTES_MAX} bytes", False)
        if pending.transaction_id in self._by_id:
            raise TransactionRejected("duplicate", "this transaction is pending already")
        account = state.account(pending.sender)
        queue = self._queues.get(pending.sender) or _Queue(account)
        if queue.account != account:
            raise TransactionRejected("state_moved", "the state has moved on since the last block_applied")
        if account.nonce <= transaction.nonce < queue.next_nonce:
            self._replace(queue, pending, state)
        else:
            self._append(queue, pending, state)
        return pending.transaction_id

    def _append(self, queue: _Queue, pending: PendingTransaction, state: LedgerState) -> None:
        nonce, expected = pending.transaction.nonce, queue.next_nonce
        if nonce < expected:
            raise TransactionRejected("nonce_used", f"expected nonce {expected}, got {nonce}")
        if nonce > expected:
            raise TransactionRejected("nonce_gap", f"expected nonce {expected}, got {nonce}")
        self._check_caps(queue, len(queue.transactions) + 1, queue.bytes_total + len(pending.envelope_bytes))
        if queue.overlay is None:
            queue.overlay = _executed(state, queue.transactions)[0]
        attempt = Overlay(queue.overlay)
        try:
            apply_transaction(attempt, _context(state), pending.sender, pending.transaction)
        except TransactionInvalid as error:
            raise TransactionRejected(error.code, error.explanation, error.retryable) from error
        self._make_room(pending)
        queue.overlay.take_from(attempt)
        queue.transactions.append(pending)
        queue.bytes_total += len(pending.envelope_bytes)
        self._queues[pending.sender] = queue
        self._remember(pending)

    def _replace(self, queue: _Queue, pending: PendingTransaction, state: LedgerState) -> None:
        """A pending nonce is replaced by a transaction that pays at least a tenth more and breaks no later one."""
        index = pending.transaction.nonce - queue.account.nonce
        replaced = queue.transactions[index]
        fee_old, fee_new = replaced.transaction.fee, pending.transaction.fee
        if fee_new * 10 < fee_old * 11 or fee_new <= fee_old:
            raise TransactionRejected("replacement_fee", f"fee {fee_new} is not 10 % above the pending {fee_old}")
        bytes_total = queue.bytes_total - len(replaced.envelope_bytes) + len(pending.envelope_bytes)
        self._check_caps(queue, len(queue.transactions), bytes_total)
        transactions = [*queue.transactions[:index], pending, *queue.transactions[index + 1 :]]
        overlay, count, error = _executed(state, transactions)
        if error is not None and count == index:
            raise TransactionRejected(error.code, error.explanation, error.retryable) from error
        if error is not None:
            detail = f"a pending transaction after it fails: {error.explanation}"
            raise TransactionRejected("replacement_breaks_later", detail)
        queue.transactions, queue.overlay, queue.bytes_total = transactions, overlay, bytes_total
        self._forget(replaced)
        self._remember(pending)

    @staticmethod
    def _check_caps(queue: _Queue, count: int, bytes_total: int) -> None:
        if count > PENDING_PER_SENDER_MAX:
            raise TransactionRejected("sender_cap", f"{PENDING_PER_SENDER_MAX} of this sender are pending")
        if bytes_total > PENDING_BYTES_PER_SENDER_MAX:
            raise TransactionRejected("sender_cap", f"{bytes_total} of {PENDING_BYTES_PER_SENDER_MAX} bytes")

    def _make_room(self, pending: PendingTransaction) -> None:
        """In a full pool a transaction must pay more than the cheapest, which then goes with its successors."""
        size = len(pending.envelope_bytes)
        while len(self._by_id) >= PENDING_TOTAL_MAX or self._bytes_total + size > PENDING_BYTES_TOTAL_MAX:
            while self._cheapest[0][2] not in self._by_id:
                heapq.heappop(self._cheapest)
            fee, _, cheapest_id = self._cheapest[0]
            cheapest = self._by_id[cheapest_id]
            if pending.transaction.fee <= fee or cheapest.sender == pending.sender:
                raise TransactionRejected("mempool_full", f"the cheapest of {len(self._by_id)} transactions pays {fee}")
            queue = self._queues[cheapest.sender]
            self._truncate(cheapest.sender, queue, cheapest.transaction.nonce - queue.account.nonce)

    def _remember(self, pending: PendingTransaction) -> None:
        self._by_id[pending.transaction_id] = pending
        self._bytes_total += len(pending.envelope_bytes)
        self._arrivals[pending.transaction_id] = self._arrival_next
        entry = (pending.transaction.fee, -self._arrival_next, pending.transaction_id)
        self._arrival_next += 1
        heapq.heappush(self._cheapest, entry)
        if len(self._cheapest) > 2 * len(self._by_id) + 64:
            self._cheapest = [entry for entry in self._cheapest if entry[2] in self._by_id]
            heapq.heapify(self._cheapest)

    def _forget(self, pending: PendingTransaction) -> None:
        del self._by_id[pending.transaction_id]
        self._bytes_total -= len(pending.envelope_bytes)
        del self._arrivals[pending.transaction_id]

    def _truncate(self, sender: AccountId, queue: _Queue, count: int) -> None:
        """Keep the first ``count`` transactions of a sender."""
        for pending in queue.transactions[count:]:
            self._forget(pending)
            queue.bytes_total -= len(pending.envelope_bytes)
        if len(queue.transactions) > count:
            del queue.transactions[count:]
            queue.overlay = None
        if not queue.transactions:
            self._queues.pop(sender, None)

    def block_applied(
        self, state: LedgerState, transaction_ids: Sequence[MessageId]
    ) -> list[tuple[MessageId, TransactionInvalid]]:
        """The state has moved: forget what was included and drop what no longer executes.

        Returns the dropped ones with the reason. Works for any number of blocks since the last call.
        """
        del transaction_ids  # Included nonces are recognised by the sender's account.
        dropped: list[tuple[MessageId, TransactionInvalid]] = []
        rules_moved, self._parameters = state.parameters != self._parameters, state.parameters
        for sender in list(self._queues):
            dropped += self._recheck(sender, self._queues[sender], state, rules_moved)
        return dropped

    def _recheck(
        self, sender: AccountId, queue: _Queue, state: LedgerState, rules_moved: bool
    ) -> list[tuple[MessageId, TransactionInvalid]]:
        account = state.account(sender)
        queue.overlay = None
        moved = rules_moved or account != queue.account
        used = account.nonce - queue.account.nonce
        for pending in queue.transactions[:used]:
            self._forget(pending)
            queue.bytes_total -= len(pending.envelope_bytes)
        del queue.transactions[:used]
        queue.account = account
        error: TransactionInvalid | None = None
        count = len(queue.transactions)
        if moved or any(isinstance(pending.transaction.action, _SHARED_ACTIONS) for pending in queue.transactions):
            _, count, error = _executed(state, queue.transactions)
        for index, pending in enumerate(queue.transactions[:count]):
            if pending.transaction.valid_until < state.height + 1:
                count = index
                error = TransactionExpired(valid_until=pending.transaction.valid_until, height=state.height + 1)
                break
        dropped = queue.transactions[count:]
        self._truncate(sender, queue, count)
        return [(pending.transaction_id, error) for pending in dropped if error is not None]

    def select(self, state: LedgerState, bytes_max: int, count_max: int) -> list[PendingTransaction]:
        """Candidates for a block: first the system lane up to a fifth, then fairly, by falling fee and by arrival.

        A sender's transactions keep the order of their nonces.
        """
        selection = _Selection(self._queues, self._arrivals)
        room = selection.fill(
            bytes_max // SYSTEM_LANE_SHARE,
            count_max // SYSTEM_LANE_SHARE,
            lambda pending: is_system(state, pending.transaction.action),
        )
        room += bytes_max - bytes_max // SYSTEM_LANE_SHARE
        selection.fill(room, count_max - len(selection.selected), lambda pending: True)
        return selection.selected


class _Selection:
    """What a block is to hold, as far as it is chosen."""

    def __init__(self, queues: dict[AccountId, _Queue], arrivals: dict[MessageId, int]) -> None:
        self.selected: list[PendingTransaction] = []
        self._queues = queues
        self._arrivals = arrivals
        self._counts: dict[AccountId, int] = {}
        self._bytes: dict[AccountId, int] = {}

    def fill(self, room: int, count_max: int, wanted: Callable[[PendingTransaction], bool]) -> int:
        """Choose what fits, and return the bytes left. A sender waits behind what it does not want or can't fit."""
        heads: list[tuple[int, int, int, AccountId]] = []

        def offer(sender: AccountId) -> None:
            transactions, index = self._queues[sender].transactions, self._counts.get(sender, 0)
            if index < len(transactions) and wanted(transactions[index]):
                head, turn = transactions[index], self._bytes.get(sender, 0) // FAIR_BYTES
                heapq.heappush(heads, (turn, -head.transaction.fee, self._arrivals[head.transaction_id], sender))

        for sender in self._queues:
            offer(sender)
        count = 0
        while heads and count < count_max:
            sender = heapq.heappop(heads)[-1]
            head = self._queues[sender].transactions[self._counts.get(sender, 0)]
            size = head.block_bytes_max
            if size > room:
                continue
            self.selected.append(head)
            self._counts[sender] = self._counts.get(sender, 0) + 1
            self._bytes[sender] = self._bytes.get(sender, 0) + size
            room -= size
            count += 1
            offer(sender)
        return room
