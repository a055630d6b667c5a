"""Pieces over real TLS on loopback: what is given, what is refused, and what hostile ends on either side get."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from node.clock import read_clock
from node.transport.peer_store import PeerStore
from node.transport.piece_channel import ConnectionLost, PieceChannel, PieceTimes
from node.transport.piece_client import PeerRefused, PieceAsker, WrongNode, connect_for_pieces
from node.transport.piece_server import SMALL_ANSWERS_PER_SECOND, NotShared, PiecePolicy, SharedModel
from node.transport.policy import LinkPolicy
from node.transport.throttle import Throttle
from node.transport.transport import Transport
from protocol.messages.peers import PROTOCOL_VERSION, Hello
from protocol.messages.pieces import (
    BUSY,
    PROLOGUE,
    WELCOME,
    Granted,
    ManifestWanted,
    PieceGreeting,
    PieceMessage,
    PieceWanted,
    Refused,
    decode_piece_message,
    encode_piece_message,
    piece_message_length,
)
from protocol.primitives.errors import MalformedMessage, RemoteProtocolError
from protocol.primitives.units import Hash, Height, ModelId
from tests.transport.network import BRISK, GENESIS, QUICK, identity_of, record_of

T = TypeVar("T")

MODEL = ModelId(b"m" * 32)
PIECE = 300_000
BODY = os.urandom(PIECE) * 3
TIMES = PieceTimes(handshake_ms=2_000, message_ms=500, silence_ms=600, piece_ms=1_200, idle_ms=600)
PATIENT = PieceTimes(silence_ms=30_000, idle_ms=30_000)
IMPATIENT = LinkPolicy(greeting_timeout_ms=500, linger_ms=300)


class OneFile:
    """A model of one file of three pieces."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.manifest = b"the manifest"

    def piece_list(self, file: int) -> bytes:
        if file != 0:
            raise NotShared("the model has no such file")
        return b"h" * 96

    def piece(self, file: int, piece: int) -> tuple[int, int, int]:
        if file != 0 or piece > 2:
            raise NotShared("the file has no such piece")
        return self._file.fileno(), piece * PIECE, PIECE

    def close(self) -> None:
        self._file.close()


class Library:
    """Gives one model away."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, model: ModelId) -> SharedModel:
        if model != MODEL:
            raise NotShared("this model is not shared here")
        return OneFile(self.path)


class Giver:
    """A node that gives pieces, and what it has said of it."""

    def __init__(self, library: Library | None, policy: PiecePolicy, link: LinkPolicy) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.told = asyncio.Event()
        self.transport = Transport(
            identity_of("giver"), GENESIS, "127.0.0.1", 0,
            make_hello=lambda: Hello(PROTOCOL_VERSION, GENESIS, record_of("giver"), Height(0)),
            on_link_up=lambda peer, hello, record: None,
            on_link_down=lambda peer, reason: None,
            on_messages=lambda peer, messages, size: None,
            on_event=self._tell,
            peer_store=PeerStore(None, GENESIS),
            dial=QUICK, link=link, loopback_only=True, library=library, pieces=policy,
        )  # fmt: skip
        self.threads = ThreadPoolExecutor(32)

    def _tell(self, name: str, fields: dict[str, object]) -> None:
        self.events.append((name, fields))
        self.told.set()

    @property
    def endpoint(self) -> str:
        host, port = self.transport.address
        return f"{host}:{port}"

    async def connect(self) -> socket.socket:
        return await connect_for_pieces(self.endpoint, True, TIMES)

    async def asking(self, work: Callable[[PieceAsker], T], name: str = "asker", genesis: Hash = GENESIS) -> T:
        """Connect, greet and do something in a thread."""
        connection = await self.connect()

        def ask() -> T:
            with closing(PieceAsker(connection, identity_of(name), TIMES)) as asker:
                asker.greet(genesis, identity_of("giver").node_id)
                return work(asker)

        return await asyncio.get_running_loop().run_in_executor(self.threads, ask)

    async def served(self) -> dict[str, object]:
        """What was said when the last connection ended."""
        async with asyncio.timeout(10):
            while True:
                for name, fields in self.events:
                    if name == "pieces.served":
                        return fields
                self.told.clear()
                await self.told.wait()


@asynccontextmanager
async def giving(
    folder: Path, *, shares: bool = True, policy: PiecePolicy | None = None, link: LinkPolicy = BRISK
) -> AsyncIterator[Giver]:
    """A node that gives a model's pieces away while the context lasts."""
    path = folder / "body"
    path.write_bytes(BODY)
    giver = Giver(Library(path) if shares else None, policy or PiecePolicy(times=TIMES), link)
    try:
        async with giver.transport:
            yield giver
    finally:
        giver.threads.shutdown()


