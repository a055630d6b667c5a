"""Jobs on an upstream server: what it is asked, what is paid, whose fault what is, and what a hostile one can't do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest

from node.worker import upstream as upstream_module
from node.worker.errors import (
    BadUpstream,
    CapacityExceeded,
    JobCancelled,
    JobEnded,
    JobFailed,
    JobRefused,
    JobTimedOut,
    RuntimeUnavailable,
    UpstreamUnavailable,
    WorkerError,
)
from node.worker.limits import DEFAULT_LIMITS, WorkerLimits
from node.worker.models import ModelStore
from node.worker.supervisor import JobRequest, Prefilled, ServedJob, WorkerChunk, WorkerSupervisor
from node.worker.upstream import UpstreamAddress, UpstreamServer, check_address, read_key
from tests.worker.conftest import chat
from tests.worker.upstream_server import MODEL, Asked, Connection, Script, Upstream, prompt_counted, upstream

REQUEST = JobRequest("chat", chat("Say hi."), 20, 4, seed=(1 << 40) + 7, temperature_milli=700, stop=("END",))


async def said(asked: Asked, connection: Connection) -> None:
    """An honest answer of six tokens."""
    await connection.begin()
    for word in ("Hi", " there", ",", " you", "."):
        await connection.text(word)
    await connection.text("", "stop")
    await connection.usage(6)
    await connection.event("[DONE]")


class Shop:
    """A supervisor that serves the model of one server."""

    def __init__(self, supervisor: WorkerSupervisor, server: Upstream, model: str) -> None:
        self.supervisor = supervisor
        self.server = server
        self.model = model

    async def job(self, request: JobRequest = REQUEST, deadline_s: float = 20, tenant: str = "buyer") -> ServedJob:
        return await self.supervisor.serve(self.model, b"job", request, deadline_s=deadline_s, tenant=tenant)

    async def run(self, request: JobRequest = REQUEST) -> tuple[Prefilled, list[WorkerChunk]]:
        job = await self.job(request)
        prefilled = await job.prefill()
        chunks = [await job.next_chunk()]
        while chunks[-1].finish is None:
            chunks.append(await job.next_chunk())
        return prefilled, chunks

    def state(self) -> str:
        view = self.supervisor.view(self.model)
        assert view is not None
        return view.state

    async def until(self, state: str) -> None:
        async with asyncio.timeout(10):
            while self.state() != state:
                await self.supervisor.changed.wait()
                self.supervisor.changed.clear()


@asynccontextmanager
async def selling(
    folder: Path, stream: Script = said, before: Script = prompt_counted, slots: int = 2,
    limits: WorkerLimits = DEFAULT_LIMITS,
) -> AsyncIterator[Shop]:  # fmt: skip
    async with (
        upstream(stream, before) as server,
        WorkerSupervisor(ModelStore(folder / "store"), slots=slots, limits=limits) as supervisor,
    ):
        loaded = supervisor.attach(UpstreamAddress(server.url, MODEL))
        shop = Shop(supervisor, server, loaded.model_id)
        await shop.until("ready")
        yield shop


async def test_an_answer_comes_in_pieces_paid_by_what_was_seen(tmp_path: Path) -> None:
    async with selling(tmp_path) as shop:
        prefilled, chunks = await shop.run()
        view = shop.supervisor.view(shop.model)
    assert prefilled == Prefilled(5)
    assert chunks == [WorkerChunk(b"Hi there, you", 4, (), None), WorkerChunk(b".", 2, (), "stop")]
    assert view is not None
    assert (view.units_out, view.jobs, view.slots_free) == (6, 1, 2)


async def test_the_server_is_asked_for_the_text_and_nothing_else_of_ours(tmp_path: Path) -> None:
    async with selling(tmp_path) as shop:
        await shop.run()
        _, preparing, streaming = shop.server.asked
    same = {
        "model": MODEL, "messages": [{"role": "user", "content": "Say hi."}], "temperature": 0.7, "seed": 7,
        "stop": ["END"],
    }  # fmt: skip
    assert preparing.path == streaming.path == "/v1/chat/completions"
    assert preparing.body == {**same, "max_tokens": 1, "stream": False}
    assert streaming.body == {**same, "max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}
    assert not {"cookie", "authorization", "referer"} & set(streaming.headers)
    assert (streaming.headers["accept-encoding"], streaming.headers["user-agent"]) == ("identity", "mercat")


async def test_a_raw_prompt_goes_where_no_template_is_added(tmp_path: Path) -> None:
    async def answered(asked: Asked, connection: Connection) -> None:
        await connection.begin()
        await connection.event({"choices": [{"text": "two", "finish_reason": "length"}]})

    async with selling(tmp_path, answered) as shop:
        _, chunks = await shop.run(JobRequest("text", b"One, ", 1, 1))
        assert chunks == [WorkerChunk(b"two", 1, (), "length")]
        assert shop.server.asked[-1].path == "/v1/completions"
        assert shop.server.asked[-1].body["prompt"] == "One, "


async def test_the_model_is_declared_and_says_what_is_not_known_of_it(tmp_path: Path) -> None:
    async with WorkerSupervisor(ModelStore(tmp_path)) as supervisor:
        plain = supervisor.attach(UpstreamAddress("http://127.0.0.1:9/v1", "Qwen/Big 7B", "vllm"))
        stated = supervisor.attach(UpstreamAddress("http://127.0.0.1:9/v1", "Qwen/Big 7B", "vllm", "ab" * 32))
        with pytest.raises(BadUpstream, match="served already"):
            supervisor.attach(UpstreamAddress("http://127.0.0.1:8/v1", "Qwen/Big 7B", "vllm"))
        with pytest.raises(RuntimeUnavailable, match="no worker serves the upstream runtime"):
            await supervisor.load(plain.model_id)
    assert (plain.isolation, plain.runtime, plain.runtime_build) == ("declared", "upstream", "upstream vllm")
    assert plain.settings["isolation"] == "declared"
    manifest = ModelStore(tmp_path).manifest(plain.model_id)
    assert (manifest.name, manifest.files) == ("qwen-big-7b", ())
    assert manifest.settings == {"model": "Qwen/Big 7B", "server": "vllm", "weights": "unknown"}
    assert stated.manifest.settings["weights"] == "ab" * 32
    assert stated.model_id != plain.model_id
    assert "127.0.0.1" not in manifest.encode().decode()  # where it runs is nobody's business


FAULTS: dict[str, tuple[int, type[WorkerError], str]] = {
    "malformed request": (400, JobRefused, "user"),
    "prompt too long": (413, JobRefused, "user"),
    "unprocessable": (422, JobRefused, "user"),
    "too many": (429, CapacityExceeded, "provider"),
    "overloaded": (503, CapacityExceeded, "provider"),
    "no key": (401, JobFailed, "provider"),
    "no model": (404, JobFailed, "provider"),
    "broken": (500, JobFailed, "provider"),
    "elsewhere": (302, JobFailed, "provider"),
    "elsewhere for good": (308, JobFailed, "provider"),
}


@pytest.mark.parametrize("when", ["before", "stream"])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_status_says_whose_fault_it_is_and_a_redirect_is_not_followed(
    tmp_path: Path, name: str, when: str
) -> None:
    status, error, fault = FAULTS[name]

    async def refused(asked: Asked, connection: Connection) -> None:
        if asked.method == "GET":
            return await prompt_counted(asked, connection)
        body = {"error": {"message": "because\n of that"}}
        return await connection.answer(status, body, f"Location: {shop.server.url}/elsewhere")

    before, stream = (refused, said) if when == "before" else (prompt_counted, refused)
    async with selling(tmp_path, stream, before) as shop:
        with pytest.raises(error) as raised:
            await shop.run()
        assert not any("elsewhere" in asked.path for asked in shop.server.asked)
        assert bool(shop.server.streamed()) == (when == "stream")
        view = shop.supervisor.view(shop.model)
        assert view is not None
        assert view.slots_free == 2
    assert raised.value.fault == fault
    assert "\n" not in raised.value.reason
    assert ("because of that" in raised.value.reason) == (fault == "user")


async def garbage(asked: Asked, connection: Connection) -> None:
    await connection.begin()
    await connection.event("<html>")


async def hangs_up(asked: Asked, connection: Connection) -> None:
    await connection.begin()
    await connection.text("half an")


async def ends_without_finish(asked: Asked, connection: Connection) -> None:
    await hangs_up(asked, connection)
    await connection.event("[DONE]")


async def breaks_off(asked: Asked, connection: Connection) -> None:
    await connection.begin()
    await connection.event({"error": {"message": "out of memory"}})


async def counts_too_many(asked: Asked, connection: Connection) -> None:
    await connection.begin()
    await connection.text("x", "stop")
    await connection.usage(21)


async def counts_too_few(asked: Asked, connection: Connection) -> None:
    await connection.begin()
    for _ in range(3):
        await connection.text("x")
    await connection.text("", "stop")
    await connection.usage(1)


async def no_stream(asked: Asked, connection: Connection) -> None:
    await connection.answer(200, {"choices": [{"message": {"content": "all at once"}}]})


async def compressed(asked: Asked, connection: Connection) -> None:
    await connection.raw(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b" + bytes(99)
    )


async def no_http(asked: Asked, connection: Connection) -> None:
    await connection.raw(b"\x00\xff no http at all\r\n\r\n")


async def endless_line(asked: Asked, connection: Connection) -> None:
    await connection.begin()
    while True:
        await connection.raw(b"x" * 65536)


async def endless_head(asked: Asked, connection: Connection) -> None:
    await connection.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await connection.raw(b"X-Header: " + b"x" * 1000 + b"\r\n")


async def endless_nothing(asked: Asked, connection: Connection) -> None:
    await connection.begin()
    for _ in range(300):  # of text that is none: more than any job's output may have
        await connection.text("x" * 60_000)
        await connection.event({"choices": []})


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (garbage, "not JSON"),
        (hangs_up, "ended before its answer did"),
        (ends_without_finish, "ended before its answer did"),
        (breaks_off, "broke off$"),
        (counts_too_many, "more tokens than it was asked for"),
        (counts_too_few, "counts 1 tokens, and streamed text 3 times"),
        (no_stream, "does not stream"),
        (compressed, "compresses"),
        (no_http, "does not speak HTTP"),
        (endless_line, "event of more than"),
        (endless_head, "does not speak HTTP"),
        (endless_nothing, "over its cap"),
    ],
)
async def test_what_a_broken_or_hostile_server_streams_is_its_own_fault_and_frees_the_slot(
    tmp_path: Path, stream: Script, reason: str
) -> None:
    request = JobRequest("chat", chat("Say hi."), 20 if "endless" not in stream.__name__ else 1 << 20, 256)
    async with selling(tmp_path, stream) as shop:
        with pytest.raises(JobFailed, match=reason) as failed:
            await shop.run(request)
        view = shop.supervisor.view(shop.model)
        assert view is not None
        assert (view.slots_free, view.state) == (2, "ready")
        async with asyncio.timeout(5):
            await shop.server.closed.acquire()  # the connection is gone, so the server can stop
    assert failed.value.fault == "provider"


async def test_a_flood_ends_where_the_job_does_and_is_cut_off(tmp_path: Path) -> None:
    async def flood(asked: Asked, connection: Connection) -> None:
        await connection.begin()
        while True:
            await connection.text("x")

    async with selling(tmp_path, flood) as shop:
        _, chunks = await shop.run()
        assert [(len(chunk.payload), chunk.units, chunk.finish) for chunk in chunks] == [
            *[(4, 4, None)] * 4, (4, 4, "length"),
        ]  # fmt: skip
        async with asyncio.timeout(5):
            await shop.server.closed.acquire()


async def test_nothing_is_streamed_before_the_prompt_is_paid_and_little_is_read_ahead(tmp_path: Path) -> None:
    written = 0

    async def much(asked: Asked, connection: Connection) -> None:
        nonlocal written
        await connection.begin()
        while True:
            await connection.text("x" * 1000)
            written += 1000

    async with selling(tmp_path, much) as shop:
        job = await shop.job(JobRequest("chat", chat("Say hi."), 1 << 20, 4))
        await job.prefill()
        assert not shop.server.streamed()
        chunk = await job.next_chunk()
        assert chunk.units == 4
        before = -1
        async with asyncio.timeout(20):
            while before != written:  # until the server can't write on, because nobody reads
                before = written
                await asyncio.sleep(0.2)
        assert written < 16 << 20  # what the kernel's buffers hold, not what we do
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job.next_chunk()
        async with asyncio.timeout(5):
            await shop.server.closed.acquire()


async def test_a_silent_server_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    async def silent(asked: Asked, connection: Connection) -> None:
        await connection.begin()
        await connection.text("so")
        await connection.writer.wait_closed()

    async with selling(tmp_path, silent) as shop:
        job = await shop.job(deadline_s=0.5)
        await job.prefill()
        with pytest.raises(JobTimedOut):
            await job.next_chunk()
        with pytest.raises(JobTimedOut):
            await job.next_chunk()
        view = shop.supervisor.view(shop.model)
        assert view is not None
        assert view.slots_free == 2


async def test_a_job_that_ended_gives_its_slot_back_once(tmp_path: Path) -> None:
    async with selling(tmp_path, slots=1) as shop:
        job = await shop.job()
        await job.prefill()
        while (await job.next_chunk()).finish is None:
            pass
        with pytest.raises(JobEnded):
            await job.next_chunk()
        await job.cancel()
        first = await shop.job()
        with pytest.raises(JobTimedOut, match="no slot"):
            await shop.job(deadline_s=0.2)
        await first.cancel()


@pytest.mark.parametrize(
    ("usage", "expected"), [(None, 1), ({}, 1), ({"prompt_tokens": 0}, 1), ({"prompt_tokens": 9}, 9)]
)
async def test_a_server_that_counts_no_prompt_is_taken_to_have_read_few_tokens(
    tmp_path: Path, usage: object, expected: int
) -> None:
    async def uncounted(asked: Asked, connection: Connection) -> None:
        if asked.method == "GET":
            await prompt_counted(asked, connection)
        else:
            await connection.answer(200, {"choices": [], "usage": usage})

    async with selling(tmp_path, before=uncounted) as shop:
        prefilled, _ = await shop.run()
    assert prefilled.input_units == expected  # seven bytes: one unit for each eight begun


@pytest.mark.parametrize("count", [7 + 64 + 16 + 1, -1, "many", True, 1 << 40])
async def test_a_prompt_can_not_have_more_tokens_than_bytes_and_a_template(tmp_path: Path, count: object) -> None:
    async def overcounted(asked: Asked, connection: Connection) -> None:
        if asked.method == "GET":
            await prompt_counted(asked, connection)
        else:
            await connection.answer(200, {"choices": [], "usage": {"prompt_tokens": count}})

    async with selling(tmp_path, before=overcounted) as shop:
        with pytest.raises(JobFailed, match=r"can't have so many|not a count"):
            await shop.run()
        assert not shop.server.streamed()


async def test_an_answer_that_never_ends_is_not_held(tmp_path: Path) -> None:
    async def endless(asked: Asked, connection: Connection) -> None:
        if asked.method == "GET":
            return await prompt_counted(asked, connection)
        await connection.begin("application/json")
        while True:
            await connection.raw(b" " * 65536)

    async with selling(tmp_path, before=endless) as shop:
        with pytest.raises(JobFailed, match="has more than"):
            await shop.run()


@pytest.mark.parametrize(
    "request_",
    [
        JobRequest("tensors", b"", 1, 1),
        JobRequest("chat", b"\xc1", 1, 1),
        JobRequest("chat", msgpack.packb([["root", "hi"]]), 1, 1),
        JobRequest("text", b"\xff", 1, 1),
        JobRequest("text", b"x" * ((8 << 20) + 1), 1, 1),
        JobRequest("text", b"x", 1, 1, prefix=b"so far"),
        JobRequest("text", b"x", 1, 1, output="tokens"),
        JobRequest("text", b"x", 1, 1, schema="{}"),
        JobRequest("text", b"x", 1, 1, grammar='root ::= "a"'),
        JobRequest("text", b"x", 1, 1, stop=("a", "b", "c", "d", "e")),
    ],
    ids=["tensors", "no turns", "no role", "no text", "too long", "prefix", "tokens", "schema", "grammar", "stops"],
)
async def test_a_request_that_can_not_be_served_is_refused_before_the_server_hears_of_it(
    tmp_path: Path, request_: JobRequest
) -> None:
    async with selling(tmp_path) as shop:
        with pytest.raises(JobRefused):
            await shop.run(request_)
        assert [asked.path for asked in shop.server.asked] == ["/v1/models"]


async def test_a_server_that_is_gone_is_not_offered_until_it_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "PAUSE_MIN_S", 0.05)
    async with WorkerSupervisor(ModelStore(tmp_path)) as supervisor:
        async with upstream(said) as server:
            loaded = supervisor.attach(UpstreamAddress(server.url, MODEL))
            shop = Shop(supervisor, server, loaded.model_id)
            await shop.until("ready")
            port = int(server.url.split(":")[2].split("/")[0])
        with pytest.raises(UpstreamUnavailable, match="can't be reached") as gone:
            await shop.run()
        assert gone.value.fault == "provider"
        view = supervisor.view(loaded.model_id)
        assert view is not None
        assert (view.state, view.crashes) == ("restarting", 1)
        assert view.until_s > 5
        again = await asyncio.start_server(_models, "127.0.0.1", port)
        async with again:
            await shop.until("ready")


async def _models(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await Connection(writer).answer(200, {"data": [{"id": MODEL}]})
    writer.close()


@pytest.mark.parametrize("status", [401, 403, 429, 500])
async def test_what_the_server_says_to_its_operator_is_not_told_to_buyers(tmp_path: Path, status: int) -> None:
    async def complain(asked: Asked, connection: Connection) -> None:
        await connection.answer(status, {"error": {"message": "Incorrect API key provided: sk-abc"}})

    async with selling(tmp_path, stream=complain) as shop:
        with pytest.raises(WorkerError) as failed:
            await shop.run()
    assert str(status) in failed.value.reason
    assert "sk-abc" not in failed.value.reason


@pytest.mark.parametrize("content", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])
async def test_where_the_server_is_is_not_told_to_buyers(tmp_path: Path, content: bytes) -> None:
    async def broken(asked: Asked, connection: Connection) -> None:
        await connection.raw(content)
        connection.writer.close()

    async with selling(tmp_path, stream=broken) as shop:
        with pytest.raises(WorkerError) as failed:
            await shop.run()
        _, _, port = shop.server.url.removesuffix("/v1").rpartition(":")
    assert "127.0.0.1" not in failed.value.reason
    assert port not in failed.value.reason


async def test_a_server_without_the_model_is_named_with_what_it_has() -> None:
    async with upstream(said) as server, UpstreamServer(UpstreamAddress(server.url, "other"), 1) as client:
        with pytest.raises(UpstreamUnavailable, match="has no model 'other'; it has: tiny"):
            await client.probe()


async def test_the_key_goes_from_its_file_to_the_server_and_no_proxy_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("sk-abc\n")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with upstream(said) as server:
        async with UpstreamServer(UpstreamAddress(server.url, MODEL, key_file=key), 1) as client:
            await client.probe()
        assert server.asked[0].headers["authorization"] == "Bearer sk-abc"


def test_a_key_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-abc")
    key.chmod(0o640)
    with pytest.raises(BadUpstream, match="can be read by others"):
        read_key(key)
    key.chmod(0o600)
    assert read_key(key) == "sk-abc"
    for content in (b"", b"two keys", b"\xff", b"x" * 5000, b"a\r\nX-Injected: 1"):
        key.write_bytes(content)
        with pytest.raises(BadUpstream, match="does not hold one key"):
            read_key(key)
    with pytest.raises(BadUpstream, match="can't be read"):
        read_key(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "address",
    [
        UpstreamAddress("", MODEL),
        UpstreamAddress("ftp://127.0.0.1/v1", MODEL),
        UpstreamAddress("http:///v1", MODEL),
        UpstreamAddress("http://user:secret@127.0.0.1/v1", MODEL),
        UpstreamAddress("http://127.0.0.1:99999/v1", MODEL),
        UpstreamAddress("http://127.0.0.1/v1?key=1", MODEL),
        UpstreamAddress("http://127.0.0.1/v1", ""),
        UpstreamAddress("http://127.0.0.1/v1", "two\nlines"),
        UpstreamAddress("http://127.0.0.1/v1", MODEL, server="mine"),
        UpstreamAddress("http://127.0.0.1/v1", MODEL, weights="abc"),
        UpstreamAddress("http://192.0.2.1/v1", MODEL, key_file=Path("key")),
    ],
)
def test_an_address_that_can_not_be_used_is_refused(address: UpstreamAddress) -> None:
    with pytest.raises(BadUpstream):
        check_address(address)


def test_a_key_may_go_over_tls_or_to_this_machine() -> None:
    for url in ("https://example.org/v1", "http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:1/v1"):
        check_address(UpstreamAddress(url, MODEL, key_file=Path("key")))
