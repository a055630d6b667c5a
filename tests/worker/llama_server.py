"""A real OpenAI-compatible server in a process of its own: llama.cpp's, out of a registry package.

As a program it takes a model's file, prints its address, and serves until standard input closes.
"""

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL = "smollm2"
START_SECONDS = 30.0


@contextmanager
def llama_server(model: Path) -> Iterator[str]:
    """The address of a running server, such as ``http://127.0.0.1:40123/v1``."""
    command = [sys.executable, "-m", "tests.worker.llama_server", str(model)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], START_SECONDS)[0], "the server did not start"
            yield process.stdout.readline().decode().strip()
        finally:
            process.kill()
            process.wait()


def serve(model: str) -> None:
    """Serve a model until standard input closes."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.model_alias = {MODEL}
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.n_ctx = 1024
    settings.n_parallel = 2
    settings.cpuparams.n_threads = 1
    settings.warmup = False
    server = xllamacpp.Server(settings)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1])
