"""The lifeline of a node that a cluster starts: the reading end of a pipe whose writing end the starter holds.

Law: if the pipe closes before a byte came, the starter is gone and this process ends. It is watched from the first
moment, before anything heavy is imported, so nothing outlives a start that was killed.
"""

import os
import signal
import threading


def hold_lifeline(descriptor: int) -> None:
    """Watch the lifeline in a thread. Losing it is a SIGTERM: an orderly stop once the node can do one."""

    def watch() -> None:
        with os.fdopen(descriptor, "rb", buffering=0) as pipe:
            released = pipe.read(1)
        if not released:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
