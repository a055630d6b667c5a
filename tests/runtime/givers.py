"""Nodes that give models away over real TLS on loopback, honest and otherwise, and a way to pull from them."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from node.runtime.model_pull import ModelPull, PullSettings
from node.runtime.model_sharing import SharedStore
from node.runtime.model_source import SourceAddress
from node.runtime.model_sources import Asking
from node.transport.peer_store import PeerStore
from node.transport.piece_channel import PieceTimes
from node.transport.piece_server import PieceLibrary, PiecePolicy, SharedModel
from node.transport.transport import Transport
from node.worker.importing import add_local_files, listed
from node.worker.models import Manifest, ModelDescription, ModelStore
from node.worker.pieces import PIECE_BYTES
from protocol.messages.peers import PROTOCOL_VERSION, Hello
from protocol.primitives.units import Height, ModelId, NodeId
from tests.transport.network import BRISK, GENESIS, QUICK, identity_of, record_of

TIMES = PieceTimes(handshake_ms=3_000, message_ms=1_000, silence_ms=2_000, piece_ms=6_000, idle_ms=6_000)
PIECES = 6


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


def made(folder: Path, pieces: int = PIECES) -> tuple[ModelStore, ModelId, Manifest]:
    """A store with a model of a large file and two small ones."""
    source = folder / "files"
    source.mkdir(parents=True)
    (source / "large.onnx").write_bytes(os.urandom(pieces * PIECE_BYTES - 5))
    (source / "labels.txt").write_bytes(b"labels")
    (source / "empty").write_bytes(b"")
    store = ModelStore(folder / "store")
    described = ModelDescription("m", "1", "onnx", "MIT", {"model_file": "large.onnx"})
    model = add_local_files(store, described, listed(source), "local", silent)
    return store, ModelId(bytes.fromhex(model)), store.manifest(model)


class Spoilt:
    """A shared model, one of whose answers a test spoils."""

    def __init__(self, inner: SharedModel, spoiling: "Spoiling") -> None:
        self._inner = inner
        self._spoiling = spoiling
        self.manifest = spoiling.manifest or inner.manifest

    def piece_list(self, file: int) -> bytes:
        right = self._inner.piece_list(file)
        return self._spoiling.piece_list or right

    def piece(self, file: int, piece: int) -> tuple[int, int, int]:
        self._spoiling.asked.append(piece)
        descriptor, position, size = self._inner.piece(file, piece)
        if piece >= self._spoiling.from_piece:
            return self._spoiling.descriptor, 0, min(size, self._spoiling.size or size)
        return descriptor, position, size

    def close(self) -> None:
        self._inner.close()


class Spoiling:
    """A library that gives something wrong."""

    def __init__(
        self,
        inner: PieceLibrary,
        *,
        manifest: bytes = b"",
        piece_list: bytes = b"",
        from_piece: int = 10**6,
        size: int = 0,
    ) -> None:
        self._inner = inner
        self.manifest = manifest
        self.piece_list = piece_list
        self.from_piece = from_piece
        """Pieces from here on are zeros."""
        self.size = size
        self.asked: list[int] = []
        self.descriptor = os.open("/dev/zero", os.O_RDONLY)

    def open(self, model: ModelId) -> SharedModel:
        return Spoilt(self._inner.open(model), self)


Wrap = Callable[[PieceLibrary], PieceLibrary]


class Givers:
    """Nodes by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.model, self.manifest = made(folder / "made")
        self.transports: dict[str, Transport] = {}

    def address(self, name: str) -> SourceAddress:
        host, port = self.transports[name].address
        return SourceAddress(identity_of(name).node_id, (f"{host}:{port}",))

    def addresses(self) -> list[SourceAddress]:
        return [self.address(name) for name in self.transports]

    def pull(
        self,
        store: ModelStore | None = None,
        sources: Callable[[], Sequence[SourceAddress]] | None = None,
        settings: PullSettings | None = None,
        times: PieceTimes = TIMES,
    ) -> ModelPull:
        """A pull into a store of its own."""
        asking = Asking(
            identity=identity_of("puller"), genesis_hash=GENESIS, loopback_only=True, times=times, retry_first_s=0.01
        )
        return ModelPull(
            self.model,
            store or ModelStore(self.folder / "pulled"),
            asking,
            sources or self.addresses,
            settings or PullSettings(wait_ms=300),
        )

    def node(self, name: str) -> NodeId:
        return identity_of(name).node_id


@asynccontextmanager
async def giving(
    folder: Path, wraps: dict[str, Wrap], policies: dict[str, PiecePolicy] | None = None
) -> AsyncIterator[Givers]:
    """A node for each name, whose library is wrapped as a test says."""
    givers = Givers(folder)
    async with AsyncExitStack() as stack:
        for name, wrap in wraps.items():
            library = wrap(SharedStore(givers.store, lambda model: True, asyncio.get_running_loop()))
            policy = (policies or {}).get(name) or PiecePolicy(times=TIMES)
            transport = Transport(
                identity_of(name), GENESIS, "127.0.0.1", 0,
                make_hello=lambda n=name: Hello(PROTOCOL_VERSION, GENESIS, record_of(n), Height(0)),  # type: ignore[misc]
                on_link_up=lambda peer, hello, record: None,
                on_link_down=lambda peer, reason: None,
                on_messages=lambda peer, messages, size: None,
                on_event=lambda name, fields: None,
                peer_store=PeerStore(None, GENESIS),
                dial=QUICK, link=BRISK, loopback_only=True, library=library, pieces=policy,
            )  # fmt: skip
            givers.transports[name] = await stack.enter_async_context(transport)
        yield givers
