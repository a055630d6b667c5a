"""``mercat model``: model files on this machine.

Law: without ``--model-store`` the store is that of this user's node, with its quota, if `mercat join` made one; else
the one that all development clusters of a user share.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from node.cli.failures import CommandFailed, ExitCode
from node.cli.model_pull import BYTE_RATE
from node.cli.money import LEDGER_WAIT, show_transaction
from node.cli.options import Session, confirm, timeout_option, with_node, with_output, yes_option
from node.cli.output import Output, Progress, fields, short, table
from node.runtime.control import RegistrationView

if TYPE_CHECKING:
    from node.worker.importing import LocalFile
    from node.worker.models import Fact, Manifest, ModelDescription, ModelId, ModelStore

store_option = click.option(
    "--model-store", type=click.Path(path_type=Path, file_okay=False), help="Directory of model files."
)
ID_DIGITS = 64
PULL_SILENCE_S = 30.0
"""A node that says nothing of a pull for so long is given up; it tells five times a second."""
Tell = Callable[[str, int, int], None]


class StoredModel(msgspec.Struct, frozen=True):
    """One model in the store."""

    name: str
    version: str
    model: str
    runtime: str
    license: str
    source: str
    bytes: int


class StoredFile(msgspec.Struct, frozen=True):
    """One file of a model."""

    path: str
    bytes: int
    blake3: str


class ShownManifest(msgspec.Struct, frozen=True):
    """All that a manifest says."""

    name: str
    version: str
    runtime: str
    license: str
    source: str
    settings: dict[str, int | str]
    parents: tuple[str, ...]
    training_data: tuple[str, ...]
    files: tuple[StoredFile, ...]


class ShownModel(msgspec.Struct, frozen=True):
    """What this machine and the ledger know of a model."""

    model: str
    manifest: ShownManifest | None
    """``None`` for a model that is not in the store."""
    registration: RegistrationView | None
    """``None`` where no node answers that could tell."""


class VerifiedModel(msgspec.Struct, frozen=True):
    """Whether a model's files are what its manifest says."""

    model: str
    name: str
    intact: bool
    reason: str
    """What differs; empty if nothing does."""


@click.group()
def model() -> None:
    """Model files on this machine: named by their hashes, checked before each load."""


@model.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--from", "sources", multiple=True, metavar="[NODE@]HOST:PORT", help="Node to ask too (repeatable).")
@click.option("--peers", is_flag=True, help="From peers, though a description of that name ships with mercat.")
@click.option("--limit", type=BYTE_RATE, default=0, metavar="RATE", help="Of all sources together, such as 10MB/s.")
@click.option(
    "--wait", type=click.FloatRange(0, 3600), default=10, show_default=True, help="Seconds to wait for a first source."
)
@store_option
@with_node
def pull(
    session: Session,
    models: tuple[str, ...],
    sources: tuple[str, ...],
    peers: bool,
    limit: int,
    wait: float,
    model_store: Path | None,
) -> None:
    """Fetch models: described ones from where their description says, any other from peers.

    A description is a name that ships with mercat or a path; what it names is pinned by hash. From peers MODEL is an id
    or a name on offer; this user's node pulls it into its store, checks every piece, drops whoever lies, and goes on
    where an interrupted pull was.
    """
    from node.cli.model_pull import pull_from_peers, pulled_text
    from node.runtime.model_views import PullRequest

    store: ModelStore | None = None
    stored: list[str] = []
    for name in models:
        path = None if sources or peers else _description(name)
        if path is not None:
            store = store or _store(model_store)
            with _failing(name, "model_not_pulled"):
                stored.append(_pull(store, path))
            continue
        if model_store is not None:
            raise CommandFailed(
                "--model-store: what comes from peers goes into the node's store", ExitCode.USAGE, "usage"
            )
        pulled = pull_from_peers(session, PullRequest(name, sources, limit, round(wait * 1000)), wait + PULL_SILENCE_S)
        session.output.show(pulled, pulled_text(pulled), (pulled.model,))
    if store is not None:
        _show(session.output, store, tuple(stored))


