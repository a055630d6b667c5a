"""The control API over its socket."""

import asyncio
import base64
import json
from pathlib import Path

import aiohttp
import msgspec
import pytest

from node.api.server import SocketTaken, serve_control
from node.runtime.control import RunEvent, RunRequest
from tests.api.fake_node import JOB, OTHER, FakeNode


def request(model: str) -> bytes:
    return msgspec.json.encode(RunRequest(f"mcmodel1{model}", "chat", b"hi"))


async def events(response: aiohttp.ClientResponse) -> list[RunEvent]:
    return [msgspec.json.decode(line, type=RunEvent) async for line in response.content]


async def test_every_read_answers_with_its_view(session: aiohttp.ClientSession) -> None:
    for path, key in (
        ("/v1/status", "network"),
        ("/v1/jobs/" + JOB, "job"),
        ("/v1/account", "balance"),
        ("/v1/account?account=mc1x", "account"),
        ("/v1/provider", "selling"),
        (f"/v1/records/{OTHER}", "scores"),
        ("/v1/ledger", "quorum"),
        ("/v1/blocks/7", "transactions"),
        ("/v1/authorities", "quorum"),
        ("/v1/parameters", "version"),
        ("/v1/motions/2", "needed"),
    ):
        async with session.get(path) as response:
            assert response.status == 200, path
            assert key in await response.json()
    for path in ("/v1/models", "/v1/offers", "/v1/jobs", "/v1/channels", "/v1/motions"):
        async with session.get(path) as response:
            assert isinstance(await response.json(), list)


async def test_run_streams_events_as_lines(session: aiohttp.ClientSession, fake: FakeNode) -> None:
    async with session.post("/v1/run", data=request("talker")) as response:
        assert response.status == 200
        assert response.content_type == "application/x-ndjson"
        received = await events(response)
    assert [event.event for event in received] == ["request", "agreed", "input", "output", "output", "finished"]
    assert b"".join(event.payload for event in received) == "Hello é".encode()
    assert fake.requests[0].body == b"hi"


async def test_client_that_disconnects_cancels_its_job(session: aiohttp.ClientSession, fake: FakeNode) -> None:
    async with session.post("/v1/run", data=request("endless")) as response:
        while b"output" not in await response.content.readline():
            assert not fake.closed.is_set()
        response.close()
    assert await asyncio.to_thread(fake.closed.wait, 10)


async def test_client_that_leaves_while_output_is_written_to_it_cancels_its_job(
    session: aiohttp.ClientSession, fake: FakeNode
) -> None:
    async with session.post("/v1/run", data=request("flood")) as response:
        assert b"request" in await response.content.readline()
        response.close()
    assert await asyncio.to_thread(fake.closed.wait, 10)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "exit_code"),
    [
        ("POST", "/v1/run", request("poor"), 402, "funds", 4),
        ("POST", "/v1/run", b"not json", 400, "malformed_request", 2),
        ("POST", "/v1/run", b'{"model": 1}', 400, "invalid_request", 2),
        ("POST", "/v1/provider/unbond", b'{"amount": 5, "timeout_ms": 5}', 504, "timeout", 124),
        ("POST", "/v1/provider/bond", b'{"amount": -5, "timeout_ms": 5}', 400, "invalid_request", 2),
        (
            "POST",
            "/v1/send",
            b'{"recipient": "x", "amount": 5, "timeout_ms": 5, "extra": 1}',
            400,
            "invalid_request",
            2,
        ),
        ("GET", "/v1/blocks/99", None, 404, "block_not_found", 1),
        ("GET", "/v1/blocks/x", None, 400, "invalid_request", 2),
        ("GET", "/v1/jobs/zz", None, 404, "job_not_found", 1),
        ("GET", "/v1/nothing", None, 404, "not_found", 2),
        ("PUT", "/v1/status", None, 405, "method_not_allowed", 2),
        ("GET", "/v1/supply", None, 500, "internal", 1),
    ],
)
async def test_failure_says_code_message_and_exit_code(
    session: aiohttp.ClientSession, method: str, path: str, body: bytes | None, status: int, code: str, exit_code: int
) -> None:
    async with session.request(method, path, data=body) as response:
        assert response.status == status
        error = (await response.json())["error"]
    assert (error["code"], error["exit_code"]) == (code, exit_code)
    assert error["message"]


async def test_defect_does_not_leak_its_text(session: aiohttp.ClientSession) -> None:
    async with session.get("/v1/supply") as response:
        assert "a defect" not in await response.text()


async def test_failure_after_the_first_event_ends_the_stream_with_a_failed_event(
    session: aiohttp.ClientSession,
) -> None:
    async with session.post("/v1/run", data=request("late")) as response:
        assert response.status == 200
        last = (await events(response))[-1]
    assert last.event == "failed"
    assert last.facts == {"code": "no_provider", "reason": "every provider refused", "exit_code": 5}


async def test_writes_reach_the_node_with_their_arguments(session: aiohttp.ClientSession, fake: FakeNode) -> None:
    for path, body in (
        ("/v1/send", {"recipient": OTHER, "amount": 5, "timeout_ms": 10}),
        ("/v1/channels/mcchan1abcd/close", {"timeout_ms": 10}),
        ("/v1/provider/bond", {"amount": 6, "timeout_ms": 10}),
        (f"/v1/jobs/{JOB}/settle", {"timeout_ms": 10}),
        (f"/v1/jobs/{JOB}/cancel", None),
    ):
        async with session.post(path, data=json.dumps(body) if body else None) as response:
            assert response.status == 200, path
    assert fake.calls == [
        ("send", OTHER, 5),
        ("close", "mcchan1abcd"),
        ("bond", 6),
        ("settle", JOB, 10),
        ("cancel", JOB),
    ]


async def test_bytes_travel_as_base64(session: aiohttp.ClientSession, fake: FakeNode) -> None:
    body = base64.b64encode(bytes(range(256))).decode()
    async with session.post("/v1/quote", json={"model": "m", "format": "bytes", "body": body}) as response:
        assert response.status == 200
    assert fake.requests[0].body == bytes(range(256))


async def test_receipt_comes_as_the_file_it_is(session: aiohttp.ClientSession) -> None:
    async with session.get(f"/v1/jobs/{JOB}/receipt") as response:
        assert await response.read() == b'{"receipt": true}\n'


async def test_socket_is_its_owners_alone_and_goes_with_the_server(fake: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with serve_control(fake, path):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


async def test_socket_of_a_running_node_is_not_taken(fake: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with serve_control(fake, path):
        with pytest.raises(SocketTaken, match="another node"):
            async with serve_control(fake, path):
                pass
        async with (
            aiohttp.ClientSession("http://node", connector=aiohttp.UnixConnector(str(path))) as client,
            client.get("/v1/status") as response,
        ):
            assert response.status == 200


async def test_socket_that_a_dead_node_left_is_replaced(fake: FakeNode, tmp_path: Path) -> None:
    import socket

    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serve_control(fake, path):
        assert path.is_socket()


async def test_ordinary_file_in_the_sockets_place_is_kept(fake: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("mine")
    with pytest.raises(SocketTaken, match="not a socket"):
        async with serve_control(fake, path):
            pass
    assert path.read_text() == "mine"