def piece(asker: PieceAsker, number: int) -> bytes:
    asker.ask(MODEL, 0, number)
    received = bytearray(PIECE)
    asker.receive(memoryview(received))
    return bytes(received)


async def test_manifest_list_and_pieces_come_as_they_are_and_may_be_asked_for_ahead(tmp_path: Path) -> None:
    def work(asker: PieceAsker) -> list[bytes]:
        found = [asker.manifest(MODEL, 100), asker.piece_list(MODEL, 0, 96)]
        for number in (2, 0, 1):
            asker.ask(MODEL, 0, number)
        for _ in range(3):
            received = bytearray(PIECE)
            asker.receive(memoryview(received))
            found.append(bytes(received))
        return found

    async with giving(tmp_path) as giver:
        pieces = [BODY[number * PIECE : (number + 1) * PIECE] for number in (2, 0, 1)]
        assert await giver.asking(work) == [b"the manifest", b"h" * 96, *pieces]
        served = await giver.served()
    assert served["peer"] == identity_of("asker").node_id.hex()
    assert served["bytes"] == len(BODY) + 12 + 96


@pytest.mark.parametrize(
    ("model", "file", "number", "said"),
    [
        (ModelId(b"x" * 32), 0, 0, "not shared"),
        (MODEL, 1, 0, "no such piece"),
        (MODEL, 0, 3, "no such piece"),
        (MODEL, 63, 65_535, "no such piece"),
    ],
)
async def test_what_is_not_there_is_refused_and_the_next_question_is_answered(
    tmp_path: Path, model: ModelId, file: int, number: int, said: str
) -> None:
    def work(asker: PieceAsker) -> bytes:
        asker.ask(model, file, number)
        with pytest.raises(PeerRefused, match=said):
            asker.receive(memoryview(bytearray(PIECE)))
        return piece(asker, 1)

    async with giving(tmp_path) as giver:
        assert await giver.asking(work) == BODY[PIECE : 2 * PIECE]


async def test_questions_that_bring_little_are_answered_at_a_pace_that_leaves_the_node_its_time(tmp_path: Path) -> None:
    def work(asker: PieceAsker) -> int:
        began = read_clock().monotonic_ms
        for _ in range(20):
            asker.manifest(MODEL, 100)
            asker.ask(ModelId(b"x" * 32), 0, 0)
            with pytest.raises(PeerRefused):
                asker.receive(memoryview(bytearray(PIECE)))
        return read_clock().monotonic_ms - began

    async with giving(tmp_path) as giver:
        assert await giver.asking(work) >= 1_000 * (2 * 20 - 10) // SMALL_ANSWERS_PER_SECOND


async def test_another_network_gets_nothing(tmp_path: Path) -> None:
    async with giving(tmp_path) as giver:
        with pytest.raises(PeerRefused, match="another network"):
            await giver.asking(lambda asker: asker.manifest(MODEL, 100), genesis=Hash(b"o" * 32))


async def test_a_banned_node_gets_nothing(tmp_path: Path) -> None:
    async with giving(tmp_path) as giver:
        giver.transport.disconnect(identity_of("asker").node_id, "lied", ban_ms=60_000)
        with pytest.raises(PeerRefused, match="banned"):
            await giver.asking(lambda asker: asker.manifest(MODEL, 100))


async def test_a_node_that_shares_nothing_hangs_up(tmp_path: Path) -> None:
    async with giving(tmp_path, shares=False) as giver:
        with pytest.raises(ConnectionLost, match="may not share"):
            await giver.connect()


async def test_another_node_than_the_one_meant_is_not_asked(tmp_path: Path) -> None:
    async with giving(tmp_path) as giver:
        connection = await giver.connect()
        with closing(PieceAsker(connection, identity_of("asker"), TIMES)) as asker, pytest.raises(WrongNode):
            await asyncio.to_thread(asker.greet, GENESIS, identity_of("somebody").node_id)


async def test_whoever_comes_when_all_places_are_taken_is_told_before_tls_and_places_are_given_back(
    tmp_path: Path,
) -> None:
    policy = PiecePolicy(times=TIMES, connections_max=3, connections_per_peer_max=2)
    async with giving(tmp_path, policy=policy) as giver:
        connections = [await giver.connect() for _ in range(3)]
        with pytest.raises(PeerRefused, match="no room"):
            await giver.connect()
        for connection in connections:
            connection.close()
        async with asyncio.timeout(10):
            while True:
                with suppress(PeerRefused):
                    assert await giver.asking(lambda asker: asker.manifest(MODEL, 100)) == b"the manifest"
                    break


