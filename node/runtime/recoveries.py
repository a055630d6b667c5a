"""Following the recovery documents that the operator has configured, before anything else happens.

Law: a node that can't follow a document does not start: it would go on with a history that its operator has given up.
"""

from collections.abc import Sequence
from pathlib import Path

from node.config.recovery_file import load_recovery
from node.store.database import Store
from protocol.ledger.recovery import RecoveryRefused, check_followed
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Block
from protocol.primitives.codec import decode
from protocol.primitives.units import Height


def follow_recoveries(paths: Sequence[Path], state: LedgerState, store: Store) -> None:
    """Take the documents into the state. Raises ``RecoveryRefused``, naming the file."""
    for path in paths:
        recovery, signers = load_recovery(path, state.genesis_hash)
        try:
            if recovery.height < state.height:
                decided = store.decided_block(Height(recovery.height + 1))
                if decided is not None:  # else given up long ago: whoever has built on it has followed it
                    check_followed(recovery, decode(decided.block, Block).header)
            else:
                state.follow_recovery(recovery, signers)
        except RecoveryRefused as refusal:
            raise RecoveryRefused(f"{path}: {refusal}") from None
