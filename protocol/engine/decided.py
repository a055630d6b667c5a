"""What happens when a block is decided: the state takes it over, and the disk gets all that a restart needs of it.

Law: the effects belong into one commit. A change of who decides is kept as a link of a light client's chain, for ever:
blocks may be pruned, but without the links nobody could be shown who decided the later ones.
"""

from protocol.ledger.execution import Execution
from protocol.ledger.lattice import lattice_bytes
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import DecidedBlock, Header, Succession
from protocol.messages.consensus import Certificate
from protocol.messages.effects import CommitBlock, Put, Table
from protocol.primitives.codec import encode


def take_over(
    state: LedgerState, execution: Execution, certificate: Certificate
) -> tuple[CommitBlock, *tuple[Put, ...]]:
    """Make an executed block the state's tip; gives what has to be stored.

    Raises ``LocalProtocolError`` unless the block was executed on the present tip.
    """
    header = execution.header
    commit = CommitBlock(
        height=header.height,
        block_hash=execution.block_hash,
        decided=DecidedBlock(execution.block_bytes, certificate),
        rows=execution.rows,
        transactions=execution.transaction_ids,
        lattice=lattice_bytes(execution.lattice),
        tree=state.apply(execution),
    )
    succession = succession_of(header, certificate, state)
    if succession is None:
        return (commit,)
    return commit, Put(Table.SUCCESSION, succession_key(header.height), encode(succession))


def succession_of(header: Header, certificate: Certificate, state: LedgerState) -> Succession | None:
    """The change of who decides that the tip's header names; ``None`` if it names none. ``state`` is after the tip."""
    if header.next_authorities_hash == header.authorities_hash:
        return None
    return Succession(header, certificate, state.schedule.current)


def succession_key(height: int) -> bytes:
    """Where the change that a header names is kept; keys rise with heights."""
    return height.to_bytes(8, "big")
