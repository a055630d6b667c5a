"""What must be true of the files of nodes that were just killed, all at once.

Law: each store opens and is whole; all stores tell one history up to the lowest tip; no two certificates, of whatever
node, show two VOTEs or two FINALs of one authority in one view, and each authority's guard agrees with all of them;
the stored balances are what the blocks explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.config.genesis_file import load_genesis
from node.store.database import Store
from node.store.sign_guard import SignGuard
from protocol.messages.blocks import Block, DecidedBlock, header_hash
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, VoteBody
from protocol.messages.effects import GuardClass, Table
from protocol.messages.genesis import Genesis
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.codec import decode
from protocol.primitives.units import Height
from tests.kill.bookkeeping import explained
from tests.kill.market import Market

Position = tuple[GuardClass, int, int]
"""Class, height and view: where an authority signs once."""
Signed = dict[int, dict[Position, bytes | None]]
"""By the authority's place: the block's hash that it signed there; None is a skip."""


@dataclass(frozen=True, slots=True)
class Files:
    """What was read of one node."""

    name: str
    blocks: tuple[DecidedBlock, ...]
    certificates: tuple[Certificate, ...]
    """Of the open height."""


def _read(name: str, path: Path, genesis: Genesis) -> Files:
    store = Store.open(path, genesis)
    try:
        state = store.check()
        supply = state.supply()
        assert supply.total == supply.issued, f"{name}: {supply}"
        blocks = tuple(_decided(store, height) for height in range(1, state.height + 1))
        explained(genesis, (decode(decided.block, Block) for decided in blocks)).check(state)
        journal = tuple(decode(value, Certificate) for _, value in store.load_table(Table.CONSENSUS_CERTIFICATE))
    finally:
        store.close()
    return Files(name, blocks, journal)


def _decided(store: Store, height: int) -> DecidedBlock:
    decided = store.decided_block(Height(height))
    assert decided is not None
    return decided


def _one_history(files: Sequence[Files]) -> None:
    for height, copies in enumerate(zip(*(read.blocks for read in files), strict=False), 1):
        found = {header_hash(decode(copy.block, Block).header) for copy in copies}
        assert len(found) == 1, f"fork at height {height}"


def _signed(files: Sequence[Files]) -> Signed:
    """What each authority is proved to have signed. Raises at the first contradiction."""
    signed: Signed = {}
    for read in files:
        for certificate in (*(decided.certificate for decided in read.blocks), *read.certificates):
            guard_class = GuardClass.VOTE if certificate.kind is CertificateKind.VOTED else GuardClass.FINAL
            position = (guard_class, int(certificate.height), int(certificate.view))
            for signer in certificate.signers:
                earlier = signed.setdefault(signer, {}).setdefault(position, certificate.block_hash)
                assert earlier == certificate.block_hash, f"authority {signer} signed twice at {position}"
    return signed


def _held(path: Path) -> tuple[int, dict[Position, bytes | None]]:
    """A guard's watermark and what it holds above."""
    guard = SignGuard.open(path)
    try:
        held: dict[Position, bytes | None] = {}
        for position, payload in guard.held():
            key = (position.guard_class, int(position.height), int(position.view))
            if position.guard_class is GuardClass.FINAL:
                held[key] = decode(payload, FinalBody).block_hash
            elif position.guard_class is GuardClass.VOTE:
                held[key] = decode(payload, VoteBody).block_hash
        return guard.watermark(), held
    finally:
        guard.close()


def _guards(market: Market, authorities: AuthoritySet, signed: Signed) -> int:
    """Compare each guard with what its key is proved to have signed; how many positions were compared."""
    nodes = {node.name: node for node in market.role("authority")}
    compared = 0
    for place, record in enumerate(authorities.records):
        watermark, held = _held(nodes[record.name].state / "guard.sqlite")
        for position, said in signed.get(place, {}).items():
            if position[1] > watermark:
                assert held.get(position, b"nothing") == said, f"{record.name}: guard and certificate differ"
                compared += 1
    return compared


@dataclass(frozen=True, slots=True)
class Found:
    """Figures of one audit."""

    tips: tuple[int, ...]
    guard_positions: int


def audit_files(market: Market) -> Found:
    """All of the above. No node may run."""
    genesis = load_genesis(Path(market.record.genesis))
    files = [_read(node.name, node.state / "ledger.sqlite", genesis) for node in market.nodes]
    _one_history(files)
    compared = _guards(market, AuthoritySet(genesis.authorities), _signed(files))
    return Found(tuple(len(read.blocks) for read in files), compared)
