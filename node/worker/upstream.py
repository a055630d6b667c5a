"""A model behind an OpenAI-compatible server that the operator already runs (vLLM, llama-server, Ollama).

Law: such a model's isolation is *declared*, never proved: its manifest has no files, says of what kind the server is
and that the weights are unknown unless the operator states their hash. The server gets the job's text and nothing else
of ours: no proxy, no cookie, no redirect is followed, and the key comes from a file of the owner's alone and goes over
TLS or the loopback only. A job's prompt is processed by a request for one token, whose count is chunk 0; the answer is
streamed by a second one when the first piece is asked for. Nothing is read from the stream before it is asked for, and
giving a job up closes its connection, on which such servers stop.

Source: the OpenAI API reference; what the servers do beyond it is not relied on.
"""

import asyncio
import contextlib
import ipaddress
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import aiohttp

from node.worker.errors import BadUpstream, CapacityExceeded, JobFailed, JobRefused, UpstreamUnavailable, WorkerError
from node.worker.fair_slots import FairSlots
from node.worker.limits import WorkerLimits
from node.worker.manifest_fields import HASH_PATTERN
from node.worker.models import Manifest
from node.worker.pool import PoolState, PoolView
from node.worker.rate import Rate
from node.worker.request import JobRequest
from node.worker.upstream_job import UpstreamJob, read_request
from node.worker.upstream_stream import error_text, read_json

RUNTIME = "upstream"
SERVERS = ("vllm", "llama-server", "ollama", "other")
KEY_BYTES_MAX = 4096
ANSWER_BYTES_MAX = 1 << 20  # a list of models, an error, an answer of one token
READ_BYTES = 16 << 10  # held of a stream beside the event that is being read
PROBE_S = 5.0
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 30.0
UNKNOWN_WEIGHTS = "unknown"


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """Which model of which server. ``weights``: their hash if the operator states one."""

    url: str
    model: str
    server: str = "other"
    weights: str = ""
    key_file: Path | None = None

    def manifest(self) -> Manifest:
        """What is known of the model, the same for everybody who runs it so; the address is nobody's business."""
        name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in self.model.lower())
        settings = {"model": self.model, "server": self.server, "weights": self.weights or UNKNOWN_WEIGHTS}
        return Manifest(name.strip("-")[:64] or "model", "1", RUNTIME, "unknown", "upstream", (), settings)


def check_address(address: UpstreamAddress) -> SplitResult:
    """The parts of the server's address. Raises BadUpstream."""
    parts = urlsplit(address.url)
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        raise BadUpstream(f"{address.url!r} is not an address such as http://127.0.0.1:8000/v1")
    if not address.model or not address.model.isprintable() or len(address.model) > 200:
        raise BadUpstream("an upstream server needs the name that it gives its model")
    if address.server not in SERVERS:
        raise BadUpstream(f"{address.server!r} is no kind of server that is known: " + ", ".join(SERVERS))
    if address.weights and HASH_PATTERN.fullmatch(address.weights) is None:
        raise BadUpstream("weights must be the hash of the weights: 64 hexadecimal digits")
    if address.key_file is not None and parts.scheme != "https" and not _is_here(parts.hostname or ""):
        raise BadUpstream(f"a key is sent over https or to this machine only, not to {address.url}")
    return parts


