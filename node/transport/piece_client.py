"""Asks a node for pieces of models.

Law: what comes is as long as what was asked for, or the peer is at fault; whether it is right, the caller finds out by
its hash. Questions may be asked ahead; answers come in their order.
"""

import asyncio
import socket

from node.transport.endpoints import OffLoopback, is_loopback, parse_endpoint
from node.transport.identity import NodeIdentity
from node.transport.piece_channel import ConnectionLost, OutOfTurn, PieceChannel, PieceTimes
from protocol.messages.pieces import (
    PROLOGUE,
    WELCOME,
    Granted,
    ManifestWanted,
    PieceGreeting,
    PieceListWanted,
    PieceWanted,
    Refused,
)
from protocol.primitives.errors import MercatError, RemoteProtocolError
from protocol.primitives.units import Hash, ModelId, NodeId


class PeerRefused(MercatError):
    """The peer does not give what was asked for; ``later``: it may when it has room."""

    def __init__(self, reason: str, later: bool) -> None:
        super().__init__(reason)
        self.later = later


class WrongNode(MercatError):
    """Another node answers at an address than the one that was meant."""


async def connect_for_pieces(endpoint: str, loopback_only: bool, times: PieceTimes) -> socket.socket:
    """A connection on which TLS may begin. Raises ``ConnectionLost``, ``PeerRefused``, ``UserError``."""
    host, port = parse_endpoint(endpoint)
    if loopback_only and not is_loopback(host):
        raise OffLoopback(f"a development network does not dial off loopback: {host!r}")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(times.handshake_ms / 1000):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[0]
            connection = socket.socket(family, kind, protocol)
            try:
                connection.setblocking(False)
                await loop.sock_connect(connection, address)
                await loop.sock_sendall(connection, PROLOGUE)
                answer = await loop.sock_recv(connection, 1)
            except BaseException:
                connection.close()
                raise
    except OSError as error:
        raise ConnectionLost(str(error) or "no answer in time") from None
    if answer != WELCOME:
        connection.close()
        if not answer:
            raise ConnectionLost("hung up: it may not share models at all")
        raise PeerRefused("it has no room for another connection now", True)
    return connection


class PieceAsker:
    """One connection to one peer, for the thread that uses it; ``abort`` is for others."""

    def __init__(self, connection: socket.socket, identity: NodeIdentity, times: PieceTimes) -> None:
        """Takes a connection over. Raises ``ConnectionLost`` if it broke meanwhile."""
        try:
            self._channel = PieceChannel(connection, identity.client_context, answering=False, times=times)
        except OSError as error:
            raise ConnectionLost(str(error)) from None
        finally:
            connection.close()  # a channel has taken the descriptor over
        self.abort = self._channel.abort
        self.close = self._channel.close

    def greet(self, genesis_hash: Hash, expected: NodeId | None) -> NodeId:
        """Make the TLS connection and say who we are; who the peer is. Raises ``ConnectionLost``, ``WrongNode``."""
        peer = self._channel.shake_hands()
        if expected is not None and peer != expected:
            raise WrongNode(f"another node answers there than {expected.hex()[:16]}")
        self._channel.send(PieceGreeting(genesis_hash))
        return peer

    def manifest(self, model: ModelId, size_max: int) -> bytes:
        """The manifest of a model, not yet believed. Raises ``PeerRefused`` and what the channel raises."""
        self._channel.send(ManifestWanted(model))
        size = self._granted()
        if size > size_max:
            raise RemoteProtocolError(f"a manifest of {size} bytes")
        return self._bytes(size)

    def piece_list(self, model: ModelId, file: int, size: int) -> bytes:
        """The piece list of a file, not yet believed."""
        self._channel.send(PieceListWanted(model, file))
        self._expect(size)
        return self._bytes(size)

    def ask(self, model: ModelId, file: int, piece: int) -> None:
        """Ask for a piece; ``receive`` has its answer in turn."""
        self._channel.send(PieceWanted(model, file, piece))

    def receive(self, target: memoryview) -> None:
        """The next piece that was asked for, not yet believed, into a buffer of its size."""
        self._expect(len(target))
        self._channel.receive_bytes(target)

    def _granted(self) -> int:
        match self._channel.receive():
            case Granted(size):
                return size
            case Refused(reason, later):
                shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in reason)
                raise PeerRefused(shown, later)  # it becomes part of a line that people and logs are told
            case other:
                raise OutOfTurn(other)

    def _expect(self, size: int) -> None:
        granted = self._granted()
        if granted != size:
            raise RemoteProtocolError(f"{granted} bytes instead of {size}")

    def _bytes(self, size: int) -> bytes:
        content = bytearray(size)
        self._channel.receive_bytes(memoryview(content))
        return bytes(content)
