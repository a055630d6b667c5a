"""One running node: opens its store, joins its rooms, owns every task, and closes everything again.

Law: the state on disk is loaded and checked before a single byte is sent. Whatever ends a task that the node can't do
without ends the node, with the reason; a node never goes on half.
"""

import asyncio
import contextlib
import dataclasses
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from types import TracebackType

from node.clock import read_clock
from node.config.loading import check_exposure, parse_host_port
from node.config.settings import NodeConfig, Role
from node.keystore.keys import NodeKeys
from node.runtime.announcements import Announcements
from node.runtime.assembly import assemble, taken_up
from node.runtime.control import ControlError, NodeControl
from node.runtime.door import Door
from node.runtime.engine_loop import EngineLoop, NodeHalted
from node.runtime.executor import EffectExecutor
from node.runtime.faults import FaultyTransport
from node.runtime.front import Front
from node.runtime.housekeeping import keep_house
from node.runtime.model_desk import ModelDesk
from node.runtime.provider import ProviderShelf
from node.runtime.signer import Signer
from node.runtime.snapshots import SnapshotDesk
from node.runtime.work import WorkPump
from node.store.database import Store
from node.store.sign_guard import SignGuard
from node.store.snapshot_files import SnapshotFiles
from node.store.state_rows import CheckStopped
from node.telemetry import EventLogger, event_logger
from node.transport.identity import NodeIdentity
from node.transport.peer_store import PeerStore
from node.transport.policy import DialPolicy
from node.transport.strangers import live_privately
from node.transport.transport import Transport
from node.worker.limits import DEFAULT_LIMITS
from node.worker.supervisor import WorkerSupervisor
from protocol.engine.inputs import LinkUp, Started, Unreachable
from protocol.messages.effects import CommitBlock
from protocol.messages.genesis import Genesis, genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.peers import PROTOCOL_VERSION, Hello, NodeRecord
from protocol.messages.wire import WireMessage
from protocol.primitives.codec import encode
from protocol.primitives.units import Hash, NodeId

_THREADS = 4
"""One each for the store and the guard, two for signature checks on two cores."""

_FINISH_S = 5.0
"""A stopping provider takes no more jobs and lets those that run go on for so long."""

_DRAIN_S = 2.0
"""A stopping node's last effects may take so long; what matters was on disk before."""

__all__ = ["Node", "NodeHalted"]


