"""One node as a process: runtime, control API, event log and signals.

Law: SIGTERM and SIGINT stop the node in order, also while it still starts.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from node.api.server import serve_control
from node.config.settings import LogConfig, NodeConfig
from node.keystore.keys import NodeKeys
from node.runtime.node import Node
from node.telemetry import configure_events, event_logger, open_log
from protocol.messages.genesis import Genesis, genesis_hash

STARTED_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def event_log(settings: LogConfig) -> Iterator[None]:
    """Structured events go to the configured file, or standard error."""
    if settings.file is None:
        configure_events(sys.stderr, settings.level.value, settings.json)
        yield
        return
    with open_log(settings.file) as stream:
        configure_events(stream, settings.level.value, settings.json)
        yield


class StopRequest:
    """Collects reasons to stop, before and after there is a node to pass them to."""

    def __init__(self) -> None:
        self._node: Node | None = None
        self._reason: str | None = None
        self._starting: asyncio.Task[None] | None = asyncio.current_task()

    def __call__(self, reason: str) -> None:
        """Stop the node, or the start of it."""
        if self._reason is not None:
            return
        self._reason = reason
        event_logger("process").info("stop_requested", reason=reason)
        if self._node is not None:
            self._node.request_stop(reason)
        elif self._starting is not None:
            self._starting.cancel()

    def started(self, node: Node) -> None:
        """From now on reasons go to the node."""
        self._node = node
        self._starting = None
        if self._reason is not None:
            node.request_stop(self._reason)

    @property
    def asked(self) -> bool:
        """Whether anybody asked to stop."""
        return self._reason is not None


async def node_process(config: NodeConfig, keys: NodeKeys, genesis: Genesis) -> None:
    """Run a node and its control API until a signal or the node itself ends it.

    Raises ``NodeHalted`` if the node can't go on, ``SocketTaken`` if another one answers on its control socket.
    """
    stop = StopRequest()
    loop = asyncio.get_running_loop()
    for number in STARTED_SIGNALS:
        loop.add_signal_handler(number, stop, signal.Signals(number).name)
    events = event_logger("process")
    events.info("starting", pid=os.getpid(), network=genesis.network, genesis=genesis_hash(genesis))
    try:
        async with Node(config, keys, genesis) as node:
            stop.started(node)
            async with serve_control(node.control, config.control_socket):
                events.info("serving", control=str(config.control_socket))
                await node.wait_stopped()
    except asyncio.CancelledError:
        if not stop.asked:
            raise
    events.info("stopped")
