"""Answers of an upstream server with bytes changed at random: a job ends with text or with an error of ours."""

import random
from pathlib import Path

import pytest

from node.worker.errors import WorkerError
from tests.worker.test_upstream import selling
from tests.worker.upstream_server import Asked, Connection, prompt_counted

STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'37\r\ndata: {"choices":[{"text":"Hi","finish_reason":"stop"}]}\n\r\n1\r\n\n\r\n0\r\n\r\n'
)
COUNT = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\r\n"
    b'{"usage":{"prompt_tokens":5},"a":[]}'
)
ERROR = (
    b"HTTP/1.1 400 Bad\r\nContent-Type: application/json; charset=x\r\nContent-Length: 30\r\nSet-Cookie: a=b\r\n\r\n"
    b'{"error":{"message":"no room"}}'
)
GRAFTS = (
    b"\r\n", b"\0", b"\xff\xfe", b"Content-Encoding: br\r\n", b"Transfer-Encoding: chunked\r\n", b"Location: x\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"99999999999999999999", b"Content-Length: -1\r\n",
)  # fmt: skip
CASES = 60
SEEDS = [1, pytest.param(range(2, 40), marks=pytest.mark.long)]


def changed(dice: random.Random, content: bytes) -> bytes:
    """A few bytes overwritten, cut, doubled or put in between; sometimes none."""
    out = bytearray(content)
    for _ in range(dice.randrange(6)):
        at = dice.randrange(len(out))
        match dice.randrange(4):
            case 0:
                out[at] = dice.randrange(256)
            case 1:
                del out[at : at + dice.randrange(1, 20)]
            case 2:
                out[at:at] = out[at : at + dice.randrange(1, 40)]
            case _:
                out[at:at] = dice.choice(GRAFTS)
    return bytes(out)


@pytest.mark.parametrize("seeds", SEEDS)
async def test_any_answer_ends_a_job_with_text_or_an_error_of_ours(tmp_path: Path, seeds: int | range) -> None:
    answers = {True: b"", False: b""}

    async def answer(asked: Asked, connection: Connection) -> None:
        if asked.method == "GET":
            return await prompt_counted(asked, connection)
        await connection.raw(answers[bool(asked.body["stream"])])
        return connection.writer.close()

    ended = {"text": 0, "error": 0}
    async with selling(tmp_path, answer, answer) as shop:
        for seed in [seeds] if isinstance(seeds, int) else seeds:
            dice = random.Random(seed)
            for _ in range(CASES):
                answers[False] = changed(dice, dice.choice([COUNT, COUNT, ERROR])) if dice.random() < 0.5 else COUNT
                answers[True] = changed(dice, dice.choice([STREAM, STREAM, CHUNKED, ERROR]))
                try:
                    await shop.run()
                    ended["text"] += 1
                except WorkerError:
                    ended["error"] += 1
                view = shop.supervisor.view(shop.model)
                assert view is not None
                assert view.slots_free == 2, f"seed {seed}"
                await shop.until("ready")
    assert min(ended.values()) > 0
