"""Room in the model store: who holds a model, what goes when a model goes, and what goes first when room is short.

Law: a model that a running node holds is never removed, whatever process asks: a hold is a shared lock on the
manifest's file, which the kernel drops when its holder dies. Everything else may be had again, so what interrupted
pulls left goes first, then the downloaded packages, oldest first, then the models that were used longest ago. A pull
that is under way is never touched, and counts as large as it will be.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from node.worker.errors import ModelError, ModelInUse, StoreFull, UnknownModel
from node.worker.limits import MEBIBYTE
from node.worker.models import ModelId, ModelStore


@contextlib.contextmanager
def held(store: ModelStore, model_id: ModelId) -> Iterator[None]:
    """Keep a model from being removed, and note that it is used now. Raises UnknownModel."""
    path = _manifest_path(store, model_id)
    try:
        manifest = path.open("rb")
    except FileNotFoundError:
        raise UnknownModel(f"no model {model_id} in the store") from None
    with manifest:
        fcntl.flock(manifest, fcntl.LOCK_SH)
        try:
            same = os.path.samestat(os.fstat(manifest.fileno()), path.stat())
            os.utime(path)
        except FileNotFoundError:
            same = False
        if not same:  # it was removed while we waited
            raise UnknownModel(f"no model {model_id} in the store")
        yield


def remove(store: ModelStore, model_id: ModelId) -> int:
    """Remove a model, and its files where no other model has them; returns the bytes freed.

    Of a model that is not there, what an interrupted pull left is removed. Raises UnknownModel, ModelInUse.
    """
    with store.changing():
        pulled = pulls(store) / model_id
        if pulled.is_dir() and not _manifest_path(store, model_id).exists():
            return _drop_pull(pulled)
        _forget(store, model_id)
        return _sweep(store)


def make_room(store: ModelStore, needed: int) -> tuple[str, ...]:
    """Let `needed` bytes more fit the store's quota; the caller has its turn (`store.changing`).

    Returns what went, for people. Raises StoreFull, before anything went, if models in use leave no room for it.
    """
    if store.bytes_max is None:
        return ()
    over = _used(store) + needed - store.bytes_max
    if over <= 0:
        return ()
    fixed = sum(_sizes_of(store, [model_id for model_id in store.model_ids() if _in_use(store, model_id)]).values())
    if fixed + needed > store.bytes_max:
        raise StoreFull(
            f"{_mebibytes(needed)} more do not fit: the model store may take {_mebibytes(store.bytes_max)}, and models "
            f"in use have {_mebibytes(fixed)} of it"
        )
    gone = []
    over -= _sweep(store)
    for pulled in _interrupted(store):
        if over <= 0:
            break
        with contextlib.suppress(ModelInUse):
            over -= _drop_pull(pulled)
            gone.append(f"what a pull of {pulled.name} left")
    for wheel in _wheels(store):
        if over <= 0:
            break
        over -= wheel.stat().st_size
        wheel.unlink()
        gone.append(f"the package {wheel.name}")
    for model_id in _longest_unused(store):
        if over <= 0:
            break
        with contextlib.suppress(ModelInUse):
            _forget(store, model_id)
            over -= _sweep(store)
            gone.append(f"the model {model_id}")
    if over > 0:
        raise StoreFull(f"{_mebibytes(over)} too few: models in use can't be removed")
    return tuple(gone)


def _mebibytes(size: int) -> str:
    return f"{size / MEBIBYTE:.1f} MiB"


def _manifest_path(store: ModelStore, model_id: str) -> Path:
    return store.directory / "manifests" / f"{model_id}.json"


def _in_use(store: ModelStore, model_id: ModelId) -> bool:
    try:
        with _manifest_path(store, model_id).open("rb") as manifest:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _forget(store: ModelStore, model_id: ModelId) -> None:
    """Remove the manifest. Raises UnknownModel, ModelInUse."""
    path = _manifest_path(store, model_id)
    try:
        with path.open("rb") as manifest:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            pulled_mark(store, model_id).unlink(missing_ok=True)
    except FileNotFoundError:
        raise UnknownModel(f"no model {model_id} in the store") from None
    except BlockingIOError:
        raise ModelInUse(f"model {model_id} is in use by a node on this machine") from None


def _sizes_of(store: ModelStore, model_ids: Iterable[ModelId]) -> dict[str, int]:
    """Size by hash of the files that these models name; one that several have counts once."""
    sizes = {}
    for model_id in model_ids:
        with contextlib.suppress(ModelError):
            sizes.update({file.blake3: file.size for file in store.manifest(model_id).files})
    return sizes


def _sweep(store: ModelStore) -> int:
    """Remove files that no manifest names, such as what an interrupted addition left; returns the bytes freed."""
    named, freed = _named(store), 0
    for path in (*(store.directory / "files").iterdir(), *(store.directory / "pieces").iterdir()):
        if path.name not in named:
            freed += path.stat().st_size
            path.unlink()
    return freed


def _named(store: ModelStore) -> dict[str, None]:
    """Names of the files and piece lists that some manifest needs."""
    named: dict[str, None] = {}
    for model_id in store.model_ids():
        with contextlib.suppress(ModelError):
            for file in store.manifest(model_id).files:
                named |= {file.blake3: None, file.pieces: None}
    return named


def pulled_mark(store: ModelStore, model_id: str) -> Path:
    """The file that says that a model came from peers."""
    return store.directory / "pulled" / model_id


def pulls(store: ModelStore) -> Path:
    """Where what is being pulled from peers lies: a folder for each model."""
    return store.directory / "pulls"


@contextlib.contextmanager
def pulling(folder: Path) -> Iterator[None]:
    """Keep a pull's folder for this pull alone; the kernel lets go of it when the process dies. Raises ModelInUse."""
    with (folder / ".pulling").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelInUse(f"model {folder.name} is being pulled already") from None
        yield


def _drop_pull(folder: Path) -> int:
    """Remove what an interrupted pull left; returns the bytes freed. Raises ModelInUse if it goes on."""
    with pulling(folder):
        freed = _pulled_bytes(folder)
        shutil.rmtree(folder)
    return freed


def _interrupted(store: ModelStore) -> list[Path]:
    """Folders of pulls, the one that has not moved for longest first."""
    if not pulls(store).is_dir():
        return []
    return sorted(pulls(store).iterdir(), key=lambda path: (path.stat().st_mtime_ns, path.name))


def _pulled_bytes(folder: Path) -> int:
    """What a pull takes when it is done; a file that a stored model has too counts there."""
    kinds = [path.stat() for path in folder.iterdir()]
    return sum(kind.st_size for kind in kinds if kind.st_nlink == 1)


def _wheels(store: ModelStore) -> list[Path]:
    """Downloaded packages in the store itself, oldest first; a cache that it shares is not its own to clear."""
    if not store.wheels.is_relative_to(store.directory):
        return []
    return sorted(store.wheels.glob("*.whl"), key=lambda path: (path.stat().st_mtime_ns, path.name))


def _used(store: ModelStore) -> int:
    paths = [*(store.directory / "files").iterdir(), *_wheels(store)]
    return sum(path.stat().st_size for path in paths) + sum(map(_pulled_bytes, _interrupted(store)))


def _longest_unused(store: ModelStore) -> list[ModelId]:
    return sorted(
        store.model_ids(), key=lambda model_id: (_manifest_path(store, model_id).stat().st_mtime_ns, model_id)
    )
