"""The runtime's own server with eight slots, in one process, with the worker's settings: what batching should reach.

Run as a program, with the protocol of ``worker_direct``. Its prompts are answered at once, each by a thread.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import xllamacpp

from node.worker.child.llama import BATCH_ROWS, THREADS
from scripts.benchmarks.direct_model import quietly
from scripts.benchmarks.worker_direct import Answer, Ask

SLOTS = 8


def _server(path: str, context: int) -> xllamacpp.Server:
    wanted = xllamacpp.CommonParams()
    wanted.model.path = path
    wanted.n_ctx = context * SLOTS
    wanted.n_parallel = SLOTS
    wanted.n_ubatch = BATCH_ROWS
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = THREADS
    wanted.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    wanted.kv_unified = False
    wanted.cont_batching = True
    wanted.n_gpu_layers = 0
    wanted.warmup = False
    wanted.ui = False
    return xllamacpp.Server(wanted)


def _complete(server: xllamacpp.Server, prompt: str, tokens: int) -> tuple[int, str]:
    asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "cache_prompt": False, "stream": False}
    answer = server.handle_completions(asked)
    return int(answer["usage"]["completion_tokens"]), str(answer["choices"][0]["text"])


def _answer(server: xllamacpp.Server, pool: ThreadPoolExecutor, ask: Ask) -> Answer:
    started, used = time.perf_counter(), time.process_time()
    answers = list(pool.map(lambda prompt: _complete(server, prompt, ask.tokens), ask.prompts))
    seconds = time.perf_counter() - started
    used = time.process_time() - used
    return Answer(seconds, 0.0, used, sum(count for count, _ in answers), answers[0][1])


def main() -> None:
    """Serve until standard input closes."""
    path, context = sys.stdin.readline().split()
    with quietly():
        server = _server(path, int(context))
        print("ready", flush=True)
        with ThreadPoolExecutor(SLOTS) as pool:
            for line in sys.stdin:
                answer = _answer(server, pool, msgspec.json.decode(line, type=Ask))
                print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    main()
