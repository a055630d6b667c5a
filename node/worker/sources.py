"""Where a described model comes from: a package, a repository of the Hugging Face hub, or nowhere (it has no files)."""

from node.worker.huggingface import add_from_huggingface
from node.worker.models import ModelDescription, ModelId, ModelStore, Progress
from node.worker.packages import add_from_package


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


async def add_described(store: ModelStore, description: ModelDescription, progress: Progress = silent) -> ModelId:
    """Add a described model to the store, fetching what is not there. Raises DownloadFailed, BadDescription, StoreFull.

    `progress` is told what happens, with bytes done and in all (0: unknown).
    """
    if description.huggingface is not None:
        return await add_from_huggingface(store, description, description.huggingface, progress)
    return await add_from_package(store, description, progress)