def _description(name: str) -> Path | None:
    """The description that is meant; None for what only a peer can have. Raises ``DescriptionMissing``."""
    from node.config.descriptions import DescriptionMissing, description_path, is_model_id

    if is_model_id(name) or name.startswith("mcmodel1"):
        return None
    try:
        return description_path(name)
    except DescriptionMissing:
        if "/" in name or name.endswith(".toml"):
            raise
        return None


@model.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--description", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="TOML description.")
@click.option("--name", help="Default: from PATH.")
@click.option("--version", help="Default: 1.")
@click.option("--runtime", help="gguf, onnx or wasm; default: from the files' endings.")
@click.option("--license", "license_name", help="SPDX name, such as Apache-2.0.")
@click.option("--source", help="Where the files came from, for people; default: local.")
@click.option("--parent", "parents", multiple=True, metavar="ID", help="Model it was made from (repeatable).")
@click.option(
    "--training-data", multiple=True, metavar="BLAKE3", help="Hash of a data set it was trained on (repeatable)."
)
@click.option("--setting", "settings", multiple=True, metavar="NAME=VALUE", help="For the runtime (repeatable).")
@store_option
@with_output
def add(
    output: Output,
    path: Path,
    description: Path | None,
    name: str | None,
    version: str | None,
    runtime: str | None,
    license_name: str | None,
    source: str | None,
    parents: tuple[str, ...],
    training_data: tuple[str, ...],
    settings: tuple[str, ...],
    model_store: Path | None,
) -> None:
    """Copy a model file, or a folder of files, into the store; prints the model's id.

    Links are refused, and names that begin with a dot are left out. Flags go over the description.
    """
    from node.worker.importing import LOCAL, add_local_files, listed
    from node.worker.models import check_source

    store = _store(model_store)
    given = {"name": name, "version": version, "runtime": runtime, "license": license_name}
    with _failing(str(path), "model_not_added"):
        files = listed(path)
        described = _described(path, files, description, given, parents, training_data, settings)
        origin = check_source(source or LOCAL)
        with _telling(described.name) as tell:
            model_id = add_local_files(store, described, files, origin, tell)
    _show(output, store, (model_id,))


@model.command()
@click.argument("model_name", metavar="MODEL")
@store_option
@with_node
def show(session: Session, model_name: str, model_store: Path | None) -> None:
    """What MODEL is, by its manifest, and who registered it on the ledger, by this user's node.

    MODEL is a name, an id or a beginning of one; a model that is not in the store is given by its whole id.
    """
    from node.worker.errors import UnknownModel

    store = _store(model_store)
    wanted = _hexadecimal(model_name)
    manifest: Manifest | None = None
    with _failing(model_name, "model_unknown"):
        try:
            model_id = str(store.named(wanted))
            manifest = store.manifest(model_id)
        except UnknownModel:
            if len(wanted) != ID_DIGITS:
                raise
            model_id = wanted
    try:
        registration = session.client.registration(model_id)
    except CommandFailed as error:
        if error.code != "node_unreachable" or manifest is None:
            raise
        registration = None
    view = ShownModel(model_id, None if manifest is None else _shown(manifest), registration)
    session.output.show(view, _model_text(model_id, manifest, registration), (model_id,))


@model.command()
@click.argument("model_name", metavar="MODEL")
@store_option
@yes_option
@timeout_option(60, LEDGER_WAIT)
@with_node
def publish(session: Session, model_name: str, model_store: Path | None, yes: bool, timeout: float) -> None:
    """Register MODEL of the store on the ledger as published by this node's account, for a fee and for good.

    The ledger then tells whoever has a receipt who published the very bytes that it names.
    """
    store = _store(model_store)
    with _failing(model_name, "model_unknown"):
        manifest = store.verify(store.named(_hexadecimal(model_name)))
    confirm(f"Register {manifest.name} {manifest.version} for good?", yes)
    show_transaction(session, session.client.publish(manifest.encode().decode("utf-8"), round(timeout * 1000)))


