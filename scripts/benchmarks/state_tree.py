"""The state tree: what a touched row costs at a checkpoint, what the tree weighs, and how long a proof is.

``python -m scripts.benchmarks.state_tree [ROWS [PAGE_ROWS]]`` prints a report by itself; pages of one row make it the
plain compact sparse Merkle tree, which is what it was chosen against.
"""

import random
import sys
import time
from pathlib import Path

from protocol.ledger import state_tree
from protocol.ledger.checkpoints import tree_of
from protocol.ledger.rows import Account, account_row
from protocol.ledger.state_tree import StateTree, verify_row
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, Amount, Nonce
from scripts.benchmarks.measure import Report

BATCHES = (100, 2_000, 8_000)
_PROOFS = 1_000


def _value(dice: random.Random) -> bytes:
    value = account_row(AccountId(bytes(32)), Account(Amount(dice.randrange(1, 10**12)), Nonce(dice.randrange(1000))))[
        1
    ]
    assert value is not None
    return value


def _resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def measure_tree(report: Report, rows: int) -> None:
    """Add the figures of a tree over so many accounts to a report."""
    dice = random.Random(rows)
    keys = [b"a" + dice.randbytes(32) for _ in range(rows)]
    started = time.perf_counter()
    tree = tree_of((key, _value(dice)) for key in keys)
    suffix = f"/rows={rows}"
    report.add(f"state_tree.rebuild{suffix}", time.perf_counter() - started, "s")
    pages = dict(tree.pages())
    del tree
    before = _resident_megabytes()
    started = time.perf_counter()
    tree = StateTree.from_pages(pages)
    report.add(f"state_tree.take_up{suffix}", time.perf_counter() - started, "s")
    held = sum(sys.getsizeof(entries) for entries in pages.values()) / 1e6
    report.add(f"state_tree.memory{suffix}", held + max(0.0, _resident_megabytes() - before), "MB")
    for batch in BATCHES:
        changes: dict[bytes, bytes | None] = {key: _value(dice) for key in dice.sample(keys, min(batch, rows))}
        touched: dict[bytes, bytes | None] = {}
        started = time.thread_time()
        tree = tree.updated(changes, touched)
        cost = (time.thread_time() - started) / len(changes)
        report.add(f"state_tree.touched_row{suffix},batch={batch}", cost * 1e6, "µs")
    sizes, seconds = [], []
    for key in dice.sample(keys, min(_PROOFS, rows)):
        proof = tree.prove(key)
        sizes.append(len(encode(proof)))
        started = time.perf_counter()
        verify_row(tree.root, key + b"?", None, tree.prove(key + b"?"))
        seconds.append(time.perf_counter() - started)
    report.add(f"state_tree.proof.mean{suffix}", sum(sizes) / len(sizes), "B")
    report.add(f"state_tree.proof.max{suffix}", max(sizes), "B")
    report.add(f"state_tree.prove_and_verify{suffix}", sum(seconds) / len(seconds) * 1e6, "µs")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        state_tree.PAGE_ROWS_MAX = int(sys.argv[2])
    own = Report.start(f"State tree with pages of at most {state_tree.PAGE_ROWS_MAX} rows")
    measure_tree(own, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    own.tell()
