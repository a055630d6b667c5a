"""Which stored models a node gives to its peers, and their pieces.

Law: only what the node chose is given: the models that it serves, those that its account published and those that it
pulled from peers itself; or all of its store, or none, by setting. A file is opened by the hash that the stored
manifest names, never by anything that a peer said.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future

from node.transport.piece_server import NotShared
from node.worker.errors import ModelError
from node.worker.models import ModelStore
from node.worker.pieces import PIECE_BYTES, piece_size, pieces_of
from protocol.primitives.units import ModelId

PERMISSION_S = 5.0
"""A thread waits so long for the loop to say whether a model may be given."""


class StoredShare:
    """One stored model, as one peer asks for it; at most one of its files is open."""

    def __init__(self, store: ModelStore, model: ModelId) -> None:
        """Raises ``ModelError`` if it is not there or not whole."""
        self._store = store
        self._manifest = store.manifest(model.hex())
        self.manifest = self._manifest.encode()
        self._open: tuple[int, int] | None = None

    def piece_list(self, file: int) -> bytes:
        """Hashes of the pieces of a file."""
        if file >= len(self._manifest.files):
            raise NotShared("the model has no such file")
        try:
            return self._store.piece_list(self._manifest.files[file])
        except (ModelError, OSError) as error:
            raise NotShared(f"this node's copy is damaged: {error}") from None

    def piece(self, file: int, piece: int) -> tuple[int, int, int]:
        """Where a piece is."""
        if file >= len(self._manifest.files):
            raise NotShared("the model has no such file")
        size = self._manifest.files[file].size
        if piece >= pieces_of(size):
            raise NotShared("the file has no such piece")
        return self._descriptor(file), piece * PIECE_BYTES, piece_size(size, piece)

    def close(self) -> None:
        """Let go of the open file."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _descriptor(self, file: int) -> int:
        if self._open is None or self._open[0] != file:
            self.close()
            try:
                path = self._store.file_path(self._manifest.files[file])
                self._open = (file, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
            except OSError:
                raise NotShared("this node's copy is gone") from None
        return self._open[1]


class SharedStore:
    """The part of a store that is given away; ``open`` is called in threads, permission is asked for on the loop."""

    def __init__(
        self, store: ModelStore, may_share: Callable[[ModelId], bool], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._store = store
        self._may_share = may_share
        self._loop = loop

    def open(self, model: ModelId) -> StoredShare:
        """A model for one peer. Raises ``NotShared``."""
        if not self._is_permitted(model):
            raise NotShared("this node does not share that model")
        try:
            return StoredShare(self._store, model)
        except (ModelError, OSError):
            raise NotShared("this node does not have that model any more") from None

    def _is_permitted(self, model: ModelId) -> bool:
        answer: Future[bool] = Future()

        def decide() -> None:
            with contextlib.suppress(Exception):  # left unanswered it means no
                answer.set_result(self._may_share(model))

        try:
            self._loop.call_soon_threadsafe(decide)
            return answer.result(PERMISSION_S)
        except (TimeoutError, RuntimeError):
            return False
