"""How fast a model comes from one peer: pieces over loopback TLS, each checked and written, against the bare parts.

Two processes, as between two nodes: this one pulls, the other gives. Beside it in the same run: the same bytes over one
bare TLS connection, thrown away; the same bytes over HTTPS by aiohttp on both sides, thrown away; and the bytes hashed
twice and written to disk with no network at all. How long the loop of the pulling process is late for a timer, at full
speed and with nothing to do, says what a pull costs the blocks and jobs of a node.
"""

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TypeVar

import aiohttp
from aiohttp import web
from blake3 import blake3

from node.runtime.model_pull import ModelPull, PullSettings
from node.runtime.model_sharing import SharedStore
from node.runtime.model_source import SourceAddress
from node.runtime.model_sources import Asking
from node.transport.identity import NodeIdentity
from node.transport.peer_store import PeerStore
from node.transport.transport import Transport
from node.worker.importing import add_local_files, listed
from node.worker.models import ModelDescription, ModelStore
from protocol.messages.peers import PROTOCOL_VERSION, Hello
from protocol.primitives.units import Hash, Height, ModelId
from scripts.benchmarks.measure import Report, note

T = TypeVar("T")

MEBIBYTE = 1 << 20
SIZE_MEBIBYTES, ROUNDS = 500, 10
TARGET_MB_S = 200
GENESIS = Hash(b"g" * 32)
GIVER, PULLER = NodeIdentity(b"g" * 32), NodeIdentity(b"p" * 32)
BLOCK_BYTES = 256 * 1024
TICK_S, IDLE_S = 0.002, 1.0


def measure(quick: bool) -> Report:
    """Pull a model of 500 MiB several times, and the baselines in turn with it."""
    report = Report.start("pieces of a model from one peer over loopback TLS, checked and written")
    size = (8 if quick else SIZE_MEBIBYTES) * MEBIBYTE
    folder = Path(tempfile.mkdtemp(prefix="mercat-bench-pieces-"))
    try:
        note(f"{ROUNDS} rounds with a model of {size >> 20} MiB")
        store, model = _made(folder, size)
        file = store.file_path(store.manifest(model.hex()).files[0])
        speeds: dict[str, list[float]] = {"pull": [], "tls": [], "https": [], "disk": []}
        processor: list[float] = []
        late: list[float] = []
        for turn in range(ROUNDS):
            if turn:
                os.sync()  # what a round before has left to write is not this round's
            before = time.process_time()
            speeds["pull"].append(size / 1e6 / _pull(folder, store, model, late))
            processor.append((time.process_time() - before) / (size / 1e9))
            speeds["tls"].append(size / 1e6 / _bare_tls(file, size))
            speeds["https"].append(size / 1e6 / _bare_https(file, size))
            speeds["disk"].append(size / 1e6 / _hash_and_write(folder, file))
        idle = asyncio.run(_idle_delays())
    finally:
        shutil.rmtree(folder)
    report.latencies("pieces.pull.loop_delay", late)
    report.latencies("pieces.idle.loop_delay", idle, baseline=True)
    report.add("pieces.pull.rate/statistic=median", median(speeds["pull"]), "MB/s")
    report.add("pieces.pull.rate/statistic=best", max(speeds["pull"]), "MB/s")
    report.add("pieces.pull.processor/side=puller", median(processor), "s/GB")
    report.baseline("pieces.bare_tls", median(speeds["tls"]), "MB/s")
    report.baseline("pieces.bare_https_aiohttp", median(speeds["https"]), "MB/s")
    report.baseline("pieces.hash_twice_and_write", median(speeds["disk"]), "MB/s")
    report.ratio("pieces.pull.of_bare_https", speeds["pull"], speeds["https"])
    report.ratio("pieces.pull.of_bare_tls", speeds["pull"], speeds["tls"])
    report.target("pieces.pull.rate/statistic=median", ">=", TARGET_MB_S)
    report.notes.append(f"a model of {size >> 20} MiB, {ROUNDS} rounds, each after the other in turn")
    return report