async def test_one_peer_has_only_so_many_connections_whatever_addresses_it_comes_from(tmp_path: Path) -> None:
    policy = PiecePolicy(times=TIMES, connections_per_peer_max=1)
    async with giving(tmp_path, policy=policy) as giver:
        first, done = threading.Event(), threading.Event()

        def hold(asker: PieceAsker) -> bytes:
            asker.manifest(MODEL, 100)
            first.set()
            done.wait(10)
            return piece(asker, 0)

        async with asyncio.TaskGroup() as group:
            holding = group.create_task(giver.asking(hold))
            await asyncio.to_thread(first.wait, 10)
            with pytest.raises(PeerRefused, match="as many connections"):
                await giver.asking(lambda asker: asker.manifest(MODEL, 100))
            assert await giver.asking(lambda asker: asker.manifest(MODEL, 100), "another") == b"the manifest"
            done.set()
        assert holding.result() == BODY[:PIECE]


async def test_a_thousand_connections_at_once_are_answered_or_turned_away_and_the_node_goes_on(tmp_path: Path) -> None:
    outcomes: dict[str, int] = {}

    async def attempt(giver: Giver) -> None:
        try:
            (await giver.connect()).close()
            outcomes["in"] = outcomes.get("in", 0) + 1
        except (PeerRefused, ConnectionLost) as error:
            outcomes[type(error).__name__] = outcomes.get(type(error).__name__, 0) + 1

    async with giving(tmp_path) as giver:
        for _ in range(10):
            async with asyncio.TaskGroup() as group:
                for _ in range(100):
                    group.create_task(attempt(giver))
        assert sum(outcomes.values()) == 1_000
        async with asyncio.timeout(10):
            while True:
                with suppress(PeerRefused):
                    assert await giver.asking(lambda asker: piece(asker, 0)) == BODY[:PIECE]
                    break


@pytest.mark.parametrize(
    "speech",
    [
        b"",
        b"\x00\x00",
        b"\xff\xff" + b"x" * 2_000,
        b"\x00\x05hello",
        encode_piece_message(ManifestWanted(MODEL)),
        encode_piece_message(PieceGreeting(GENESIS)) + encode_piece_message(Granted(5)),
        encode_piece_message(PieceGreeting(GENESIS)) + encode_piece_message(PieceGreeting(GENESIS)),
        encode_piece_message(PieceGreeting(GENESIS)) + b"\x00\x40half a message",
        encode_piece_message(PieceGreeting(GENESIS)),
    ],
)
async def test_any_bytes_end_in_a_closed_connection_and_nothing_else(tmp_path: Path, speech: bytes) -> None:
    async with giving(tmp_path) as giver:
        connection = await giver.connect()

        def speak() -> None:
            channel = PieceChannel(connection, identity_of("asker").client_context, answering=False, times=TIMES)
            with closing(channel), suppress(ConnectionLost):
                channel.shake_hands()
                channel.send_bytes(memoryview(speech), read_clock().monotonic_ms + 1_000)
                channel.receive(5_000)

        await asyncio.get_running_loop().run_in_executor(giver.threads, speak)
        assert (await giver.served())["bytes"] == 0
        assert await giver.asking(lambda asker: piece(asker, 0)) == BODY[:PIECE]


@pytest.mark.parametrize("prologue", [b"m", b"mercat pieces 2\n", PROLOGUE[:-1], b"mGET / HTTP/1.1\r\n\r\n"])
async def test_a_prologue_that_is_none_or_never_ends_is_hung_up_on(tmp_path: Path, prologue: bytes) -> None:
    async with giving(tmp_path, link=IMPATIENT) as giver:
        reader, writer = await asyncio.open_connection(*giver.transport.address)
        writer.write(prologue)
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        assert not giver.transport._listener._pending


async def test_a_peer_without_tls_or_that_asks_and_never_reads_is_given_up(tmp_path: Path) -> None:
    async with giving(tmp_path) as giver:
        connection = await giver.connect()
        served = await giver.served()
        assert (served["peer"], served["bytes"]) == ("", 0)
        connection.close()
        giver.events.clear()

        def never_read(asker: PieceAsker) -> None:
            for number in range(300):
                asker.ask(MODEL, 0, number % 3)
            threading.Event().wait(0)

        connection = await giver.connect()
        asker = PieceAsker(connection, identity_of("asker"), TIMES)
        await asyncio.to_thread(asker.greet, GENESIS, None)
        await asyncio.to_thread(never_read, asker)
        assert (await giver.served())["reason"] in ("the peer stalled", "too slow")
        asker.close()


async def test_a_node_that_stops_ends_its_connections_at_once(tmp_path: Path) -> None:
    policy = PiecePolicy(times=PATIENT, upload_bytes_per_second=1_000)
    async with giving(tmp_path, policy=policy) as giver:
        connection = await giver.connect()
        asker = PieceAsker(connection, identity_of("asker"), TIMES)
        await asyncio.to_thread(asker.greet, GENESIS, None)
        asker.ask(MODEL, 0, 0)
        began = read_clock().monotonic_ms
    asker.close()
    assert read_clock().monotonic_ms - began < 5_000


