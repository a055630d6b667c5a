"""What keeps a node's tables of jobs bounded: the oldest ended jobs go, with their statements and their names.

Law: nothing that is needed to pay, to be paid or to prove a receipt is given up here, and no job that is under way.
"""

import asyncio

from node.runtime.market_views import JOBS_KEPT
from node.store.database import Store
from protocol.market.records import JobRecord, Side, attempt_key, awaited_key
from protocol.messages.effects import Delete, Table
from protocol.primitives.codec import decode

EVERY_S = 600.0
_AT_ONCE = 256
"""Rows given up in one commit: others wait for it no longer than for a small block."""

_ENDS = ("done", "delivered", "failed", "cancelled")


async def keep_house(store: Store) -> None:
    """Look after the tables until cancelled; all of it in a thread."""
    while True:
        await asyncio.to_thread(prune_jobs, store, JOBS_KEPT)
        await asyncio.sleep(EVERY_S)


def prune_jobs(store: Store, kept: int) -> int:
    """Give up the rows that were written first until ``kept`` jobs are left; returns how many went. Slow."""
    gone = 0
    surplus = store.count(Table.JOB) - kept
    while surplus > gone:
        oldest = [decode(row, JobRecord) for row in store.oldest(Table.JOB, min(_AT_ONCE, surplus - gone))]
        ended = [record for record in oldest if record.state in _ENDS]
        store.commit([delete for record in ended for delete in _rows_of(record)])
        gone += len(ended)
        if len(ended) < len(oldest):
            return gone  # one of the oldest jobs is still under way: those behind it wait for its end
    return gone


def _rows_of(record: JobRecord) -> list[Delete]:
    if not any(record.job):
        return [Delete(Table.JOB, record.request)]
    rows = [Delete(Table.JOB, record.job), Delete(Table.JOB_STATEMENT, record.job)]
    if record.state == "delivered":
        rows.append(Delete(Table.JOB_STATEMENT, awaited_key(record.job)))
    if record.side is Side.BUYER:
        rows.append(Delete(Table.JOB_OF_REQUEST, attempt_key(record.request, record.attempt)))
    return rows
