"""A program that uses a node's control API as a long-running client would: jobs over one session, the rest by HTTP."""

import time
from pathlib import Path

import aiohttp
import msgspec

from node.api.requests import SendBody, WaitBody
from node.cli.session import JobSession
from node.runtime.control import BlockView, JobView, LedgerView, RunEvent, RunRequest, SupplyView

SECONDS_MAX = 120.0


class RequestFailed(Exception):
    """The node refused or failed what a benchmark asked for; figures of such a run mean nothing."""


class Control:
    """One node's control API; an async context manager."""

    def __init__(self, path: Path, connections: int = 1) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(path), limit=connections),
            timeout=aiohttp.ClientTimeout(total=SECONDS_MAX),
        )
        self._jobs = JobSession(path)

    async def __aenter__(self) -> "Control":
        await self._jobs.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._jobs.__aexit__(None, None, None)
        await self._session.close()

    async def run(self, request: RunRequest) -> list[tuple[float, RunEvent]]:
        """Run a job to its end: every event with the time since the request was sent, in seconds."""
        started = time.perf_counter()
        events: list[tuple[float, RunEvent]] = []
        async for event in self._jobs.run(request):
            events.append((time.perf_counter() - started, event))
        if events[-1][1].event != "finished":
            raise RequestFailed(str(events[-1][1]))
        return events

    async def _post(self, path: str, body: WaitBody | SendBody) -> bytes:
        async with self._session.post(f"http://node{path}", data=msgspec.json.encode(body)) as response:
            answer = await response.read()
            if response.status != 200:
                raise RequestFailed(answer.decode())
            return answer

    async def _get(self, path: str) -> bytes:
        async with self._session.get(f"http://node{path}") as response:
            answer = await response.read()
            if response.status != 200:
                raise RequestFailed(answer.decode())
            return answer

    async def settle(self, job: str) -> None:
        """Have a job's receipt anchored in a block."""
        await self._post(f"/v1/jobs/{job}/settle", WaitBody(int(SECONDS_MAX * 1000) - 10_000))

    async def send(self, recipient: str, amount: int) -> None:
        """Pay an account; returns once the node holds the decided block with it."""
        await self._post("/v1/send", SendBody(recipient, amount, int(SECONDS_MAX * 1000) - 10_000))

    async def job(self, job: str) -> JobView:
        """A job with its timeline."""
        return msgspec.json.decode(await self._get(f"/v1/jobs/{job}"), type=JobView)

    async def ledger(self) -> LedgerView:
        """The tip."""
        return msgspec.json.decode(await self._get("/v1/ledger"), type=LedgerView)

    async def block(self, height: int) -> BlockView:
        """One decided block."""
        return msgspec.json.decode(await self._get(f"/v1/blocks/{height}"), type=BlockView)

    async def supply(self) -> SupplyView:
        """Where all the money is."""
        return msgspec.json.decode(await self._get("/v1/supply"), type=SupplyView)
