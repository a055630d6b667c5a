"""Peers that break rules: the link ends, an event names the peer, nothing else happens."""

import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from node.transport.policy import LinkPolicy
from protocol.messages.wire import (
    Goodbye,
    Peers,
    PeersRequest,
    TipNotice,
    WireMessage,
    encode_message,
    join_frame,
    split_frame,
)
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.limits import FRAME_BYTES_MAX
from protocol.primitives.units import Height, NodeId
from tests.transport.network import (
    RecordingNode,
    identity_of,
    raw_link,
    raw_socket,
    record_of,
)

MALLORY = identity_of("mallory").node_id


async def _last_words(socket: aiohttp.ClientWebSocketResponse[bool]) -> list[WireMessage]:
    """All messages until the socket closes."""
    messages: list[WireMessage] = []
    while True:
        received = await socket.receive()
        if received.type is WSMsgType.BINARY:
            messages.extend(split_frame(received.data))
        elif received.type is not WSMsgType.PING:
            return messages


GOOD = encode_message(TipNotice(Height(1)))


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff" * 100,
        b"\x91\x90",
        b"\x91\xdc\x00\x01" + GOOD,
        b"\x91\x91" + GOOD + b"\x00",
        b"\x91\xdc\x00\x41" + GOOD * 65,
        join_frame([encode_message(Peers((b"x" * 4096,)))])[:-1],
        b"\x91" * 100_000,
    ],
    ids=["empty", "noise", "no messages", "overlong", "trailing byte", "too many", "cut off", "deep"],
)
async def test_garbage_ends_the_link_and_names_the_peer(garbage: bytes) -> None:
    async with RecordingNode("b") as b, raw_link("mallory", b) as socket:
        await socket.send_bytes(garbage)
        await b.until(lambda: bool(b.reasons("peer.misbehaved")))
        fields = next(fields for name, fields in b.events if name == "peer.misbehaved")
        assert fields["peer"] == MALLORY.hex()
        assert b.linked() == []
        assert b.received == []
        messages = await _last_words(socket)
        assert isinstance(messages[-1], Goodbye)


async def test_text_frame_ends_the_link() -> None:
    async with RecordingNode("b") as b, raw_link("mallory", b) as socket:
        await socket.send_str("hello")
        await b.until(lambda: any("text" in reason for reason in b.reasons("peer.misbehaved")))


async def test_frame_above_the_cap_ends_the_link_with_1009() -> None:
    async with RecordingNode("b") as b, raw_link("mallory", b) as socket:
        await socket.send_bytes(bytes(FRAME_BYTES_MAX + 1))
        await b.until(lambda: any("1009" in reason for reason in b.reasons("peer.misbehaved")))
        assert b.linked() == []


async def test_second_greeting_ends_the_link() -> None:
    async with RecordingNode("b") as b, raw_link("mallory", b) as socket:
        await socket.send_bytes(join_frame([encode_message(b._hello())]))
        await b.until(lambda: any("greeted twice" in reason for reason in b.reasons("peer.misbehaved")))


async def test_rule_broken_in_the_eyes_of_the_engine_ends_the_link() -> None:
    def refuse(peer: NodeId, messages: tuple[WireMessage, ...], size: int) -> None:
        raise RemoteProtocolError("tip is nonsense")

    async with RecordingNode("b", on_messages=refuse) as b, raw_link("mallory", b) as socket:
        await socket.send_bytes(join_frame([GOOD]))
        await b.until(lambda: b.reasons("peer.misbehaved") == ["tip is nonsense"])


async def test_peer_that_misbehaved_is_turned_away_for_a_while() -> None:
    async with RecordingNode("b") as b:
        async with raw_link("mallory", b) as socket:
            await socket.send_bytes(b"\xff")
            await b.until(lambda: bool(b.reasons("peer.misbehaved")))
            farewell = (await _last_words(socket))[-1]
            assert isinstance(farewell, Goodbye)
            assert farewell.reason.endswith("; banned for 10 s")
        async with raw_socket("mallory", b) as socket:
            messages = await _last_words(socket)
        assert messages == [Goodbye("banned for 10 s more")]
        assert b.linked() == []


@pytest.mark.parametrize("first", [GOOD, encode_message(PeersRequest())])
async def test_peer_that_does_not_greet_first_is_refused(first: bytes) -> None:
    async with RecordingNode("b") as b, raw_socket("mallory", b) as socket:
        await socket.send_bytes(join_frame([first]))
        await b.until(lambda: b.reasons("link.refused") == ["peer did not greet first"])
        assert b.received == []
        assert b.log == []


async def test_peer_that_never_greets_is_left() -> None:
    policy = LinkPolicy(greeting_timeout_ms=50, linger_ms=100)
    async with RecordingNode("b", link=policy) as b, raw_socket("mallory", b):
        await b.until(lambda: b.reasons("link.refused") == ["no greeting in time"])


