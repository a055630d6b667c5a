"""A control API over a fake node, and a client of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from node.api.server import serve_control
from tests.api.fake_node import FakeNode


@pytest.fixture
def fake() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def session(fake: FakeNode, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    path = tmp_path / "state" / "control.sock"
    async with (
        serve_control(fake, path),
        aiohttp.ClientSession("http://node", connector=aiohttp.UnixConnector(str(path))) as session,
    ):
        yield session
