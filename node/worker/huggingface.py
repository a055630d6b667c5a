"""Models out of repositories on the Hugging Face hub, by its own library, which is imported when one is asked for.

Law: a description pins the commit and the SHA-256 of each file, and a file is copied only if it has that hash; nothing
in a repository is ever run. What the hub's library keeps in its cache is used as it is, so what is there needs no
network. Source: huggingface_hub's ``hf_hub_download`` and the layout of its cache.
"""

import asyncio
import importlib
from collections.abc import Callable
from pathlib import Path

from node.worker.errors import DownloadFailed
from node.worker.importing import LocalFile, add_local_files
from node.worker.models import HuggingFaceSource, ModelDescription, ModelId, ModelStore, Progress
from node.worker.pieces import sha256_of

COMPLAINT_CHARACTERS = 600
Download = Callable[..., str]


async def add_from_huggingface(
    store: ModelStore,
    description: ModelDescription,
    source: HuggingFaceSource,
    progress: Progress,
    cache: Path | None = None,
) -> ModelId:
    """Add a described model to the store; `cache` is the hub library's directory, by default the user's own.

    Raises DownloadFailed, also where the library is not installed, BadDescription, StoreFull.
    """
    origin = f"huggingface {source.repository} {source.commit}"
    kept = await asyncio.to_thread(store.find, description, origin)
    if kept is not None:
        return kept
    return await asyncio.to_thread(_add, store, description, source, origin, progress, cache)


def _library() -> Download:
    try:
        library = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.utils").disable_progress_bars()
        download: Download = library.hf_hub_download
    except ImportError:
        raise DownloadFailed(
            "models of the Hugging Face hub need the package huggingface_hub: pip install 'mercat[huggingface]'"
        ) from None
    return download


def _add(
    store: ModelStore,
    description: ModelDescription,
    source: HuggingFaceSource,
    origin: str,
    progress: Progress,
    cache: Path | None,
) -> ModelId:
    download, files = _library(), {}
    for name, pinned in sorted(source.files.items()):
        progress(f"downloading {pinned.path}", 0, 0)
        path = _fetched(download, source, pinned.path, cache)
        if sha256_of(path) != pinned.sha256:
            raise DownloadFailed(f"{source.repository}: {pinned.path} is not the file that the description pins")
        files[name] = LocalFile(path, path.stat().st_size)
    return add_local_files(store, description, files, origin, progress)


def _fetched(download: Download, source: HuggingFaceSource, path: str, cache: Path | None) -> Path:
    try:
        # The cache's entry is a link to the bytes; add_local_files reads through none.
        found = download(repo_id=source.repository, filename=path, revision=source.commit, cache_dir=cache)
        return Path(found).resolve(strict=True)
    except Exception as error:  # the library raises several unrelated types
        said = str(error).strip()[:COMPLAINT_CHARACTERS] or type(error).__name__
        raise DownloadFailed(f"{source.repository}: {path} could not be fetched: {said}") from None