async def test_peer_that_answers_no_ping_is_left() -> None:
    policy = LinkPolicy(greeting_timeout_ms=3_000, linger_ms=100, heartbeat_ms=50)
    async with RecordingNode("b", link=policy) as b, raw_link("mallory", b):
        await b.until(lambda: b.linked() == [])
        assert "PONG" in b.reasons("link.down")[0]


async def test_peers_message_nobody_asked_for_is_not_read() -> None:
    async with RecordingNode("b") as b, raw_link("mallory", b) as socket:
        answer = join_frame([encode_message(Peers((record_of("x", ("127.0.0.1:1",)),)))])
        await socket.send_bytes(answer)
        await b.until(lambda: any(name == "peers.learned" for name, _ in b.events))
        await socket.send_bytes(answer)
        await b.until(lambda: any(name == "peers.unasked" for name, _ in b.events))


async def test_peer_that_passes_on_a_forged_record_is_left_and_nothing_is_kept() -> None:
    good = record_of("x", ("127.0.0.1:1",))
    async with RecordingNode("b") as b, raw_link("mallory", b) as socket:
        records = (record_of("y", ("127.0.0.1:2",)), good[:-1] + bytes((good[-1] ^ 1,)))
        await socket.send_bytes(join_frame([encode_message(Peers(records))]))
        await b.until(lambda: any("signature" in reason for reason in b.reasons("peer.misbehaved")))
        assert b.store.record(identity_of("x").node_id) is None
        assert b.store.record(identity_of("y").node_id) is None


async def test_request_that_is_no_websocket_gets_an_error_and_no_link() -> None:
    async with RecordingNode("b") as b, aiohttp.ClientSession() as session:
        context = identity_of("mallory").client_context
        for path in ("/", "/other"):
            async with session.get(f"https://{b.endpoint}{path}", ssl=context) as response:
                assert response.status == 400
        assert b.log == []


async def test_connection_that_never_asks_for_a_link_is_closed() -> None:
    policy = LinkPolicy(greeting_timeout_ms=50, linger_ms=100)
    async with RecordingNode("b", link=policy) as b:
        context = identity_of("mallory").client_context
        reader, writer = await asyncio.open_connection(*b.transport.address, ssl=context)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.transport.abort()


async def test_oldest_idle_connection_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.transport.listener.PENDING_CONNECTIONS_MAX", 3)
    async with RecordingNode("b") as b:
        context = identity_of("mallory").client_context
        idle = [await asyncio.open_connection(*b.transport.address, ssl=context) for _ in range(3)]
        async with raw_link("friend", b):
            async with asyncio.timeout(5):
                assert await idle[0][0].read() == b""
            assert not idle[2][0].at_eof()
        for _, writer in idle:
            writer.transport.abort()


async def test_connections_that_never_begin_the_handshake_make_room_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a stranger who only connects takes every descriptor that the node may have."""
    monkeypatch.setattr("node.transport.listener.PENDING_CONNECTIONS_MAX", 3)
    patient = LinkPolicy(greeting_timeout_ms=60_000, linger_ms=300)
    async with RecordingNode("b", link=patient) as b:
        silent = [await asyncio.open_connection(*b.transport.address) for _ in range(8)]
        async with raw_link("friend", b):
            async with asyncio.timeout(5):
                for reader, _ in silent[:6]:
                    assert await reader.read() == b""
            assert not silent[7][0].at_eof()
        for _, writer in silent:
            writer.transport.abort()


async def test_links_that_are_never_greeted_make_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.transport.listener.PENDING_CONNECTIONS_MAX", 3)
    patient = LinkPolicy(greeting_timeout_ms=60_000, linger_ms=300)
    async with RecordingNode("b", link=patient) as b, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(raw_socket(f"silent-{n}", b)) for n in range(4)]
        async with raw_link("friend", b):
            silent += [await stack.enter_async_context(raw_socket(f"late-{n}", b)) for n in range(4)]
            await b.until(lambda: len(b.reasons("link.refused")) >= len(silent) - 3)
            assert b.linked() == [identity_of("friend").node_id]  # a greeted link never makes room


async def test_a_peer_that_hangs_up_during_the_upgrade_is_no_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def prepare(self: web.WebSocketResponse, request: web.BaseRequest) -> None:
        assert request.transport is not None
        request.transport.close()
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    async with RecordingNode("alice") as alice:
        with monkeypatch.context() as patched:
            patched.setattr(web.WebSocketResponse, "prepare", prepare)
            with pytest.raises(aiohttp.ClientError):
                async with raw_socket("mallory", alice):
                    pass
        async with raw_link("mallory", alice):
            await alice.until(lambda: alice.linked() == [MALLORY])
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 64, "a" * 64 + ".example", "xn--" + "9" * 60])
async def test_an_address_that_no_name_server_could_be_asked_for_is_a_dial_in_vain(host: str) -> None:
    async with RecordingNode("a", loopback_only=False) as a:
        a.transport.dial(identity_of("liar").node_id, (f"{host}:80",))
        await a.until(lambda: any(host in reason for reason in a.reasons("dial.failed")))
