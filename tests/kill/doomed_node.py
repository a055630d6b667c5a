"""``mercat node run`` that ends, or stands still, at an exact step: ``doomed_node.py CHUNK:3:written:KILL node run …``.

Law: up to that step everything is the real node, and the step is one of its own: its third statement of a kind is
*unwritten* (decided, nothing of it on the disk yet), *written* (all rows that must be there before are, nothing signed
nor sent), or *sent* (the kernel has its bytes for the other node). Then the process signals itself, so that nothing
comes between.
"""

import os
import signal
import sys
from collections.abc import Iterable

from node.cli.main import main
from node.runtime.engine_loop import EngineLoop
from node.runtime.executor import EffectExecutor
from node.transport import link
from node.transport.link import Socket
from protocol.messages.effects import Effect, SignAndSend
from protocol.messages.kinds import MessageKind

MOMENTS = ("unwritten", "written", "sent")
_BEGINS = (MessageKind.TRANSACTION, MessageKind.AGREEMENT, MessageKind.ACCEPTANCE)
"""With one of these a job begins; what a node says again of earlier ones, when it has a link, does not count."""


class Doom:
    """Counts this node's statements of one kind and strikes at the chosen one."""

    def __init__(self, point: str) -> None:
        kind, count, moment, number = point.split(":")
        assert moment in MOMENTS
        self._kind = MessageKind[kind]
        self._left = int(count)
        self._moment = moment
        self._number = signal.Signals[f"SIG{number}"]
        self._counts = self._kind in _BEGINS
        self._chosen: SignAndSend | None = None
        self._envelope = b""

    def _strike(self) -> None:
        self._moment, self._envelope = "", b""
        os.kill(os.getpid(), self._number)

    def decided(self, effects: tuple[Effect, ...]) -> None:
        """Effects are about to be carried out."""
        for effect in effects:
            if not isinstance(effect, SignAndSend):
                continue
            self._counts = self._counts or effect.kind in _BEGINS
            if effect.kind is self._kind and self._counts:
                self._left -= 1
                if self._left == 0:
                    self._chosen = effect
        if self._chosen is not None and self._moment == "unwritten":
            self._strike()

    def signing(self, effect: Effect) -> None:
        """One effect is next; what must be on the disk before it is there."""
        if effect is self._chosen and self._moment == "written":
            self._strike()

    def signed(self, effect: SignAndSend, envelope: bytes) -> None:
        """A statement exists."""
        if effect is self._chosen and self._moment == "sent":
            self._envelope = envelope

    def sent(self, frame: bytes) -> None:
        """The kernel has a frame."""
        if self._envelope and self._envelope in frame:
            self._strike()


def arm(doom: Doom) -> None:
    """Let the node's executor and links tell of their steps."""
    submit, act, send_signed = EffectExecutor.submit, EffectExecutor._act, EngineLoop.send_signed
    send_frame = link.send_frame

    def submit_and_tell(executor: EffectExecutor, effects: Iterable[Effect]) -> None:
        known = tuple(effects)
        doom.decided(known)
        submit(executor, known)

    def act_and_tell(executor: EffectExecutor, effect: Effect, allowed: dict[int, bytes | None]) -> None:
        doom.signing(effect)
        act(executor, effect, allowed)

    def signed_and_tell(loop: EngineLoop, effect: SignAndSend, envelope: bytes) -> None:
        send_signed(loop, effect, envelope)
        doom.signed(effect, envelope)

    async def send_and_tell(socket: Socket, frame: bytes) -> None:
        await send_frame(socket, frame)
        doom.sent(frame)

    EffectExecutor.submit = submit_and_tell  # type: ignore[assignment, method-assign]
    EffectExecutor._act = act_and_tell  # type: ignore[assignment, method-assign]
    EngineLoop.send_signed = signed_and_tell  # type: ignore[assignment, method-assign]
    link.send_frame = send_and_tell


if __name__ == "__main__":
    arm(Doom(sys.argv.pop(1)))
    main()
