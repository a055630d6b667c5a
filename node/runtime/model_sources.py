"""The sources of one pull: who may be asked, connecting to them, and asking one after the other.

Law: what a source did is written down beside it, for the user and for what is told when none is left. A wrong byte
drops a source for good; what may be nobody's fault is tried again.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from node.clock import read_clock
from node.runtime.model_source import CorruptSource, PullSource, SourceAddress
from node.transport.bulk_threads import in_thread
from node.transport.identity import NodeIdentity
from node.transport.piece_channel import ConnectionLost, PieceTimes
from node.transport.piece_client import PeerRefused, PieceAsker, WrongNode, connect_for_pieces
from protocol.primitives.errors import MercatError, RemoteProtocolError, UserError
from protocol.primitives.units import Hash

T = TypeVar("T")

SOURCES_REMEMBERED_MAX = 64
"""Of all who offer a model, so many are ever asked in one pull."""
TRIES_MAX = 6
"""In vain one after the other, before a source is given up."""
RETRY_LAST_S = 5.0
LOOK_S = 0.25
"""How often new sources are looked for while there is none."""


class PullFailed(MercatError):
    """The model could not be pulled; the message says whose fault that was. ``code`` names it for programs."""

    def __init__(self, message: str, code: str = "no_source") -> None:
        super().__init__(message)
        self.code = code


class Asking(msgspec.Struct, frozen=True, kw_only=True):
    """As whom and how sources are asked."""

    identity: NodeIdentity
    genesis_hash: Hash
    loopback_only: bool
    times: PieceTimes = PieceTimes()
    retry_first_s: float = 0.2
    """Before the second try; each further one waits twice as long, up to a few seconds."""

    def retry_s(self, tries: int) -> float:
        """How long to wait after so many tries in vain."""
        return min(RETRY_LAST_S, self.retry_first_s * 2.0 ** min(tries, 8))


class PullSources:
    """Every source of one pull, in the order in which they were found."""

    def __init__(
        self, asking: Asking, find: Callable[[], Sequence[SourceAddress]], threads: ThreadPoolExecutor, model: str
    ) -> None:
        self._asking = asking
        self._find = find
        self._threads = threads
        self._model = model
        self._known: dict[object, PullSource] = {}
        self._askers: dict[PieceAsker, None] = {}

    def all(self) -> tuple[PullSource, ...]:
        """Those that were dropped too."""
        return tuple(self._known.values())

    def usable(self) -> list[PullSource]:
        """Look for sources again; those that may be asked."""
        for address in self._find():
            if address.endpoints and len(self._known) < SOURCES_REMEMBERED_MAX and address.key not in self._known:
                self._known[address.key] = PullSource(address)
        return [source for source in self._known.values() if not source.dropped]

    def hang_up(self) -> None:
        """End every connection: the threads that use them fail at once."""
        for asker in self._askers:
            asker.abort()

    def failure(self, what: str) -> PullFailed:
        """That nobody is left to ask, and why."""
        if not self._known:
            return PullFailed(f"nobody on offer has the model {self._model}; name a node that has it with --from")
        told = "; ".join(f"{source.name} {source.state}" for source in self._known.values())
        return PullFailed(f"no source is left for {what}: {told}")

    async def ask_somebody(self, work: Callable[[PieceAsker], T], what: str, wait_ms: int) -> T:
        """Ask one source after the other until one answers right; wait so long for one to turn up.

        Raises ``PullFailed``, and what ``work`` raises against nobody.
        """
        until_ms = read_clock().monotonic_ms + wait_ms
        tries = 0
        while True:
            usable = self.usable()
            for source in usable:
                found = await self.ask(source, work)
                if found is not None:
                    return found
            tries += bool(usable)
            hopeless = self._known and not self.usable()
            if hopeless or tries >= TRIES_MAX or (not usable and read_clock().monotonic_ms >= until_ms):
                raise self.failure(what)
            await asyncio.sleep(self._asking.retry_s(tries) if usable else LOOK_S)

    async def ask(self, source: PullSource, work: Callable[[PieceAsker], T]) -> T | None:
        """Ask a source once; None if nothing came of it, which its state then tells."""
        try:
            return await self._reach(source, work)
        except CorruptSource as error:
            source.drop(str(error), corrupt=True)
        except RemoteProtocolError as error:
            source.drop(f"broke the protocol: {error}", corrupt=True)
        except (WrongNode, UserError) as error:
            source.drop(str(error))
        except PeerRefused as error:
            if error.later:
                source.state = str(error)
            else:
                source.drop(f"refused: {error}")
        except ConnectionLost as error:
            source.state = str(error)
        return None

    async def _reach(self, source: PullSource, work: Callable[[PieceAsker], T]) -> T:
        """Try each address of a source; the first at which it answers counts."""
        failure: MercatError = ConnectionLost("it has no address")
        for endpoint in source.address.endpoints:
            try:
                return await self._ask_at(endpoint, source, work)
            except (ConnectionLost, WrongNode, UserError) as error:
                failure = error
                if source.answered:
                    break
        raise failure

    async def _ask_at(self, endpoint: str, source: PullSource, work: Callable[[PieceAsker], T]) -> T:
        connection = await connect_for_pieces(endpoint, self._asking.loopback_only, self._asking.times)
        asker = PieceAsker(connection, self._asking.identity, self._asking.times)

        def ask() -> T:
            source.node = asker.greet(self._asking.genesis_hash, source.address.node)
            source.answered, source.state = True, "asked"
            return work(asker)

        self._askers[asker] = None
        try:
            return await in_thread(self._threads, ask, asker.abort)
        finally:
            del self._askers[asker]
            asker.close()