@model.command("rm")
@click.argument("model_names", nargs=-1, required=True, metavar="MODEL...")
@store_option
@with_output
def remove_models(output: Output, model_names: tuple[str, ...], model_store: Path | None) -> None:
    """Remove models that no running node holds, and files that no other model has."""
    from node.worker.quota import remove

    store = _store(model_store)
    removed = []
    for name in model_names:
        with _failing(name, "model_not_removed"):
            model_id = _removable(store, _hexadecimal(name))
            freed = remove(store, model_id)
        removed.append(model_id)
        output.note(f"removed {name}, {freed / 1e6:.1f} MB freed")
    output.show(removed, "\n".join(removed), removed)


def _removable(store: "ModelStore", wanted: str) -> "ModelId":
    """A model of the store; given by its whole id, what an interrupted pull left of one counts too."""
    from node.worker.models import ModelId

    return ModelId(wanted) if len(wanted) == ID_DIGITS else store.named(wanted)


@model.command()
@click.argument("model_names", nargs=-1, metavar="[MODEL...]")
@store_option
@with_output
def verify(output: Output, model_names: tuple[str, ...], model_store: Path | None) -> None:
    """Hash every file again; says OK, or which file differs. Without MODEL: all models in the store."""
    store = _store(model_store)
    views = []
    for name in model_names or store.model_ids():
        with _failing(name, "model_unknown"):
            views.append(_verified(store, store.named(_hexadecimal(name))))
    lines = [f"{view.name or short(view.model)}  {'OK' if view.intact else view.reason}" for view in views]
    output.show(views, "\n".join(lines), (view.model for view in views if view.intact))
    if not all(view.intact for view in views):
        raise CommandFailed("not every model has the bytes that its id names", ExitCode.FAILED, "model_corrupt")


@model.command("list")
@store_option
@with_output
def list_models(output: Output, model_store: Path | None) -> None:
    """Models in the store."""
    store = _store(model_store)
    _show(output, store, tuple(model_id for model_id, _ in store.models()))


def _store(directory: Path | None) -> "ModelStore":
    from node.cli.cluster_layout import default_model_store
    from node.cli.options import default_node_directory
    from node.cli.settings import CONFIG_VARIABLE
    from node.worker.models import ModelStore

    if directory is not None:
        return ModelStore(directory.absolute())
    path = Path(os.environ.get(CONFIG_VARIABLE) or default_node_directory() / "config.toml")
    if not path.is_file():
        return ModelStore(default_model_store())
    from node.config.loading import load_config

    config = load_config(path, os.environ).config
    return ModelStore(config.model_store, bytes_max=config.provider.model_store_bytes)


@contextmanager
def _failing(what: str, code: str) -> Iterator[None]:
    """Turns what is wrong with a model into the command's failure."""
    from node.worker.errors import WorkerError

    try:
        yield
    except WorkerError as error:
        raise CommandFailed(f"{what}: {error}", ExitCode.FAILED, code) from None


@contextmanager
def _telling(name: str) -> Iterator[Tell]:
    progress = Progress()

    def tell(what: str, done: int, total: int) -> None:
        of_all = f" of {total >> 20}" if total else ""
        progress.update(f"{name}: {what}, {done >> 20}{of_all} MiB")

    try:
        yield tell
    finally:
        progress.clear()


def _pull(store: "ModelStore", path: Path) -> str:
    from node.worker.models import load_description
    from node.worker.sources import add_described

    description = load_description(path)
    with _telling(description.name) as tell:
        return asyncio.run(add_described(store, description, tell))


def _described(
    path: Path,
    files: dict[str, "LocalFile"],
    description: Path | None,
    given: dict[str, str | None],
    parents: tuple[str, ...],
    training_data: tuple[str, ...],
    settings: tuple[str, ...],
) -> "ModelDescription":
    """What the flags say, else the description, else what the files tell. Raises BadDescription."""
    from node.worker.importing import guessed_identity, guessed_settings
    from node.worker.models import load_description_table, parse_description

    table = load_description_table(description) if description is not None else {}
    if "package" in table or "huggingface" in table:
        raise CommandFailed(f"{description} says where to fetch it; use: mercat model pull", ExitCode.USAGE, "usage")
    guessed_name, guessed_runtime = guessed_identity(path, files)
    table = {"name": guessed_name, "version": "1", "runtime": guessed_runtime} | table
    table |= {field: value for field, value in given.items() if value is not None}
    for field in ("license", "runtime"):
        if not table.get(field):
            raise CommandFailed(f"{path}: name the model's {field} with --{field}", ExitCode.USAGE, "usage")
    if parents:
        table["parents"] = sorted(set(parents))
    if training_data:
        table["training_data"] = sorted(set(training_data))
    described = table.get("settings", {})
    if isinstance(described, dict):
        table["settings"] = guessed_settings(str(table["runtime"]), files) | described | _settings(settings)
    return parse_description(table)