def _is_here(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def read_key(path: Path) -> str:
    """The key in a file that is its owner's alone. Raises BadUpstream."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        content = path.read_bytes()[: KEY_BYTES_MAX + 1]
    except OSError as error:
        raise BadUpstream(f"the key file {path} can't be read: {error.strerror}") from None
    if mode & 0o077:
        raise BadUpstream(f"the key file {path} can be read by others (mode {mode:o}): chmod 600 {path}")
    key = content.decode("ascii", "replace").strip()
    if not key or len(content) > KEY_BYTES_MAX or not all("!" <= letter <= "~" for letter in key):
        raise BadUpstream(f"the key file {path} does not hold one key")
    return key


class UpstreamServer:
    """Requests to one server. Use as an async context manager, or close it."""

    def __init__(self, address: UpstreamAddress, connections: int) -> None:
        check_address(address)
        self.address = address
        headers = {"Accept-Encoding": "identity", "User-Agent": "mercat"}
        if address.key_file is not None:
            headers["Authorization"] = f"Bearer {read_key(address.key_file)}"
        self._base = address.url.rstrip("/")
        self._session = aiohttp.ClientSession(
            # A connection for each request: one kept idle may be closed by the server just as it is used again.
            connector=aiohttp.TCPConnector(limit=connections, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, connect=PROBE_S),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BYTES,
        )

    async def __aenter__(self) -> "UpstreamServer":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every connection."""
        await self._session.close()

    async def probe(self) -> None:
        """Ask the server whether it has the model. Raises UpstreamUnavailable."""
        try:
            async with asyncio.timeout(PROBE_S), self._answer("GET", "/models", None) as response:
                listed = read_json(await self._body(response)).get("data")
        except TimeoutError:
            raise UpstreamUnavailable(f"{self._base} does not answer within {PROBE_S:.0f} s") from None
        except (JobRefused, JobFailed, CapacityExceeded) as error:
            raise UpstreamUnavailable(f"{self._base} does not list its models: {error.reason}") from None
        names = (
            [str(entry.get("id")) for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        )
        if self.address.model not in names:
            others = ", ".join(names)[:200] or "none"
            raise UpstreamUnavailable(f"{self._base} has no model {self.address.model!r}; it has: {others}")

    async def ask(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """One whole answer. Raises JobRefused, JobFailed, CapacityExceeded, UpstreamUnavailable."""
        async with self._answer("POST", path, body) as response:
            return read_json(await self._body(response))

    @contextlib.asynccontextmanager
    async def stream(self, path: str, body: dict[str, object]) -> AsyncIterator[AsyncIterator[bytes]]:
        """An answer's bytes as they come. Leaving closes the connection. Raises as ``ask`` does."""
        async with self._answer("POST", path, body) as response:
            if response.content_type != "text/event-stream":
                raise JobFailed(f"the server does not stream: it answers with {response.content_type[:60]!r}")
            yield self._pieces(response)

    @contextlib.asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: dict[str, object] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            response = await self._session.request(method, self._base + path, json=body, allow_redirects=False)
        except aiohttp.ClientConnectionError as error:
            raise UpstreamUnavailable(f"{self._base} can't be reached: {str(error)[:200]}") from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise JobFailed(f"the server does not speak HTTP: {type(error).__name__}") from None
        try:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise JobFailed("the server compresses what it was asked not to")
            if response.status != 200:
                raise _fault(response.status, await self._complaint(response))
            yield response
        finally:
            response.close()  # the connection with it: whatever still comes is nobody's

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            while piece := await response.content.readany():
                yield piece
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise JobFailed(f"the server hung up: {type(error).__name__}") from None

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        async for piece in self._pieces(response):
            content += piece
            if len(content) > ANSWER_BYTES_MAX:
                raise JobFailed(f"the server's answer has more than {ANSWER_BYTES_MAX} bytes")
        return bytes(content)

    async def _complaint(self, response: aiohttp.ClientResponse) -> str:
        try:
            async with asyncio.timeout(PROBE_S):
                return error_text(read_json(await self._body(response)))
        except (JobFailed, TimeoutError):
            return ""


def _fault(status: int, said: str) -> WorkerError:
    """Whose fault a status is: the request's, the server's, or nobody's for now.

    Of a request that can't be served its buyer is told why; what else the server says may name keys and machines.
    """
    text = f"the server answers {status}"
    if status in (400, 413, 422):
        return JobRefused(text + (f": {said}" if said else ""))
    if status in (429, 503):
        return CapacityExceeded(text)
    if 300 <= status < 400:
        return JobFailed(f"the server sends elsewhere ({status}), where nobody follows")
    return JobFailed(text)


class UpstreamModel:
    """One model of a server, shared by jobs as a worker's is, watched while it can't be reached."""

    def __init__(
        self, address: UpstreamAddress, slots: int, limits: WorkerLimits, tasks: asyncio.TaskGroup,
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        self.manifest = address.manifest()
        self.server = UpstreamServer(address, 2 * slots + 1)
        self._slots = FairSlots(slots, limits.jobs_queued)
        self._limits = limits
        self._tasks = tasks
        self._changed = changed
        self._state: PoolState = "loading"
        self._reason = ""
        self._resumes_at = 0.0
        self._watching: asyncio.Task[None] | None = None
        self._jobs = self._failures = 0
        self._rate = Rate()

    @property
    def build(self) -> str:
        """What stands in receipts for a runtime's build."""
        return f"{RUNTIME} {self.server.address.server}"

    def start(self) -> None:
        """Look for the server, until it answers."""
        if self._watching is None:
            self._watching = self._tasks.create_task(self._watch(), name=f"upstream {self.manifest.name}")

    async def close(self) -> None:
        """End every connection and look no more."""
        if self._watching is not None:
            self._watching.cancel()
        await self.server.close()

    async def open(self, job_id: bytes, request: JobRequest, tenant: str, until: float) -> UpstreamJob:
        """Take a job on, waiting for a slot in turn. Raises JobRefused, CapacityExceeded, JobTimedOut."""
        wanted = read_request(request, self.server.address.model, self._limits)
        await self._slots.take(tenant, until)
        self._jobs += 1
        return UpstreamJob(
            job_id, self.server, wanted, until, self._rate.count, lambda: self._slots.give_back(tenant), self.lost
        )

    def lost(self, error: WorkerError) -> None:
        """A job found the server gone: it is not offered until it answers again."""
        self._failures += 1
        if self._watching is None:
            self._absent(error)
            self.start()

    def view(self) -> PoolView:
        """How it is now."""
        now = asyncio.get_running_loop().time()
        left = max(0.0, self._resumes_at - now) if self._state == "restarting" else 0.0
        return PoolView(
            self._state, self._reason, left, self._slots.free, self._slots.waiting, self._jobs, self._rate.units,
            self._rate.per_second(), self._failures,
        )  # fmt: skip

    async def _watch(self) -> None:
        pause = PAUSE_MIN_S
        while True:
            try:
                await self.server.probe()
            except UpstreamUnavailable as error:
                self._absent(error)
                await asyncio.sleep(pause)
                pause = min(PAUSE_MAX_S, pause * 2)
                continue
            self._watching = None
            self._resumes_at = 0.0
            self._enter("ready", "")
            return

    def _absent(self, error: WorkerError) -> None:
        """Not a moment's absence, as a worker's is: nothing says when it comes back, so it is not offered."""
        self._resumes_at = asyncio.get_running_loop().time() + PAUSE_MAX_S
        self._enter("restarting", error.reason)

    def _enter(self, state: PoolState, reason: str) -> None:
        self._state, self._reason = state, reason
        self._changed()
