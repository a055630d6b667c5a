"""Targets on the near side: files, settings, a worker's pipe, requests to the control API."""

import asyncio
import contextlib
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import msgspec
from aiohttp import StreamReader as RequestBody
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from node.api.server import control_application
from node.config.genesis_file import genesis_from_json, genesis_to_json
from node.config.loading import load_config
from node.keystore.files import FAST, create_key, read_key_file
from node.keystore.keys import KeyPurpose
from node.runtime.control import RunRequest
from node.transport.peer_store import PeerStore
from node.worker.child.frames import MalformedFrame, encode
from node.worker.errors import BadDescription
from node.worker.frames import FrameReader, FrameStalled, FrameTooLong
from node.worker.models import Manifest, ModelFile, load_description, parse_manifest
from protocol.ledger.light_client import verify_receipt
from protocol.ledger.receipt_file import read_receipt_file, write_receipt_file
from protocol.primitives.errors import UserError
from tests.api.fake_node import JOB, OTHER, FakeNode
from tests.ledger.deal import Deal
from tests.transport.network import GENESIS, record_of

ERRORS: tuple[type[Exception], ...] = (UserError,)
_CONFIGS = Path(__file__).parents[2] / "configs"
WORKER_ERRORS: tuple[type[Exception], ...] = (MalformedFrame, FrameTooLong, FrameStalled, EOFError)


@lru_cache(maxsize=1)
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


@lru_cache(maxsize=1)
def _directory() -> Path:
    """In memory where that is possible: a file for each input would wear a disk."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="mercat-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))


def _stored(name: str, content: bytes) -> Path:
    path = _directory() / f"{name}-{os.getpid()}"
    path.write_bytes(content)
    path.chmod(0o600)
    return path


# Receipts and genesis


@lru_cache(maxsize=1)
def _deal() -> Deal:
    return Deal()


def verify_receipt_file(content: bytes) -> None:
    """``mercat verify``: whatever can be read gets a verdict."""
    verify_receipt(read_receipt_file(content), _deal().ledger.genesis)


def receipt_files() -> list[bytes]:
    """Settled, unsettled and without the private parts."""
    deal = Deal()
    unsettled = write_receipt_file(deal.file())
    return [unsettled, write_receipt_file(deal.file(deal.settle()))]


def read_genesis_file(content: bytes) -> None:
    """What is read can be written, and read again as the same."""
    genesis = genesis_from_json(content, "genesis")
    assert genesis_from_json(genesis_to_json(genesis), "genesis") == genesis


def genesis_files() -> list[bytes]:
    """The test network's."""
    return [genesis_to_json(_deal().ledger.genesis)]


# Settings, keys, peers


def read_config_file(content: bytes) -> None:
    """The file that ``mercat node`` reads at its start."""
    load_config(_stored("config", content))


def config_files() -> list[bytes]:
    """Those that we ship, which hold every kind of value, and shapes that parsers trip over."""
    shipped = sorted(_CONFIGS.glob("*.toml"))
    deep = b"seeds = " + b"[" * 2_000 + b"]" * 2_000
    return [*(path.read_bytes() for path in shipped), deep, b"advertise = " + b"9" * 4_000, b'state = "a\\u0000b"']


def read_stored_key(content: bytes) -> None:
    """A key file at rest; opening one costs a second of argon2 by design."""
    read_key_file(_stored("key", content))


def key_files() -> list[bytes]:
    """A good one."""
    with tempfile.TemporaryDirectory() as directory:
        create_key(Path(directory), KeyPurpose.NODE, b"open sesame", FAST)
        return [path.read_bytes() for path in Path(directory).iterdir()]


def read_peer_cache(content: bytes) -> None:
    """A damaged cache costs a bootstrap, never a start."""
    PeerStore(_stored("peers", content), GENESIS)


def peer_caches() -> list[bytes]:
    """Two peers, one with a broken record."""
    record = record_of("x", ("127.0.0.1:1",)).hex()
    peers = [{"record": record, "failures": 1}, {"record": record[:-2], "failures": 3}]
    return [json.dumps({"version": 1, "peers": peers}).encode()]


