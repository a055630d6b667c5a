"""Cutting a state's rows into chunks, and judging rows that somebody else has cut.

Law: rows are believed as a whole or not at all: they rise strictly by key, decode, give the state root of a decided
header, and all money in them is what was issued. Before the root holds they are bytes to be hashed and nothing else:
what a liar has cut must not fill the memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Generic

from msgspec import Meta

from protocol.ledger.accounts import Id, Tables, Value
from protocol.ledger.errors import StateInvalid
from protocol.ledger.lattice import EMPTY_LATTICE, LatticeSum, lattice_root, updated
from protocol.ledger.rows import NO_ACCOUNT, Row
from protocol.ledger.state import LedgerState
from protocol.ledger.track_rows import NO_TRACK
from protocol.messages.blocks import Header
from protocol.messages.genesis import Genesis
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.limits import SNAPSHOT_CHUNK_BYTES_MAX
from protocol.primitives.units import Height

_ROW_OVERHEAD_BYTES_MAX = 1 + 5 + 5
"""An array of two, and the lengths of key and value."""
_CHUNK_OVERHEAD_BYTES_MAX = 1 + 5


class _Rows(Message, frozen=True):
    rows: Annotated[tuple[tuple[bytes, bytes], ...], Meta(min_length=1)]


def cut_rows(rows: Iterable[Row]) -> Iterator[bytes]:
    """Chunks of consecutive rows: each takes as many as surely fit."""
    taken: list[Row] = []
    room = SNAPSHOT_CHUNK_BYTES_MAX - _CHUNK_OVERHEAD_BYTES_MAX
    for key, value in rows:
        size = len(key) + len(value) + _ROW_OVERHEAD_BYTES_MAX
        if taken and size > room:
            yield encode(_Rows(tuple(taken)))
            taken, room = [], SNAPSHOT_CHUNK_BYTES_MAX - _CHUNK_OVERHEAD_BYTES_MAX
        taken.append((key, value))
        room -= size
    yield encode(_Rows(tuple(taken)))


def joined_rows(chunks: Iterable[bytes]) -> Iterator[Row]:
    """The rows of all chunks. Raises ``StateInvalid`` on bytes that are no chunk, or rows out of order."""
    last = b""
    for chunk in chunks:
        try:
            rows = decode(chunk, _Rows).rows
        except MalformedMessage as error:
            raise StateInvalid(f"a chunk of a snapshot is {error}") from None
        for row in rows:
            if row[0] <= last:
                raise StateInvalid("rows of a snapshot do not rise")
            last = row[0]
            yield row


class _Passing(Generic[Id, Value]):
    """A table that keeps nothing: the state's own sums are all that is wanted."""

    def __init__(self, nothing: Value) -> None:
        self._nothing = nothing

    def get(self, identity: Id) -> Value:
        return self._nothing

    def apply(self, height: Height, changes: Mapping[Id, Value]) -> None:
        pass

    def items(self) -> Iterator[tuple[Id, Value]]:
        return iter(())


def check_root(header: Header, rows: Iterable[Row]) -> None:
    """Hash rows one after the other. Raises ``StateInvalid`` unless they are the rows behind ``header``."""
    _check_sum(header, updated(EMPTY_LATTICE, (), rows))


def _check_sum(header: Header, lattice: LatticeSum) -> None:
    root = lattice_root(lattice)
    if root != header.state_root:
        raise StateInvalid(f"rows give state root {root.hex()}, block {header.height} has {header.state_root.hex()}")


def judge_rows(genesis: Genesis, header: Header, rows: Iterable[Row]) -> LedgerState:
    """Go through rows of which ``check_root`` holds; keeps all but accounts and track records.

    Raises ``StateInvalid`` unless they are the rows behind ``header`` and conserve the supply.
    """
    try:
        state = LedgerState(genesis, rows, header, Tables(_Passing(NO_ACCOUNT), _Passing(NO_TRACK)))
    except MalformedMessage as error:
        raise StateInvalid(f"a row of a snapshot does not decode: {error}") from None
    _check_sum(header, state.lattice)
    supply = state.supply_kept()
    if supply.total != supply.issued:
        raise StateInvalid(f"supply is {supply.total} base units but {supply.issued} were issued")
    return state
