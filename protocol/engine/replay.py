"""Replaying decided blocks from the genesis: every signature checked, every transaction executed again.

Law: nobody is believed but the genesis. There is no door here: what the door settles for a node is settled in this
module, certificates of blocks and of their parents included.
"""

from collections.abc import Iterator
from typing import NamedTuple

from protocol.engine.decided import take_over
from protocol.ledger.blocks import decode_block, execute_block
from protocol.ledger.errors import BlockInvalid, NotATransaction
from protocol.ledger.light_chain import verify_decided
from protocol.ledger.rows import ACCOUNT_PREFIX, BOND_PREFIX, CHANNEL_PREFIX, Account, Bond, Channel
from protocol.ledger.signatures import block_checks
from protocol.ledger.state import LedgerState
from protocol.ledger.track_rows import TRACK_PREFIX, Role, Track
from protocol.messages.blocks import Block, DecidedBlock
from protocol.messages.consensus import Certificate
from protocol.messages.effects import CommitBlock, Put
from protocol.messages.quorum import certificate_checks
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.codec import decode
from protocol.primitives.errors import MalformedMessage, RemoteProtocolError
from protocol.primitives.units import AccountId, Height, format_credits


class ReplayFailed(RemoteProtocolError):
    """A block that no honest authorities decided. The text names it and says why."""

    def __init__(self, height: int, reason: str) -> None:
        super().__init__(f"block {height}: {reason}")
        self.height = height
        self.reason = reason


class Replay:
    """A state that grows block by block."""

    def __init__(self, state: LedgerState) -> None:
        self.state = state
        self.transactions = 0
        """How many were executed."""
        self.signatures = 0
        """How many were checked."""
        self._verified: Certificate | None = None
        """The certificate that decided the tip: most blocks carry the same one for their parent."""

    def take(self, decided: DecidedBlock) -> tuple[CommitBlock, *tuple[Put, ...]]:
        """Check and execute the next block and make it the tip; gives what a store has to keep.

        Raises ``ReplayFailed`` with nothing changed.
        """
        height = Height(self.state.height + 1)
        try:
            block = decode_block(decided.block)
            self._check(block, decided)
            execution = execute_block(self.state, block)
        except (BlockInvalid, NotATransaction, RemoteProtocolError) as error:
            raise ReplayFailed(height, str(error)) from error
        self.transactions += len(execution.transaction_ids)
        self._verified = decided.certificate
        return take_over(self.state, execution, decided.certificate)

    def _check(self, block: Block, decided: DecidedBlock) -> None:
        state, header = self.state, block.header
        if header.height != state.height + 1 or header.parent != state.tip_hash:
            raise BlockInvalid("parent", f"block {header.height} does not follow the one before it")
        verify_decided(state.genesis_hash, state.authorities, header, decided.certificate)
        self.signatures += len(decided.certificate.signers)
        checks = block_checks(state.genesis_hash, block)
        parent_certificate, before = block.parent_certificate, state.authorities_at(state.height)
        if parent_certificate is not None and before is not None and parent_certificate != self._verified:
            checks += certificate_checks(state.genesis_hash, before, parent_certificate)
        for check in checks:
            if not check.holds():
                raise BlockInvalid("signature", f"the signature of key {check.key.hex()} does not hold")
        self.signatures += len(checks)


class RowDifference(NamedTuple):
    """A row that is not what the blocks since the genesis make it."""

    key: bytes
    found: bytes | None
    expected: bytes | None

    def __str__(self) -> str:
        name = _name(self.key)
        return f"{name} has {_shown(self.key, self.found)} and should have {_shown(self.key, self.expected)}"


def first_difference(
    found: Iterator[tuple[bytes, bytes]], expected: Iterator[tuple[bytes, bytes]]
) -> RowDifference | None:
    """The first row that differs; both in order of their keys."""
    left, right = next(found, None), next(expected, None)
    while left is not None or right is not None:
        if left == right:
            left, right = next(found, None), next(expected, None)
        elif right is None or (left is not None and left[0] < right[0]):
            assert left is not None
            return RowDifference(left[0], left[1], None)
        elif left is None or right[0] < left[0]:
            return RowDifference(right[0], None, right[1])
        else:
            return RowDifference(left[0], left[1], right[1])
    return None


def _name(key: bytes) -> str:
    prefix, identity = key[:1], key[1:]
    if prefix == ACCOUNT_PREFIX and len(identity) == 32:
        return f"account {format_address(AddressKind.ACCOUNT, AccountId(identity))}"
    if prefix == BOND_PREFIX and len(identity) == 32:
        return f"the bond of {format_address(AddressKind.ACCOUNT, AccountId(identity))}"
    if prefix == CHANNEL_PREFIX:
        return f"channel {identity.hex()}"
    if prefix == TRACK_PREFIX and len(identity) == 33:
        account = format_address(AddressKind.ACCOUNT, AccountId(identity[1:]))
        return f"the track record of {account} as {'provider' if identity[0] == Role.PROVIDER else 'buyer'}"
    text = key.decode("ascii", "replace")
    return f"the row {text[1:]!r}" if text.isprintable() else f"the row {key.hex()}"


def _shown(key: bytes, value: bytes | None) -> str:
    if value is None:
        return "nothing"
    try:
        match key[:1]:
            case b"a":
                account = decode(value, Account)
                return f"{format_credits(account.balance)} credits at nonce {account.nonce}"
            case b"b":
                bond = decode(value, Bond)
                return f"{format_credits(bond.amount)} credits, {format_credits(bond.unlocking)} unlocking"
            case b"c":
                channel = decode(value, Channel)
                deposit, redeemed = format_credits(channel.deposit), format_credits(channel.redeemed)
                return f"a deposit of {deposit} credits, {redeemed} redeemed"
            case b"t":
                track = decode(value, Track)
                return f"{track.jobs} jobs for {format_credits(track.volume)} credits, {track.failures} failures"
            case _:
                return value.hex()
    except MalformedMessage:
        return f"bytes that say nothing ({value.hex()[:64]})"
