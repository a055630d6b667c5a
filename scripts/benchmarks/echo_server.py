"""A bare aiohttp echo over loopback, in a process of its own: the least that a request and its answer cost here.

Run as a program it tells its port and serves until its standard input closes.
"""

import asyncio
import sys

import uvloop
from aiohttp import web


async def _echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def _serve() -> None:
    application = web.Application()
    application.add_routes([web.post("/", _echo)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as served:
        served.run(_serve())
