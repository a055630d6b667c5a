"""``mercat ledger proof|checkpoint|export|import|check``: the ledger for who believes no single node.

Law: a file is written beside its name and moved there when it is whole. Import and check believe the genesis alone:
every certificate and signature is verified and every transaction executed again.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import GENESIS_VARIABLE, Command, Session, timeout_option, with_node, with_output
from node.cli.output import Output, Progress, credits_text, fields
from node.cli.settings import CONFIG_VARIABLE, config_file

if TYPE_CHECKING:
    from node.store.archive import ArchiveReader
    from node.store.database import Store
    from protocol.engine.replay import Replay
    from protocol.messages.blocks import DecidedBlock
    from protocol.messages.effects import CommitBlock, Put
    from protocol.messages.genesis import Genesis
    from protocol.primitives.units import Hash

PROGRESS_SECONDS = 0.2
IMPORT_BLOCKS_PER_COMMIT = 64


class FileView(msgspec.Struct, frozen=True):
    """A file that was written."""

    file: str
    bytes: int


class ArchiveView(msgspec.Struct, frozen=True):
    """What ``export`` wrote or ``import`` took in."""

    file: str
    first_height: int
    last_height: int
    blocks: int


class CheckView(msgspec.Struct, frozen=True):
    """What ``check`` found: every figure is counted anew."""

    holds: bool
    source: str
    blocks: int
    transactions: int
    signatures: int
    tip: str
    rows_compared: int | None
    accounts: int
    channels: int
    balances: int
    deposits: int
    bonds: int
    fee_pool: int
    issued: int


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it was written to its end."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write(session: Session, path: Path, content: bytes) -> None:
    with _whole_file(path) as file:
        file.write(content)
    session.output.show(FileView(str(path), len(content)), f"wrote {path}, {len(content)} bytes", (str(path),))


def _output_option(command: Command) -> Command:
    return click.option(
        "-o", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write."
    )(command)


def _config_option(what: str) -> Callable[[Command], Command]:
    return click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        envvar=CONFIG_VARIABLE,
        show_envvar=True,
        help=what,
    )


@click.command()
@click.argument("subject", type=click.Choice(["account", "record", "channel", "model"]))
@click.argument("address")
@_output_option
@timeout_option(30.0, "Seconds to wait for a block that the state can be proven from.")
@with_node
def proof(session: Session, subject: str, address: str, path: Path, timeout: float) -> None:
    """Write a proof of what an account (mc1…) or a channel (hex) holds, or who registered a model (hex or mcmodel1…).

    `record` proves what an account (mc1…) has settled and what was reported of it. `mercat verify` checks it offline.
    """
    _write(session, path, session.client.proof(subject, address, int(timeout * 1000)))


@click.command()
@_output_option
@timeout_option(30.0, "Seconds to wait for a block that can be trusted from.")
@with_node
def checkpoint(session: Session, path: Path, timeout: float) -> None:
    """Write a recent block for others to trust from: `mercat verify --checkpoint`. Hand it on by a way they trust."""
    _write(session, path, session.client.checkpoint(int(timeout * 1000)))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--from", "first", type=click.IntRange(min=1), default=1, show_default=True, help="First block.")
@_config_option("Read the store of this stopped node instead of asking a running one.")
@with_node
def export(session: Session, file: Path, first: int, config: Path | None) -> None:
    """Write all decided blocks with their certificates to FILE."""
    from node.store.archive import write_archive

    with _whole_file(file) as stream, _exported(session, config, first) as (genesis_hash, tip, blocks):
        shown = _watched(blocks, tip, session.output)
        end = write_archive(stream, genesis_hash, first, shown)
    view = ArchiveView(str(file), first, first + end.blocks - 1, end.blocks)
    text = (
        f"wrote {file}: {end.blocks} blocks, {view.first_height} to {view.last_height}"
        if end.blocks
        else (f"wrote {file}: no blocks")
    )
    session.output.show(view, text, (str(file),))


@contextmanager
def _exported(
    session: Session, config: Path | None, first: int
) -> "Iterator[tuple[Hash, int, Iterator[DecidedBlock]]]":
    from node.store.archive import stored_blocks
    from protocol.messages.genesis import genesis_hash
    from protocol.primitives.units import Hash

    if config is None:
        status = session.client.status()
        yield Hash(bytes.fromhex(status.genesis_hash)), status.height, _served_blocks(session, first)
        return
    with _stopped(config) as (_, store):
        if store.blocks_from() > first and store.height() >= first:
            raise CommandFailed(
                f"blocks below {store.blocks_from()} were pruned here; export them from an archive, or --from there",
                code="pruned",
            )
        yield genesis_hash(store.genesis), store.height(), stored_blocks(store, first)


def _served_blocks(session: Session, first: int) -> "Iterator[DecidedBlock]":
    from protocol.messages.blocks import DecidedBlock
    from protocol.primitives.codec import decode

    height = first
    while blocks := decode(session.client.decided(height), tuple[DecidedBlock, ...]):
        yield from blocks
        height += len(blocks)


def _watched(blocks: "Iterable[DecidedBlock]", last: int, output: Output) -> "Iterator[DecidedBlock]":
    """The same blocks, with their progress on a terminal."""
    progress = Progress(not output.quiet and not output.as_json)
    shown_at = 0.0
    try:
        for decided in blocks:
            if time.monotonic() - shown_at > PROGRESS_SECONDS:
                height, shown_at = decided.certificate.height, time.monotonic()
                share = f" of {last}, {100 * height // last} %" if last else ""
                progress.update(f"block {height}{share}")
            yield decided
    finally:
        progress.clear()


@contextmanager
def _stopped(config: Path, *, may_create: bool = False) -> "Iterator[tuple[Path, Store]]":
    """The store of a node that does not run."""
    from node.config.genesis_file import load_genesis
    from node.config.loading import load_config
    from node.store.database import Store

    settings = load_config(config, os.environ, {}).config
    path = settings.state / "ledger.sqlite"
    if may_create:
        settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    elif not path.is_file():
        raise CommandFailed(f"there is no ledger in {settings.state}", ExitCode.USAGE, "no_ledger")
    store = Store.open(path, load_genesis(settings.genesis))
    try:
        yield settings.state, store
    finally:
        store.close()


@contextmanager
def _archive(file: Path, genesis: "Genesis") -> "Iterator[ArchiveReader]":
    from node.store.archive import ArchiveReader
    from protocol.messages.genesis import genesis_hash

    with file.open("rb") as stream:
        reader = ArchiveReader(file, stream)
        if reader.head.genesis != genesis_hash(genesis):
            raise CommandFailed(f"{file} is of network {reader.head.genesis.hex()}", ExitCode.USAGE, "other_network")
        yield reader


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_config_option("The stopped node to fill; default: where `mercat join` puts one.")
@with_output
def import_(output: Output, file: Path, config: Path | None) -> None:
    """Fill the store of a stopped node from FILE, verifying and executing every block.

    A run that was interrupted goes on where it stopped.
    """
    with _stopped(config_file(config), may_create=True) as (_, store), _archive(file, store.genesis) as reader:
        before = store.height()
        if reader.head.first_height > before + 1:
            raise CommandFailed(
                f"{file} begins at block {reader.head.first_height}, the store ends at {before}", code="gap"
            )
        _take_in(store, _watched(_after(reader, store), 0, output))
        view = ArchiveView(str(file), before + 1, store.height(), store.height() - before)
    text = f"{view.blocks} blocks verified and executed; the ledger is at height {view.last_height}"
    output.show(view, text, (str(view.last_height),))


def _after(reader: "ArchiveReader", store: "Store") -> "Iterator[DecidedBlock]":
    """The blocks that the store lacks; those that it has must be the same."""
    tip, height = store.tip(), store.height()
    for decided in reader.blocks():
        if decided.certificate.height > height:
            yield decided
        elif tip is not None and decided.certificate.height == height and decided.block != tip.block:
            raise CommandFailed(f"block {height} in the file is another than in the store", code="other_block")


def _take_in(store: "Store", blocks: "Iterator[DecidedBlock]") -> None:
    from protocol.engine.replay import Replay

    replay = Replay(store.load_state())
    waiting: list[CommitBlock | Put] = []
    try:
        for decided in blocks:
            waiting += replay.take(decided)
            if len(waiting) >= IMPORT_BLOCKS_PER_COMMIT:
                _commit(store, replay, waiting)
    finally:
        # What was verified before an error or an interruption stays.
        _commit(store, replay, waiting)


def _commit(store: "Store", replay: "Replay", waiting: "list[CommitBlock | Put]") -> None:
    store.commit(tuple(waiting))
    store.committed(replay.state.height)
    waiting.clear()


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False)
@_config_option("The stopped node to check, or FILE's network; default: where `mercat join` puts one.")
@click.option(
    "--genesis",
    envvar=GENESIS_VARIABLE,
    show_envvar=True,
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="FILE's network, without a node's configuration.",
)
@with_output
def check(output: Output, file: Path | None, config: Path | None, genesis: Path | None) -> None:
    """Derive every balance anew from the genesis, and compare every row of a stopped node's store.

    With FILE, an exported ledger is checked instead. Exit code 1 with the first difference by name.
    """
    if file is None:
        view = _check_store(config_file(config), output)
    else:
        view = _check_file(file, genesis if config is None else None, config, output)
    pairs = [
        ("checked", view.source),
        ("blocks", f"{view.blocks}, {view.transactions} transactions, {view.signatures} signatures verified"),
        ("tip", view.tip),
        ("rows", "not stored here" if view.rows_compared is None else f"{view.rows_compared}, all as derived"),
        ("accounts", str(view.accounts)),
        ("channels", str(view.channels)),
        ("balances", credits_text(view.balances)),
        ("channel deposits", credits_text(view.deposits)),
        ("bonds", credits_text(view.bonds)),
        ("fee pool", credits_text(view.fee_pool)),
        ("issued", credits_text(view.issued)),
    ]
    output.show(view, "OK\n" + fields(pairs), ("OK",))


def _check_file(file: Path, genesis_path: Path | None, config: Path | None, output: Output) -> CheckView:
    from node.config.genesis_file import load_genesis
    from node.config.loading import load_config

    genesis = load_genesis(genesis_path or load_config(config_file(config), os.environ, {}).config.genesis)
    with _archive(file, genesis) as reader:
        if reader.head.first_height != 1:
            raise CommandFailed(f"{file} begins at block {reader.head.first_height}, not at 1", code="gap")
        replay = _replayed(genesis, _watched(reader.blocks(), 0, output))
    return _counted(replay, str(file), None)


def _check_store(config: Path, output: Output) -> CheckView:
    from node.store.archive import stored_blocks
    from node.store.state_rows import all_rows
    from protocol.engine.replay import first_difference

    with _stopped(config) as (state, store):
        if store.blocks_from() > 1:
            raise CommandFailed(
                f"blocks below {store.blocks_from()} were pruned here: nothing can be derived from the genesis",
                code="pruned",
            )
        replay = _replayed(store.genesis, _watched(stored_blocks(store, 1), store.height(), output))
        if replay.state.height != store.height():
            raise CommandFailed(f"block {replay.state.height + 1} is missing in the store", code="block_missing")
        compared = 0

        def counted(rows: "Iterator[tuple[bytes, bytes]]") -> "Iterator[tuple[bytes, bytes]]":
            nonlocal compared
            for row in rows:
                compared += 1
                yield row

        difference = first_difference(counted(all_rows(store.database.conn)), replay.state.rows())
    if difference is not None:
        raise CommandFailed(str(difference), code="row_differs")
    return _counted(replay, str(state), compared)


def _replayed(genesis: "Genesis", blocks: "Iterator[DecidedBlock]") -> "Replay":
    from protocol.engine.replay import Replay
    from protocol.ledger.state import LedgerState

    replay = Replay(LedgerState.from_genesis(genesis))
    for decided in blocks:
        replay.take(decided)
    return replay


def _counted(replay: "Replay", source: str, compared: int | None) -> CheckView:
    state = replay.state
    supply = state.supply()
    if supply.total != supply.issued:
        raise CommandFailed(f"there are {supply.total} base units but {supply.issued} were issued", code="supply")
    return CheckView(
        holds=True,
        source=source,
        blocks=state.height,
        transactions=replay.transactions,
        signatures=replay.signatures,
        tip=state.tip_hash.hex(),
        rows_compared=compared,
        accounts=sum(1 for _ in state.accounts()),
        channels=sum(1 for _ in state.channels()),
        balances=supply.balances,
        deposits=supply.deposits,
        bonds=supply.bonds,
        fee_pool=supply.fee_pool,
        issued=supply.issued,
    )


COMMANDS = (proof, checkpoint, export, import_, check)