def _settings(texts: tuple[str, ...]) -> dict[str, "Fact"]:
    """NAME=VALUE as a number where it is written as one."""
    settings: dict[str, Fact] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise CommandFailed(f"--setting {text}: expected NAME=VALUE", ExitCode.USAGE, "usage")
        settings[name] = int(value) if value.isascii() and value.removeprefix("-").isdigit() else value
    return settings


def _hexadecimal(model_name: str) -> str:
    """An id as offers show it (``mcmodel1…``) as the store has it; anything else as it is."""
    from protocol.primitives.addresses import AddressInvalid, AddressKind, parse_address

    try:
        return parse_address(AddressKind.MODEL, model_name).hex()
    except AddressInvalid:
        return model_name


def _shown(manifest: "Manifest") -> ShownManifest:
    return ShownManifest(
        manifest.name, manifest.version, manifest.runtime, manifest.license, manifest.source,
        dict(manifest.settings), manifest.parents, manifest.training_data,
        tuple(StoredFile(file.path, file.size, file.blake3) for file in manifest.files),
    )  # fmt: skip


def _model_text(model_id: str, manifest: "Manifest | None", registration: RegistrationView | None) -> str:
    pairs = [("id", model_id), ("registered", _registration_text(registration))]
    return fields(pairs) if manifest is None else _manifest_text(pairs, manifest)


def _registration_text(registration: RegistrationView | None) -> str:
    if registration is None:
        return "not known: no node answers"
    if not registration.registered:
        return "no"
    return f"by {registration.publisher} in block {registration.height}"


def _manifest_text(pairs: list[tuple[str, str]], manifest: "Manifest") -> str:
    pairs = [
        *pairs,
        ("name", manifest.name),
        ("version", manifest.version),
        ("runtime", manifest.runtime),
        ("license", manifest.license),
        ("source", manifest.source),
        *(("setting", f"{name} = {value}") for name, value in sorted(manifest.settings.items())),
        *(("parent", parent) for parent in manifest.parents),
        *(("training data", commitment) for commitment in manifest.training_data),
        ("size", f"{manifest.size_bytes() / 1e6:.1f} MB"),
    ]
    if not manifest.files:
        return fields(pairs)
    rows = [(file.path, str(file.size), file.blake3) for file in manifest.files]
    return fields(pairs) + "\n\n" + table(("FILE", "BYTES", "BLAKE3"), rows)


def _verified(store: "ModelStore", model_id: str) -> VerifiedModel:
    from node.worker.errors import ModelError

    try:
        manifest = store.verify(model_id)
    except ModelError as error:
        return VerifiedModel(model_id, "", False, str(error))
    return VerifiedModel(model_id, manifest.name, True, "")


def _show(output: Output, store: "ModelStore", model_ids: tuple[str, ...]) -> None:
    views = []
    for model_id, manifest in store.models():
        if model_id in model_ids:
            views.append(
                StoredModel(
                    manifest.name,
                    manifest.version,
                    model_id,
                    manifest.runtime,
                    manifest.license,
                    manifest.source,
                    manifest.size_bytes(),
                )
            )
    rows = [
        (
            view.name,
            view.version,
            view.runtime,
            f"{view.bytes / 1e6:.1f} MB",
            view.license,
            view.source,
            short(view.model),
        )
        for view in views
    ]
    headers = ("MODEL", "VERSION", "RUNTIME", "SIZE", "LICENSE", "FROM", "ID")
    output.show(views, table(headers, rows), (view.model for view in views))
