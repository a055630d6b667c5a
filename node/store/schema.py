"""The tables of our two files, as steps that have been taken or not.

Law: a step, once released, never changes; a new version adds a step. A file with a step that we don't know is refused.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from sqlite_utils import Database

from protocol.market.records import ReceiptRecord, receipt_rows
from protocol.messages.effects import Table
from protocol.primitives.codec import decode, encode

SALT_BYTES = 16
ROW_JOURNAL_FACT = "row_journal"
"""The journal's salt, the number of the last record folded, and whether the store was left without being closed."""

Step = Callable[[Database], None]


class Schema(NamedTuple):
    """A file's kind and the steps that make its tables, oldest first; each is recorded by its name."""

    name: str
    steps: tuple[Step, ...]
    row_steps: tuple[Step, ...] = ()
    """Taken once no row waits in a journal any more: they give rows another form."""


def table_name(table: Table) -> str:
    """The SQL table behind an effect's table."""
    return table.name.lower()


def step_1_first_tables(database: Database) -> None:
    """Blocks, state rows, transaction heights, facts about the file, and the key-value tables of the effects."""
    database.table("facts").create({"name": str, "value": bytes}, pk="name")
    database.table("blocks").create(
        {"height": int, "block_hash": bytes, "block": bytes, "certificate": bytes, "checksum": bytes}, pk="height"
    )
    # Small rows under random keys: without a row id each is stored once, in key order.
    database.execute("CREATE TABLE state (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
    database.execute("CREATE TABLE transactions (id BLOB PRIMARY KEY, height INTEGER NOT NULL) WITHOUT ROWID")
    for name in (
        "consensus_body",
        "consensus_certificate",
        "buyer_lane",
        "seller_lane",
        "job",
        "receipt",
        "own_transaction",
        "standing",
        "anchor",
    ):
        database.execute(f"CREATE TABLE {name} (key BLOB PRIMARY KEY, value BLOB NOT NULL)")


def step_2_state_tree(database: Database) -> None:
    """What the state tree is taken up from; derived from the state's rows."""
    database.execute("CREATE TABLE state_tree (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")


def step_3_seen_proposals(database: Database) -> None:
    """The first proposal seen in each view of the open height."""
    database.execute("CREATE TABLE consensus_proposal (key BLOB PRIMARY KEY, value BLOB NOT NULL)")


def step_4_successions(database: Database) -> None:
    """The headers that named another set of authorities."""
    database.execute("CREATE TABLE succession (key BLOB PRIMARY KEY, value BLOB NOT NULL)")


def step_5_no_transaction_heights(database: Database) -> None:
    """Nobody asked for them, and in a large table each row cost as much to write as an account's."""
    database.execute("DROP TABLE transactions")


def step_6_receipts_of_a_lane(database: Database) -> None:
    """The receipts of a lane in their order, without reading all receipts there are."""
    database.execute("CREATE TABLE receipt_lane (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
    for (value,) in database.conn.execute("SELECT value FROM receipt").fetchall():
        put = receipt_rows(decode(value, ReceiptRecord))[1]
        database.conn.execute("INSERT INTO receipt_lane VALUES (?, ?)", (put.key, put.value))


def step_7_timelines(database: Database) -> None:
    """Which jobs a request came to, what was signed of those without a receipt, and what the ledger did to channels.

    A job's row tells more than before: what it could not tell stays empty.
    """
    for name in ("job_of_request", "job_statement", "channel_log"):
        database.execute(f"CREATE TABLE {name} (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
    for key, value in database.conn.execute("SELECT key, value FROM job").fetchall():
        fields = msgspec.msgpack.decode(value)
        fields[-1] = [[*entry, 0, 0, 0, 0] for entry in fields[-1]]
        database.conn.execute("UPDATE job SET value = ? WHERE key = ?", (encode([*fields, "", None, 0, 0, 0]), key))


def step_8_work_of_a_lane(database: Database) -> None:
    """What a lane's last job was paid for; nothing is known of earlier ones."""
    for name, fields_before in (("buyer_lane", 13), ("seller_lane", 16)):
        for key, value in database.conn.execute(f"SELECT key, value FROM {name}").fetchall():
            fields = msgspec.msgpack.decode(value)
            if len(fields) == fields_before:
                database.conn.execute(f"UPDATE {name} SET value = ? WHERE key = ?", (encode([*fields, 0, 0]), key))


def step_9_row_journal(database: Database) -> None:
    """Rows may be in a journal beside this file; a program that does not know of it would lose them."""
    database.execute("INSERT INTO facts VALUES (?, ?)", (ROW_JOURNAL_FACT, os.urandom(SALT_BYTES) + bytes(9)))


def step_10_ends_of_lanes(database: Database) -> None:
    """How a lane's last job ended: what ``step_11`` takes away again."""
    for name, fields_before, unknown in (("buyer_lane", 15, (0, 0)), ("seller_lane", 18, (False,))):
        for key, value in database.conn.execute(f"SELECT key, value FROM {name}").fetchall():
            fields = msgspec.msgpack.decode(value)
            if len(fields) == fields_before:
                database.conn.execute(f"UPDATE {name} SET value = ? WHERE key = ?", (encode([*fields, *unknown]), key))


def step_11_written_off(database: Database) -> None:
    """What buyers never paid, of which nothing is known of earlier jobs; and lanes as they were before ``step_10``."""
    for name, fields_kept, unknown in (("buyer_lane", 15, ()), ("seller_lane", 18, (0,))):
        for key, value in database.conn.execute(f"SELECT key, value FROM {name}").fetchall():
            fields = msgspec.msgpack.decode(value)[:fields_kept]
            database.conn.execute(f"UPDATE {name} SET value = ? WHERE key = ?", (encode([*fields, *unknown]), key))


def step_1_signatures(database: Database) -> None:
    """What was signed at each position, and the height up to which nothing may be signed any more."""
    database.execute(
        "CREATE TABLE signatures (height INTEGER, view INTEGER, class INTEGER, payload BLOB NOT NULL, "
        "PRIMARY KEY (height, view, class)) WITHOUT ROWID"
    )
    database.execute("CREATE TABLE watermark (id INTEGER PRIMARY KEY CHECK (id = 1), height INTEGER NOT NULL)")
    database.execute("INSERT INTO watermark VALUES (1, 0)")


STORE_SCHEMA = Schema(
    "store",
    (
        step_1_first_tables,
        step_2_state_tree,
        step_3_seen_proposals,
        step_4_successions,
        step_5_no_transaction_heights,
        step_6_receipts_of_a_lane,
        step_7_timelines,
        step_8_work_of_a_lane,
        step_9_row_journal,
    ),
    (step_10_ends_of_lanes, step_11_written_off),
)
GUARD_SCHEMA = Schema("sign_guard", (step_1_signatures,))
