"""Threads that move bulk bytes: TLS, hashing and the disk, beside the loop that blocks and jobs depend on.

Law: they yield to the loop. The kernel gives a thread of lower priority all of an idle processor and less of a busy
one, so that a pull at full speed seldom costs a block its turn.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

NICENESS = 5
"""A third of the weight of the loop's own thread where both want the processor: a pull still goes on."""


def bulk_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of at most so many such threads; they are started when there is work."""
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_yield_to_the_loop)


def _yield_to_the_loop() -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


async def in_thread(threads: ThreadPoolExecutor, work: Callable[[], T], abort: Callable[[], None]) -> T:
    """Run work in a thread. When this is cancelled, ``abort`` is called and the work's end waited for."""
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        abort()
        await asyncio.wait((future,))
        if not future.cancelled():
            future.exception()  # what an aborted piece of work says is of no interest
        raise
