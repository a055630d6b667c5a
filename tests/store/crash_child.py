"""A process that commits blocks until it is killed: ``python -m tests.store.crash_child STORE``.

Prints the height of every block once ``commit`` has returned, so that whoever kills it knows what must be on disk.
"""

import sys
from pathlib import Path

from node.store.database import Store
from protocol.messages.effects import Put, Table
from tests.ledger.world import Ledger, make_genesis
from tests.store.chain import Chain

GENESIS = make_genesis(balance=1_000_000_000)


def main(path: Path) -> None:
    """Go on from what the store holds, ten transfers a block."""
    store = Store.open(path, GENESIS)
    chain = Chain(GENESIS)
    ledger: Ledger = chain.ledger
    ledger.state = store.load_state()
    print("open", ledger.state.height, flush=True)
    while True:
        commit = chain.next(10)
        height = commit.height.to_bytes(8, "big")
        store.commit([Put(Table.CONSENSUS_BODY, b"body", height), commit, Put(Table.JOB, b"height", height)])
        print("committed", commit.height, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