class Node:
    """An async context manager; enter and leave it in one task."""

    def __init__(self, config: NodeConfig, keys: NodeKeys, genesis: Genesis) -> None:
        check_exposure(config, genesis)
        self.config = config
        self.keys = keys
        self._genesis = genesis
        self._genesis_hash = genesis_hash(genesis)
        self._stopping = asyncio.Event()
        self._stop_reason = ""
        self._block_committed = asyncio.Event()
        self._stack = AsyncExitStack()
        self._log: EventLogger = event_logger("node")
        self._record = b""
        self.identity = NodeIdentity(bytes(keys.node))
        self.started_at = read_clock()
        self.announcements = Announcements()
        self.shelf: ProviderShelf | None = None
        self._background: list[asyncio.Task[None]] = []
        self._checked = threading.Event()
        """Set to end the check of the state behind the start."""

    # Start and stop

    async def __aenter__(self) -> "Node":
        try:
            await self._open()
        except BaseException:
            await self._close(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(kind, error, trace)

    def request_stop(self, reason: str) -> None:
        """Ask the node to stop; safe from a signal handler on the loop."""
        self._stop_reason = reason
        self._stopping.set()

    async def wait_stopped(self) -> None:
        """Returns when a stop was asked for. A node that fails cancels this and raises on the way out."""
        await self._stopping.wait()

    async def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        work = self.loop.work if self._background else None
        if kind is None and self._background:
            if work is not None and self.shelf is not None:
                self.shelf.withdraw(self.loop.feed)
                await work.finished(_FINISH_S)
                work.give_up("the provider's node is stopping")
            # What was decided while stopping (ends of running jobs) still goes out.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    await self.executor.drain()
        for task in self._background:
            task.cancel()
        if work is not None:
            work.cancel_all()
        await self._stack.__aexit__(kind, error, trace)
        self._log.info("stopped", reason=self._stop_reason or "failed")

    async def _open(self) -> None:
        config = self.config
        config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.store = Store.open(config.state / "ledger.sqlite", self._genesis)
        self._stack.callback(self.store.close)
        guard = None
        if Role.AUTHORITY in config.roles:
            guard = SignGuard.open(config.state / "guard.sqlite")
            self._stack.callback(guard.close)
        self.engine = assemble(config, self.keys, self._genesis, self.store, guard)
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mercat")
        self._stack.callback(threads.shutdown)
        files = SnapshotFiles(config.state / "snapshots")
        files.open()
        self.snapshots = SnapshotDesk(files, self.store, config.ledger)
        self._stack.callback(self.snapshots.close)
        self.engine.replica.resume_snapshot(self.snapshots.fetched())
        self.models = ModelDesk(self)
        supervisor = await self._open_workers()
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        loop = self.loop = EngineLoop(
            self.engine,
            self._genesis_hash,
            read_clock,
            Door(threads),
            self.store,
            threads,
            self._tasks,
            self.announcements,
        )
        loop.snapshots = self.snapshots
        self._stack.callback(loop.stop_timers)
        signer = Signer(self.keys, self._genesis_hash)
        self._signer = signer
        executor = self.executor = EffectExecutor(
            self.store, guard, signer, threads, loop, self._committed, self.snapshots
        )
        running = asyncio.get_running_loop()
        self.snapshots.on_failure(lambda error: running.call_soon_threadsafe(executor.fail, error))
        self.transport = self._make_transport()
        loop.connect(self.transport, executor)
        self._background.append(self._tasks.create_task(executor.run()))
        await self._stack.enter_async_context(self.transport)
        self.control: NodeControl = Front(self)
        executor.submit(taken_up(self.engine, self.store))
        loop.feed(Started(Hash(os.urandom(32))))
        self._stack.callback(self._checked.set)
        self._tasks.create_task(self._check_state())
        self._background.append(self._tasks.create_task(keep_house(self.store)))
        if supervisor is not None:
            self._sell(supervisor)
        self._log.info("started", listen=self.listen_text, height=self.engine.replica.state.height)

    async def _open_workers(self) -> WorkerSupervisor | None:
        if Role.PROVIDER not in self.config.roles:
            return None
        provider = self.config.provider
        limits = dataclasses.replace(DEFAULT_LIMITS, batch_max=provider.batch_max)
        supervisor = WorkerSupervisor(
            self.models.store, slots=provider.slots, limits=limits, isolation=provider.isolation
        )
        return await self._stack.enter_async_context(supervisor)

    def _sell(self, supervisor: WorkerSupervisor) -> None:
        self.loop.work = WorkPump(supervisor, self._tasks, self.loop.feed)
        self.shelf = ProviderShelf(self.config, supervisor, self.models.store, self.models.obtain)
        self._background.append(self._tasks.create_task(self.shelf.open(self.addresses, self.loop.feed)))

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """A task beside the node's own, which ends when the node stops at the latest."""
        task = self._tasks.create_task(work)
        self._background.append(task)
        task.add_done_callback(self._background.remove)
        return task

    # Links

    def _make_transport(self) -> Transport:
        host, port = parse_host_port(self.config.listen)
        log = event_logger("transport")
        make = FaultyTransport if self._genesis.development else Transport
        transport = make(
            self.identity,
            self._genesis_hash,
            host,
            port,
            make_hello=self._hello,
            on_link_up=self._link_up,
            on_link_down=self._link_down,
            on_messages=self._messages,
            on_event=lambda name, fields: log.info(name, **fields),
            peer_store=PeerStore(self.config.state / "peers", self._genesis_hash),
            seeds=self.config.seeds,
            dial=DialPolicy(private=self._dials_private()),
            loopback_only=self._genesis.development,
            on_unreachable=lambda peer: self.loop.feed(Unreachable(peer)),
            library=self.models.library(),
            pieces=self.models.policy(),
        )
        if isinstance(transport, FaultyTransport):
            transport.arm(self._signer)
        return transport

    def _dials_private(self) -> bool:
        said = self.config.dial_private
        return live_privately((*self.config.seeds, *self.config.advertise)) if said is None else said

    def faulty(self) -> FaultyTransport:
        """The transport, where it can have faults on command. Raises ``ControlError`` where real money is at stake."""
        if not isinstance(self.transport, FaultyTransport):
            raise ControlError("not_development", "only nodes of a development network have faults on command", 2)
        return self.transport

    @property
    def listen_text(self) -> str:
        """``host:port`` listened on."""
        host, port = self.transport.address
        return f"{host}:{port}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where peers can dial this node."""
        return self.config.advertise or (self.listen_text,)

    def _hello(self) -> Hello:
        if not self._record:
            now = read_clock().wall_ms
            # The wall clock at start serves as incarnation: it grows with each life of the node.
            record = NodeRecord(now, now, self.addresses, self.keys.account_id)
            self._record = self._signer.sign(MessageKind.NODE_RECORD, encode(record))
        return Hello(PROTOCOL_VERSION, self._genesis_hash, self._record, self.engine.replica.state.height)

    def _link_up(self, peer: NodeId, hello: Hello, record: NodeRecord) -> None:
        self.loop.feed(LinkUp(peer, record, hello.tip))

    def _link_down(self, peer: NodeId, reason: str) -> None:
        self.loop.link_down(peer)

    async def _messages(self, peer: NodeId, messages: tuple[WireMessage, ...], size: int) -> None:
        await self.loop.receive(peer, messages, size)

    # Blocks

    async def _check_state(self) -> None:
        """A large state is hashed behind the start; one that is not what its header says ends the node."""
        if not self.store.needs_recheck:
            return
        began = read_clock().monotonic_ms
        try:
            await asyncio.to_thread(self.store.recheck, self._checked)
        except CheckStopped:
            return
        self._log.info("state_checked", height=self.store.height(), ms=read_clock().monotonic_ms - began)

    async def next_block(self, timeout_ms: int) -> None:
        """Returns when a block has been committed, or after the time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await self._block_committed.wait()

    def _committed(self, commit: CommitBlock) -> None:
        self.store.committed(commit.height)
        self._block_committed.set()
        self._block_committed = asyncio.Event()