class Liar:
    """A node that answers as a test says."""

    def __init__(self, answers: Callable[[PieceChannel], None], first: bytes = WELCOME) -> None:
        self._answers = answers
        self._first = first
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            connection.recv(len(PROLOGUE))
            connection.sendall(self._first)
            if self._first != WELCOME:
                return
            channel = PieceChannel(connection, identity_of("liar").server_context, answering=True, times=PATIENT)
        with closing(channel), suppress(ConnectionLost, RemoteProtocolError):
            channel.shake_hands()
            channel.receive()
            channel.receive()
            self._answers(channel)
            channel.receive()

    async def ask(self, work: Callable[[PieceAsker], T]) -> T:
        self._thread.start()
        try:
            connection = await connect_for_pieces(self.endpoint, True, TIMES)
            with closing(PieceAsker(connection, identity_of("asker"), TIMES)) as asker:
                await asyncio.to_thread(asker.greet, GENESIS, None)
                return await asyncio.to_thread(work, asker)
        finally:
            self._listening.close()
            self._thread.join()


def says(*messages: PieceMessage | bytes) -> Callable[[PieceChannel], None]:
    def answer(channel: PieceChannel) -> None:
        for message in messages:
            content = message if isinstance(message, bytes) else encode_piece_message(message)
            channel.send_bytes(memoryview(content), read_clock().monotonic_ms + 1_000)

    return answer


@pytest.mark.parametrize(
    ("answers", "error", "said"),
    [
        (says(Granted(PIECE - 1)), RemoteProtocolError, "instead of"),
        (says(Granted(2**32)), RemoteProtocolError, "instead of"),
        (says(Granted(PIECE), b"short"), ConnectionLost, "stalled"),
        (says(), ConnectionLost, "stalled"),
        (says(b"\x1f\x8b" * 600), RemoteProtocolError, "a message of"),
        (says(PieceWanted(MODEL, 0, 0)), RemoteProtocolError, "out of turn"),
        (says(Refused("no", True)), PeerRefused, "no"),
        (says(Refused("no\n\x1b[1mall is well", True)), PeerRefused, "^no\N{REPLACEMENT CHARACTER}{2}.1mall is well$"),
    ],
)
async def test_an_answer_of_another_length_or_none_is_the_peers_fault_within_its_time(
    answers: Callable[[PieceChannel], None], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        await Liar(answers).ask(lambda asker: piece(asker, 0))


async def test_a_peer_that_sends_for_ever_is_read_no_further_than_what_was_asked() -> None:
    def for_ever(channel: PieceChannel) -> None:
        says(Granted(PIECE))(channel)
        while True:
            says(bytes(PIECE))(channel)

    assert await Liar(for_ever).ask(lambda asker: piece(asker, 0)) == bytes(PIECE)


async def test_a_peer_that_drips_is_given_up_after_the_time_of_a_piece() -> None:
    def drip(channel: PieceChannel) -> None:
        says(Granted(PIECE))(channel)
        while True:
            says(b"x")(channel)
            threading.Event().wait(0.05)

    with pytest.raises(ConnectionLost, match="too slow"):
        await Liar(drip).ask(lambda asker: piece(asker, 0))


async def test_a_manifest_larger_than_any_is_not_read() -> None:
    with pytest.raises(RemoteProtocolError, match="a manifest of"):
        await Liar(says(Granted(10**6))).ask(lambda asker: asker.manifest(MODEL, 65_536))


@pytest.mark.parametrize(("first", "error"), [(BUSY, PeerRefused), (b"\x16", PeerRefused), (b"", ConnectionLost)])
async def test_a_node_without_room_is_told_from_one_that_is_gone(first: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        await Liar(says(), first).ask(lambda asker: None)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"\x91", b"\x91\x92\x02\xc4\x01x", b"\x91" * 1_000, b"\x91\x92\x05\xcd\x00\x05"]
)
def test_bytes_that_are_no_message_are_refused(content: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_piece_message(content)


@pytest.mark.parametrize("length", [0, 1025, 65_535])
def test_a_length_that_no_message_has_is_refused(length: int) -> None:
    with pytest.raises(MalformedMessage):
        piece_message_length(length.to_bytes(2, "big"))


def test_a_throttle_makes_wait_for_what_is_above_its_rate_and_is_woken_when_its_work_stops() -> None:
    throttle, stop = Throttle(1_000_000), threading.Event()
    began = read_clock().monotonic_ms
    throttle.take(100_000, stop)
    for _ in range(3):
        throttle.take(50_000, stop)
    took = read_clock().monotonic_ms - began
    assert 100 <= took < 2_000
    stop.set()
    throttle.take(10**9, stop)
    Throttle(None).take(10**12, threading.Event())
    assert read_clock().monotonic_ms - began < 5_000