def _made(folder: Path, size: int) -> tuple[ModelStore, ModelId]:
    files = folder / "files"
    files.mkdir()
    with (files / "weights.onnx").open("wb") as body:
        for _ in range(size // MEBIBYTE):
            body.write(os.urandom(MEBIBYTE))
    store = ModelStore(folder / "store")
    described = ModelDescription("bench", "1", "onnx", "Apache-2.0", {"model_file": "weights.onnx"})
    model = add_local_files(store, described, listed(files), "local", lambda what, done, total: None)
    shutil.rmtree(files)
    return store, ModelId(bytes.fromhex(model))


def _with_other(other: Callable[[Connection], None], work: Callable[[str], T]) -> T:
    """Run something against another process, which first says where it listens."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=other, args=(there,))
    process.start()
    try:
        return work(here.recv())
    finally:
        here.send("done")
        process.join()


# The pull


def _pull(folder: Path, store: ModelStore, model: ModelId, late: list[float]) -> float:
    """Seconds from the first question to the model in place; how late timers were meanwhile."""
    target = folder / "pulled"
    try:
        return _with_other(
            partial(_run_giver, store), lambda endpoint: asyncio.run(_take(target, model, endpoint, late))
        )
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _run_giver(store: ModelStore, there: Connection) -> None:
    asyncio.run(_give(store, there))


async def _give(store: ModelStore, there: Connection) -> None:
    transport = Transport(
        GIVER, GENESIS, "127.0.0.1", 0,
        make_hello=lambda: Hello(PROTOCOL_VERSION, GENESIS, b"", Height(0)),
        on_link_up=lambda peer, hello, record: None,
        on_link_down=lambda peer, reason: None,
        on_messages=lambda peer, messages, size: None,
        on_event=lambda name, fields: None,
        peer_store=PeerStore(None, GENESIS),
        loopback_only=True,
        library=SharedStore(store, lambda model: True, asyncio.get_running_loop()),
    )  # fmt: skip
    async with transport:
        host, port = transport.address
        there.send(f"{host}:{port}")
        await asyncio.to_thread(there.recv)


async def _tick(late: list[float]) -> None:
    """Note how late each of many short timers is. Runs until cancelled."""
    while True:
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append(time.perf_counter() - due)


async def _idle_delays() -> list[float]:
    late: list[float] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(IDLE_S):
            await _tick(late)
    return late


async def _take(target: Path, model: ModelId, endpoint: str, late: list[float]) -> float:
    asking = Asking(identity=PULLER, genesis_hash=GENESIS, loopback_only=True)
    source = SourceAddress(GIVER.node_id, (endpoint,))
    store = ModelStore(target)
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        ticking = group.create_task(_tick(late))
        await ModelPull(model, store, asking, lambda: [source], PullSettings()).run()
        took = time.perf_counter() - began
        ticking.cancel()
    return took


# The bare parts


def _bare_tls(file: Path, size: int) -> float:
    """Seconds for the same bytes over one TLS connection between blocking sockets."""

    def give(there: Connection) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            there.send(f"127.0.0.1:{listening.getsockname()[1]}")
            connection, _ = listening.accept()
        with GIVER.server_context.wrap_socket(connection, server_side=True) as secure, file.open("rb") as body:
            while block := body.read(BLOCK_BYTES):
                secure.sendall(block)
        there.recv()

    def take(endpoint: str) -> float:
        host, _, port = endpoint.rpartition(":")
        began, left, buffer = time.perf_counter(), size, bytearray(MEBIBYTE)
        with PULLER.client_context.wrap_socket(socket.create_connection((host, int(port)))) as secure:
            while left:
                left -= secure.recv_into(buffer)
        return time.perf_counter() - began

    return _with_other(give, take)


def _bare_https(file: Path, size: int) -> float:
    """Seconds for the same bytes by aiohttp over the same TLS."""

    async def serve(there: Connection) -> None:
        application = web.Application()
        application.router.add_get("/", lambda request: web.FileResponse(file))  # type: ignore[arg-type,return-value]
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=GIVER.server_context)
        await site.start()
        there.send(f"127.0.0.1:{runner.addresses[0][1]}")
        await asyncio.to_thread(there.recv)
        await runner.cleanup()

    async def take(endpoint: str) -> float:
        began, received = time.perf_counter(), 0
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://{endpoint}/", ssl=PULLER.client_context) as response,
        ):
            async for block in response.content.iter_any():
                received += len(block)
        assert received == size
        return time.perf_counter() - began

    return _with_other(lambda there: asyncio.run(serve(there)), lambda endpoint: asyncio.run(take(endpoint)))


def _hash_and_write(folder: Path, file: Path) -> float:
    """Seconds to read the bytes, hash them by the piece and as a whole, and write them to disk."""
    began, whole = time.perf_counter(), blake3()
    target = folder / "written"
    with file.open("rb") as body, target.open("wb") as written:
        while block := body.read(MEBIBYTE):
            blake3(block).digest()
            whole.update(block)
            written.write(block)
        written.flush()
        os.fsync(written.fileno())
    took = time.perf_counter() - began
    target.unlink()
    return took