# Models

DESCRIPTION_ERRORS: tuple[type[Exception], ...] = (BadDescription,)


def parse_any_manifest(content: bytes) -> None:
    """A manifest as a peer's receipt or a store holds it: one spelling."""
    assert parse_manifest(content).encode() == content


def manifests() -> list[bytes]:
    """One with a file and a setting."""
    file = ModelFile("model.gguf", 1_000, "ab" * 32)
    return [Manifest("tiny", "1", "gguf", "Apache-2.0", "a package", (file,), {"context": 512}).encode()]


def read_description(content: bytes) -> None:
    """The TOML file that an operator writes for a model."""
    load_description(_stored("description", content))


def descriptions() -> list[bytes]:
    """Those that we ship, and one that is too deep."""
    shipped = sorted((_CONFIGS / "models").glob("*.toml"))
    return [*(path.read_bytes() for path in shipped), b"name = " + b"[" * 2_000 + b"]" * 2_000]


# A worker's pipe and the control API


def read_worker_frame(content: bytes) -> None:
    """Everything that a worker may write before it hangs up."""
    _runner().run(_read_worker_frames(content))


async def _read_worker_frames(content: bytes) -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(content)
    stream.feed_eof()
    frames = FrameReader(stream, 1.0)
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            await frames.next()


def worker_frames() -> list[bytes]:
    """One of each."""
    known: list[list[object]] = [
        ["prefilled", 1, 5],
        ["piece", 1, b"text", 1, [3, 4], None],
        ["piece", 1, b"", 0, [], "stop"],
        ["refused", 1, "no"],
        ["broken", 1, "no"],
        ["cancelled", 1],
        ["confined", {"threads": 1, "build": "x"}],
        ["ready", 4096],
        ["failed", "no"],
        ["canary", "network", True, "refused"],
    ]
    return [encode(frame) for frame in known]  # type: ignore[arg-type]


class ControlFailed(AssertionError):
    """The control API took a request for a fault of the node."""


def ask_control(content: bytes) -> None:
    """``METHOD PATH`` on the first line, the body behind it; any request is answered, none is the node's own fault."""
    _runner().run(_ask_control(content))


@lru_cache(maxsize=1)
def _application() -> web.Application:
    application = control_application(FakeNode())
    application.freeze()
    return application


async def _ask_control(content: bytes) -> None:
    head, _, body = content.partition(b"\n")
    method, _, path = head.decode("latin-1").partition(" ")
    if method not in ("GET", "POST") or not path.startswith("/") or not path.isascii() or not path.isprintable():
        return  # aiohttp's parser has the say on these
    if path.startswith("/v1/supply"):
        return  # where the fake node fails on purpose
    loop = asyncio.get_running_loop()
    reader = RequestBody(BaseProtocol(loop), 2**16, loop=loop)
    reader.feed_data(body)
    reader.feed_eof()
    request = make_mocked_request(method, path, payload=reader, app=_application())
    async with asyncio.timeout(5):
        response = await _application()._handle(request)
    if response.status == 500:
        raise ControlFailed(f"{method} {path}: {getattr(response, 'text', '')}")


def control_requests() -> list[bytes]:
    """Every route with a good body."""
    money = msgspec.json.encode({"recipient": OTHER, "amount": 5, "timeout_ms": 1000})
    wait = b'{"timeout_ms":1000}'
    job = msgspec.json.encode(RunRequest("echo", "text", b"hello"))
    requests = [b"POST /v1/send\n" + money, b"POST /v1/quote\n" + job, b"POST /v1/run\n{}"]
    requests += [f"POST /v1/jobs/{JOB}/{act}\n".encode() + wait for act in ("cancel", "settle")]
    requests += [b"POST /v1/provider/bond\n" + b'{"amount":5,"timeout_ms":1000}', b"POST /v1/channels/x/close\n" + wait]
    reads = ("status", "models", "offers", "bids", "jobs", f"jobs/{JOB}", "account?account=x", "channels", "provider")
    return [*requests, *(f"GET /v1/{path}\n".encode() for path in (*reads, "ledger", "blocks/1"))]
